//! What a threshold search is asked for, and what it finds.

use crate::simd::Cumulative;
use std::ops::Range;

/// Describes a prefix of the ids in the order of falling logits, ties in the order of rising ids.
///
/// It keeps all logits above `threshold`, and of those equal to it the ids up to `last_id`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cutoff {
    pub(crate) threshold: f32,
    pub(crate) last_id: u32,
}

impl Cutoff {
    /// Keeps every id.
    pub(crate) const KEEP_ALL: Self = Self::at_least(f32::NEG_INFINITY);

    /// Returns the cutoff that keeps every logit of at least `threshold`.
    pub(crate) const fn at_least(threshold: f32) -> Self {
        Self { threshold, last_id: u32::MAX }
    }

    /// Returns whether an id with this logit is kept.
    pub(crate) fn keeps(self, logit: f32, id: usize) -> bool {
        logit > self.threshold || (logit == self.threshold && id <= self.last_id as usize)
    }

    /// Returns whichever of the two cutoffs keeps fewer ids.
    pub(crate) fn stricter(self, other: Self) -> Self {
        let other_is_stricter =
            other.threshold > self.threshold || (other.threshold == self.threshold && other.last_id < self.last_id);
        if other_is_stricter { other } else { self }
    }

    /// Returns the ids of a row as two ranges, each with a threshold that keeps the logits at or above it.
    pub(crate) fn ranges(self, vocab_size: usize) -> [(Range<usize>, f32); 2] {
        let middle = (self.last_id as usize).saturating_add(1).min(vocab_size);
        [(0..middle, self.threshold), (middle..vocab_size, self.threshold.next_up())]
    }
}

/// The number of ids or the mass that a prefix must hold.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    Count(usize),
    Mass(f64),
}

impl Target {
    /// Returns the count or mass, and whether it is a count.
    pub(super) fn value(self) -> (f64, bool) {
        match self {
            Self::Count(count) => (count as f64, true),
            Self::Mass(mass) => (mass, false),
        }
    }

    pub(crate) fn is_reached_by(self, cumulative: Cumulative) -> bool {
        match self {
            Self::Count(count) => cumulative.count >= count,
            Self::Mass(mass) => cumulative.mass >= mass,
        }
    }
}

//! What a threshold search is asked for, and what it finds.

use crate::simd::Cumulative;
use std::ops::Range;

/// A prefix of the ids ordered by falling logit, ties by rising id: all logits above `threshold`, and those equal to it up to
/// `last_id`.
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

    /// Splits the ids of a row at `last_id`, so that a plain threshold decides in either range: a logit of at least the range's
    /// threshold is kept.
    pub(crate) fn ranges(self, vocab_size: usize) -> [(Range<usize>, f32); 2] {
        let middle = (self.last_id as usize).saturating_add(1).min(vocab_size);
        [(0..middle, self.threshold), (middle..vocab_size, self.threshold.next_up())]
    }
}

/// How much a prefix must hold.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    Count(usize),
    Mass(f64),
}

impl Target {
    pub(crate) fn is_reached_by(self, cumulative: Cumulative) -> bool {
        match self {
            Self::Count(count) => cumulative.count >= count,
            Self::Mass(mass) => cumulative.mass >= mass,
        }
    }
}

//! What the passes return.

use std::ops::Add;

/// The maximum and minimum of a row, and whether the row is free of NaN and +inf.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Extrema {
    pub(crate) max: f32,
    pub(crate) min: f32,
    pub(crate) valid: bool,
}

/// The number of logits at or above a threshold, and their probability mass: the sum of their weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cumulative {
    pub(crate) count: usize,
    pub(crate) mass: f64,
}

/// A subset of a row's logits with their weights and ids, in id order.
#[derive(Debug, Default)]
pub(crate) struct Candidates<W> {
    pub(crate) logits: Vec<f32>,
    pub(crate) weights: Vec<W>,
    pub(crate) ids: Vec<u32>,
}

impl<W> Candidates<W> {
    /// Removes all candidates and reserves room for `capacity` of them.
    pub(super) fn clear(&mut self, capacity: usize) {
        self.logits.clear();
        self.weights.clear();
        self.ids.clear();
        self.logits.reserve(capacity);
        self.weights.reserve(capacity);
        self.ids.reserve(capacity);
    }

    #[inline(always)]
    pub(super) fn push(&mut self, logit: f32, weight: W, id: u32) {
        self.logits.push(logit);
        self.weights.push(weight);
        self.ids.push(id);
    }
}

/// Returns the sum of the lanes, added as a balanced tree.
#[inline(always)]
pub(super) fn tree_sum<T: Copy + Add<Output = T>, const LANES: usize>(lanes: [T; LANES]) -> T {
    tree_fold(lanes, |a, b| a + b)
}

/// Returns the lanes combined as a balanced tree: first those half the lanes apart.
#[inline(always)]
pub(super) fn tree_fold<T: Copy, const LANES: usize>(mut lanes: [T; LANES], combine: impl Fn(T, T) -> T) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = combine(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

//! Estimates a bracket around the threshold, so that one exact pass usually confirms it.
//!
//! An estimate affects the speed of [`select`](super::select()), never its result.
//!
//! # Source
//! Floyd and Rivest 1975, "Expected time bounds for selection", for bracketing the k-th element by a sample.

use super::cutoff::Target;
use super::select::MAX_SORTED;
use crate::simd::{LANES, approximate_cumulative, moments_below};
use bpe_llama_simd::Backend;

/// Shorter rows are not sampled.
const MIN_SAMPLED_ROW: usize = 4096;
/// Sampled runs of sixteen adjacent ids, spread evenly over the row.
const RUNS: usize = 128;
/// Steps of each search.
const STEPS: u32 = 10;
/// The least fraction of a bracket that a step of [`bracket_from_sums`] removes.
const MIN_STEP: f64 = 1.0 / 8.0;
/// Standard deviations between the estimate and either end of the bracket.
const MARGIN: f32 = 4.0;
/// Sampled logits that must lie above the bracket's lower end.
const MIN_SAMPLED_ABOVE: f32 = 6.0;

/// A sample of a row, in memory that the next row reuses.
#[derive(Debug, Default)]
pub(crate) struct Sample {
    logits: Vec<f32>,
    weights: Vec<f32>,
    /// The row's length divided by the sample's.
    scale: f32,
}

impl Sample {
    /// Draws the sample; returns `false`, and draws none, if the row is short.
    pub(crate) fn draw(&mut self, row: &[f32], weights: &[f32]) -> bool {
        if row.len() < MIN_SAMPLED_ROW {
            return false;
        }
        self.logits.clear();
        self.weights.clear();
        let stride = row.len() / RUNS;
        for run in 0..RUNS {
            let ids = run * stride..run * stride + LANES;
            self.logits.extend_from_slice(&row[ids.clone()]);
            self.weights.extend_from_slice(&weights[ids]);
        }
        self.scale = row.len() as f32 / self.logits.len() as f32;
        true
    }
}

/// Returns a bracket `[low, high)` around the threshold by interpolation search with sums in float32: for short rows.
///
/// The steps end once few logits are inside. `bounds` and `total` are as for [`bracket_from_sample`].
pub(crate) fn bracket_from_sums(
    backend: Backend,
    row: &[f32],
    weights: &[f32],
    target: Target,
    total: f64,
    (lowest, highest): (f32, f32),
) -> (f32, f32) {
    let (target, is_count) = target.value();
    // Each end is a threshold, the count at or above it, and the count or mass that is compared with the target.
    let mut low = (lowest, row.len(), total);
    let mut high = (highest.next_up(), 0, 0.0);
    // The target's position between `high` (0) and `low` (1) if logits were spread evenly. The first step bisects.
    let mut position: f64 = 0.5;
    for _ in 0..STEPS {
        if low.1 - high.1 <= MAX_SORTED {
            break;
        }
        // At twice the target's distance from the nearer end, so that the target likely lies between the two.
        let distance = (2.0 * position.min(1.0 - position)).clamp(MIN_STEP, 0.5);
        let fraction = if position < 0.5 { distance } else { 1.0 - distance };
        let threshold = (f64::from(high.0) - fraction * (f64::from(high.0) - f64::from(low.0))) as f32;
        if !(low.0 < threshold && threshold < high.0) {
            break;
        }
        let (count, mass) = approximate_cumulative(backend, row, weights, threshold);
        let reached = if is_count { count as f64 } else { f64::from(mass) };
        *(if reached >= target { &mut low } else { &mut high }) = (threshold, count, reached);
        position = (target - high.2) / (low.2 - high.2);
    }
    (low.0, high.0)
}

/// Returns a bracket `[low, high)` that likely holds the threshold, estimated from a sample.
///
/// `bounds` are a threshold that reaches the target and the row's maximum; `total` is the row's whole count or mass.
///
/// It estimates the mass *below* a threshold, not above it. All weights below it are small, so the variance of their
/// sum is small, too, even if a few ids hold most of the mass.
pub(crate) fn bracket_from_sample(
    backend: Backend,
    sample: &Sample,
    target: Target,
    total: f64,
    (lowest, highest): (f32, f32),
) -> (f32, f32) {
    let (target, is_count) = target.value();
    let target_below = (total - target) as f32 / sample.scale;
    let size = sample.logits.len() as f32;
    // The count or mass below a threshold in excess of its target, the margin of error of that excess, and the count
    // above.
    let estimate = |threshold: f32| {
        let (sum, squares, count) = moments_below(backend, &sample.logits, &sample.weights, threshold);
        if is_count {
            // The count on either side bounds the variance of a binomial count.
            (count - target_below, MARGIN * (count.min(size - count) + 4.0).sqrt(), size - count)
        } else {
            (sum - target_below, MARGIN * squares.sqrt(), size - count)
        }
    };
    let bisect = |raises_low: &dyn Fn((f32, f32, f32)) -> bool| {
        let (mut low, mut high) = (f64::from(lowest), f64::from(highest));
        for _ in 0..STEPS {
            let middle = f64::midpoint(low, high);
            *(if raises_low(estimate(middle as f32)) { &mut low } else { &mut high }) = middle;
        }
        (low as f32, high as f32)
    };
    // `low` is the highest threshold with too little below it even with the margin; `high` is the lowest with enough.
    // The sample says nothing about thresholds with very few sampled logits above.
    let (low, _) = bisect(&|(excess, margin, above)| excess + margin <= 0.0 && above >= MIN_SAMPLED_ABOVE);
    let (_, high) = bisect(&|(excess, margin, _)| excess - margin < 0.0);
    (low, if high < highest { high } else { f32::INFINITY })
}

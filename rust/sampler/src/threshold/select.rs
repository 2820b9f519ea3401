//! The exact threshold search.
//!
//! Bisection narrows a bracket `[low, high)` of thresholds. Each step is one pass that counts and sums the logits above
//! a threshold. Once few logits are inside the bracket, they are copied out (compacted), and later passes read only the
//! copies. The last dozen are sorted.

use super::cutoff::{Cutoff, Target};
use super::midpoint::midpoint;
use crate::simd::{Candidates, Cumulative, Weight};
use bpe_llama_simd::Backend;
use std::cmp::Ordering;

/// With more logits in the bracket, another pass is faster than sorting.
pub(super) const MAX_SORTED: usize = 12;
/// A pass over fewer logits than this is too fast for compaction to pay off.
const MIN_COMPACTED: usize = 256;
/// The first steps halve the bracket by value; after them, every third step halves the number of floats in it.
const STEPS_BY_VALUE_FOR_MASS: u32 = 9;
/// Fewer than for a mass: a single outlier may stretch the bracket, as logits without weight count, too.
const STEPS_BY_VALUE_FOR_COUNT: u32 = 2;

/// The cutoff found, the mass before the last id that it keeps, and the mass with that id.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Selection {
    pub(crate) cutoff: Cutoff,
    pub(crate) mass_before: f64,
    pub(crate) mass: f64,
}

/// Memory that searches reuse.
#[derive(Debug, Default)]
pub(crate) struct Buffers<W> {
    candidates: Candidates<W>,
    spare: Candidates<W>,
    sorted: Vec<(f32, u32, W)>,
}

/// What to search for, and where.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Search {
    pub(crate) target: Target,
    /// A finite threshold that reaches the target, and the row's maximum.
    pub(crate) bounds: (f32, f32),
    /// An estimate of a bracket around the threshold; a wrong one costs one pass.
    pub(crate) bracket: (f32, f32),
}

/// Returns the shortest prefix of a row that reaches the target.
///
/// # Cost
/// A few passes over the row, each a comparison and an addition per logit; then passes over ever fewer logits.
pub(crate) fn select<W: Weight>(
    backend: Backend,
    row: &[f32],
    weights: &[W],
    search: Search,
    buffers: &mut Buffers<W>,
) -> Selection {
    let Search { target, bounds: (lowest, highest), bracket } = search;
    let Buffers { candidates, spare, sorted } = buffers;
    // Invariant: `low` reaches the target, `high` does not.
    let mut low = lowest;
    let mut high = highest.next_up();
    let mut above = Cumulative { count: 0, mass: 0.0 };
    let mut count_at_low = row.len();
    // Whether the candidates include all logits in the bracket; if so, `base` is the count and mass above the
    // candidates.
    let mut compacted = false;
    let mut base = above;
    let (bracket_low, bracket_high) = (bracket.0, bracket.1.min(high));
    let at_high = W::collect_bracket(backend, row, weights, None, (bracket_low, bracket_high), candidates);
    if target.is_reached_by(at_high) {
        (low, count_at_low) = (bracket_high, at_high.count);
    } else {
        (high, above) = (bracket_high, at_high);
        let mass = at_high.mass + sum(&candidates.weights);
        let at_low = Cumulative { count: at_high.count + candidates.ids.len(), mass };
        if target.is_reached_by(at_low) {
            (low, count_at_low, base, compacted) = (bracket_low, at_low.count, at_high, true);
        } else {
            (high, above) = (bracket_low, at_low);
        }
    }
    let steps_by_value =
        if matches!(target, Target::Mass(_)) { STEPS_BY_VALUE_FOR_MASS } else { STEPS_BY_VALUE_FOR_COUNT };
    let mut step = 0;
    while count_at_low - above.count > MAX_SORTED {
        let Some(middle) = midpoint(low, high, step < steps_by_value || step % 3 < 2) else { break };
        step += 1;
        let (searched, part) = if compacted {
            (candidates.logits.len(), W::cumulative(backend, &candidates.logits, &candidates.weights, middle))
        } else {
            (row.len(), W::cumulative(backend, row, weights, middle))
        };
        let at_middle = Cumulative { count: base.count + part.count, mass: base.mass + part.mass };
        if target.is_reached_by(at_middle) {
            (low, count_at_low) = (middle, at_middle.count);
        } else {
            (high, above) = (middle, at_middle);
        }
        if searched > MIN_COMPACTED && (count_at_low - above.count) * if compacted { 4 } else { 2 } < searched {
            compact(backend, row, weights, (low, high), compacted, candidates, spare);
            (base, compacted) = (above, true);
        }
    }
    compact(backend, row, weights, (low, high), compacted, candidates, spare);
    sorted.clear();
    let pairs = candidates.logits.iter().zip(&candidates.ids);
    sorted.extend(pairs.zip(&candidates.weights).map(|((&logit, &id), &weight)| (logit, id, weight)));
    // If no float lies between the two thresholds, all logits are equal and already in id order.
    if low.next_up() < high {
        // `total_cmp` would tell -0.0 from 0.0.
        sorted.sort_unstable_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then(a.1.cmp(&b.1)));
    }
    scan(sorted, target, above, low)
}

/// Returns the sum of the weights, in lanes that do not wait for each other's additions.
fn sum<W: Weight>(weights: &[W]) -> f64 {
    let mut lanes = [0.0; 8];
    let (chunks, tail) = weights.as_chunks::<8>();
    for chunk in chunks {
        for (lane, &weight) in lanes.iter_mut().zip(chunk) {
            *lane += weight.into();
        }
    }
    tail.iter().fold(lanes.iter().sum(), |sum, &weight| sum + weight.into())
}

/// Reduces the candidates to those in the bracket, or collects them from the row if there are none yet.
fn compact<W: Weight>(
    backend: Backend,
    row: &[f32],
    weights: &[W],
    bracket: (f32, f32),
    compacted: bool,
    candidates: &mut Candidates<W>,
    spare: &mut Candidates<W>,
) {
    if compacted {
        W::collect_bracket(backend, &candidates.logits, &candidates.weights, Some(&candidates.ids), bracket, spare);
        std::mem::swap(candidates, spare);
    } else {
        W::collect_bracket(backend, row, weights, None, bracket, candidates);
    }
}

/// Extends the prefix counted in `above` by sorted ids until it reaches the target.
fn scan<W: Weight>(sorted: &[(f32, u32, W)], target: Target, above: Cumulative, low: f32) -> Selection {
    let mut selection = Selection { cutoff: Cutoff::at_least(low), mass_before: above.mass, mass: above.mass };
    let mut cumulative = above;
    for &(logit, id, weight) in sorted {
        let mass_before = cumulative.mass;
        cumulative = Cumulative { count: cumulative.count + 1, mass: mass_before + weight.into() };
        selection = Selection { cutoff: Cutoff { threshold: logit, last_id: id }, mass_before, mass: cumulative.mass };
        if target.is_reached_by(cumulative) {
            break;
        }
    }
    selection
}

//! Where to cut a row: the shortest prefix, in order of falling logits, that holds k ids or a given mass.
//!
//! The row is not sorted. A bracket of two thresholds around the cut is narrowed, each time by one pass that counts and
//! weighs what lies above a threshold; as soon as few logits remain inside, they are moved together and searched alone,
//! and the last handful is ordered.

use super::kernels::{Candidates, Measure, Weight};
use bpe_llama_simd::Backend;
use std::cmp::Ordering;

/// Brackets that hold at most this many logits are ordered; beyond, one more pass is cheaper.
pub(crate) const FEW: usize = 12;
/// So many logits are passed over about as fast as a quarter of them.
const SEARCHED: usize = 256;

/// A prefix in the order (higher logit first, then lower id): all above `value`, and its equals up to id `last`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cut {
    pub(crate) value: f32,
    pub(crate) last: u32,
}

impl Cut {
    /// The prefix that leaves nothing out.
    pub(crate) const NONE: Self = Self::at_least(f32::NEG_INFINITY);

    /// Returns the prefix of all logits at least `value`.
    pub(crate) const fn at_least(value: f32) -> Self {
        Self { value, last: u32::MAX }
    }

    /// Returns whether the prefix holds this logit.
    pub(crate) fn keeps(self, logit: f32, id: usize) -> bool {
        logit > self.value || (logit == self.value && id <= self.last as usize)
    }

    /// Returns the shorter of two prefixes.
    pub(crate) fn shorter(self, other: Self) -> Self {
        if other.value > self.value || (other.value == self.value && other.last < self.last) { other } else { self }
    }

    /// Returns the row in two parts, each with the threshold at and above which it is kept.
    pub(crate) fn parts(self, length: usize) -> [(std::ops::Range<usize>, f32); 2] {
        let middle = (self.last as usize).saturating_add(1).min(length);
        [(0..middle, self.value), (middle..length, self.value.next_up())]
    }
}

/// What the prefix must hold.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    Count(usize),
    Mass(f64),
}

impl Goal {
    fn reached(self, measure: Measure) -> bool {
        match self {
            Self::Count(count) => measure.count >= count,
            Self::Mass(mass) => measure.mass >= mass,
        }
    }
}

/// A cut, the mass before its last member, and with it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub(crate) cut: Cut,
    pub(crate) before: f64,
    pub(crate) with: f64,
}

/// Memory that a search uses again and again.
#[derive(Debug, Default)]
pub(crate) struct Buffers<W> {
    candidates: Candidates<W>,
    spare: Candidates<W>,
    ordered: Vec<(f32, u32, W)>,
}

/// What to look for, and where.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Search {
    pub(crate) goal: Goal,
    /// A finite threshold whose measure reaches the goal, and the row's maximum.
    pub(crate) range: (f32, f32),
    /// A bracket that may hold the cut: a good one saves passes, a wrong one costs one.
    pub(crate) guess: (f32, f32),
}

/// Returns the shortest prefix of a row that reaches the goal.
///
/// # Cost
/// A few passes over the row, each of a comparison and an addition a logit; then over ever fewer logits.
pub(crate) fn select<W: Weight>(
    backend: Backend,
    row: &[f32],
    weights: &[W],
    search: Search,
    buffers: &mut Buffers<W>,
) -> Found {
    let Search { goal, range: (lowest, highest), guess } = search;
    let Buffers { candidates, spare, ordered } = buffers;
    let mut low = lowest;
    let mut high = highest.next_up();
    let mut above = Measure { count: 0, mass: 0.0 };
    let mut reaching = row.len();
    // Whether the candidates hold all logits in the bracket, and what lay above them when they were picked.
    let mut picked = false;
    let mut base = above;
    let (guess_low, guess_high) = (guess.0, guess.1.min(high));
    let over = W::split(backend, row, weights, None, (guess_low, guess_high), candidates);
    if goal.reached(over) {
        (low, reaching) = (guess_high, over.count);
    } else {
        (high, above) = (guess_high, over);
        let with = candidates.weights.iter().fold(over.mass, |mass, weight| mass + weight.wide());
        let with = Measure { count: over.count + candidates.ids.len(), mass: with };
        if goal.reached(with) {
            (low, reaching, base, picked) = (guess_low, with.count, over, true);
        } else {
            (high, above) = (guess_low, with);
        }
    }
    // A mass is looked for in a range of some temperatures, a count in one that a single far logit may widen.
    let by_value = if matches!(goal, Goal::Mass(_)) { 9 } else { 2 };
    let mut round = 0;
    while reaching - above.count > FEW {
        let Some(middle) = midpoint(low, high, round < by_value || round % 3 < 2) else { break };
        round += 1;
        let (logits, part) = if picked {
            (candidates.logits.len(), W::measure(backend, &candidates.logits, &candidates.weights, middle))
        } else {
            (row.len(), W::measure(backend, row, weights, middle))
        };
        let part = Measure { count: base.count + part.count, mass: base.mass + part.mass };
        if goal.reached(part) {
            (low, reaching) = (middle, part.count);
        } else {
            (high, above) = (middle, part);
        }
        if logits > SEARCHED && (reaching - above.count) * if picked { 4 } else { 2 } < logits {
            pick(backend, row, weights, (low, high), picked, candidates, spare);
            (base, picked) = (above, true);
        }
    }
    pick(backend, row, weights, (low, high), picked, candidates, spare);
    ordered.clear();
    let pairs = candidates.logits.iter().zip(&candidates.ids);
    ordered.extend(pairs.zip(&candidates.weights).map(|((&logit, &id), &weight)| (logit, id, weight)));
    // Where no float lies between the thresholds all are equal, and already in id order.
    if low.next_up() < high {
        // Not `total_cmp`, to which the two zeros differ.
        ordered.sort_unstable_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then(a.1.cmp(&b.1)));
    }
    walk(ordered, goal, above, low)
}

/// Makes the candidates those in the bracket: of the candidates so far, or of the row.
fn pick<W: Weight>(
    backend: Backend,
    row: &[f32],
    weights: &[W],
    range: (f32, f32),
    picked: bool,
    candidates: &mut Candidates<W>,
    spare: &mut Candidates<W>,
) {
    if picked {
        W::split(backend, &candidates.logits, &candidates.weights, Some(&candidates.ids), range, spare);
        std::mem::swap(candidates, spare);
    } else {
        W::split(backend, row, weights, None, range, candidates);
    }
}

/// Returns where the goal is reached among the ordered logits that follow those measured by `above`.
fn walk<W: Weight>(ordered: &[(f32, u32, W)], goal: Goal, above: Measure, low: f32) -> Found {
    let mut found = Found { cut: Cut::at_least(low), before: above.mass, with: above.mass };
    let mut seen = above;
    for &(logit, id, weight) in ordered {
        let before = seen.mass;
        seen = Measure { count: seen.count + 1, mass: before + weight.wide() };
        found = Found { cut: Cut { value: logit, last: id }, before, with: seen.mass };
        if goal.reached(seen) {
            break;
        }
    }
    found
}

/// Returns a float strictly between two others, if there is one: halfway by value, or halfway among the floats, which now
/// and then makes the search end however the logits are spread.
fn midpoint(low: f32, high: f32, by_value: bool) -> Option<f32> {
    if by_value {
        let middle = (f64::midpoint(f64::from(low), f64::from(high))) as f32;
        if low < middle && middle < high {
            return Some(middle);
        }
    }
    let middle = from_order(i32::midpoint(to_order(low), to_order(high)));
    (low < middle && middle < high).then_some(middle)
}

/// Returns the place of a float in the order of all floats.
fn to_order(value: f32) -> i32 {
    let bits = value.to_bits() as i32;
    bits ^ ((bits >> 31) as u32 >> 1) as i32
}

fn from_order(order: i32) -> f32 {
    f32::from_bits((order ^ ((order >> 31) as u32 >> 1) as i32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_floats_is_kept_both_ways() {
        let values = [f32::MIN, -1.0, -f32::MIN_POSITIVE, -0.0, 0.0, 1e-45, 1.0, f32::MAX];
        for pair in values.windows(2) {
            assert!(to_order(pair[0]) < to_order(pair[1]));
        }
        for value in values {
            assert_eq!(from_order(to_order(value)).to_bits(), value.to_bits());
        }
    }

    #[test]
    fn halving_ends_for_any_bracket() {
        for (low, high) in [(f32::MIN, f32::MAX), (-0.0, 1.0), (-1.0, 0.0), (1.0, 1.0f32.next_up()), (-1e-45, 1e-45)] {
            for up in [false, true] {
                let (mut low, mut high) = (low, high);
                let mut round = 0;
                while let Some(middle) = midpoint(low, high, round % 3 < 2) {
                    *(if up { &mut low } else { &mut high }) = middle;
                    round += 1;
                    assert!(round < 120, "{low} {high}");
                }
            }
        }
    }
}

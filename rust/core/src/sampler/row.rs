//! One row: penalties, filters, the draw.

use super::estimate::{Sample, guess};
use super::exponential::{RELATIVE_ERROR, Scale, exp64};
use super::kernels::{Extent, Tier, Weight, extent, measure, weigh, weigh64};
use super::penalties::penalise;
use super::select::{Buffers, Cut, Found, Goal, select};
use super::{Options, Rows};
use crate::{Error, Result};

/// Ids whose weights are summed together when the draw looks for its place.
const BLOCK: usize = 1024;

/// A mass this close below p reaches it: p was a decimal fraction, and the mass a sum, before either was rounded.
const REACHED: f64 = 1.0 - 1.0 / (1u64 << 50) as f64;

/// Memory for one row, used again for the next.
#[derive(Debug)]
pub(super) struct Scratch {
    tier: Tier,
    logits: Vec<f32>,
    counts: Vec<u32>,
    weights: Vec<f32>,
    weights64: Vec<f64>,
    sample: Sample,
    buffers: Buffers<f32>,
    buffers64: Buffers<f64>,
}

impl Scratch {
    pub(super) fn new(tier: Tier) -> Self {
        Self {
            tier,
            logits: Vec::new(),
            counts: Vec::new(),
            weights: Vec::new(),
            weights64: Vec::new(),
            sample: Sample::default(),
            buffers: Buffers::default(),
            buffers64: Buffers::default(),
        }
    }
}

/// Returns the id that `uniform` draws from one row.
pub(super) fn sample_row(
    rows: &Rows<'_>,
    row_index: usize,
    history: Option<&[i64]>,
    options: &Options,
    uniform: f64,
    scratch: &mut Scratch,
) -> Result<u32> {
    with_scores(rows, row_index, history, options, scratch, |row, extent, scratch| {
        if options.temperature == 0.0 {
            return first_of(row, extent.highest);
        }
        let (cut, mass) = filter(row, extent, options, scratch);
        draw(row, &scratch.weights[..row.len()], cut, mass, uniform, scratch.tier)
    })
}

/// Writes the distribution that [`sample_row`] draws from.
pub(super) fn row_probs(
    rows: &Rows<'_>,
    row_index: usize,
    history: Option<&[i64]>,
    options: &Options,
    scratch: &mut Scratch,
    probs: &mut [f64],
) -> Result<()> {
    with_scores(rows, row_index, history, options, scratch, |row, extent, scratch| {
        if options.temperature == 0.0 {
            probs.fill(0.0);
            probs[first_of(row, extent.highest) as usize] = 1.0;
            return;
        }
        let (cut, _) = filter(row, extent, options, scratch);
        let mut mass = 0.0;
        for (id, (&logit, prob)) in row.iter().zip(probs.iter_mut()).enumerate() {
            *prob = if cut.keeps(logit, id) { weight64(logit, extent, options) } else { 0.0 };
            mass += *prob;
        }
        for prob in probs {
            *prob /= mass;
        }
    })
}

/// Calls `act` with the row as penalised float32, its extent, and the rest of the scratch.
fn with_scores<T>(
    rows: &Rows<'_>,
    row_index: usize,
    history: Option<&[i64]>,
    options: &Options,
    scratch: &mut Scratch,
    act: impl FnOnce(&[f32], Extent, &mut Scratch) -> T,
) -> Result<T> {
    let history = history.filter(|_| options.penalises());
    // Taken out, so that the row and the rest of the scratch can be lent together.
    let mut copy = std::mem::take(&mut scratch.logits);
    let result = match rows.borrow(row_index) {
        Some(row) if history.is_none() => checked_extent(row, row_index, scratch.tier).map(|e| act(row, e, scratch)),
        _ => {
            rows.widen(row_index, &mut copy);
            history
                .map_or(Ok(()), |history| penalise(&mut copy, history, options, &mut scratch.counts, row_index))
                .and_then(|()| checked_extent(&copy, row_index, scratch.tier))
                .map(|extent| act(&copy, extent, scratch))
        }
    };
    scratch.logits = copy;
    result
}

/// Returns the extent of a row that can be drawn from.
///
/// # Errors
/// [`Error::InvalidArgument`] naming the row and the first NaN or +inf in it, or a row of -inf.
fn checked_extent(row: &[f32], row_index: usize, tier: Tier) -> Result<Extent> {
    let extent = extent(tier, row);
    if !extent.valid {
        let bad = row.iter().enumerate().find(|(_, value)| value.is_nan() || **value == f32::INFINITY);
        if let Some((index, value)) = bad {
            return Err(Error::InvalidArgument(format!(
                "row {row_index}: logit {index} is {value}; expected a finite number or -inf"
            )));
        }
    }
    if extent.highest == f32::NEG_INFINITY {
        return Err(Error::InvalidArgument(format!(
            "row {row_index}: every logit is -inf; at least one must be finite"
        )));
    }
    Ok(extent)
}

/// Returns the lowest id whose logit is `highest`.
fn first_of(row: &[f32], highest: f32) -> u32 {
    row.iter().position(|&logit| logit == highest).unwrap_or(0) as u32
}

/// Returns what the filters keep of a row and its float32 mass; leaves the weights in the scratch.
fn filter(row: &[f32], extent: Extent, options: &Options, scratch: &mut Scratch) -> (Cut, f64) {
    let tier = scratch.tier;
    let scale = Scale::new(extent.highest, options.temperature);
    if scratch.weights.len() < row.len() {
        scratch.weights.resize(row.len(), 0.0);
    }
    let weights = &mut scratch.weights[..row.len()];
    let total = weigh(tier, row, &scale, weights);
    let mut cut = Cut::NONE;
    let mut mass = total;
    let counts_cut = 0 < options.top_k && options.top_k < row.len();
    let sampled = (counts_cut || options.top_p < 1.0) && scratch.sample.draw(row, weights);
    let sample = &scratch.sample;
    if counts_cut {
        let range = (extent.lowest.max(f32::MIN), extent.highest);
        let finite = if extent.lowest < range.0 { measure(tier, row, weights, range.0).count } else { row.len() };
        // With fewer finite logits than k, all of them stay.
        if finite >= options.top_k {
            let goal = Goal::Count(options.top_k);
            let guess = sampled.then(|| guess(tier, sample, goal, row.len() as f64, range));
            let found = select(tier, row, weights, goal, range, guess, &mut scratch.buffers);
            (cut, mass) = (found.cut, found.with);
        }
    }
    if options.top_p < 1.0 {
        let target = REACHED * options.top_p * mass;
        let goal = Goal::Mass(target);
        let range = (weightless_below(extent, options.temperature, 88.0), extent.highest);
        let guess = sampled.then(|| guess(tier, sample, goal, total, range));
        let found = select(tier, row, weights, goal, range, guess, &mut scratch.buffers);
        if certain(found, target, total) {
            (cut, mass) = (found.cut, found.with);
        } else {
            cut = exact_top_p(row, extent, options, cut, found.cut, scratch);
            mass = kept_mass(row, &scratch.weights[..row.len()], cut, tier);
        }
    }
    if options.min_p > 0.0 {
        let shorter = cut.shorter(min_p_cut(extent.highest, options));
        if shorter != cut {
            cut = shorter;
            mass = kept_mass(row, &scratch.weights[..row.len()], cut, tier);
        }
    }
    (cut, mass)
}

/// Returns whether rounding of the float32 weights cannot have moved the cut.
fn certain(found: Found, target: f64, total: f64) -> bool {
    let doubt = 2.0 * RELATIVE_ERROR * total;
    found.before + doubt < target && target + doubt < found.with
}

/// Returns the top-p cut as float64 weights decide it; float32 ones put it `near`.
fn exact_top_p(row: &[f32], extent: Extent, options: &Options, top_k: Cut, near: Cut, scratch: &mut Scratch) -> Cut {
    let tier = scratch.tier;
    if scratch.weights64.len() < row.len() {
        scratch.weights64.resize(row.len(), 0.0);
    }
    let weights = &mut scratch.weights64[..row.len()];
    let total = weigh64(tier, row, extent.highest, options.temperature, weights);
    let mass = if top_k == Cut::NONE { total } else { kept_mass(row, weights, top_k, tier) };
    let goal = Goal::Mass(REACHED * options.top_p * mass);
    let range = (weightless_below(extent, options.temperature, 746.0), extent.highest);
    let aside = (options.temperature * 1e-4) as f32;
    let guess = Some((near.value - aside, (near.value + aside).next_up()));
    select(tier, row, weights, goal, range, guess, &mut scratch.buffers64).cut
}

/// Returns a finite logit below which nothing has weight.
fn weightless_below(extent: Extent, temperature: f64, depth: f64) -> f32 {
    let bottom = (f64::from(extent.highest) - depth * temperature).max(f64::from(f32::MIN)) as f32;
    extent.lowest.max(bottom.next_down().max(f32::MIN))
}

/// Returns the prefix of logits whose probability is at least `min_p` times the highest.
fn min_p_cut(highest: f32, options: &Options) -> Cut {
    let threshold = f64::from(highest) + options.temperature * options.min_p.ln();
    let rounded = threshold as f32;
    let value = if f64::from(rounded) < threshold { rounded.next_up() } else { rounded };
    Cut { value, last: u32::MAX }
}

fn weight64(logit: f32, extent: Extent, options: &Options) -> f64 {
    exp64((f64::from(logit) - f64::from(extent.highest)) / options.temperature)
}

/// Returns the weight of what a cut keeps.
fn kept_mass<W: Weight>(row: &[f32], weights: &[W], cut: Cut, tier: Tier) -> f64 {
    let parts =
        cut.parts(row.len()).map(|(ids, threshold)| W::measure(tier, &row[ids.clone()], &weights[ids], threshold));
    parts[0].mass + parts[1].mass
}

/// Returns the first id, in id order, at which the mass of what is kept exceeds `uniform` times all of it.
fn draw(row: &[f32], weights: &[f32], cut: Cut, mass: f64, uniform: f64, tier: Tier) -> u32 {
    // The product may round up to the mass itself, which nothing exceeds.
    let target = (uniform * mass).min(mass.next_down());
    let mut passed = 0.0;
    let mut last = 0..0;
    let mut threshold = cut.value;
    for (ids, part_threshold) in cut.parts(row.len()) {
        for start in ids.clone().step_by(BLOCK) {
            let block = start..(start + BLOCK).min(ids.end);
            let part = measure(tier, &row[block.clone()], &weights[block.clone()], part_threshold).mass;
            if part > 0.0 {
                last = block.clone();
                threshold = part_threshold;
                if passed + part > target {
                    return place(row, weights, block, threshold, target - passed);
                }
            }
            passed += part;
        }
    }
    // The blocks' sums round otherwise than the whole's did: the last one holds the target.
    place(row, weights, last, threshold, f64::INFINITY)
}

/// Returns the first id of a block at which the kept mass exceeds `target`, or the last one kept.
fn place(row: &[f32], weights: &[f32], block: std::ops::Range<usize>, threshold: f32, target: f64) -> u32 {
    let mut passed = 0.0;
    let mut last = block.start;
    for id in block {
        if row[id] >= threshold && weights[id] > 0.0 {
            passed += f64::from(weights[id]);
            last = id;
            if passed > target {
                break;
            }
        }
    }
    last as u32
}

//! One row: penalties, filters, the draw.

use super::estimate::Sample;
use super::filters::filter;
use super::kernels::{Extent, extent, measure};
use super::penalties::{adjust, check_history, penalise};
use super::select::{Buffers, Cut};
use super::{Options, Rows};
use crate::{Error, Result};
use bpe_llama_simd::Backend;
use bpe_llama_simd::exp::exp64;

/// Ids whose weights are summed together when the draw looks for its place; within a block, in smaller ones.
const BLOCK: usize = 1024;
const SMALL_BLOCK: usize = 64;

/// Memory for one row, used again for the next.
#[derive(Debug)]
pub(crate) struct Scratch {
    pub(crate) backend: Backend,
    logits: Vec<f32>,
    counts: Vec<u32>,
    pub(crate) weights: Vec<f32>,
    pub(crate) weights64: Vec<f64>,
    pub(crate) sample: Sample,
    pub(crate) buffers: Buffers<f32>,
    pub(crate) buffers64: Buffers<f64>,
    /// Ids that a filter which cuts no prefix has dropped; their weights are 0.
    pub(crate) dropped: Vec<u32>,
}

impl Scratch {
    pub(crate) fn new(backend: Backend) -> Self {
        Self {
            backend,
            logits: Vec::new(),
            counts: Vec::new(),
            weights: Vec::new(),
            weights64: Vec::new(),
            sample: Sample::default(),
            buffers: Buffers::default(),
            buffers64: Buffers::default(),
            dropped: Vec::new(),
        }
    }
}

/// Returns the id that `uniform` draws from one row.
pub(crate) fn sample_row(
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
        draw(row, &scratch.weights[..row.len()], cut, mass, uniform, scratch.backend)
    })
}

/// Writes the distribution that [`sample_row`] draws from.
pub(crate) fn row_probs(
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
        for (id, (&logit, prob)) in row.iter().zip(probs.iter_mut()).enumerate() {
            let z = (f64::from(logit) - f64::from(extent.highest)) / options.temperature;
            *prob = if cut.keeps(logit, id) { exp64(z) } else { 0.0 };
        }
        for &id in &scratch.dropped {
            probs[id as usize] = 0.0;
        }
        let mass: f64 = probs.iter().sum();
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
    let history = history.unwrap_or_default();
    check_history(history, rows.vocab_size(), row_index)?;
    let penalised = !history.is_empty() && options.penalises();
    // Taken out, so that the row and the rest of the scratch can be lent together.
    let mut copy = std::mem::take(&mut scratch.logits);
    let result = match rows.borrow(row_index) {
        Some(row) if !penalised && !options.adjusts() => {
            checked_extent(row, row_index, scratch.backend, "").map(|extent| act(row, extent, scratch))
        }
        _ => {
            rows.widen(row_index, &mut copy);
            adjust(&mut copy, options, row_index)
                .and_then(|()| {
                    if penalised {
                        penalise(&mut copy, history, options, &mut scratch.counts);
                    }
                    checked_extent(&copy, row_index, scratch.backend, " after biases, bans and penalties")
                })
                .map(|extent| act(&copy, extent, scratch))
        }
    };
    scratch.logits = copy;
    result
}

/// Returns the extent of a row that can be drawn from; `when` says to an error what was done to the row before.
///
/// # Errors
/// [`Error::InvalidArgument`] naming the row and the first NaN or +inf in it, or a row of -inf.
pub(crate) fn checked_extent(row: &[f32], row_index: usize, backend: Backend, when: &str) -> Result<Extent> {
    let extent = extent(backend, row);
    if !extent.valid {
        let bad = row.iter().enumerate().find(|(_, value)| value.is_nan() || **value == f32::INFINITY);
        if let Some((index, value)) = bad {
            return Err(Error::InvalidArgument(format!(
                "row {row_index}: logit {index} is {value}{when}; expected a finite number or -inf"
            )));
        }
    }
    if extent.highest == f32::NEG_INFINITY {
        return Err(Error::InvalidArgument(format!(
            "row {row_index}: every logit is -inf{when}; at least one must be finite"
        )));
    }
    Ok(extent)
}

/// Returns the lowest id whose logit is `highest`.
fn first_of(row: &[f32], highest: f32) -> u32 {
    row.iter().position(|&logit| logit == highest).unwrap_or(0) as u32
}

/// Returns the first id, in id order, at which the mass of what is kept exceeds `uniform` times all of it.
fn draw(row: &[f32], weights: &[f32], cut: Cut, mass: f64, uniform: f64, backend: Backend) -> u32 {
    // The product may round up to the mass itself, which nothing exceeds.
    let target = (uniform * mass).min(mass.next_down());
    let mut passed = 0.0;
    let mut last = (0..0, cut.value);
    let size = if row.len() <= 2 * BLOCK { 2 * SMALL_BLOCK } else { BLOCK };
    for (ids, threshold) in cut.parts(row.len()) {
        for start in ids.clone().step_by(size) {
            let block = start..(start + size).min(ids.end);
            let mut found = block.end == row.len();
            if !found {
                let part = measure(backend, &row[block.clone()], &weights[block.clone()], threshold).mass;
                found = passed + part > target;
                if !found {
                    passed += part;
                    if part > 0.0 {
                        last = (block.clone(), threshold);
                    }
                }
            }
            if found && let Some(id) = place(row, weights, block, threshold, target - passed, backend) {
                return id;
            }
        }
    }
    // The blocks' sums round otherwise than the whole's did: the last one that keeps any holds the target.
    place(row, weights, last.0, last.1, f64::INFINITY, backend).unwrap_or(0)
}

/// Returns the first id of a block at which the kept mass exceeds `target`, or the last one kept; none if none is kept.
fn place(
    row: &[f32],
    weights: &[f32],
    block: std::ops::Range<usize>,
    threshold: f32,
    target: f64,
    backend: Backend,
) -> Option<u32> {
    let kept = |id: &usize| row[*id] >= threshold && weights[*id] > 0.0;
    let mut passed = 0.0;
    for start in block.clone().step_by(SMALL_BLOCK) {
        let ids = start..(start + SMALL_BLOCK).min(block.end);
        if ids.end < block.end {
            let part = measure(backend, &row[ids.clone()], &weights[ids.clone()], threshold).mass;
            if passed + part <= target {
                passed += part;
                continue;
            }
        }
        for id in ids {
            // Adding nothing rather than branching: half a flat row is kept, at random.
            passed += if row[id] >= threshold { f64::from(weights[id]) } else { 0.0 };
            if passed > target {
                return Some(id as u32);
            }
        }
    }
    // Rounding left the target beyond the last one kept.
    block.rev().find(kept).map(|id| id as u32)
}

//! One row: adjust the logits, filter, draw.

use crate::error::Result;
use crate::filters::apply_filters;
use crate::logits::LogitsView;
use crate::options::Options;
use crate::penalties::{apply_bias_and_bans, apply_penalties, check_history};
use crate::scratch::Scratch;
use crate::simd::{Extrema, cumulative};
use crate::threshold::Cutoff;
use bpe_llama_simd::Backend;
use bpe_llama_simd::exp::exp64;
use std::ops::Range;

/// The draw skips blocks of this size by their mass, then small blocks, then single ids.
const BLOCK: usize = 1024;
const SMALL_BLOCK: usize = 64;

/// Returns the id that the random number `uniform` draws from one row.
pub(crate) fn sample_row(
    logits: &LogitsView<'_>,
    row_index: usize,
    history: Option<&[i64]>,
    options: &Options,
    uniform: f64,
    scratch: &mut Scratch,
) -> Result<u32> {
    with_adjusted_row(logits, row_index, history, options, scratch, |row, extrema, scratch| {
        if options.temperature == 0.0 {
            return argmax(row, extrema.max);
        }
        let (cutoff, mass, _) = apply_filters(row, extrema, options, scratch);
        draw(row, &scratch.weights[..row.len()], cutoff, mass, uniform, scratch.backend)
    })
}

/// Writes the probabilities that [`sample_row`] draws with.
pub(crate) fn row_probs(
    logits: &LogitsView<'_>,
    row_index: usize,
    history: Option<&[i64]>,
    options: &Options,
    scratch: &mut Scratch,
    probs: &mut [f64],
) -> Result<()> {
    with_adjusted_row(logits, row_index, history, options, scratch, |row, extrema, scratch| {
        if options.temperature == 0.0 {
            probs.fill(0.0);
            probs[argmax(row, extrema.max) as usize] = 1.0;
            return;
        }
        let (cutoff, _, max) = apply_filters(row, extrema, options, scratch);
        for (id, (&logit, prob)) in row.iter().zip(probs.iter_mut()).enumerate() {
            let z = (f64::from(logit) - f64::from(max)) / options.temperature;
            *prob = if cutoff.keeps(logit, id) { exp64(z) } else { 0.0 };
        }
        for &id in &scratch.removed {
            probs[id as usize] = 0.0;
        }
        let mass: f64 = probs.iter().sum();
        for prob in probs {
            *prob /= mass;
        }
    })
}

/// Calls `process` with the row in float32 after biases, bans and penalties, its extrema, and the scratch.
fn with_adjusted_row<T>(
    logits: &LogitsView<'_>,
    row_index: usize,
    history: Option<&[i64]>,
    options: &Options,
    scratch: &mut Scratch,
    process: impl FnOnce(&[f32], Extrema, &mut Scratch) -> T,
) -> Result<T> {
    let history = history.unwrap_or_default();
    check_history(history, logits.vocab_size(), row_index)?;
    let penalised = !history.is_empty() && options.has_penalties();
    let is_changed = penalised || options.has_bias_or_bans();
    let backend = scratch.backend;
    // Taken out of the scratch, so that both can be borrowed at once.
    let mut copy = std::mem::take(&mut scratch.logits);
    let result = match logits.contiguous_row(row_index) {
        Some(row) if !is_changed => {
            let extrema = logits.checked_extrema(row_index, row, is_changed, backend);
            extrema.map(|extrema| process(row, extrema, scratch))
        }
        _ => {
            logits.copy_row(row_index, &mut copy);
            apply_bias_and_bans(&mut copy, options, row_index)
                .and_then(|()| {
                    if penalised {
                        apply_penalties(&mut copy, history, options, &mut scratch.counts);
                    }
                    logits.checked_extrema(row_index, &copy, is_changed, backend)
                })
                .map(|extrema| process(&copy, extrema, scratch))
        }
    };
    scratch.logits = copy;
    result
}

/// Returns the lowest id with the maximum logit.
fn argmax(row: &[f32], max: f32) -> u32 {
    row.iter().position(|&logit| logit == max).unwrap_or(0) as u32
}

/// Returns the first id, in id order, at which the cumulative mass of the kept ids exceeds `uniform * mass`.
///
/// This is inverse transform sampling.
fn draw(row: &[f32], weights: &[f32], cutoff: Cutoff, mass: f64, uniform: f64, backend: Backend) -> u32 {
    // The product may round up to `mass`, which no cumulative mass exceeds.
    let target = (uniform * mass).min(mass.next_down());
    let mut passed = 0.0;
    let mut last_with_mass = (0..0, cutoff.threshold);
    let size = if row.len() <= 2 * BLOCK { 2 * SMALL_BLOCK } else { BLOCK };
    for (ids, threshold) in cutoff.ranges(row.len()) {
        for start in ids.clone().step_by(size) {
            let block = start..(start + size).min(ids.end);
            let mut found = block.end == row.len();
            if !found {
                let block_mass = cumulative(backend, &row[block.clone()], &weights[block.clone()], threshold).mass;
                found = passed + block_mass > target;
                if !found {
                    passed += block_mass;
                    if block_mass > 0.0 {
                        last_with_mass = (block.clone(), threshold);
                    }
                }
            }
            if found && let Some(id) = draw_in_block(row, weights, block, threshold, target - passed, backend) {
                return id;
            }
        }
    }
    // The blocks' masses may round to less than `mass`: then the last block with any mass holds the target.
    let (block, threshold) = last_with_mass;
    draw_in_block(row, weights, block, threshold, f64::INFINITY, backend).unwrap_or(0)
}

/// Returns the first id of a block at which the cumulative mass exceeds `target`, else the last kept id, if any.
fn draw_in_block(
    row: &[f32],
    weights: &[f32],
    block: Range<usize>,
    threshold: f32,
    target: f64,
    backend: Backend,
) -> Option<u32> {
    let is_kept = |id: &usize| row[*id] >= threshold && weights[*id] > 0.0;
    let mut passed = 0.0;
    for start in block.clone().step_by(SMALL_BLOCK) {
        let ids = start..(start + SMALL_BLOCK).min(block.end);
        if ids.end < block.end {
            let part = cumulative(backend, &row[ids.clone()], &weights[ids.clone()], threshold).mass;
            if passed + part <= target {
                passed += part;
                continue;
            }
        }
        for id in ids {
            // Adding 0 avoids a branch, which would often be mispredicted.
            passed += if row[id] >= threshold { f64::from(weights[id]) } else { 0.0 };
            if passed > target {
                return Some(id as u32);
            }
        }
    }
    // Rounding put the target beyond the mass of the block.
    block.rev().find(is_kept).map(|id| id as u32)
}

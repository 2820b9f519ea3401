//! Log-probabilities of the logits as the model returned them.

use crate::error::{Result, check_id};
use crate::logits::LogitsView;
use crate::scratch::Scratch;
use crate::threshold::{Search, Target, bracket_from_sums, select};
use bpe_llama_simd::exp::exp64;

/// The natural log-probabilities of one row: of the sampled id and of the most likely ids.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LogProbs {
    /// The log-probability of the sampled id.
    pub sampled: f64,
    /// The most likely ids and their log-probabilities, most likely first, ties by rising id.
    pub top: Vec<(u32, f64)>,
}

/// Returns the log-probability of `id` in one row and the `top_n` most likely ids.
///
/// There are fewer than `top_n` if fewer logits are finite.
pub(crate) fn row_log_probs(
    logits: &LogitsView<'_>,
    row_index: usize,
    id: i64,
    top_n: usize,
    scratch: &mut Scratch,
) -> Result<LogProbs> {
    let mut row = Vec::new();
    logits.copy_row(row_index, &mut row);
    let extrema = logits.checked_extrema(row_index, &row, false, scratch.backend)?;
    let id = check_id(id, row.len(), || format!("row {row_index}: id {id} is"))?;
    let max = f64::from(extrema.max);
    let mass: f64 = row.iter().map(|&logit| exp64(f64::from(logit) - max)).sum();
    let log_prob = |logit: f32| f64::from(logit) - max - mass.ln();
    let finite = row.iter().filter(|logit| **logit > f32::NEG_INFINITY).count();
    let mut top: Vec<(u32, f64)> = Vec::new();
    if top_n > 0 {
        let cutoff = (top_n <= finite).then(|| {
            let bounds = (extrema.min.max(f32::MIN), extrema.max);
            let target = Target::Count(top_n);
            // A count needs no weights, so the logits are passed instead.
            let bracket = bracket_from_sums(scratch.backend, &row, &row, target, row.len() as f64, bounds);
            select(scratch.backend, &row, &row, Search { target, bounds, bracket }, &mut scratch.buffers).cutoff
        });
        let is_top = |id: usize, logit: f32| cutoff.map_or(logit > f32::NEG_INFINITY, |cutoff| cutoff.keeps(logit, id));
        let kept = row.iter().enumerate().filter(|&(id, &logit)| is_top(id, logit));
        top = kept.map(|(id, &logit)| (id as u32, log_prob(logit))).collect();
        top.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        top.truncate(top_n);
    }
    Ok(LogProbs { sampled: log_prob(row[id]), top })
}

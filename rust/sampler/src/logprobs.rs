//! What the model itself thought of an id: log-probabilities of the logits as given.

use super::Rows;
use super::estimate::narrow;
use super::row::{Scratch, checked_extent};
use super::select::{Goal, Search, select};
use crate::{Error, Result};
use bpe_llama_simd::exp::exp64;

/// The log-probability of one id, and the likeliest ids with theirs, likeliest first, equals by rising id.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LogProbs {
    /// The natural logarithm of the drawn id's probability.
    pub chosen: f64,
    /// The likeliest ids and the logarithms of their probabilities.
    pub top: Vec<(u32, f64)>,
}

/// Returns the log-probability of `id` in one row and the `top_n` likeliest ids.
pub(crate) fn row_log_probs(
    rows: &Rows<'_>,
    row_index: usize,
    id: i64,
    top_n: usize,
    scratch: &mut Scratch,
) -> Result<LogProbs> {
    let mut row = Vec::new();
    rows.widen(row_index, &mut row);
    let extent = checked_extent(&row, row_index, scratch.backend, "")?;
    let logit = usize::try_from(id).ok().and_then(|id| row.get(id)).ok_or_else(|| {
        Error::InvalidArgument(format!("row {row_index}: id {id} is outside the vocabulary of {}", row.len()))
    })?;
    let highest = f64::from(extent.highest);
    let mass: f64 = row.iter().map(|&logit| exp64(f64::from(logit) - highest)).sum();
    let log_prob = |logit: f32| f64::from(logit) - highest - mass.ln();
    let finite = row.iter().filter(|logit| **logit > f32::NEG_INFINITY).count();
    let mut top: Vec<(u32, f64)> = Vec::new();
    if top_n > 0 {
        let cut = (top_n <= finite).then(|| {
            // Only the order matters here, not the weights.
            let range = (extent.lowest.max(f32::MIN), extent.highest);
            let goal = Goal::Count(top_n);
            let guess = narrow(scratch.backend, &row, &row, goal, row.len() as f64, range);
            select(scratch.backend, &row, &row, Search { goal, range, guess }, &mut scratch.buffers).cut
        });
        let kept = row.iter().enumerate().filter(|&(id, &logit)| {
            // With fewer finite logits than wanted there is no cut: all of them it is.
            cut.map_or(logit > f32::NEG_INFINITY, |cut| cut.keeps(logit, id))
        });
        top = kept.map(|(id, &logit)| (id as u32, log_prob(logit))).collect();
        top.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        top.truncate(top_n);
    }
    Ok(LogProbs { chosen: log_prob(*logit), top })
}

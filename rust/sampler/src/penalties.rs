//! Changes of logits before any filter: biases, bans, and penalties on ids in the history.

use crate::error::{Result, check_id};
use crate::options::Options;

/// Checks that every id of a row's history is in the vocabulary.
///
/// # Errors
/// [`Error::InvalidArgument`](crate::Error::InvalidArgument) naming the first id that is not.
pub(crate) fn check_history(history: &[i64], vocab_size: usize, row_index: usize) -> Result<()> {
    for (index, &id) in history.iter().enumerate() {
        check_id(id, vocab_size, || format!("row {row_index}: history id {id} at index {index} is"))?;
    }
    Ok(())
}

/// Applies the penalties to the logits of the ids in `history`, in place.
///
/// The repetition penalty comes first, then the frequency penalty times the count, then the presence penalty: computed
/// in float64, rounded once. `counts` is scratch, all zero before and after. Ids must be below `row.len()`.
///
/// # Source
/// Repetition: Keskar et al. 2019, arXiv:1909.05858, section 4.1. The others: `OpenAI`'s API reference.
pub(crate) fn apply_penalties(row: &mut [f32], history: &[i64], options: &Options, counts: &mut Vec<u32>) {
    if counts.len() < row.len() {
        counts.resize(row.len(), 0);
    }
    for &id in history {
        counts[id as usize] += 1;
    }
    for &id in history {
        let count = std::mem::take(&mut counts[id as usize]);
        if count > 0 {
            let logit = &mut row[id as usize];
            let wide = f64::from(*logit);
            let penalised =
                if wide > 0.0 { wide / options.repetition_penalty } else { wide * options.repetition_penalty };
            *logit = (penalised - options.frequency_penalty * f64::from(count) - options.presence_penalty) as f32;
        }
    }
}

/// Adds the biases, then sets banned ids and ids that are not allowed to -inf, in place.
///
/// # Errors
/// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if an id is not below `row.len()`; the row is then
/// unchanged.
pub(crate) fn apply_bias_and_bans(row: &mut [f32], options: &Options, row_index: usize) -> Result<()> {
    let allowed = options.allowed_ids.as_deref();
    let biased = options.logit_bias.iter().map(|&(id, _)| ("logit_bias", id));
    let banned = options.banned_ids.iter().map(|&id| ("banned_ids", id));
    let only = allowed.into_iter().flatten().map(|&id| ("allowed_ids", id));
    for (name, id) in biased.chain(banned).chain(only) {
        check_id(id.into(), row.len(), || format!("row {row_index}: {name} holds id {id},"))?;
    }
    for &(id, bias) in &options.logit_bias {
        row[id as usize] += bias;
    }
    if let Some(allowed) = allowed {
        let kept: Vec<(u32, f32)> = allowed.iter().map(|&id| (id, row[id as usize])).collect();
        // NaN and +inf stay, so that the check after this names them.
        for logit in row.iter_mut().filter(|logit| **logit < f32::INFINITY) {
            *logit = f32::NEG_INFINITY;
        }
        for (id, logit) in kept {
            row[id as usize] = logit;
        }
    }
    for &id in &options.banned_ids {
        let logit = &mut row[id as usize];
        if *logit < f32::INFINITY {
            *logit = f32::NEG_INFINITY;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presence_applies_once_and_frequency_per_occurrence() {
        let options =
            Options { repetition_penalty: 2.0, presence_penalty: 0.5, frequency_penalty: 0.25, ..Options::default() };
        let mut row = [4.0, -4.0, 1.0, f32::NEG_INFINITY];
        let mut counts = Vec::new();
        apply_penalties(&mut row, &[0, 1, 0, 3], &options, &mut counts);
        assert_eq!(row, [2.0 - 0.5 - 0.5, -8.0 - 0.5 - 0.25, 1.0, f32::NEG_INFINITY]);
        assert!(counts.iter().all(|&count| count == 0));
    }

    #[test]
    fn bias_comes_first_and_bans_win() {
        let options = Options {
            logit_bias: vec![(0, 1.5), (2, -1.0)],
            banned_ids: vec![1],
            allowed_ids: Some(vec![0, 1]),
            ..Options::default()
        };
        let mut row = [1.0, 9.0, 3.0];
        apply_bias_and_bans(&mut row, &options, 0).expect("ids are in range");
        assert_eq!(row, [2.5, f32::NEG_INFINITY, f32::NEG_INFINITY]);
        let error = apply_bias_and_bans(&mut [0.0], &options, 4).expect_err("outside").to_string();
        assert_eq!(error, "row 4: logit_bias holds id 2, outside the vocabulary of 1");
    }

    #[test]
    fn names_an_id_outside_the_vocabulary() {
        for bad in [2, -1] {
            let message = check_history(&[0, bad], 2, 3).expect_err("outside").to_string();
            assert_eq!(message, format!("row 3: history id {bad} at index 1 is outside the vocabulary of 2"));
        }
    }
}

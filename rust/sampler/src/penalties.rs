//! What changes logits before any filter: biases, bans, and penalties on ids already seen.

use super::Options;
use crate::{Error, Result};

/// Refuses ids that are not below `vocab_size`.
///
/// # Errors
/// [`Error::InvalidArgument`] naming the first of them.
pub(crate) fn check_history(history: &[i64], vocab_size: usize, row_index: usize) -> Result<()> {
    for (index, &id) in history.iter().enumerate() {
        if usize::try_from(id).map_or(true, |id| id >= vocab_size) {
            return Err(Error::InvalidArgument(format!(
                "row {row_index}: history id {id} at index {index} is outside the vocabulary of {vocab_size}"
            )));
        }
    }
    Ok(())
}

/// Lowers in place the logits of the ids in `history`; each id once, however often it occurs.
///
/// Repetition first (divide what is positive, multiply what is not), then frequency times the count, then presence,
/// in float64, rounded once. `counts` is scratch, all zero before and after. Ids must be below `row.len()`.
///
/// # Source
/// Repetition: Keskar et al. 2019, arXiv:1909.05858, section 4.1. The others: `OpenAI`'s API reference.
pub(crate) fn penalise(row: &mut [f32], history: &[i64], options: &Options, counts: &mut Vec<u32>) {
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
            let repeated =
                if wide > 0.0 { wide / options.repetition_penalty } else { wide * options.repetition_penalty };
            *logit = (repeated - options.frequency_penalty * f64::from(count) - options.presence_penalty) as f32;
        }
    }
}

/// Adds the biases, then leaves only what is allowed and not banned, in place.
///
/// # Errors
/// [`Error::InvalidArgument`] if an id is not below `row.len()`; the row is then unchanged.
pub(crate) fn adjust(row: &mut [f32], options: &Options, row_index: usize) -> Result<()> {
    let allowed = options.allowed_ids.as_deref();
    let biased = options.logit_bias.iter().map(|&(id, _)| ("logit_bias", id));
    let banned = options.banned_ids.iter().map(|&id| ("banned_ids", id));
    let chosen = allowed.into_iter().flatten().map(|&id| ("allowed_ids", id));
    for (name, id) in biased.chain(banned).chain(chosen) {
        if id as usize >= row.len() {
            return Err(Error::InvalidArgument(format!(
                "row {row_index}: {name} holds id {id}, outside the vocabulary of {}",
                row.len()
            )));
        }
    }
    for &(id, bias) in &options.logit_bias {
        row[id as usize] += bias;
    }
    if let Some(allowed) = allowed {
        let kept: Vec<(u32, f32)> = allowed.iter().map(|&id| (id, row[id as usize])).collect();
        // NaN and +inf stay, to be found and named.
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
    fn counts_each_id_once_for_presence_and_often_for_frequency() {
        let options =
            Options { repetition_penalty: 2.0, presence_penalty: 0.5, frequency_penalty: 0.25, ..Options::default() };
        let mut row = [4.0, -4.0, 1.0, f32::NEG_INFINITY];
        let mut counts = Vec::new();
        penalise(&mut row, &[0, 1, 0, 3], &options, &mut counts);
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
        adjust(&mut row, &options, 0).expect("ids are in range");
        assert_eq!(row, [2.5, f32::NEG_INFINITY, f32::NEG_INFINITY]);
        let error = adjust(&mut [0.0], &options, 4).expect_err("outside").to_string();
        assert_eq!(error, "row 4: logit_bias holds id 2, outside the vocabulary of 1");
    }

    #[test]
    fn names_an_id_outside() {
        for bad in [2, -1] {
            let message = check_history(&[0, bad], 2, 3).expect_err("outside").to_string();
            assert_eq!(message, format!("row 3: history id {bad} at index 1 is outside the vocabulary of 2"));
        }
    }
}

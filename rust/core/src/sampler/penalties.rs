//! Repetition, presence and frequency penalties: the logits of ids already seen.

use super::Options;
use crate::{Error, Result};

/// Lowers in place the logits of the ids in `history`; each id once, however often it occurs.
///
/// Repetition first (divide what is positive, multiply what is not), then frequency times the count, then presence,
/// in float64, rounded once. `counts` is scratch, all zero before and after.
///
/// # Errors
/// [`Error::InvalidArgument`] if an id is not below `row.len()`; the row is then unchanged.
///
/// # Source
/// Repetition: Keskar et al. 2019, arXiv:1909.05858, section 4.1. The others: `OpenAI`'s API reference.
pub(super) fn penalise(
    row: &mut [f32],
    history: &[i64],
    options: &Options,
    counts: &mut Vec<u32>,
    row_index: usize,
) -> Result<()> {
    for (index, &id) in history.iter().enumerate() {
        if usize::try_from(id).map_or(true, |id| id >= row.len()) {
            return Err(Error::InvalidArgument(format!(
                "row {row_index}: history id {id} at index {index} is outside the vocabulary of {}",
                row.len()
            )));
        }
    }
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
        penalise(&mut row, &[0, 1, 0, 3], &options, &mut counts, 0).expect("ids are in range");
        assert_eq!(row, [2.0 - 0.5 - 0.5, -8.0 - 0.5 - 0.25, 1.0, f32::NEG_INFINITY]);
        assert!(counts.iter().all(|&count| count == 0));
    }

    #[test]
    fn names_an_id_outside() {
        let mut row = [1.0, 2.0];
        for bad in [2, -1] {
            let error = penalise(&mut row, &[0, bad], &Options::default(), &mut Vec::new(), 3);
            let message = error.expect_err("outside").to_string();
            assert_eq!(message, format!("row 3: history id {bad} at index 1 is outside the vocabulary of 2"));
        }
        assert_eq!(row, [1.0, 2.0]);
    }
}

//! The public API: [`Sampler`], validated options and a step counter.

use crate::batch::for_each_row;
use crate::error::{Interrupt, Result};
use crate::log_probs::{LogProbs, row_log_probs};
use crate::logits::{Elements, LogitsView};
use crate::options::Options;
use crate::random::uniform;
use crate::row::{row_probs, sample_row};
use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};

/// Draws ids from logits; threads may share it.
///
/// Each call of [`sample`](Self::sample) or [`sample_batch`](Self::sample_batch) is one step of its random stream.
#[derive(Debug)]
pub struct Sampler {
    options: Options,
    step: AtomicU64,
}

/// The arguments of [`Sampler`]'s methods for batches besides the logits; the default is none of them.
#[derive(Debug, Default, Clone, Copy)]
pub struct BatchOptions<'a> {
    /// The ids that penalties apply to, one list per row.
    pub histories: Option<&'a [Vec<i64>]>,
    /// The step to draw at, instead of the sampler's next, which this leaves unchanged.
    pub step: Option<u64>,
    /// A seed per row, instead of the sampler's.
    pub seeds: Option<&'a [u64]>,
    /// The number of threads; by default as many as pay off.
    pub num_threads: Option<NonZero<usize>>,
    /// Ends the call with its error.
    pub interrupt: Interrupt<'a>,
}

impl Sampler {
    /// Returns a sampler at step 0.
    ///
    /// # Errors
    /// Those of [`Options::validate`].
    pub fn new(options: Options) -> Result<Self> {
        options.validate()?;
        Ok(Self { options, step: AtomicU64::new(0) })
    }

    /// Returns the options.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Returns the next step.
    pub fn step(&self) -> u64 {
        self.step.load(Ordering::Relaxed)
    }

    /// Sets the next step.
    pub fn set_step(&self, step: u64) {
        self.step.store(step, Ordering::Relaxed);
    }

    /// Returns the id drawn from one row of logits, (V,).
    ///
    /// # Errors
    /// Those of [`sample_batch`](Self::sample_batch).
    pub fn sample(&self, row: &[f32]) -> Result<u32> {
        let logits = LogitsView::contiguous(Elements::F32(row), 1, row.len())?;
        let mut id = [0];
        self.sample_batch(&logits, &BatchOptions::default(), &mut id)?;
        Ok(id[0] as u32)
    }

    /// Writes the id drawn from each row of `logits`, (B, V), to `ids`, (B,).
    ///
    /// All rows use the random number of the same (seed, step), so an id depends on its own row only and equal rows
    /// give equal ids. With `seeds`, equal rows may differ.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if a row holds NaN or +inf or only -inf, if an id of a history is outside the
    /// vocabulary, or if `ids`, histories or seeds are not one per row; the error of the interrupt check. The step is
    /// then not taken.
    ///
    /// # Cost
    /// Two passes over a row for extrema and weights, a few cheaper ones for the filters, half a pass for the draw.
    pub fn sample_batch(
        &self,
        logits: &LogitsView<'_>,
        batch_options: &BatchOptions<'_>,
        ids: &mut [i64],
    ) -> Result<()> {
        check_one_per_row("ids", ids.len(), logits)?;
        batch_options.check(logits)?;
        let BatchOptions { num_threads, interrupt, .. } = *batch_options;
        let step = batch_options.step.unwrap_or_else(|| self.step.fetch_add(1, Ordering::Relaxed));
        let result = for_each_row(ids, logits.vocab_size(), 1, num_threads, interrupt, |row, out, scratch| {
            let seed = batch_options.seeds.map_or(self.options.seed, |seeds| seeds[row]);
            let history = batch_options.history(row);
            out[0] = sample_row(logits, row, history, &self.options, uniform(seed, step), scratch)?.into();
            Ok(())
        });
        self.undo_step_of(&result, batch_options);
        result
    }

    /// Writes the distribution that each row is sampled from to `probs`, (B, V) in row-major order.
    ///
    /// # Errors
    /// Those of [`sample_batch`](Self::sample_batch).
    pub fn probs_batch(
        &self,
        logits: &LogitsView<'_>,
        batch_options: &BatchOptions<'_>,
        probs: &mut [f64],
    ) -> Result<()> {
        let BatchOptions { num_threads, interrupt, .. } = *batch_options;
        let (rows, vocab_size) = (logits.rows(), logits.vocab_size());
        if probs.len() != rows * vocab_size {
            return Err(invalid!("probs has {} elements; expected {rows} rows of {vocab_size}", probs.len()));
        }
        batch_options.check(logits)?;
        for_each_row(probs, vocab_size, vocab_size, num_threads, interrupt, |row, out, scratch| {
            row_probs(logits, row, batch_options.history(row), &self.options, scratch, out)
        })
    }

    /// Samples as [`sample_batch`](Self::sample_batch), and returns, for each row, the log-probability of its id and the
    /// `top_n` most likely ids with theirs.
    ///
    /// They are those of the logits as given, before penalties, temperature and filters.
    ///
    /// # Errors
    /// Those of [`sample_batch`](Self::sample_batch), and [`crate::Error::InvalidArgument`] if `top_n` exceeds the
    /// vocabulary.
    pub fn sample_batch_with_log_probs(
        &self,
        logits: &LogitsView<'_>,
        batch_options: &BatchOptions<'_>,
        ids: &mut [i64],
        top_n: usize,
    ) -> Result<Vec<LogProbs>> {
        logits.check_top_n(top_n)?;
        self.sample_batch(logits, batch_options, ids)?;
        let BatchOptions { num_threads, interrupt, .. } = *batch_options;
        let mut log_probs = vec![LogProbs::default(); ids.len()];
        let result =
            for_each_row(&mut log_probs, logits.vocab_size(), 1, num_threads, interrupt, |row, out, scratch| {
                out[0] = row_log_probs(logits, row, ids[row], top_n, scratch)?;
                Ok(())
            });
        self.undo_step_of(&result, batch_options);
        result.map(|()| log_probs)
    }

    fn undo_step_of(&self, result: &Result<()>, batch_options: &BatchOptions<'_>) {
        if result.is_err() && batch_options.step.is_none() {
            self.step.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl BatchOptions<'_> {
    fn history(&self, row: usize) -> Option<&[i64]> {
        self.histories.map(|histories| histories[row].as_slice())
    }

    fn check(&self, logits: &LogitsView<'_>) -> Result<()> {
        self.histories.map_or(Ok(()), |histories| check_one_per_row("histories", histories.len(), logits))?;
        self.seeds.map_or(Ok(()), |seeds| check_one_per_row("seeds", seeds.len(), logits))
    }
}

fn check_one_per_row(name: &str, count: usize, logits: &LogitsView<'_>) -> Result<()> {
    if count == logits.rows() {
        return Ok(());
    }
    Err(invalid!("{count} {name} for {} rows of logits; expected one per row", logits.rows()))
}

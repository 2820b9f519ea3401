//! Logits to ids: exact, reproducible, without sorting the vocabulary.
//!
//! A [`Sampler`] applies penalties, temperature, top-k, top-p and min-p, in that order, each on what the one before left,
//! and draws from what remains. Every filter keeps a prefix of the ids ordered by falling logit, equal logits by rising
//! id, so what is kept is one cut: a threshold and, among its equals, a last id. The cut is found by narrowing a bracket
//! of thresholds (`select.rs`), never by ordering more than a handful.
//!
//! The same seed, step and logits give the same id on every CPU: random numbers are a function of (seed, step)
//! ([`uniform`]), the exponential is one fixed sequence of operations ([`bpe_llama_simd::exp`]), and sums run in a fixed order
//! (`kernels.rs`). Weights are float32; a top-p cut so near its target that their rounding could have moved it is decided
//! again in float64, so the kept set is the one float64 arithmetic gives. A mass within 2^-50 of p reaches it.
//!
//! ```
//! use bpe_llama_sampler::{Options, Sampler};
//!
//! let sampler = Sampler::new(Options { temperature: 0.8, top_p: 0.95, seed: 7, ..Options::default() })?;
//! let id = sampler.sample(&[0.1, 2.5, -1.0, 2.4])?;
//! assert!(id == 1 || id == 3);
//! # Ok::<(), bpe_llama_sampler::Error>(())
//! ```

#![allow(clippy::float_cmp, reason = "thresholds are logits of the row: equality is the point")]
#![allow(clippy::neg_cmp_op_on_partial_ord, reason = "`!(x < limit)` is how NaN is caught in vector code")]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod batch;
mod error;
mod estimate;
mod filters;
mod kernels;
mod logits;
mod logprobs;
mod options;
mod penalties;
mod random;
mod row;
mod select;

#[cfg(test)]
mod tests;

pub use error::{Error, Result};
pub use logits::{Elements, Rows};
pub use logprobs::LogProbs;
pub use options::{Options, Preset};
pub use random::uniform;

use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};

/// Draws ids from logits; shared freely among threads.
///
/// It counts its draws: each call of [`sample`](Self::sample) is one step and takes the random number of that step.
#[derive(Debug)]
pub struct Sampler {
    options: Options,
    step: AtomicU64,
}

/// What one call of [`Sampler::sample_rows`] takes besides the logits.
#[derive(Debug, Default, Clone, Copy)]
pub struct Request<'a> {
    /// For each row the ids that penalties look at; none leaves the logits alone.
    pub histories: Option<&'a [Vec<i64>]>,
    /// The number of this draw; `None` takes the sampler's next.
    pub step: Option<u64>,
    /// For each row a seed in place of the sampler's, so that equal rows may differ.
    pub seeds: Option<&'a [u64]>,
    /// How many threads share the rows; `None` takes as many as pay.
    pub num_threads: Option<NonZero<usize>>,
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

    /// Returns the parameters.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Returns the number of the next draw.
    pub fn step(&self) -> u64 {
        self.step.load(Ordering::Relaxed)
    }

    /// Makes `step` the number of the next draw.
    pub fn set_step(&self, step: u64) {
        self.step.store(step, Ordering::Relaxed);
    }

    /// Returns the id drawn from one row.
    ///
    /// # Errors
    /// Those of [`sample_rows`](Self::sample_rows).
    pub fn sample(&self, row: &[f32]) -> Result<u32> {
        let rows = Rows::contiguous(Elements::F32(row), 1, row.len())?;
        let mut id = [0];
        self.sample_rows(&rows, &Request::default(), &mut id)?;
        Ok(id[0] as u32)
    }

    /// Writes the id drawn from each row to `ids`.
    ///
    /// All rows use the random number of the same (seed, step): a row's id depends on its own logits alone, not on its
    /// place or company. Rows that should differ though their logits do not take `seeds`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a row holds NaN or +inf or nothing finite, naming the row and index; if a history
    /// holds an id outside the vocabulary; if `ids`, histories or seeds are not one a row. No step is then taken.
    ///
    /// # Cost
    /// Two passes over a row for the extent and the weights, a few cheaper ones for the cut, half of one for the draw.
    pub fn sample_rows(&self, rows: &Rows<'_>, request: &Request<'_>, ids: &mut [i64]) -> Result<()> {
        one_a_row("ids", ids.len(), rows)?;
        check(rows, request)?;
        let step = request.step.unwrap_or_else(|| self.step.fetch_add(1, Ordering::Relaxed));
        let vocab_size = rows.vocab_size();
        let result = batch::for_each_row(ids, vocab_size, 1, request.num_threads, |row, slot, scratch| {
            let seed = request.seeds.map_or(self.options.seed, |seeds| seeds[row]);
            let history = request.histories.map(|histories| histories[row].as_slice());
            slot[0] = row::sample_row(rows, row, history, &self.options, uniform(seed, step), scratch)?.into();
            Ok(())
        });
        if result.is_err() && request.step.is_none() {
            self.step.fetch_sub(1, Ordering::Relaxed);
        }
        result
    }

    /// Writes the distribution each row is drawn from to `probs`, row after row, in float64.
    ///
    /// # Errors
    /// Those of [`sample_rows`](Self::sample_rows).
    pub fn probs_rows(&self, rows: &Rows<'_>, request: &Request<'_>, probs: &mut [f64]) -> Result<()> {
        let vocab_size = rows.vocab_size();
        if probs.len() != rows.rows() * vocab_size {
            return Err(Error::InvalidArgument(format!(
                "probs have room for {} numbers; expected {} rows of {vocab_size}",
                probs.len(),
                rows.rows()
            )));
        }
        check(rows, request)?;
        batch::for_each_row(probs, vocab_size, vocab_size, request.num_threads, |row, slot, scratch| {
            let history = request.histories.map(|histories| histories[row].as_slice());
            row::row_probs(rows, row, history, &self.options, scratch, slot)
        })
    }
}

impl Sampler {
    /// Returns, for each row, the log-probability of the id drawn and the `top_n` likeliest ids with theirs.
    ///
    /// They are the model's own: of the logits as given, before penalties, temperature and filters.
    ///
    /// # Errors
    /// Those of [`sample_rows`](Self::sample_rows), and [`Error::InvalidArgument`] if `top_n` exceeds the vocabulary.
    pub fn log_probs(rows: &Rows<'_>, ids: &[i64], top_n: usize) -> Result<Vec<LogProbs>> {
        one_a_row("ids", ids.len(), rows)?;
        if top_n > rows.vocab_size() {
            return Err(Error::InvalidArgument(format!(
                "top_n is {top_n}, but the vocabulary has {} ids",
                rows.vocab_size()
            )));
        }
        let mut found = vec![LogProbs::default(); ids.len()];
        batch::for_each_row(&mut found, rows.vocab_size(), 1, None, |row, slot, scratch| {
            slot[0] = logprobs::row_log_probs(rows, row, ids[row], top_n, scratch)?;
            Ok(())
        })?;
        Ok(found)
    }
}

fn check(rows: &Rows<'_>, request: &Request<'_>) -> Result<()> {
    request.histories.map_or(Ok(()), |histories| one_a_row("histories", histories.len(), rows))?;
    request.seeds.map_or(Ok(()), |seeds| one_a_row("seeds", seeds.len(), rows))
}

fn one_a_row(name: &str, count: usize, rows: &Rows<'_>) -> Result<()> {
    if count == rows.rows() {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!("{count} {name} for {} rows of logits; expected one a row", rows.rows())))
}

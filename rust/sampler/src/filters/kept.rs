//! What the filters applied so far keep of a row.

use crate::options::{Options, Preset};
use crate::scratch::Scratch;
use crate::simd::{Extrema, Weight, compute_weights};
use crate::threshold::{Cutoff, Target, bracket_from_sample, bracket_from_sums};
use bpe_llama_simd::Backend;
use bpe_llama_simd::exp::Scale;

/// A factor on p with which a mass equal to p reaches it in spite of rounding errors.
pub(super) const ROUNDING_DOWN: f64 = 1.0 - 1.0 / (1u64 << 50) as f64;
/// A factor on p with which a mass must exceed p to reach it, in spite of rounding errors.
pub(super) const ROUNDING_UP: f64 = 1.0 + 1.0 / (1u64 << 50) as f64;

/// The ids kept: those that the cutoff keeps, without [`Scratch::removed`].
pub(super) struct Kept<'a> {
    pub(super) row: &'a [f32],
    pub(super) extrema: Extrema,
    /// The temperature of the weights.
    pub(super) temperature: f64,
    pub(super) options: &'a Options,
    pub(super) cutoff: Cutoff,
    /// The mass of the ids kept.
    pub(super) mass: f64,
    /// The mass of the whole row.
    pub(super) total_mass: f64,
    /// Whether `scratch.sample` holds a sample of the row.
    sampled: bool,
}

impl<'a> Kept<'a> {
    /// Returns the state before the first filter: all ids, with their weights in `scratch`.
    pub(super) fn all(row: &'a [f32], extrema: Extrema, options: &'a Options, scratch: &mut Scratch) -> Self {
        let temperature = if options.preset == Preset::LlamaCpp { 1.0 } else { options.temperature };
        scratch.removed.clear();
        if scratch.weights.len() < row.len() {
            scratch.weights.resize(row.len(), 0.0);
        }
        let weights = &mut scratch.weights[..row.len()];
        let total_mass = compute_weights(scratch.backend, row, &Scale::new(extrema.max, temperature), weights);
        let sampled = (options.top_k > 0 || options.top_p < 1.0) && scratch.sample.draw(row, weights);
        Self { row, extrema, temperature, options, cutoff: Cutoff::KEEP_ALL, mass: total_mass, total_mass, sampled }
    }

    /// Replaces the weights by those at another temperature.
    pub(super) fn apply_temperature(&mut self, temperature: f64, scratch: &mut Scratch) {
        if temperature == self.temperature {
            return;
        }
        self.temperature = temperature;
        if !scratch.removed.is_empty() {
            // Typical-p may have removed the highest logit, relative to which all others may have a weight of 0.
            self.extrema.max = self.highest(&mut scratch.removed);
        }
        let scale = Scale::new(self.extrema.max, temperature);
        compute_weights(scratch.backend, self.row, &scale, &mut scratch.weights[..self.row.len()]);
        scratch.clear_removed_weights();
        self.update_mass(scratch);
    }

    /// Returns the highest logit that is kept, and sorts the ids that are removed.
    fn highest(&self, removed: &mut [u32]) -> f32 {
        removed.sort_unstable();
        let is_kept = |&(id, &logit): &(usize, &f32)| {
            self.cutoff.keeps(logit, id) && removed.binary_search(&(id as u32)).is_err()
        };
        self.row.iter().enumerate().filter(is_kept).map(|(_, &logit)| logit).fold(f32::NEG_INFINITY, f32::max)
    }

    /// Sets `mass` to the mass of the ids kept.
    pub(super) fn update_mass(&mut self, scratch: &Scratch) {
        self.mass = kept_mass(self.row, &scratch.weights[..self.row.len()], self.cutoff, scratch.backend);
    }

    /// Returns a bracket that likely holds the threshold of `target`.
    pub(super) fn estimate_bracket(
        &self,
        target: Target,
        total: f64,
        bounds: (f32, f32),
        scratch: &Scratch,
    ) -> (f32, f32) {
        if self.sampled {
            bracket_from_sample(scratch.backend, &scratch.sample, target, total, bounds)
        } else {
            let weights = &scratch.weights[..self.row.len()];
            bracket_from_sums(scratch.backend, self.row, weights, target, total, bounds)
        }
    }
}

/// Returns the mass of the ids that a cutoff keeps.
pub(super) fn kept_mass<W: Weight>(row: &[f32], weights: &[W], cutoff: Cutoff, backend: Backend) -> f64 {
    let masses = cutoff
        .ranges(row.len())
        .map(|(ids, threshold)| W::cumulative(backend, &row[ids.clone()], &weights[ids], threshold).mass);
    masses[0] + masses[1]
}

//! Top-p (nucleus): keeps the fewest highest logits that hold a fraction p of the mass.
//!
//! Holtzman et al. 2020, arXiv:1904.09751, section 3.1.

use super::kept::{Kept, ROUNDING_DOWN, ROUNDING_UP, kept_mass};
use crate::options::Preset;
use crate::scratch::Scratch;
use crate::simd::{Extrema, compute_weights_f64};
use crate::threshold::{Cutoff, Search, Selection, Target, select};
use bpe_llama_simd::exp::RELATIVE_ERROR;

/// Float64 weights are 0 from this many nats below the maximum.
const MAX_NATS_F64: f64 = 746.0;
/// Float32 weights are 0 from this many nats below the maximum.
const MAX_NATS_F32: f64 = 88.0;

impl Kept<'_> {
    pub(super) fn top_p(&mut self, scratch: &mut Scratch) {
        if self.options.top_p >= 1.0 {
            return;
        }
        let Self { row, extrema, total_mass, .. } = *self;
        let weights = &scratch.weights[..row.len()];
        let target_mass = self.target_mass(self.mass);
        let target = Target::Mass(target_mass);
        // The maximum's weight is at most 1.5, so the ids at least so many nats below it hold less than the mass to
        // leave out, and the threshold is above them.
        let nats = (2.0 * row.len() as f64 / (self.mass - target_mass)).ln().min(MAX_NATS_F32);
        let bounds = (lower_bound(extrema, self.temperature, nats), extrema.max);
        let bracket = self.estimate_bracket(target, total_mass, bounds, scratch);
        let selection = select(scratch.backend, row, weights, Search { target, bounds, bracket }, &mut scratch.buffers);
        let is_exact = is_exact(selection, target_mass, self.mass, row.len());
        let found = if is_exact { selection.cutoff } else { self.top_p_in_f64(selection.cutoff.threshold, scratch) };
        // The search is over the whole row: with p next to 1, rounding can put the target beyond the ids kept so far.
        self.cutoff = self.cutoff.stricter(found);
        if is_exact && self.cutoff == found {
            self.mass = selection.mass;
        } else {
            self.update_mass(scratch);
        }
        if self.options.preset == Preset::Transformers {
            self.keep_highest_tied_ids(scratch);
        }
    }

    /// Returns the mass that top-p must keep of `mass`.
    fn target_mass(&self, mass: f64) -> f64 {
        let rounding = if self.options.preset == Preset::Meta { ROUNDING_UP } else { ROUNDING_DOWN };
        rounding * self.options.top_p * mass
    }

    /// Returns the cutoff of top-p with float64 weights, given its threshold with float32 weights.
    fn top_p_in_f64(&self, approximate: f32, scratch: &mut Scratch) -> Cutoff {
        let Self { row, extrema, temperature, .. } = *self;
        if scratch.weights64.len() < row.len() {
            scratch.weights64.resize(row.len(), 0.0);
        }
        let weights = &mut scratch.weights64[..row.len()];
        compute_weights_f64(scratch.backend, row, extrema.max, temperature, weights);
        for &id in &scratch.removed {
            weights[id as usize] = 0.0;
        }
        let target = Target::Mass(self.target_mass(kept_mass(row, weights, self.cutoff, scratch.backend)));
        let bounds = (lower_bound(extrema, temperature, MAX_NATS_F64), extrema.max);
        let margin = (temperature * 1e-4) as f32;
        let bracket = (approximate - margin, (approximate + margin).next_up());
        select(scratch.backend, row, weights, Search { target, bounds, bracket }, &mut scratch.buffers64).cutoff
    }

    /// Keeps the highest of the ids tied at the threshold instead of the lowest, and as many of them.
    ///
    /// transformers sorts by rising logit, equal logits by rising id, and drops from the front.
    fn keep_highest_tied_ids(&mut self, scratch: &mut Scratch) {
        let Cutoff { threshold, last_id } = self.cutoff;
        if threshold == f32::NEG_INFINITY {
            return;
        }
        let tied = self.row.iter().enumerate().filter(|(_, logit)| **logit == threshold);
        scratch.removed.extend(tied.map(|(id, _)| id as u32));
        let kept = scratch.removed.partition_point(|&id| id <= last_id);
        scratch.removed.truncate(scratch.removed.len() - kept);
        if scratch.removed.is_empty() {
            return;
        }
        scratch.clear_removed_weights();
        self.cutoff = Cutoff::at_least(threshold);
        self.update_mass(scratch);
    }
}

/// Returns whether the cutoff is certain in spite of the rounding errors of float32 weights.
///
/// A mass M reaches the target p K, where K is the mass of the ids kept, if M - p K is at least 0. An error of e w in the
/// weight w of an id changes M - p K by (1 - p) e w if M includes the id, by -p e w if not. So with relative errors of at
/// most E it is off by at most E ((1 - p) M + p (K - M)), about 2 p (1 - p) E K. The sums' own rounding comes on top.
fn is_exact(selection: Selection, target_mass: f64, kept_mass: f64, row_len: usize) -> bool {
    let p = target_mass / kept_mass;
    let rounding_of_sums = f64::EPSILON * row_len as f64 * kept_mass;
    let error = |mass: f64| RELATIVE_ERROR * ((1.0 - p) * mass + p * (kept_mass - mass)) + rounding_of_sums;
    let Selection { mass_before, mass, .. } = selection;
    mass_before + error(mass_before) < target_mass && target_mass + error(mass) < mass
}

/// Returns a finite threshold at least `nats` temperatures below the maximum, but no lower than the minimum.
fn lower_bound(extrema: Extrema, temperature: f64, nats: f64) -> f32 {
    let bound = (f64::from(extrema.max) - nats * temperature).max(f64::from(f32::MIN)) as f32;
    extrema.min.max(bound.next_down().max(f32::MIN))
}

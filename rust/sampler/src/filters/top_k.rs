//! Top-k: keeps the k highest logits. Fan et al. 2018, arXiv:1805.04833.

use super::kept::Kept;
use crate::options::Preset;
use crate::scratch::Scratch;
use crate::simd::cumulative;
use crate::threshold::{Cutoff, Search, Target, select};

impl Kept<'_> {
    pub(super) fn top_k(&mut self, scratch: &mut Scratch) {
        let k = self.options.top_k;
        if k == 0 || k >= self.row.len() {
            return;
        }
        let Self { row, extrema, .. } = *self;
        let weights = &scratch.weights[..row.len()];
        let bounds = (extrema.min.max(f32::MIN), extrema.max);
        let finite =
            if extrema.min < bounds.0 { cumulative(scratch.backend, row, weights, bounds.0).count } else { row.len() };
        if finite < k {
            return;
        }
        let target = Target::Count(k);
        let bracket = self.estimate_bracket(target, row.len() as f64, bounds, scratch);
        let selection = select(scratch.backend, row, weights, Search { target, bounds, bracket }, &mut scratch.buffers);
        (self.cutoff, self.mass) = (selection.cutoff, selection.mass);
        if self.options.preset == Preset::Transformers {
            self.cutoff = Cutoff::at_least(selection.cutoff.threshold);
            self.update_mass(scratch);
        }
    }
}

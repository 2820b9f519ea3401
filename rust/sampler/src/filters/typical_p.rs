//! Typical-p: keeps the ids whose surprisal is nearest to the entropy until they hold a fraction p of the mass.
//!
//! Meister et al. 2022, arXiv:2202.00666, section 4. The ids kept form no prefix, so this filter sorts, in float64.

use super::kept::{Kept, ROUNDING_DOWN, ROUNDING_UP};
use crate::options::{Options, Preset};
use crate::scratch::Scratch;
use bpe_llama_simd::exp::exp64;

impl Kept<'_> {
    pub(super) fn typical_p(&mut self, scratch: &mut Scratch) {
        let Options { typical_p, preset, .. } = *self.options;
        if typical_p >= 1.0 {
            return;
        }
        let max = f64::from(self.extrema.max);
        let mut kept: Vec<(f64, u32, f64)> = Vec::new();
        let removed_before = scratch.removed.len(); // in id order
        for (id, &logit) in self.row.iter().enumerate() {
            let z = (f64::from(logit) - max) / self.temperature;
            let weight = exp64(z);
            if !self.cutoff.keeps(logit, id) || scratch.removed[..removed_before].binary_search(&(id as u32)).is_ok() {
                continue;
            }
            if weight > 0.0 {
                kept.push((z, id as u32, weight));
            } else {
                scratch.removed.push(id as u32); // at another temperature its weight may not be 0
            }
        }
        let mass: f64 = kept.iter().map(|&(_, _, weight)| weight).sum();
        // Surprisal is ln(mass) - z and entropy is ln(mass) - mean(z), so their distance is |z - mean(z)|.
        let mean = kept.iter().map(|&(z, _, weight)| z * weight).sum::<f64>() / mass;
        for (z, ..) in &mut kept {
            *z = (*z - mean).abs();
        }
        kept.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let rounding = if preset == Preset::LlamaCpp { ROUNDING_UP } else { ROUNDING_DOWN };
        let target = rounding * typical_p * mass;
        let mut cumulative = 0.0;
        let reached = kept.iter().position(|&(.., weight)| {
            cumulative += weight;
            cumulative >= target
        });
        let mut count = reached.map_or(kept.len(), |last| last + 1);
        if preset == Preset::Transformers {
            let farthest = kept[count - 1].0;
            count = kept.partition_point(|&(distance, ..)| distance <= farthest);
        }
        scratch.removed.extend(kept[count..].iter().map(|&(_, id, _)| id));
        scratch.clear_removed_weights();
        self.update_mass(scratch);
    }
}

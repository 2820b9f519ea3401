//! Min-p: drops ids with less than p times the highest probability. Nguyen et al. 2024, arXiv:2407.01082.

use super::kept::Kept;
use crate::scratch::Scratch;
use crate::threshold::Cutoff;

impl Kept<'_> {
    pub(super) fn min_p(&mut self, scratch: &Scratch) {
        if self.options.min_p == 0.0 {
            return;
        }
        let mut max = self.extrema.max;
        if !scratch.removed.is_empty() {
            let kept = self.row.iter().zip(&scratch.weights).filter(|(_, weight)| **weight > 0.0);
            max = kept.fold(f32::NEG_INFINITY, |max, (&logit, _)| max.max(logit));
        }
        let exact = f64::from(max) + self.temperature * self.options.min_p.ln();
        let rounded = exact as f32;
        let threshold = if f64::from(rounded) < exact { rounded.next_up() } else { rounded };
        let cutoff = self.cutoff.stricter(Cutoff::at_least(threshold));
        if cutoff != self.cutoff {
            self.cutoff = cutoff;
            self.update_mass(scratch);
        }
    }
}

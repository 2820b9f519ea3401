//! Which ids may be drawn: top-k, top-p, min-p, typical-p, one after the other.

use super::estimate::{guess, narrow};
use super::kernels::{Extent, Weight, measure, weigh, weigh64};
use super::row::Scratch;
use super::select::{Cut, Found, Goal, Search, select};
use super::{Options, Preset};
use bpe_llama_simd::Backend;
use bpe_llama_simd::exp::{RELATIVE_ERROR, Scale, exp64};

/// A mass this close below p reaches it: p was a decimal fraction, and the mass a sum, before either was rounded.
const REACHED: f64 = 1.0 - 1.0 / (1u64 << 50) as f64;
/// And this close above p does not exceed it.
const EXCEEDED: f64 = 1.0 + 1.0 / (1u64 << 50) as f64;

/// Returns what the filters keep of a row, as a cut and its float32 mass; leaves the weights in the scratch, those of ids
/// dropped above the cut at 0.
pub(crate) fn filter(row: &[f32], extent: Extent, options: &Options, scratch: &mut Scratch) -> (Cut, f64) {
    let judged_at = if options.preset == Preset::LlamaCpp { 1.0 } else { options.temperature };
    scratch.dropped.clear();
    if scratch.weights.len() < row.len() {
        scratch.weights.resize(row.len(), 0.0);
    }
    let weights = &mut scratch.weights[..row.len()];
    let total = weigh(scratch.backend, row, &Scale::new(extent.highest, judged_at), weights);
    let sampled = (options.top_k > 0 || options.top_p < 1.0) && scratch.sample.draw(row, weights);
    let mut judge = Judge { row, extent, temperature: judged_at, options, sampled, total, cut: Cut::NONE, mass: total };
    judge.top_k(scratch);
    if options.preset == Preset::LlamaCpp {
        judge.typical_p(scratch);
    }
    judge.top_p(scratch);
    judge.min_p(scratch);
    if options.preset != Preset::LlamaCpp {
        judge.typical_p(scratch);
    }
    if judged_at != options.temperature {
        weigh(
            scratch.backend,
            row,
            &Scale::new(extent.highest, options.temperature),
            &mut scratch.weights[..row.len()],
        );
        for &id in &scratch.dropped {
            scratch.weights[id as usize] = 0.0;
        }
        judge.weigh_kept(scratch);
    }
    (judge.cut, judge.mass)
}

/// A row on its way through the filters.
struct Judge<'a> {
    row: &'a [f32],
    extent: Extent,
    temperature: f64,
    options: &'a Options,
    sampled: bool,
    total: f64,
    cut: Cut,
    mass: f64,
}

impl Judge<'_> {
    fn top_k(&mut self, scratch: &mut Scratch) {
        let k = self.options.top_k;
        if k == 0 || k >= self.row.len() {
            return;
        }
        let Self { row, extent, .. } = *self;
        let weights = &scratch.weights[..row.len()];
        let range = (extent.lowest.max(f32::MIN), extent.highest);
        let finite =
            if extent.lowest < range.0 { measure(scratch.backend, row, weights, range.0).count } else { row.len() };
        // With fewer finite logits than k, all of them stay.
        if finite < k {
            return;
        }
        let goal = Goal::Count(k);
        let guess = self.guess(goal, row.len() as f64, range, scratch);
        let found = select(scratch.backend, row, weights, Search { goal, range, guess }, &mut scratch.buffers);
        (self.cut, self.mass) = (found.cut, found.with);
        if self.options.preset == Preset::Transformers {
            self.cut = Cut::at_least(found.cut.value);
            self.weigh_kept(scratch);
        }
    }

    fn top_p(&mut self, scratch: &mut Scratch) {
        if self.options.top_p >= 1.0 {
            return;
        }
        let Self { row, extent, total, .. } = *self;
        let weights = &scratch.weights[..row.len()];
        let goal = self.share(self.mass);
        // Where all ids together weigh less than may be left out, each at most 1.5 at the top, no cut is needed.
        let Goal::Mass(target) = goal else { return };
        let depth = (2.0 * row.len() as f64 / (self.mass - target)).ln().min(88.0);
        let range = (weightless_below(extent, self.temperature, depth), extent.highest);
        let guess = self.guess(goal, total, range, scratch);
        let found = select(scratch.backend, row, weights, Search { goal, range, guess }, &mut scratch.buffers);
        if certain(found, goal, total) {
            (self.cut, self.mass) = (found.cut, found.with);
        } else {
            self.cut = self.exact_top_p(found.cut, scratch);
            self.weigh_kept(scratch);
        }
        if self.options.preset == Preset::Transformers {
            self.keep_last_ties(scratch);
        }
    }

    /// Keeps as many of the ids that tie at the cut as it does, but the highest ones.
    ///
    /// transformers sorts by rising score and drops from the front, where equals stand by rising id.
    fn keep_last_ties(&mut self, scratch: &mut Scratch) {
        let Cut { value, last } = self.cut;
        if value == f32::NEG_INFINITY {
            return;
        }
        let tied = self.row.iter().enumerate().filter(|(_, logit)| **logit == value);
        scratch.dropped.extend(tied.map(|(id, _)| id as u32));
        let kept = scratch.dropped.partition_point(|&id| id <= last);
        scratch.dropped.truncate(scratch.dropped.len() - kept);
        if scratch.dropped.is_empty() {
            return;
        }
        for &id in &scratch.dropped {
            scratch.weights[id as usize] = 0.0;
        }
        self.cut = Cut::at_least(value);
        self.weigh_kept(scratch);
    }

    /// Returns a bracket that likely holds the cut.
    fn guess(&self, goal: Goal, whole: f64, range: (f32, f32), scratch: &Scratch) -> (f32, f32) {
        if self.sampled {
            guess(scratch.backend, &scratch.sample, goal, whole, range)
        } else {
            narrow(scratch.backend, self.row, &scratch.weights[..self.row.len()], goal, whole, range)
        }
    }

    /// Returns the top-p cut as float64 weights decide it; float32 ones put it `near`.
    fn exact_top_p(&self, near: Cut, scratch: &mut Scratch) -> Cut {
        let Self { row, extent, temperature, .. } = *self;
        if scratch.weights64.len() < row.len() {
            scratch.weights64.resize(row.len(), 0.0);
        }
        let weights = &mut scratch.weights64[..row.len()];
        weigh64(scratch.backend, row, extent.highest, temperature, weights);
        for &id in &scratch.dropped {
            weights[id as usize] = 0.0;
        }
        let goal = self.share(kept_mass(row, weights, self.cut, scratch.backend));
        let range = (weightless_below(extent, temperature, 746.0), extent.highest);
        let aside = (temperature * 1e-4) as f32;
        let guess = (near.value - aside, (near.value + aside).next_up());
        select(scratch.backend, row, weights, Search { goal, range, guess }, &mut scratch.buffers64).cut
    }

    /// Returns the share p of a mass as top-p's goal.
    fn share(&self, mass: f64) -> Goal {
        let slack = if self.options.preset == Preset::Meta { EXCEEDED } else { REACHED };
        Goal::Mass(slack * self.options.top_p * mass)
    }

    fn min_p(&mut self, scratch: &Scratch) {
        if self.options.min_p == 0.0 {
            return;
        }
        let mut highest = self.extent.highest;
        if !scratch.dropped.is_empty() {
            let kept = self.row.iter().zip(&scratch.weights).filter(|(_, weight)| **weight > 0.0);
            highest = kept.fold(f32::NEG_INFINITY, |highest, (&logit, _)| highest.max(logit));
        }
        let threshold = f64::from(highest) + self.temperature * self.options.min_p.ln();
        let rounded = threshold as f32;
        let value = if f64::from(rounded) < threshold { rounded.next_up() } else { rounded };
        let shorter = self.cut.shorter(Cut::at_least(value));
        if shorter != self.cut {
            self.cut = shorter;
            self.weigh_kept(scratch);
        }
    }

    /// Drops what is less typical than needed for the mass: Meister et al. 2022, arXiv:2202.00666, section 4.
    ///
    /// This one orders all that is left, in float64.
    fn typical_p(&mut self, scratch: &mut Scratch) {
        let Options { typical_p, preset, .. } = *self.options;
        if typical_p >= 1.0 {
            return;
        }
        let highest = f64::from(self.extent.highest);
        let mut kept: Vec<(f64, u32, f64)> = Vec::new();
        let dropped_before = scratch.dropped.len(); // by rising id
        for (id, &logit) in self.row.iter().enumerate() {
            let z = (f64::from(logit) - highest) / self.temperature;
            let weight = exp64(z);
            if !self.cut.keeps(logit, id) || scratch.dropped[..dropped_before].binary_search(&(id as u32)).is_ok() {
                continue;
            }
            if weight > 0.0 {
                kept.push((z, id as u32, weight));
            } else {
                scratch.dropped.push(id as u32); // the temperature of a later weighing may lift it above 0
            }
        }
        let mass: f64 = kept.iter().map(|&(_, _, weight)| weight).sum();
        // The entropy is ln(mass) less the mean of z, so a surprise's distance from it is that of z from its mean.
        let mean = kept.iter().map(|&(z, _, weight)| z * weight).sum::<f64>() / mass;
        for (z, ..) in &mut kept {
            *z = (*z - mean).abs();
        }
        kept.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let slack = if preset == Preset::LlamaCpp { EXCEEDED } else { REACHED };
        let target = slack * typical_p * mass;
        let mut reached = 0.0;
        let enough = kept.iter().position(|&(.., weight)| {
            reached += weight;
            reached >= target
        });
        let mut count = enough.map_or(kept.len(), |last| last + 1);
        if preset == Preset::Transformers {
            let farthest = kept[count - 1].0;
            count = kept.partition_point(|&(distance, ..)| distance <= farthest);
        }
        for &(_, id, _) in &kept[count..] {
            scratch.weights[id as usize] = 0.0;
            scratch.dropped.push(id);
        }
        self.weigh_kept(scratch);
    }

    /// Sets the mass to the weight of what the cut keeps.
    fn weigh_kept(&mut self, scratch: &Scratch) {
        self.mass = kept_mass(self.row, &scratch.weights[..self.row.len()], self.cut, scratch.backend);
    }
}

/// Returns whether rounding of the float32 weights cannot have moved the cut.
fn certain(found: Found, goal: Goal, total: f64) -> bool {
    let Goal::Mass(target) = goal else { return true };
    let doubt = 2.0 * RELATIVE_ERROR * total;
    found.before + doubt < target && target + doubt < found.with
}

/// Returns a finite logit below which nothing has weight.
fn weightless_below(extent: Extent, temperature: f64, depth: f64) -> f32 {
    let bottom = (f64::from(extent.highest) - depth * temperature).max(f64::from(f32::MIN)) as f32;
    extent.lowest.max(bottom.next_down().max(f32::MIN))
}

/// Returns the weight of what a cut keeps.
fn kept_mass<W: Weight>(row: &[f32], weights: &[W], cut: Cut, backend: Backend) -> f64 {
    let parts = cut.parts(row.len()).map(|(ids, from)| W::measure(backend, &row[ids.clone()], &weights[ids], from));
    parts[0].mass + parts[1].mass
}

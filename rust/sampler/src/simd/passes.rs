//! The passes over float32 weights: each is written once over [`Vector`] and compiled for every backend.

use super::passes_f64::{collect_bracket_f64, cumulative_f64};
use super::results::{Candidates, Cumulative, Extrema, tree_fold, tree_sum};
use super::vector::Vector;
use bpe_llama_simd::exp::{MAGIC, POLYNOMIAL, Scale};
#[cfg(target_arch = "aarch64")]
use bpe_llama_simd::f32x16::Neon;
#[cfg(target_arch = "x86_64")]
use bpe_llama_simd::f32x16::{Avx2, Avx512};
use bpe_llama_simd::f32x16::{LANES, Portable};
use bpe_llama_simd::{Backend, Kind};

/// The type of weights: float32, or float64 where rounding to float32 could change the result. Their sums are float64.
pub(crate) trait Weight: Copy + Default + Into<f64> + Send + Sync {
    /// Returns the count and mass of the logits that are at least `threshold`.
    fn cumulative(backend: Backend, row: &[f32], weights: &[Self], threshold: f32) -> Cumulative;

    /// Returns the count and mass of the logits that are at least `high`, and collects those in `[low, high)`.
    ///
    /// `ids` are the logits' ids; `None` means their indices.
    fn collect_bracket(
        backend: Backend,
        row: &[f32],
        weights: &[Self],
        ids: Option<&[u32]>,
        bracket: (f32, f32),
        candidates: &mut Candidates<Self>,
    ) -> Cumulative;
}

macro_rules! impl_weight {
    ($weight:ty, $cumulative:ident, $collect_bracket:ident) => {
        impl Weight for $weight {
            fn cumulative(backend: Backend, row: &[f32], weights: &[Self], threshold: f32) -> Cumulative {
                $cumulative(backend, row, weights, threshold)
            }

            fn collect_bracket(
                backend: Backend,
                row: &[f32],
                weights: &[Self],
                ids: Option<&[u32]>,
                bracket: (f32, f32),
                candidates: &mut Candidates<Self>,
            ) -> Cumulative {
                $collect_bracket(backend, row, weights, ids, bracket, candidates)
            }
        }
    };
}

impl_weight!(f32, cumulative, collect_bracket);
impl_weight!(f64, cumulative_f64, collect_bracket_f64);

/// Defines a pass: `$body` compiled once for each backend, `$vector`, and a dispatch on the first argument.
macro_rules! pass {
    (
        $(#[$attribute:meta])*
        $name:ident<$vector:ident>, ($($argument:ident: $type:ty),*) -> $result:ty $body:block
    ) => {
        $(#[$attribute])*
        #[inline]
        pub(crate) fn $name(backend: Backend, $($argument: $type),*) -> $result {
            #[inline(always)]
            unsafe fn generic<$vector: Vector>($($argument: $type),*) -> $result {
                // SAFETY: the caller has the features of the backend.
                unsafe { $body }
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
            fn avx2($($argument: $type),*) -> $result {
                // SAFETY: the features are enabled above.
                unsafe { generic::<Avx2>($($argument),*) }
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
            fn avx512($($argument: $type),*) -> $result {
                // SAFETY: the features are enabled above.
                unsafe { generic::<Avx512>($($argument),*) }
            }

            match backend.kind() {
                // SAFETY: the portable backend needs no features.
                Kind::Portable => unsafe { generic::<Portable>($($argument),*) },
                #[cfg(target_arch = "aarch64")]
                // SAFETY: every CPU of this target has NEON.
                Kind::Neon => unsafe { generic::<Neon>($($argument),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `Backend` is only ever `Avx2` where the features of `Tier::Avx2` were detected.
                Kind::Avx2 => unsafe { avx2($($argument),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `Backend` is only ever `Avx512` where the features of `Tier::Avx512` were detected.
                Kind::Avx512 => unsafe { avx512($($argument),*) },
            }
        }
    };
}

/// Returns the tail of a row as a full vector, its missing lanes set to `filler`.
#[inline(always)]
fn padded(tail: &[f32], filler: f32) -> [f32; LANES] {
    let mut chunk = [filler; LANES];
    chunk[..tail.len()].copy_from_slice(tail);
    chunk
}

/// The extrema of each lane, and which lanes were free of NaN and +inf.
#[derive(Clone, Copy)]
struct LaneExtrema<V: Vector> {
    max: V,
    min: V,
    valid: V::Mask,
}

impl<V: Vector> LaneExtrema<V> {
    /// # Safety
    /// Needs the CPU features of the backend.
    #[inline(always)]
    unsafe fn add(&mut self, values: V) {
        // SAFETY: the caller's promise.
        unsafe {
            self.max = self.max.max(values);
            self.min = self.min.min(values);
            self.valid = V::both(self.valid, values.below(V::splat(f32::INFINITY)));
        }
    }
}

pass! {
    /// Returns the extrema of a row; `max` and `min` are unspecified unless `valid`.
    extrema<V>, (row: &[f32]) -> Extrema {
        let lowest = V::splat(f32::NEG_INFINITY);
        let none = LaneExtrema { max: lowest, min: V::splat(f32::INFINITY), valid: lowest.at_least(lowest) };
        // Two accumulators hide the latency of the maximum.
        let mut halves = [none; 2];
        let (chunks, tail) = row.as_chunks::<LANES>();
        let (pairs, last) = chunks.as_chunks::<2>();
        for pair in pairs {
            halves[0].add(V::load(&pair[0]));
            halves[1].add(V::load(&pair[1]));
        }
        for chunk in last {
            halves[0].add(V::load(chunk));
        }
        if let Some(&value) = tail.last() {
            // Repeating a value changes neither extremum.
            halves[1].add(V::load(&padded(tail, value)));
        }
        let (mut max, mut min) = ([0.0; LANES], [0.0; LANES]);
        halves[0].max.max(halves[1].max).store(&mut max);
        halves[0].min.min(halves[1].min).store(&mut min);
        Extrema {
            max: tree_fold(max, |a, b| if a > b { a } else { b }),
            min: tree_fold(min, |a, b| if a < b { a } else { b }),
            valid: V::all(V::both(halves[0].valid, halves[1].valid)),
        }
    }
}

/// Returns [`Scale::weight`] of sixteen logits.
///
/// # Safety
/// Needs the CPU features of the backend.
#[inline(always)]
unsafe fn weight<V: Vector>(logits: V, scale: &Scale) -> V {
    // SAFETY: the caller's promise.
    unsafe {
        let (magic, factor) = (V::splat(MAGIC), V::splat(scale.factor));
        let x = logits.sub(V::splat(scale.shift));
        let rounded = x.mul_add(factor, magic);
        let r = x.mul_add(factor, magic.sub(rounded));
        let r = x.mul_add(V::splat(scale.factor_low), r);
        let mut q = V::splat(POLYNOMIAL[0]);
        for coefficient in &POLYNOMIAL[1..] {
            q = q.mul_add(r, V::splat(*coefficient));
        }
        let power = q.mul_add(r, V::splat(1.0));
        power.add_exponent(rounded, scale.exponent).keep(rounded.at_least(V::splat(scale.lowest)))
    }
}

pass! {
    /// Writes the float32 weight of every logit and returns their sum.
    compute_weights<V>, (row: &[f32], scale: &Scale, weights: &mut [f32]) -> f64 {
        let mut sums = V::no_sums();
        let (chunks, tail) = row.as_chunks::<LANES>();
        let (weight_chunks, weight_tail) = weights.as_chunks_mut::<LANES>();
        // A block of weights is stored first and then read back: a conversion to float64 from memory needs no shuffle.
        for (chunks, outs) in chunks.chunks(LANES).zip(weight_chunks.chunks_mut(LANES)) {
            for (chunk, out) in chunks.iter().zip(outs.iter_mut()) {
                weight(V::load(chunk), scale).store(out);
            }
            for out in outs {
                V::add_to_sums(&mut sums, out);
            }
        }
        let mut out = [0.0; LANES];
        weight(V::load(&padded(tail, f32::NEG_INFINITY)), scale).store(&mut out);
        V::add_to_sums(&mut sums, &out);
        weight_tail[..tail.len()].copy_from_slice(&out[..tail.len()]);
        tree_sum(V::sums_of_lanes(sums))
    }
}

/// The count of the selected logits, and a float64 sum of their weights for each lane.
struct Tally<V: Vector> {
    counts: V::Counts,
    sums: V::Sums,
}

/// # Safety
/// Each function needs the CPU features of the backend.
impl<V: Vector> Tally<V> {
    #[inline(always)]
    unsafe fn new() -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self { counts: V::no_counts(), sums: V::no_sums() } }
    }

    #[inline(always)]
    unsafe fn add(&mut self, selected: V::Mask, weights: &[f32; LANES]) {
        // SAFETY: the caller's promise.
        unsafe {
            V::count(&mut self.counts, selected);
            V::add_selected_to_sums(&mut self.sums, selected, weights);
        }
    }

    #[inline(always)]
    unsafe fn cumulative(self) -> Cumulative {
        // SAFETY: the caller's promise.
        unsafe { Cumulative { count: V::total(self.counts), mass: tree_sum(V::sums_of_lanes(self.sums)) } }
    }
}

pass! {
    /// See [`Weight::cumulative`].
    cumulative<V>, (row: &[f32], weights: &[f32], threshold: f32) -> Cumulative {
        let limit = V::splat(threshold);
        let mut tally = Tally::<V>::new();
        let (chunks, tail) = row.as_chunks::<LANES>();
        let (weight_chunks, weight_tail) = weights.as_chunks::<LANES>();
        for (chunk, weights) in chunks.iter().zip(weight_chunks) {
            tally.add(V::load(chunk).at_least(limit), weights);
        }
        if !tail.is_empty() {
            let selected = V::load(&padded(tail, f32::NAN)).at_least(limit);
            tally.add(selected, &padded(&weight_tail[..tail.len()], 0.0));
        }
        tally.cumulative()
    }
}

/// Vectors that [`collect_bracket`] compares before it branches: after one, a flat row's branches are hard to predict.
const GROUP: usize = 2;

/// Appends to [`Candidates`] the logits in `[low, high)`, and tallies those at or above `high`.
struct Collector<'a, V: Vector> {
    low: V,
    high: V,
    tally: Tally<V>,
    candidates: &'a mut Candidates<f32>,
    length: usize,
}

impl<V: Vector> Collector<'_, V> {
    /// # Safety
    /// Needs the CPU features of the backend, and room for a whole group of candidates.
    #[inline(always)]
    unsafe fn add(
        &mut self,
        start: usize,
        logits: &[[f32; LANES]; GROUP],
        weights: &[[f32; LANES]; GROUP],
        ids: Option<&[[u32; LANES]; GROUP]>,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut inside = [V::no_flags(); GROUP];
            let mut any = V::no_flags();
            for vector in 0..GROUP {
                let values = V::load(&logits[vector]);
                let above = values.at_least(self.high);
                self.tally.add(above, &weights[vector]);
                inside[vector] = V::and_not(values.at_least(self.low), above);
                any = V::either(any, inside[vector]);
            }
            if V::any(any) {
                for vector in 0..GROUP {
                    let ids = match ids {
                        Some(ids) => V::load_bits(&ids[vector]),
                        None => V::indices_from((start + vector * LANES) as u32),
                    };
                    let columns = [V::load(&logits[vector]), V::load(&weights[vector]), ids];
                    let to = [
                        self.candidates.logits.as_mut_ptr().add(self.length).cast(),
                        self.candidates.weights.as_mut_ptr().add(self.length).cast(),
                        self.candidates.ids.as_mut_ptr().add(self.length),
                    ];
                    self.length += V::compress(inside[vector], columns, to);
                }
            }
        }
    }
}

pass! {
    /// See [`Weight::collect_bracket`].
    collect_bracket<V>, (
        row: &[f32],
        weights: &[f32],
        ids: Option<&[u32]>,
        bracket: (f32, f32),
        candidates: &mut Candidates<f32>
    ) -> Cumulative {
        // Each logit is appended at most once, and an append writes a whole vector.
        candidates.clear(row.len() + LANES);
        let (low, high) = (V::splat(bracket.0), V::splat(bracket.1));
        let mut collector = Collector { low, high, tally: Tally::<V>::new(), candidates, length: 0 };
        let groups = row.as_chunks::<LANES>().0.as_chunks::<GROUP>().0;
        let weight_groups = weights.as_chunks::<LANES>().0.as_chunks::<GROUP>().0;
        let id_groups = ids.unwrap_or_default().as_chunks::<LANES>().0.as_chunks::<GROUP>().0;
        for (group, (logits, weights)) in groups.iter().zip(weight_groups).enumerate() {
            collector.add(group * GROUP * LANES, logits, weights, ids.map(|_| &id_groups[group]));
        }
        let start = groups.len() * GROUP * LANES;
        if start < row.len() {
            let mut last_ids = [[0; LANES]; GROUP];
            let (mut last_logits, mut last_weights) = ([[f32::NAN; LANES]; GROUP], [[0.0; LANES]; GROUP]);
            last_logits.as_flattened_mut()[..row.len() - start].copy_from_slice(&row[start..]);
            last_weights.as_flattened_mut()[..row.len() - start].copy_from_slice(&weights[start..row.len()]);
            if let Some(ids) = ids {
                last_ids.as_flattened_mut()[..row.len() - start].copy_from_slice(&ids[start..]);
            }
            collector.add(start, &last_logits, &last_weights, ids.map(|_| &last_ids));
        }
        let Collector { tally, candidates, length, .. } = collector;
        candidates.logits.set_len(length);
        candidates.weights.set_len(length);
        candidates.ids.set_len(length);
        tally.cumulative()
    }
}

pass! {
    /// Returns the sum of weights, the sum of squared weights and the count of the logits below `threshold`, in
    /// float32, without those of the last incomplete vector.
    moments_below<V>, (row: &[f32], weights: &[f32], threshold: f32) -> (f32, f32, f32) {
        let limit = V::splat(threshold);
        let (zero, one) = (V::splat(0.0), V::splat(1.0));
        let [mut total, mut squares, mut counts] = [zero; 3];
        for (chunk, weight) in row.as_chunks::<LANES>().0.iter().zip(weights.as_chunks::<LANES>().0) {
            let selected = V::load(chunk).below(limit);
            let weight = V::load(weight);
            counts = counts.add_where(selected, one);
            total = total.add_where(selected, weight);
            squares = squares.add_where(selected, weight.mul_add(weight, zero));
        }
        let mut sums = [[0.0; LANES]; 3];
        for (sum, lanes) in [total, squares, counts].into_iter().zip(&mut sums) {
            sum.store(lanes);
        }
        let [total, squares, counts] = sums.map(|lanes| lanes.iter().sum());
        (total, squares, counts)
    }
}

pass! {
    /// Returns the count of the logits that are at least `threshold`, and their mass added in float32.
    approximate_cumulative<V>, (row: &[f32], weights: &[f32], threshold: f32) -> (usize, f32) {
        /// Two vectors, as the pass is bound by the latency of an addition.
        const WIDE_LANES: usize = 2 * LANES;
        let limit = V::splat(threshold);
        let mut counts = V::no_counts();
        let mut sums = [V::splat(0.0); 2];
        let (chunks, tail) = row.as_chunks::<WIDE_LANES>();
        let (weight_chunks, weight_tail) = weights.as_chunks::<WIDE_LANES>();
        for (chunk, weights) in chunks.iter().zip(weight_chunks) {
            let (chunk, weights) = (chunk.as_chunks::<LANES>().0, weights.as_chunks::<LANES>().0);
            for half in 0..2 {
                let selected = V::load(&chunk[half]).at_least(limit);
                V::count(&mut counts, selected);
                sums[half] = sums[half].add_where(selected, V::load(&weights[half]));
            }
        }
        for (sum, (chunk, weights)) in sums.iter_mut().zip(tail.chunks(LANES).zip(weight_tail.chunks(LANES))) {
            let selected = V::load(&padded(chunk, f32::NAN)).at_least(limit);
            V::count(&mut counts, selected);
            *sum = sum.add_where(selected, V::load(&padded(&weights[..chunk.len()], 0.0)));
        }
        let mut lanes = [0.0; WIDE_LANES];
        for (lanes, sums) in lanes.as_chunks_mut::<LANES>().0.iter_mut().zip(sums) {
            sums.store(lanes);
        }
        (V::total(counts), tree_sum(lanes))
    }
}

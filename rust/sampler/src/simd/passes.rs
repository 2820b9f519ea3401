//! The passes over float32 weights: each is written once over [`Vector`] and compiled for every backend.

use super::passes_f64::{collect_bracket_f64, cumulative_f64};
use super::results::{Candidates, Cumulative, Extrema, tree_sum};
use super::vector::Vector;
use bpe_llama_simd::exp::{MAGIC, POLYNOMIAL, Scale};
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

/// Defines a pass: a function that is compiled once for each backend, in which `$vector` is the backend's vector, and
/// that dispatches on its first argument.
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

pass! {
    /// Returns the extrema of a row; `max` and `min` are unspecified unless `valid`.
    extrema<V>, (row: &[f32]) -> Extrema {
        let infinity = V::splat(f32::INFINITY);
        // Two accumulators hide the latency of the maximum.
        let mut max = [V::splat(f32::NEG_INFINITY); 2];
        let mut min = [infinity; 2];
        let mut valid = [infinity.at_least(infinity); 2];
        let (chunks, tail) = row.as_chunks::<LANES>();
        let (pairs, last) = chunks.as_chunks::<2>();
        // -inf, too, is in a valid row and changes no maximum; a row without tail repeats its last value.
        let tail = padded(tail, row.last().copied().unwrap_or(f32::NEG_INFINITY));
        let rest = [*last.first().unwrap_or(&tail), tail];
        for pair in pairs.iter().chain([&rest]) {
            for half in 0..2 {
                let values = V::load(&pair[half]);
                max[half] = max[half].max(values);
                min[half] = min[half].min(values);
                valid[half] = V::both(valid[half], values.below(infinity));
            }
        }
        let (mut highest, mut lowest) = ([0.0; LANES], [0.0; LANES]);
        max[0].max(max[1]).store(&mut highest);
        min[0].min(min[1]).store(&mut lowest);
        Extrema {
            max: highest.into_iter().fold(f32::NEG_INFINITY, f32::max),
            min: lowest.into_iter().fold(f32::INFINITY, f32::min),
            valid: V::all(V::both(valid[0], valid[1])),
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

/// Appends to [`Candidates`] the logits in `[low, high)`, sixteen at a time.
struct Collector<'a, V> {
    low: V,
    high: V,
    candidates: &'a mut Candidates<f32>,
    length: usize,
}

impl<V: Vector> Collector<'_, V> {
    /// Appends those of sixteen logits that are in the bracket, and returns which are at least `high`.
    ///
    /// # Safety
    /// Needs the CPU features of the backend, and room for sixteen more candidates.
    #[inline(always)]
    unsafe fn add(&mut self, logits: &[f32; LANES], weights: &[f32; LANES], ids: &[u32; LANES]) -> V::Mask {
        // SAFETY: the caller's promise.
        unsafe {
            let values = V::load(logits);
            let above = values.at_least(self.high);
            let inside = V::and_not(values.at_least(self.low), above);
            if V::any(inside) {
                let from = [logits.as_ptr().cast(), weights.as_ptr().cast(), ids.as_ptr()];
                let to = [
                    self.candidates.logits.as_mut_ptr().add(self.length).cast(),
                    self.candidates.weights.as_mut_ptr().add(self.length).cast(),
                    self.candidates.ids.as_mut_ptr().add(self.length),
                ];
                self.length += V::compress(inside, from, to);
            }
            above
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
        // Each logit is appended at most once, and every append writes sixteen elements.
        candidates.clear(row.len() + LANES);
        let mut collector = Collector { low: V::splat(bracket.0), high: V::splat(bracket.1), candidates, length: 0 };
        let mut tally = Tally::<V>::new();
        let (chunks, tail) = row.as_chunks::<LANES>();
        let (weight_chunks, weight_tail) = weights.as_chunks::<LANES>();
        let (id_chunks, id_tail) = ids.unwrap_or_default().as_chunks::<LANES>();
        let mut indices: [u32; LANES] = std::array::from_fn(|lane| lane as u32);
        for (index, (chunk, weights)) in chunks.iter().zip(weight_chunks).enumerate() {
            let ids = if ids.is_some() { &id_chunks[index] } else { &indices };
            tally.add(collector.add(chunk, weights, ids), weights);
            for index in &mut indices {
                *index += LANES as u32;
            }
        }
        if !tail.is_empty() {
            indices[..id_tail.len()].copy_from_slice(id_tail);
            let weights = padded(&weight_tail[..tail.len()], 0.0);
            tally.add(collector.add(&padded(tail, f32::NAN), &weights, &indices), &weights);
        }
        let Collector { candidates, length, .. } = collector;
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

//! Each pass as a portable loop over lanes that the compiler vectorizes, and the dispatch to the CPU's backend.

#[cfg(target_arch = "x86_64")]
use super::avx2;
#[cfg(target_arch = "x86_64")]
use super::avx512;
use super::lanes::{Candidates, Cumulative, Extrema, LANES, WIDE_LANES, tree_sum};
use bpe_llama_simd::exp::{Scale, exp64};
use bpe_llama_simd::{Backend, Kind};

/// Defines a pass: a function that compiles `$body` once per backend and dispatches on its first argument.
///
/// `$avx512`, if given, is the same pass in AVX-512 intrinsics.
macro_rules! pass {
    ($(#[$attribute:meta])* $name:ident as $avx512:path, ($($argument:ident: $type:ty),*) -> $result:ty $body:block) => {
        $(#[$attribute])*
        #[inline]
        pub(crate) fn $name(backend: Backend, $($argument: $type),*) -> $result {
            #[inline(always)]
            fn portable($($argument: $type),*) -> $result $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($argument: $type),*) -> $result {
                portable($($argument),*)
            }

            match backend.kind() {
                Kind::Portable => portable($($argument),*),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `Backend` is only ever `Avx2` where AVX2 and FMA were detected.
                Kind::Avx2 => unsafe { avx2($($argument),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `Backend` is only ever `Avx512` where AVX-512 F, BW and DQ, AVX2 and FMA were detected.
                Kind::Avx512 => unsafe { $avx512($($argument),*) },
            }
        }
    };
    ($(#[$attribute:meta])* $name:ident, ($($argument:ident: $type:ty),*) -> $result:ty $body:block) => {
        pass! { $(#[$attribute])* $name as avx2, ($($argument: $type),*) -> $result $body }
    };
}

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

pass! {
    /// Returns the extrema of a row; `max` and `min` are unspecified unless `valid`.
    extrema as avx512::extrema, (row: &[f32]) -> Extrema {
        let mut max = [f32::NEG_INFINITY; LANES];
        let mut min = [f32::INFINITY; LANES];
        let mut invalid = [0u32; LANES];
        let (chunks, tail) = row.as_chunks::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                let value = chunk[lane];
                max[lane] = if value > max[lane] { value } else { max[lane] };
                min[lane] = if value < min[lane] { value } else { min[lane] };
                // The comparison is false for NaN, too.
                invalid[lane] |= u32::from(!(value < f32::INFINITY));
            }
        }
        for (lane, &value) in tail.iter().enumerate() {
            max[lane] = max[lane].max(value);
            min[lane] = min[lane].min(value);
            invalid[lane] |= u32::from(!(value < f32::INFINITY));
        }
        Extrema {
            max: max.iter().copied().fold(f32::NEG_INFINITY, f32::max),
            min: min.iter().copied().fold(f32::INFINITY, f32::min),
            valid: invalid.iter().all(|&flag| flag == 0),
        }
    }
}

pass! {
    /// Writes the float32 weight of every logit and returns their sum.
    compute_weights as avx512::compute_weights, (row: &[f32], scale: &Scale, weights: &mut [f32]) -> f64 {
        let scale = *scale;
        let mut sums = [0f64; LANES];
        let (chunks, tail) = row.as_chunks::<LANES>();
        let (weight_chunks, weight_tail) = weights.as_chunks_mut::<LANES>();
        for (chunk, out) in chunks.iter().zip(weight_chunks) {
            for lane in 0..LANES {
                out[lane] = scale.weight(chunk[lane]);
            }
            for lane in 0..LANES {
                sums[lane] += f64::from(out[lane]);
            }
        }
        for (lane, (&value, out)) in tail.iter().zip(weight_tail).enumerate() {
            *out = scale.weight(value);
            sums[lane] += f64::from(*out);
        }
        tree_sum(sums)
    }
}

pass! {
    /// Writes the float64 weight of every logit, 1 for the maximum `max`, and returns their sum.
    compute_weights_f64, (row: &[f32], max: f32, temperature: f64, weights: &mut [f64]) -> f64 {
        let mut sums = [0f64; LANES];
        for (chunk, out) in row.chunks(LANES).zip(weights.chunks_mut(LANES)) {
            for (lane, (&value, out)) in chunk.iter().zip(out).enumerate() {
                *out = exp64((f64::from(value) - f64::from(max)) / temperature);
                sums[lane] += *out;
            }
        }
        tree_sum(sums)
    }
}

/// See [`Weight::cumulative`].
#[inline]
pub(crate) fn cumulative(backend: Backend, row: &[f32], weights: &[f32], threshold: f32) -> Cumulative {
    match backend.kind() {
        Kind::Portable => cumulative_generic(row, weights, threshold),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Backend` is only ever `Avx2` where AVX2 was detected; every such CPU has POPCNT.
        Kind::Avx2 => unsafe { avx2::cumulative(row, weights, threshold) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Backend` is only ever `Avx512` where AVX-512 F, BW and DQ were detected; every such CPU has POPCNT.
        Kind::Avx512 => unsafe { avx512::cumulative(row, weights, threshold) },
    }
}

pass! {
    /// See [`Weight::cumulative`].
    cumulative_f64, (row: &[f32], weights: &[f64], threshold: f32) -> Cumulative {
        cumulative_generic(row, weights, threshold)
    }
}

pass! {
    /// See [`Weight::collect_bracket`].
    collect_bracket as avx512::collect_bracket,
    (row: &[f32], weights: &[f32], ids: Option<&[u32]>, bracket: (f32, f32), candidates: &mut Candidates<f32>) -> Cumulative {
        collect_bracket_generic(row, weights, ids, bracket, candidates)
    }
}

pass! {
    /// See [`Weight::collect_bracket`].
    collect_bracket_f64,
    (row: &[f32], weights: &[f64], ids: Option<&[u32]>, bracket: (f32, f32), candidates: &mut Candidates<f64>) -> Cumulative {
        collect_bracket_generic(row, weights, ids, bracket, candidates)
    }
}

pass! {
    /// Returns the sum of weights, the sum of squared weights and the count of the logits below `threshold`, in
    /// float32.
    moments_below, (row: &[f32], weights: &[f32], threshold: f32) -> (f32, f32, f32) {
        let mut sums = [0f32; LANES];
        let mut squares = [0f32; LANES];
        let mut counts = [0f32; LANES];
        for (chunk, weight) in row.as_chunks::<LANES>().0.iter().zip(weights.as_chunks::<LANES>().0) {
            for lane in 0..LANES {
                counts[lane] += if chunk[lane] < threshold { 1.0 } else { 0.0 };
                let weight = if chunk[lane] < threshold { weight[lane] } else { 0.0 };
                sums[lane] += weight;
                squares[lane] += weight * weight;
            }
        }
        (sums.iter().sum(), squares.iter().sum(), counts.iter().sum())
    }
}

pass! {
    /// Returns the count of the logits that are at least `threshold`, and their mass added in float32.
    approximate_cumulative as avx512::approximate_cumulative, (row: &[f32], weights: &[f32], threshold: f32) -> (usize, f32) {
        let mut counts = [0u32; WIDE_LANES];
        let mut sums = [0f32; WIDE_LANES];
        let (chunks, tail) = row.as_chunks::<WIDE_LANES>();
        let (weight_chunks, weight_tail) = weights.as_chunks::<WIDE_LANES>();
        for (chunk, weight) in chunks.iter().zip(weight_chunks) {
            for lane in 0..WIDE_LANES {
                counts[lane] += u32::from(chunk[lane] >= threshold);
                sums[lane] += if chunk[lane] >= threshold { weight[lane] } else { 0.0 };
            }
        }
        for (lane, (&value, &weight)) in tail.iter().zip(weight_tail).enumerate() {
            counts[lane] += u32::from(value >= threshold);
            sums[lane] += if value >= threshold { weight } else { 0.0 };
        }
        (counts.iter().map(|&count| count as usize).sum(), tree_sum(sums))
    }
}

#[inline(always)]
fn cumulative_generic<W: Weight>(row: &[f32], weights: &[W], threshold: f32) -> Cumulative {
    let mut counts = [0u32; LANES];
    let mut sums = [0f64; LANES];
    let (chunks, tail) = row.as_chunks::<LANES>();
    let (weight_chunks, weight_tail) = weights.as_chunks::<LANES>();
    for (chunk, weight) in chunks.iter().zip(weight_chunks) {
        for lane in 0..LANES {
            let selected = chunk[lane] >= threshold;
            counts[lane] += u32::from(selected);
            sums[lane] += Into::<f64>::into(if selected { weight[lane] } else { W::default() });
        }
    }
    for (lane, (&value, &weight)) in tail.iter().zip(weight_tail).enumerate() {
        let selected = value >= threshold;
        counts[lane] += u32::from(selected);
        sums[lane] += Into::<f64>::into(if selected { weight } else { W::default() });
    }
    Cumulative { count: counts.iter().map(|&count| count as usize).sum(), mass: tree_sum(sums) }
}

#[inline(always)]
fn collect_bracket_generic<W: Weight>(
    row: &[f32],
    weights: &[W],
    ids: Option<&[u32]>,
    (low, high): (f32, f32),
    candidates: &mut Candidates<W>,
) -> Cumulative {
    candidates.clear();
    for (start, chunk) in row.chunks(LANES).enumerate().map(|(chunk_index, chunk)| (chunk_index * LANES, chunk)) {
        let inside = chunk.iter().fold(0u32, |count, &value| count + u32::from(value >= low && value < high));
        if inside > 0 {
            for (index, &value) in (start..).zip(chunk) {
                if value >= low && value < high {
                    candidates.push(value, weights[index], ids.map_or(index as u32, |ids| ids[index]));
                }
            }
        }
    }
    cumulative_generic(row, weights, high)
}

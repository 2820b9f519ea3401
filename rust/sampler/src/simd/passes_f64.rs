//! The passes over float64 weights: loops over sixteen lanes that the compiler vectorizes for each backend.
//!
//! Top-p needs them where the rounding errors of float32 weights leave it undecided.

use super::results::{Candidates, Cumulative, tree_sum};
use bpe_llama_simd::exp::exp64;
use bpe_llama_simd::f32x16::LANES;
use bpe_llama_simd::{Backend, Kind};

/// Defines a pass: a function that compiles `$body` once for each backend and dispatches on its first argument.
macro_rules! pass_f64 {
    ($(#[$attribute:meta])* $name:ident, ($($argument:ident: $type:ty),*) -> $result:ty $body:block) => {
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
                #[cfg(target_arch = "aarch64")]
                Kind::Neon => portable($($argument),*),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `Backend` is only ever one of these where AVX2 and FMA were detected.
                Kind::Avx2 | Kind::Avx512 => unsafe { avx2($($argument),*) },
            }
        }
    };
}

pass_f64! {
    /// Writes the float64 weight of every logit, 1 for the maximum `max`, and returns their sum.
    compute_weights_f64, (row: &[f32], max: f32, temperature: f64, weights: &mut [f64]) -> f64 {
        let weight = |logit: f32| exp64((f64::from(logit) - f64::from(max)) / temperature);
        let mut sums = [0f64; LANES];
        let (chunks, tail) = row.as_chunks::<LANES>();
        let (weight_chunks, weight_tail) = weights.as_chunks_mut::<LANES>();
        for (chunk, out) in chunks.iter().zip(weight_chunks) {
            for lane in 0..LANES {
                out[lane] = weight(chunk[lane]);
            }
            for lane in 0..LANES {
                sums[lane] += out[lane];
            }
        }
        for (lane, (&logit, out)) in tail.iter().zip(weight_tail).enumerate() {
            *out = weight(logit);
            sums[lane] += *out;
        }
        tree_sum(sums)
    }
}

pass_f64! {
    /// See [`Weight::cumulative`](super::Weight::cumulative).
    cumulative_f64, (row: &[f32], weights: &[f64], threshold: f32) -> Cumulative {
        cumulative(row, weights, threshold)
    }
}

#[inline(always)]
fn cumulative(row: &[f32], weights: &[f64], threshold: f32) -> Cumulative {
    let mut counts = [0u64; LANES];
    let mut sums = [0f64; LANES];
    let (chunks, tail) = row.as_chunks::<LANES>();
    let (weight_chunks, weight_tail) = weights.as_chunks::<LANES>();
    let mut add = |lane: usize, logit: f32, weight: f64| {
        counts[lane] += u64::from(logit >= threshold);
        sums[lane] += if logit >= threshold { weight } else { 0.0 };
    };
    for (chunk, weight) in chunks.iter().zip(weight_chunks) {
        for lane in 0..LANES {
            add(lane, chunk[lane], weight[lane]);
        }
    }
    for (lane, (&logit, &weight)) in tail.iter().zip(weight_tail).enumerate() {
        add(lane, logit, weight);
    }
    Cumulative { count: counts.iter().sum::<u64>() as usize, mass: tree_sum(sums) }
}

pass_f64! {
    /// See [`Weight::collect_bracket`](super::Weight::collect_bracket).
    collect_bracket_f64, (
        row: &[f32],
        weights: &[f64],
        ids: Option<&[u32]>,
        bracket: (f32, f32),
        candidates: &mut Candidates<f64>
    ) -> Cumulative {
        let (low, high) = bracket;
        candidates.clear(0);
        for (start, chunk) in row.chunks(LANES).enumerate().map(|(chunk_index, chunk)| (chunk_index * LANES, chunk)) {
            let inside = chunk.iter().fold(0u32, |count, &logit| count + u32::from(logit >= low && logit < high));
            if inside > 0 {
                for (index, &logit) in (start..).zip(chunk) {
                    if logit >= low && logit < high {
                        candidates.push(logit, weights[index], ids.map_or(index as u32, |ids| ids[index]));
                    }
                }
            }
        }
        cumulative(row, weights, high)
    }
}

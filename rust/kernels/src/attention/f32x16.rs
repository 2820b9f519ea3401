//! Attention of a block in float32: scores of all keys, softmax, and the weighted sum of the values.

use super::element::Element;
use super::scores::ScoreScale;
use super::scratch::Scratch;
use bpe_llama_simd::exp::Scale;
#[cfg(target_arch = "x86_64")]
use bpe_llama_simd::f32x16::{Avx2, Avx512};
use bpe_llama_simd::f32x16::{F32x16, LANES, Portable};

/// Keys that all queries of a block read before the next ones, so that they stay in the first-level cache.
const CHUNK_KEYS: usize = 32;

/// Queries that share the load of a key with AVX-512: each has four accumulators.
const MAX_QUERIES: usize = 4;

/// The cached keys and values that a block attends to.
pub(super) struct KeysAndValues<'a, T> {
    pub(super) head_dim: usize,
    /// `head_dim`, rounded up to whole vectors.
    pub(super) padded_dim: usize,
    pub(super) scale: ScoreScale,
    pub(super) keys: &'a [T],
    pub(super) values: &'a [T],
}

impl<T: Element> KeysAndValues<'_, T> {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn attend_avx2(&self, scratch: &mut Scratch) {
        // SAFETY: the features are enabled here.
        unsafe { self.attend::<Avx2>(scratch) }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) fn attend_avx512(&self, scratch: &mut Scratch) {
        // SAFETY: the features are enabled here.
        unsafe { self.attend::<Avx512>(scratch) }
    }

    /// Writes the attention output of each query to `scratch.output`, which is all zeros.
    ///
    /// # Safety
    /// The CPU has the features of `V`.
    #[inline(always)]
    pub(super) unsafe fn attend<V: F32x16>(&self, scratch: &mut Scratch) {
        let Scratch { queries, attended, scores, widened, output, .. } = scratch;
        let (count, size) = (self.keys.len() / self.head_dim, self.padded_dim);
        let most = if V::REGISTERS < 32 { 1 } else { MAX_QUERIES };
        scores.resize(queries.len() / size * count, 0.0);
        for (chunk, keys) in self.keys.chunks(CHUNK_KEYS * self.head_dim).enumerate() {
            let keys = self.widen(keys, widened).as_chunks().0;
            for (queries, scores) in queries.chunks(most * size).zip(scores.chunks_mut(most * count)) {
                let (queries, scores) = (queries.as_chunks().0, &mut scores[chunk * CHUNK_KEYS..]);
                // SAFETY: the caller's promise.
                unsafe {
                    match queries.len() * LANES / size {
                        1 => score::<V, 1>(queries, keys, scores, count),
                        2 => score::<V, 2>(queries, keys, scores, count),
                        3 => score::<V, 3>(queries, keys, scores, count),
                        _ => score::<V, MAX_QUERIES>(queries, keys, scores, count),
                    }
                }
            }
        }
        for (scores, attended) in scores.chunks_exact_mut(count).zip(attended.iter()) {
            let scores = &mut scores[attended.clone()];
            self.scale.bound(scores);
            softmax(scores, self.scale.temperature);
        }
        for (chunk, values) in self.values.chunks(CHUNK_KEYS * self.head_dim).enumerate() {
            let values = self.widen(values, widened).as_chunks().0;
            let keys = chunk * CHUNK_KEYS..chunk * CHUNK_KEYS + values.len() * LANES / size;
            let queries = scores.chunks(most * count).zip(output.chunks_mut(most * size)).zip(attended.chunks(most));
            for ((weights, output), attended) in queries {
                let output = output.as_chunks_mut().0;
                if attended.iter().any(|attended| attended.start > keys.start || attended.end < keys.end) {
                    // One query at a time: a value that it does not attend to may be NaN, which a weight of 0 does not hide.
                    for (query, attended) in attended.iter().enumerate() {
                        let own = attended.start.max(keys.start)..attended.end.min(keys.end);
                        if own.is_empty() {
                            continue;
                        }
                        let output = &mut output[query * size / LANES..][..size / LANES];
                        let index = |key| (key - keys.start) * size / LANES;
                        let values = &values[index(own.start)..index(own.end)];
                        let weights = &weights[query * count + own.start..][..own.len()];
                        // SAFETY: the caller's promise.
                        unsafe { add_values::<V, 1>(weights, count, values, output) };
                    }
                    continue;
                }
                let weights = &weights[keys.start..];
                // SAFETY: the caller's promise.
                unsafe {
                    match attended.len() {
                        1 => add_values::<V, 1>(weights, count, values, output),
                        2 => add_values::<V, 2>(weights, count, values, output),
                        3 => add_values::<V, 3>(weights, count, values, output),
                        _ => add_values::<V, MAX_QUERIES>(weights, count, values, output),
                    }
                }
            }
        }
    }

    /// Returns the keys or values as float32, each padded with zeros to whole vectors.
    #[inline(always)]
    fn widen<'a>(&self, elements: &'a [T], widened: &'a mut Vec<f32>) -> &'a [f32] {
        if self.padded_dim == self.head_dim
            && let Some(elements) = T::as_f32(elements)
        {
            return elements;
        }
        widened.clear();
        widened.resize(elements.len() / self.head_dim * self.padded_dim, 0.0);
        for (to, from) in widened.chunks_exact_mut(self.padded_dim).zip(elements.chunks_exact(self.head_dim)) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_f32());
        }
        widened
    }
}

/// Writes the dot products of `Q` queries with each key. A query has `count` scores, one after the other.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn score<V: F32x16, const Q: usize>(
    queries: &[[f32; LANES]],
    keys: &[[f32; LANES]],
    scores: &mut [f32],
    count: usize,
) {
    let width = queries.len() / Q;
    let queries: [&[[f32; LANES]]; Q] = std::array::from_fn(|query| &queries[query * width..][..width]);
    let fours = keys.chunks_exact(4 * width);
    let rest = fours.remainder().chunks_exact(width);
    let whole = fours.len() * 4;
    for (four, keys) in fours.enumerate() {
        let keys: [&[[f32; LANES]]; 4] = std::array::from_fn(|key| &keys[key * width..][..width]);
        // SAFETY: the caller's promise.
        unsafe {
            let mut accumulators = [[V::splat(0.0); 4]; Q];
            for at in 0..width {
                for key in 0..4 {
                    let x = V::load(&keys[key][at]);
                    for query in 0..Q {
                        accumulators[query][key] = x.mul_add(V::load(&queries[query][at]), accumulators[query][key]);
                    }
                }
            }
            for query in 0..Q {
                scores[query * count + 4 * four..][..4].copy_from_slice(&V::sum_each(accumulators[query]));
            }
        }
    }
    for (key, features) in rest.enumerate() {
        for query in 0..Q {
            // SAFETY: as above.
            unsafe {
                let mut accumulator = V::splat(0.0);
                for (x, query) in features.iter().zip(queries[query]) {
                    accumulator = V::load(x).mul_add(V::load(query), accumulator);
                }
                scores[query * count + whole + key] = accumulator.sum();
            }
        }
    }
}

/// Returns the maximum; NaN counts as the highest, so that all attention weights become NaN.
#[inline(always)]
fn max(a: f32, b: f32) -> f32 {
    if b > a || b.is_nan() { b } else { a }
}

/// Replaces scores by `softmax(scores / temperature)`.
#[inline(always)]
fn softmax(scores: &mut [f32], temperature: f64) {
    let (whole, rest) = scores.as_chunks_mut::<LANES>();
    let mut highest = [f32::NEG_INFINITY; LANES];
    for scores in whole.iter() {
        for lane in 0..LANES {
            highest[lane] = max(highest[lane], scores[lane]);
        }
    }
    let highest = highest.iter().chain(rest.iter()).copied().fold(f32::NEG_INFINITY, max);
    let scale = Scale::new(highest, temperature);
    let mut sums = [0.0; LANES];
    for scores in whole.iter_mut() {
        for lane in 0..LANES {
            scores[lane] = scale.weight(scores[lane]);
            sums[lane] += scores[lane];
        }
    }
    let mut total = sums; // a copy, so that `sums` stays in registers
    for (score, sum) in rest.iter_mut().zip(&mut total) {
        *score = scale.weight(*score);
        *sum += *score;
    }
    // SAFETY: the portable backend needs no CPU feature.
    let factor = 1.0 / unsafe { Portable::load(&total).sum() };
    for score in scores {
        *score *= factor;
    }
}

/// Adds the values, times their attention weights, to the output of `Q` queries. A query has `count` weights, one after the
/// other.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn add_values<V: F32x16, const Q: usize>(
    weights: &[f32],
    count: usize,
    values: &[[f32; LANES]],
    output: &mut [[f32; LANES]],
) {
    let width = output.len() / Q;
    let whole = width - width % 4;
    for at in (0..whole).step_by(4) {
        // SAFETY: the caller's promise.
        unsafe { add_vectors::<V, Q, 4>(weights, count, values, output, at) };
    }
    for at in whole..width {
        // SAFETY: the caller's promise.
        unsafe { add_vectors::<V, Q, 1>(weights, count, values, output, at) };
    }
}

/// Does so for `N` vectors of each value, from `at` on.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn add_vectors<V: F32x16, const Q: usize, const N: usize>(
    weights: &[f32],
    count: usize,
    values: &[[f32; LANES]],
    output: &mut [[f32; LANES]],
    at: usize,
) {
    let width = output.len() / Q;
    let keys = values.len() / width;
    let weights: [&[f32]; Q] = std::array::from_fn(|query| &weights[query * count..][..keys]);
    // SAFETY: the caller's promise.
    unsafe {
        let mut accumulators = [[V::splat(0.0); N]; Q];
        for query in 0..Q {
            for vector in 0..N {
                accumulators[query][vector] = V::load(&output[query * width + at + vector]);
            }
        }
        for (key, value) in (0..keys).zip(values.chunks_exact(width)) {
            let value = &value[at..][..N];
            for query in 0..Q {
                let weight = V::splat(weights[query][key]);
                for vector in 0..N {
                    accumulators[query][vector] = V::load(&value[vector]).mul_add(weight, accumulators[query][vector]);
                }
            }
        }
        for query in 0..Q {
            for vector in 0..N {
                accumulators[query][vector].store(&mut output[query * width + at + vector]);
            }
        }
    }
}

//! Attention of a prompt's queries over a bfloat16 cache by AVX-512 BF16.
//!
//! Queries and attention weights are rounded to bfloat16, as torch rounds them. Each SIMD lane holds one query. Keys are
//! processed in chunks: online softmax keeps the attention weights relative to the running maximum, and rescales the output
//! when the maximum rises.
//!
//! Source: Dao et al. 2022, arXiv:2205.14135.

use super::online_softmax::OnlineSoftmax;
use super::scores::ScoreScale;
use super::scratch::Scratch;
use crate::matmul::gemm::avx512_bf16::{dot_bf16, load_pairs, multiply, pack};
use crate::matmul::gemm::tile::{TILE_ROWS, transpose};
use crate::matmul::prefetch_distance::PrefetchDistance;
use bpe_llama_simd::Tier;
use bpe_llama_simd::f32x16::{CacheLine, LANES};
use std::arch::x86_64::*;
use std::ops::Range;

/// Keys of a chunk, even: their scores, their values and the output fill the first-level cache.
const CHUNK_KEYS: usize = 64;

/// Rows of the micro-kernels, keys or features: with two tiles of queries they have 16 accumulators.
const KERNEL_ROWS: usize = 8;

/// Writes the attention output of each query to `scratch.output` and returns true.
///
/// Returns false and writes nothing if a value that not all queries attend to is NaN or infinite: an attention weight of 0
/// does not hide it.
///
/// # Safety
/// The CPU has AVX-512 F, BW and VL, and except in tests AVX-512 BF16.
pub(super) unsafe fn attend(
    head_dim: usize,
    scale: ScoreScale,
    keys: &[u16],
    values: &[u16],
    scratch: &mut Scratch,
) -> bool {
    #[cfg(test)]
    if !Tier::Avx512Bf16.is_used() {
        // SAFETY: the caller's promise.
        return unsafe { attend_emulated(head_dim, scale, keys, values, scratch) };
    }
    debug_assert!(Tier::Avx512Bf16.is_used(), "selected only where the CPU has it");
    // SAFETY: the caller's promise.
    unsafe { attend_native(head_dim, scale, keys, values, scratch) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn attend_native(
    head_dim: usize,
    scale: ScoreScale,
    keys: &[u16],
    values: &[u16],
    scratch: &mut Scratch,
) -> bool {
    // SAFETY: the caller's promise.
    unsafe { attend_in::<false>(head_dim, scale, keys, values, scratch) }
}

#[cfg(test)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn attend_emulated(
    head_dim: usize,
    scale: ScoreScale,
    keys: &[u16],
    values: &[u16],
    scratch: &mut Scratch,
) -> bool {
    // SAFETY: the caller's promise.
    unsafe { attend_in::<true>(head_dim, scale, keys, values, scratch) }
}

/// # Safety
/// As for [`attend`].
#[inline(always)]
unsafe fn attend_in<const EMULATED: bool>(
    head_dim: usize,
    scale: ScoreScale,
    keys: &[u16],
    values: &[u16],
    scratch: &mut Scratch,
) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        if scratch.attended.len() <= TILE_ROWS {
            attend_tiles::<1, EMULATED>(head_dim, scale, keys, values, scratch)
        } else {
            attend_tiles::<2, EMULATED>(head_dim, scale, keys, values, scratch)
        }
    }
}

/// # Safety
/// As for [`attend`].
#[inline(always)]
unsafe fn attend_tiles<const T: usize, const EMULATED: bool>(
    head_dim: usize,
    scale: ScoreScale,
    keys: &[u16],
    values: &[u16],
    scratch: &mut Scratch,
) -> bool {
    let Scratch { queries, attended, tiles, value_pairs, output, .. } = scratch;
    let (count, padded_dim) = (attended.len(), head_dim.next_multiple_of(LANES));
    let all_keys = keys.len() / head_dim;
    // Lanes without a query attend to all keys.
    let mut starts = [[0; LANES]; T];
    let mut ends = [[i32::MAX; LANES]; T];
    for (query, attended) in attended.iter().enumerate() {
        starts[query / LANES][query % LANES] = attended.start as i32;
        ends[query / LANES][query % LANES] = attended.end as i32;
    }
    let of_all_queries = attended.iter().map(|attended| attended.start).max().unwrap_or(0)
        ..attended.iter().map(|attended| attended.end).min().unwrap_or(0);
    let needs_no_mask = |keys: &Range<usize>| of_all_queries.start <= keys.start && keys.end <= of_all_queries.end;
    let chunks = (0..all_keys).step_by(CHUNK_KEYS).map(|start| start..(start + CHUNK_KEYS).min(all_keys));
    for keys in chunks.clone().filter(|keys| !needs_no_mask(keys)) {
        let values = &values[keys.start * head_dim..keys.end * head_dim];
        // A sum vectorizes, `any` does not.
        if values.iter().map(|bits| u32::from(bits & 0x7f80 == 0x7f80)).sum::<u32>() > 0 {
            return false;
        }
    }
    tiles.clear();
    // SAFETY: the caller's promise.
    unsafe { pack(queries, padded_dim, tiles) };
    let queries = tiles.as_chunks::<TILE_ROWS>().0.as_chunks::<T>().0;
    let mut accumulators = vec![[CacheLine::ZERO; T]; padded_dim];
    value_pairs.resize(CHUNK_KEYS / 2 * padded_dim, 0);
    let mut scores = [[CacheLine::ZERO; CHUNK_KEYS]; T];
    // SAFETY: the caller's promise.
    unsafe {
        let mut softmax = OnlineSoftmax::<T>::new(scale.temperature);
        for chunk in chunks {
            let cached = chunk.start * head_dim..chunk.end * head_dim;
            let keys = &keys[cached.clone()];
            multiply::<KERNEL_ROWS, T, CHUNK_KEYS, EMULATED>(
                keys,
                head_dim,
                queries,
                PrefetchDistance::NONE,
                &mut scores,
            );
            for scores in &mut scores {
                scores[..chunk.len()].iter_mut().for_each(|scores| scale.bound(&mut scores.0));
            }
            if !needs_no_mask(&chunk) {
                mask(&mut scores, chunk.clone(), &starts, &ends);
            }
            let rescale = softmax.weights(&mut scores, chunk.len());
            interleave(&values[cached], head_dim, padded_dim, value_pairs);
            let pairs = chunk.len().div_ceil(2);
            add_values::<T, EMULATED>(&scores, pairs, value_pairs, padded_dim, rescale, &mut accumulators);
        }
        for tile in 0..T {
            let normalizer = softmax.normalizer(tile);
            for (part, accumulators) in accumulators.as_chunks::<TILE_ROWS>().0.iter().enumerate() {
                let mut sums: [CacheLine; TILE_ROWS] = std::array::from_fn(|row| accumulators[row][tile]);
                transpose(&mut sums);
                for (lane, sums) in sums.iter().enumerate().take(count.saturating_sub(tile * TILE_ROWS)) {
                    let to = &mut output[(tile * TILE_ROWS + lane) * padded_dim + part * TILE_ROWS..][..LANES];
                    to.iter_mut().zip(sums.0).for_each(|(to, sum)| *to = sum * normalizer.0[lane]);
                }
            }
        }
    }
    true
}

/// Sets scores to -inf where a query does not attend to the key.
#[inline(always)]
fn mask<const T: usize>(
    scores: &mut [[CacheLine; CHUNK_KEYS]; T],
    keys: Range<usize>,
    starts: &[[i32; LANES]; T],
    ends: &[[i32; LANES]; T],
) {
    for tile in 0..T {
        for (key, scores) in (keys.start as i32..keys.end as i32).zip(&mut scores[tile]) {
            for lane in 0..LANES {
                if key < starts[tile][lane] || ends[tile][lane] <= key {
                    scores.0[lane] = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// Writes the values of keys `2 i` and `2 i + 1` as pairs, `padded_dim` for each `i`; a missing value is zero.
#[inline(always)]
fn interleave(values: &[u16], head_dim: usize, padded_dim: usize, pairs: &mut [u32]) {
    for (values, pairs) in values.chunks(2 * head_dim).zip(pairs.chunks_exact_mut(padded_dim)) {
        let (first, second) = values.split_at(head_dim);
        if second.is_empty() {
            pairs.iter_mut().zip(first).for_each(|(pair, first)| *pair = u32::from(*first));
        }
        for ((pair, first), second) in pairs.iter_mut().zip(first).zip(second) {
            *pair = u32::from(*first) | u32::from(*second) << 16;
        }
    }
}

/// Rescales the accumulators, and adds the values of `count` pairs of keys, times their attention weights.
///
/// # Safety
/// As for [`attend`].
#[inline(always)]
unsafe fn add_values<const T: usize, const EMULATED: bool>(
    weights: &[[CacheLine; CHUNK_KEYS]; T],
    count: usize,
    value_pairs: &[u32],
    padded_dim: usize,
    rescale: [__m512; T],
    accumulators: &mut [[CacheLine; T]],
) {
    for (part, memory) in accumulators.as_chunks_mut::<KERNEL_ROWS>().0.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let mut accumulators = [[_mm512_setzero_ps(); T]; KERNEL_ROWS];
            for row in 0..KERNEL_ROWS {
                for tile in 0..T {
                    accumulators[row][tile] =
                        _mm512_mul_ps(_mm512_load_ps(memory[row][tile].0.as_ptr()), rescale[tile]);
                }
            }
            for (keys, pairs) in value_pairs.chunks_exact(padded_dim).enumerate().take(count) {
                let pairs = &pairs[part * KERNEL_ROWS..][..KERNEL_ROWS];
                let mut x = [_mm512_setzero_si512(); T];
                for tile in 0..T {
                    x[tile] = load_pairs(&weights[tile][keys]);
                }
                for row in 0..KERNEL_ROWS {
                    for tile in 0..T {
                        accumulators[row][tile] = dot_bf16::<EMULATED>(accumulators[row][tile], pairs[row], x[tile]);
                    }
                }
            }
            for row in 0..KERNEL_ROWS {
                for tile in 0..T {
                    _mm512_store_ps(memory[row][tile].0.as_mut_ptr(), accumulators[row][tile]);
                }
            }
        }
    }
}

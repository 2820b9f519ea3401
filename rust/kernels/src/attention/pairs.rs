//! What the queries of a prompt gather from keys and values in bfloat16, by the instructions that multiply pairs of these.
//!
//! Queries and shares are rounded to bfloat16, as torch rounds them; the lanes of all numbers are queries. Keys are met
//! a few at a time: shares are relative to the highest score so far, and what was gathered is lowered when a higher one
//! comes. Source: Milakov and Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135.

#![allow(clippy::wildcard_imports, reason = "the intrinsics are half the language of this file")]
#![allow(clippy::needless_range_loop, reason = "indices into arrays unroll; iterators over them go through memory")]

use super::super::formats::Ahead;
use super::super::lanes::{LANES, Sixteen};
use super::super::pairs::{add_products, is_there, lay_out, load_pairs, products};
use super::super::tiles::{TILE, ZERO, turn};
use super::work::Scratch;
use bpe_llama_simd::exp::POLYNOMIAL;
use std::arch::x86_64::*;
use std::ops::Range;

/// Keys whose shares are taken together, even: with their values and the sums they fill the nearest cache.
const KEYS: usize = 64;

/// Rows that one pass over the lanes serves: with two tiles there are 16 sums.
const ROWS: usize = 8;

/// Writes to `gathered` what each query gathers, and returns true; or returns false and writes nothing, if values that
/// not all queries look at are no finite numbers, as a share of 0 does not hide these.
///
/// # Safety
/// The CPU has AVX-512 F, BW and VL, and but for tests AVX-512 BF16.
pub(super) unsafe fn gather(size: usize, keys: &[u16], values: &[u16], scratch: &mut Scratch) -> bool {
    #[cfg(test)]
    if !is_there() {
        // SAFETY: the caller's promise.
        return unsafe { gather_emulated(size, keys, values, scratch) };
    }
    debug_assert!(is_there(), "pairs are asked for where they are");
    // SAFETY: the caller's promise.
    unsafe { gather_by_instructions(size, keys, values, scratch) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn gather_by_instructions(size: usize, keys: &[u16], values: &[u16], scratch: &mut Scratch) -> bool {
    // SAFETY: the caller's promise.
    unsafe { gather_in::<false>(size, keys, values, scratch) }
}

#[cfg(test)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn gather_emulated(size: usize, keys: &[u16], values: &[u16], scratch: &mut Scratch) -> bool {
    // SAFETY: the caller's promise.
    unsafe { gather_in::<true>(size, keys, values, scratch) }
}

/// # Safety
/// As of [`gather`].
#[inline(always)]
unsafe fn gather_in<const EMULATED: bool>(size: usize, keys: &[u16], values: &[u16], scratch: &mut Scratch) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        if scratch.seen.len() <= TILE {
            gather_tiles::<1, EMULATED>(size, keys, values, scratch)
        } else {
            gather_tiles::<2, EMULATED>(size, keys, values, scratch)
        }
    }
}

/// # Safety
/// As of [`gather`].
#[inline(always)]
unsafe fn gather_tiles<const T: usize, const EMULATED: bool>(
    size: usize,
    keys: &[u16],
    values: &[u16],
    scratch: &mut Scratch,
) -> bool {
    let Scratch { query, seen, lanes, pairs, gathered, .. } = scratch;
    let (count, width) = (seen.len(), size.next_multiple_of(LANES));
    let keys_seen = keys.len() / size;
    // Lanes without a query look at all keys.
    let mut starts = [[0; LANES]; T];
    let mut ends = [[i32::MAX; LANES]; T];
    for (at, seen) in seen.iter().enumerate() {
        starts[at / LANES][at % LANES] = seen.start as i32;
        ends[at / LANES][at % LANES] = seen.end as i32;
    }
    let all_see =
        seen.iter().map(|seen| seen.start).max().unwrap_or(0)..seen.iter().map(|seen| seen.end).min().unwrap_or(0);
    let is_seen_by_all = |keys: &Range<usize>| all_see.start <= keys.start && keys.end <= all_see.end;
    let parts = (0..keys_seen).step_by(KEYS).map(|start| start..(start + KEYS).min(keys_seen));
    for keys in parts.clone().filter(|keys| !is_seen_by_all(keys)) {
        let values = &values[keys.start * size..keys.end * size];
        // Not by `any`, which looks at one after the other.
        if values.iter().map(|bits| u32::from(bits & 0x7f80 == 0x7f80)).sum::<u32>() > 0 {
            return false;
        }
    }
    lanes.clear();
    // SAFETY: the caller's promise.
    unsafe { lay_out(query, width, lanes) };
    let queries = lanes.as_chunks::<TILE>().0.as_chunks::<T>().0;
    let mut sums = vec![[ZERO; T]; width];
    pairs.resize(KEYS / 2 * width, 0);
    let mut scores = [[ZERO; KEYS]; T];
    // SAFETY: the caller's promise.
    unsafe {
        let mut soften = Soften::<T>::new(size);
        for part in parts {
            let keys = &keys[part.start * size..part.end * size];
            products::<ROWS, T, KEYS, EMULATED>(keys, size, queries, Ahead::NEVER, &mut scores);
            if !is_seen_by_all(&part) {
                hide(&mut scores, part.clone(), &starts, &ends);
            }
            let lowered = soften.shares(&mut scores, part.len());
            interleave(&values[part.start * size..part.end * size], size, width, pairs);
            add_shares::<T, EMULATED>(&scores, part.len().div_ceil(2), pairs, width, lowered, &mut sums);
        }
        for tile in 0..T {
            let parts = soften.parts(tile);
            for (first, sums) in sums.as_chunks::<TILE>().0.iter().enumerate() {
                let mut sums: [Sixteen; TILE] = std::array::from_fn(|row| sums[row][tile]);
                turn(&mut sums);
                for (lane, sums) in sums.iter().enumerate().take(count.saturating_sub(tile * TILE)) {
                    let to = &mut gathered[(tile * TILE + lane) * width + first * TILE..][..LANES];
                    to.iter_mut().zip(sums.0).for_each(|(to, sum)| *to = sum * parts.0[lane]);
                }
            }
        }
    }
    true
}

/// Gives the scores of keys that a query does not look at to none.
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
unsafe fn hide<const T: usize>(
    scores: &mut [[Sixteen; KEYS]; T],
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

/// The highest score of each query so far, and the sum of its shares relative to it.
struct Soften<const T: usize> {
    /// Of the exponent of two, for each unit of score.
    factor: __m512,
    highest: [__m512; T],
    sums: [__m512; T],
}

impl<const T: usize> Soften<T> {
    /// # Safety
    /// As of the others: the CPU has AVX-512 F.
    #[inline(always)]
    unsafe fn new(size: usize) -> Self {
        let factor = std::f64::consts::LOG2_E / (size as f64).sqrt();
        // SAFETY: the caller's promise.
        unsafe {
            let (lowest, zero) = (_mm512_set1_ps(f32::MIN), _mm512_setzero_ps());
            Self { factor: _mm512_set1_ps(factor as f32), highest: [lowest; T], sums: [zero; T] }
        }
    }

    /// Puts the shares of two keys at a time, as pairs of bfloat16, where the scores of the first were.
    ///
    /// Returns what lowers everything gathered before.
    #[inline(always)]
    unsafe fn shares(&mut self, scores: &mut [[Sixteen; KEYS]; T], count: usize) -> [__m512; T] {
        // SAFETY: the caller's promise.
        unsafe {
            let mut lowered = self.highest;
            for tile in 0..T {
                let mut highest = self.highest[tile];
                let scores = &mut scores[tile];
                for scores in &scores[..count] {
                    // Of a score that is none, and a number, the second.
                    highest = _mm512_max_ps(_mm512_load_ps(scores.0.as_ptr()), highest);
                }
                lowered[tile] = self.share(self.highest[tile], highest);
                let mut sum = _mm512_mul_ps(self.sums[tile], lowered[tile]);
                for at in 0..count.div_ceil(2) {
                    let first = self.share(_mm512_load_ps(scores[2 * at].0.as_ptr()), highest);
                    let second = if 2 * at + 1 < count {
                        self.share(_mm512_load_ps(scores[2 * at + 1].0.as_ptr()), highest)
                    } else {
                        _mm512_setzero_ps()
                    };
                    sum = _mm512_add_ps(sum, _mm512_add_ps(first, second));
                    // Halves away from zero: shares are not negative, and what is none overflows to none.
                    let [first, second] = [first, second]
                        .map(|share| _mm512_add_epi32(_mm512_castps_si512(share), _mm512_set1_epi32(1 << 15)));
                    let upper = _mm512_and_si512(second, _mm512_set1_epi32(-1 << 16));
                    let pair = _mm512_or_si512(upper, _mm512_srli_epi32::<16>(first));
                    _mm512_store_si512(scores[at].0.as_mut_ptr().cast(), pair);
                }
                self.sums[tile] = sum;
                self.highest[tile] = highest;
            }
            lowered
        }
    }

    /// Returns the powers of two that scores stand for beside the highest; what is no number stays none.
    #[inline(always)]
    unsafe fn share(&self, scores: __m512, highest: __m512) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let exponent = _mm512_mul_ps(_mm512_sub_ps(scores, highest), self.factor);
            let exponent = _mm512_max_ps(_mm512_set1_ps(-150.0), exponent); // nothing is left of these
            let whole = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(exponent);
            let rest = _mm512_sub_ps(exponent, whole);
            let mut power = _mm512_set1_ps(POLYNOMIAL[0]);
            for at in 1..POLYNOMIAL.len() {
                power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(POLYNOMIAL[at]));
            }
            _mm512_scalef_ps(_mm512_fmadd_ps(power, rest, _mm512_set1_ps(1.0)), whole)
        }
    }

    /// Returns what the sums of a tile are to be multiplied with.
    #[inline(always)]
    unsafe fn parts(&self, tile: usize) -> Sixteen {
        let mut parts = ZERO;
        // SAFETY: the caller's promise.
        unsafe {
            _mm512_store_ps(parts.0.as_mut_ptr(), _mm512_div_ps(_mm512_set1_ps(1.0), self.sums[tile]));
        }
        parts
    }
}

/// Writes the values of two keys side by side, zeros where there is none, `width` pairs for two keys.
#[inline(always)]
fn interleave(values: &[u16], size: usize, width: usize, pairs: &mut [u32]) {
    for (values, pairs) in values.chunks(2 * size).zip(pairs.chunks_exact_mut(width)) {
        let (first, second) = values.split_at(size);
        if second.is_empty() {
            pairs.iter_mut().zip(first).for_each(|(pair, first)| *pair = u32::from(*first));
        }
        for ((pair, first), second) in pairs.iter_mut().zip(first).zip(second) {
            *pair = u32::from(*first) | u32::from(*second) << 16;
        }
    }
}

/// Lowers the sums, and adds the values of all keys, each by its share.
///
/// # Safety
/// As of [`gather`].
#[inline(always)]
unsafe fn add_shares<const T: usize, const EMULATED: bool>(
    shares: &[[Sixteen; KEYS]; T],
    count: usize,
    pairs: &[u32],
    width: usize,
    lowered: [__m512; T],
    sums: &mut [[Sixteen; T]],
) {
    for (part, found) in sums.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); T]; ROWS];
            for row in 0..ROWS {
                for tile in 0..T {
                    sums[row][tile] = _mm512_mul_ps(_mm512_load_ps(found[row][tile].0.as_ptr()), lowered[tile]);
                }
            }
            for (at, pairs) in pairs.chunks_exact(width).enumerate().take(count) {
                let pairs = &pairs[part * ROWS..][..ROWS];
                let mut x = [_mm512_setzero_si512(); T];
                for tile in 0..T {
                    x[tile] = load_pairs(&shares[tile][at]);
                }
                for row in 0..ROWS {
                    for tile in 0..T {
                        sums[row][tile] = add_products::<EMULATED>(sums[row][tile], pairs[row], x[tile]);
                    }
                }
            }
            for row in 0..ROWS {
                for tile in 0..T {
                    _mm512_store_ps(found[row][tile].0.as_mut_ptr(), sums[row][tile]);
                }
            }
        }
    }
}

//! Products of bfloat16 matrices with many vectors, by the instructions that multiply pairs of bfloat16.
//!
//! The vectors are rounded to bfloat16, as all of torch's operations leave them in a model of that format; products are
//! exact and sums float32. The lanes of a sum are vectors: each pair of weights goes to all lanes, and no sum goes across.
//! Subnormal numbers count as zero.

#![allow(clippy::wildcard_imports, reason = "the intrinsics are half the language of this file")]
#![allow(clippy::needless_range_loop, reason = "indices into arrays unroll; iterators over them go through memory")]

use super::formats::Ahead;
use super::lanes::Sixteen;
use super::layout::{Batch, ROWS_OF_PAIRS};
use super::tiles::{self, Parts, STEP, TILE, ZERO, upper_halves};
use super::{Task, Weights};
use bpe_llama_simd::Backend;
use std::arch::x86_64::*;
use std::ops::Range;

/// Rows that one pass over the vectors serves: with two tiles there are 24 sums.
const ROWS: usize = 12;

/// Returns whether this processor has the instructions.
pub(crate) fn is_there() -> bool {
    Backend::best().has_wide_registers() && is_x86_feature_detected!("avx512bf16")
}

/// Appends the tiles of a batch, of numbers rounded.
///
/// # Safety
/// The CPU has AVX-512 F, BW and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) unsafe fn lay_out(x: &[f32], columns: usize, lanes: &mut Vec<Sixteen>) {
    // SAFETY: the instructions are enabled here.
    unsafe { tiles::lay_out::<Rounded, 1>(x, columns, lanes) };
}

struct Rounded;

impl Parts<1> for Rounded {
    #[inline(always)]
    unsafe fn of(low: __m512, high: __m512) -> [__m512i; 1] {
        // SAFETY: the caller's promise.
        unsafe { [upper_halves(rounded(low), rounded(high))] }
    }
}

/// Rounds to bfloat16, in the upper halves: to the nearest, of two the even one.
#[inline(always)]
unsafe fn rounded(numbers: __m512) -> __m512i {
    // SAFETY: the caller has AVX-512 F.
    unsafe {
        let bits = _mm512_castps_si512(numbers);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let near = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
        // What is no number stays none.
        let none = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(numbers, numbers);
        _mm512_mask_mov_epi32(near, none, _mm512_set1_epi32(-1))
    }
}

/// Computes some rows.
///
/// # Safety
/// [`is_there`], or in tests AVX-512 alone; and the vectors are laid out as pairs.
pub(crate) unsafe fn run(task: &Task<'_>, rows: Range<usize>) {
    #[cfg(test)]
    if !is_there() {
        // SAFETY: the caller's promise.
        return unsafe { run_emulated(task, rows) };
    }
    // SAFETY: as above.
    unsafe { run_by_instructions(task, rows) };
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn run_by_instructions(task: &Task<'_>, rows: Range<usize>) {
    // SAFETY: the caller's promise.
    unsafe { run_in::<false>(task, rows) };
}

#[cfg(test)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn run_emulated(task: &Task<'_>, rows: Range<usize>) {
    // SAFETY: the caller's promise.
    unsafe { run_in::<true>(task, rows) };
}

/// # Safety
/// As of [`run`].
#[inline(always)]
unsafe fn run_in<const EMULATED: bool>(task: &Task<'_>, rows: Range<usize>) {
    let Weights::Bf16(weights) = task.matrix.weights else { unreachable!("pairs are for bfloat16") };
    let turns = task.batches.len();
    let bytes = if turns > 1 { rows.len() } else { ROWS } * task.matrix.row_bytes();
    for (turn, batch) in task.batches.iter().enumerate() {
        let ahead = Ahead::far(turn, turns, bytes);
        // SAFETY: the caller's promise.
        unsafe {
            match batch.count.div_ceil(TILE) {
                1 => sweep::<1, EMULATED>(task, weights, batch, rows.clone(), ahead),
                _ => sweep::<2, EMULATED>(task, weights, batch, rows.clone(), ahead),
            }
        }
    }
}

/// Computes some rows' products with `T` tiles of vectors.
///
/// # Safety
/// As of [`run`].
#[inline(always)]
unsafe fn sweep<const T: usize, const EMULATED: bool>(
    task: &Task<'_>,
    weights: &[u16],
    batch: &Batch,
    rows: Range<usize>,
    ahead: Ahead,
) {
    let (columns, out) = (task.matrix.columns, task.out);
    let vectors = task.lanes[batch.lanes.clone()].as_chunks::<TILE>().0.as_chunks::<T>().0;
    let mut sums = [[ZERO; ROWS_OF_PAIRS]; T];
    for first in rows.clone().step_by(ROWS_OF_PAIRS) {
        let count = (rows.end - first).min(ROWS_OF_PAIRS);
        let weights = &weights[first * columns..(first + count) * columns];
        // SAFETY: the caller's promise.
        unsafe { products::<ROWS, T, _, EMULATED>(weights, columns, vectors, ahead, &mut sums) };
        for (tile, sums) in sums.iter_mut().enumerate() {
            let vector = tile * TILE;
            let place = (batch.first + vector) * out.width + task.offset + first;
            for (part, sums) in sums.as_chunks_mut().0.iter_mut().enumerate().take(count.div_ceil(TILE)) {
                let shape = ((count - part * TILE).min(TILE), (batch.count - vector).min(TILE));
                // SAFETY: the caller's promise, and these rows are this thread's.
                unsafe { out.put_tile(place + part * TILE, shape, sums, None) };
            }
        }
    }
}

/// Writes the sums of up to `N` rows' products with `T` tiles of vectors: of `R` rows at a time, and what is left one by one.
///
/// # Safety
/// As of [`run`].
#[inline(always)]
pub(crate) unsafe fn products<const R: usize, const T: usize, const N: usize, const EMULATED: bool>(
    weights: &[u16],
    columns: usize,
    vectors: &[[[Sixteen; TILE]; T]],
    ahead: Ahead,
    found: &mut [[Sixteen; N]; T],
) {
    let count = weights.len() / columns;
    assert!(count <= N && count * columns == weights.len(), "rows are whole");
    let mut row = 0;
    while row < count {
        // SAFETY: the caller's promise.
        unsafe {
            if row + R <= count {
                products_of_rows::<R, T, N, EMULATED>(weights, row, columns, vectors, ahead, found);
                row += R;
            } else {
                products_of_rows::<1, T, N, EMULATED>(weights, row, columns, vectors, ahead, found);
                row += 1;
            }
        }
    }
}

/// Writes the sums of `R` rows' products from `row` on.
///
/// # Safety
/// As of [`run`].
#[inline(always)]
unsafe fn products_of_rows<const R: usize, const T: usize, const N: usize, const EMULATED: bool>(
    weights: &[u16],
    row: usize,
    columns: usize,
    vectors: &[[[Sixteen; TILE]; T]],
    mut ahead: Ahead,
    found: &mut [[Sixteen; N]; T],
) {
    let start = row * columns;
    let first = weights[start..start + R * columns].as_ptr();
    // SAFETY: the caller's promise; all `columns` weights of the `R` rows are there.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); T]; R];
        for (step, tiles) in vectors.iter().enumerate() {
            ahead.ask::<_, R, STEP>(weights, start, step);
            let place = step * STEP;
            for pair in 0..(columns - place).min(STEP).div_ceil(2) {
                let mut x = [_mm512_setzero_si512(); T];
                for tile in 0..T {
                    x[tile] = load_pairs(&tiles[tile][pair]);
                }
                let column = place + 2 * pair;
                for next in 0..R {
                    let from = first.add(next * columns + column);
                    // Behind the last of an odd number of columns is another row, or nothing.
                    let both =
                        if column + 1 < columns { from.cast::<u32>().read_unaligned() } else { u32::from(*from) };
                    for tile in 0..T {
                        sums[next][tile] = add_products::<EMULATED>(sums[next][tile], both, x[tile]);
                    }
                }
            }
        }
        for next in 0..R {
            for tile in 0..T {
                _mm512_store_ps(found[tile][row + next].0.as_mut_ptr(), sums[next][tile]);
            }
        }
    }
}

/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
pub(crate) unsafe fn load_pairs(from: &Sixteen) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { _mm512_load_si512(from.0.as_ptr().cast()) }
}

/// Adds the products of a pair with each lane's, or what comes next to it with AVX-512 alone.
///
/// # Safety
/// As of [`run`].
#[inline(always)]
pub(crate) unsafe fn add_products<const EMULATED: bool>(sum: __m512, pair: u32, x: __m512i) -> __m512 {
    // SAFETY: the caller's promise; the types hold the same bits.
    unsafe {
        let pair = _mm512_set1_epi32(pair.cast_signed());
        if EMULATED {
            let odd = |pairs| _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-1 << 16)));
            let even = |pairs| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs));
            return _mm512_fmadd_ps(even(pair), even(x), _mm512_fmadd_ps(odd(pair), odd(x), sum));
        }
        let [pair, x] = [pair, x].map(|pairs| std::mem::transmute::<__m512i, __m512bh>(pairs));
        _mm512_dpbf16_ps(sum, pair, x)
    }
}

//! GEMM with bfloat16 weights by AVX-512 BF16.
//!
//! With `VDPBF16PS`, activations are rounded to bfloat16, as torch rounds them in a bfloat16 model, and products are summed
//! in float32. Each SIMD lane holds one activation row, and a pair of weights is broadcast to all lanes, so no horizontal sum
//! is needed. Subnormal numbers count as zero.

use super::tile::{self, TILE_COLUMNS, TILE_ROWS, ToBf16, high_halves};
use crate::matmul::prefetch_distance::PrefetchDistance;
use crate::matmul::task::{Panel, Task};
use crate::matmul::weights::Weights;
use bpe_llama_simd::Tier;
use bpe_llama_simd::f32x16::CacheLine;
use std::arch::x86_64::*;
use std::ops::Range;

/// Weight rows of the micro-kernel: with two tiles of activations it has 24 accumulators.
const KERNEL_ROWS: usize = 12;
/// Weight rows whose accumulators fill whole tiles.
const BLOCK_ROWS: usize = 48;

/// Appends the tiles of a panel, rounded to bfloat16.
///
/// # Safety
/// The CPU has AVX-512 F, BW and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) unsafe fn pack(x: &[f32], columns: usize, packed: &mut Vec<CacheLine>) {
    // SAFETY: the features are enabled here.
    unsafe { tile::pack::<Round, 1>(x, columns, packed) };
}

struct Round;

impl ToBf16<1> for Round {
    #[inline(always)]
    unsafe fn convert(low: __m512, high: __m512) -> [__m512i; 1] {
        // SAFETY: the caller's promise.
        unsafe { [high_halves(round(low), round(high))] }
    }
}

/// Rounds to the nearest bfloat16, ties to even, in the high halves; NaN stays NaN.
#[inline(always)]
unsafe fn round(x: __m512) -> __m512i {
    // SAFETY: the caller has AVX-512 F.
    unsafe {
        let bits = _mm512_castps_si512(x);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(-1))
    }
}

/// Multiplies some weight rows with all panels.
///
/// # Safety
/// [`Tier::Avx512Bf16`] is used, in tests AVX-512 alone; and the panels are packed by [`pack`].
pub(crate) unsafe fn run(task: &Task<'_>, rows: Range<usize>) {
    #[cfg(test)]
    if !Tier::Avx512Bf16.is_used() {
        // SAFETY: the caller's promise.
        return unsafe { run_emulated(task, rows) };
    }
    debug_assert!(Tier::Avx512Bf16.is_used(), "selected only where the CPU has it");
    // SAFETY: as above.
    unsafe { run_native(task, rows) };
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn run_native(task: &Task<'_>, rows: Range<usize>) {
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
/// As for [`run`].
#[inline(always)]
unsafe fn run_in<const EMULATED: bool>(task: &Task<'_>, rows: Range<usize>) {
    let Weights::Bf16(weights) = task.matrix.weights else { unreachable!("for bfloat16 weights alone") };
    let passes = task.panels.len();
    let bytes = if passes > 1 { rows.len() } else { KERNEL_ROWS } * task.matrix.row_bytes();
    for (pass, panel) in task.panels.iter().enumerate() {
        let prefetch = PrefetchDistance::next_chunk(pass, passes, bytes);
        // SAFETY: the caller's promise.
        unsafe {
            match panel.rows.div_ceil(TILE_ROWS) {
                1 => sweep::<1, EMULATED>(task, weights, panel, rows.clone(), prefetch),
                _ => sweep::<2, EMULATED>(task, weights, panel, rows.clone(), prefetch),
            }
        }
    }
}

/// Multiplies some weight rows with the `T` tiles of a panel.
///
/// # Safety
/// As for [`run`].
#[inline(always)]
unsafe fn sweep<const T: usize, const EMULATED: bool>(
    task: &Task<'_>,
    weights: &[u16],
    panel: &Panel,
    rows: Range<usize>,
    prefetch: PrefetchDistance,
) {
    let columns = task.matrix.columns;
    let x = task.packed(panel).as_chunks::<TILE_ROWS>().0.as_chunks::<T>().0;
    let mut accumulators = [[CacheLine::ZERO; BLOCK_ROWS]; T];
    for first in rows.clone().step_by(BLOCK_ROWS) {
        let count = (rows.end - first).min(BLOCK_ROWS);
        let weights = &weights[first * columns..(first + count) * columns];
        // SAFETY: the caller's promise.
        unsafe { multiply::<KERNEL_ROWS, T, _, EMULATED>(weights, columns, x, prefetch, &mut accumulators) };
        for (tile, accumulators) in accumulators.iter_mut().enumerate() {
            let row = tile * TILE_ROWS;
            let index = task.output_index(first, panel.first_row + row);
            let tiles = accumulators.as_chunks_mut().0.iter_mut().enumerate();
            for (part, accumulators) in tiles.take(count.div_ceil(TILE_ROWS)) {
                let shape = ((count - part * TILE_ROWS).min(TILE_ROWS), (panel.rows - row).min(TILE_ROWS));
                // SAFETY: the caller's promise; this thread alone computes these weight rows.
                unsafe { tile::store(task.out, index + part * TILE_ROWS, shape, accumulators, None) };
            }
        }
    }
}

/// Writes the products of up to `N` rows of weights with `T` tiles: `R` rows at a time, and the rest one by one.
///
/// # Safety
/// As for [`run`].
#[inline(always)]
pub(crate) unsafe fn multiply<const R: usize, const T: usize, const N: usize, const EMULATED: bool>(
    weights: &[u16],
    columns: usize,
    x: &[[[CacheLine; TILE_ROWS]; T]],
    prefetch: PrefetchDistance,
    products: &mut [[CacheLine; N]; T],
) {
    let count = weights.len() / columns;
    assert!(count <= N && count * columns == weights.len(), "whole rows, at most N");
    let mut row = 0;
    while row < count {
        // SAFETY: the caller's promise.
        unsafe {
            if row + R <= count {
                micro_kernel::<R, T, N, EMULATED>(weights, row, columns, x, prefetch, products);
                row += R;
            } else {
                micro_kernel::<1, T, N, EMULATED>(weights, row, columns, x, prefetch, products);
                row += 1;
            }
        }
    }
}

/// Writes the products of `R` rows of weights, from `row` on, with `T` tiles.
///
/// # Safety
/// As for [`run`].
#[inline(always)]
unsafe fn micro_kernel<const R: usize, const T: usize, const N: usize, const EMULATED: bool>(
    weights: &[u16],
    row: usize,
    columns: usize,
    x: &[[[CacheLine; TILE_ROWS]; T]],
    mut prefetch: PrefetchDistance,
    products: &mut [[CacheLine; N]; T],
) {
    let start = row * columns;
    let first = weights[start..start + R * columns].as_ptr();
    // SAFETY: the caller's promise; the slice above holds `columns` weights of each of the `R` rows.
    unsafe {
        let mut accumulators = [[_mm512_setzero_ps(); T]; R];
        for (step, tiles) in x.iter().enumerate() {
            prefetch.prefetch::<_, R, TILE_COLUMNS>(weights, start, step);
            let first_column = step * TILE_COLUMNS;
            for pair in 0..(columns - first_column).min(TILE_COLUMNS).div_ceil(2) {
                let mut x = [_mm512_setzero_si512(); T];
                for tile in 0..T {
                    x[tile] = load_pairs(&tiles[tile][pair]);
                }
                let column = first_column + 2 * pair;
                for next in 0..R {
                    let from = first.add(next * columns + column);
                    // The last of an odd number of columns has no second weight.
                    let pair =
                        if column + 1 < columns { from.cast::<u32>().read_unaligned() } else { u32::from(*from) };
                    for tile in 0..T {
                        accumulators[next][tile] = dot_bf16::<EMULATED>(accumulators[next][tile], pair, x[tile]);
                    }
                }
            }
        }
        for next in 0..R {
            for tile in 0..T {
                _mm512_store_ps(products[tile][row + next].0.as_mut_ptr(), accumulators[next][tile]);
            }
        }
    }
}

/// Returns the 16 pairs of bfloat16 in a row of a tile.
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
pub(crate) unsafe fn load_pairs(from: &CacheLine) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { _mm512_load_si512(from.0.as_ptr().cast()) }
}

/// Adds the dot product of `pair` and the pair in each lane of `x`. `VDPBF16PS`, in tests emulated with AVX-512 F.
///
/// # Safety
/// As for [`run`].
#[inline(always)]
pub(crate) unsafe fn dot_bf16<const EMULATED: bool>(sum: __m512, pair: u32, x: __m512i) -> __m512 {
    // SAFETY: the caller's promise; the transmuted types hold the same bits.
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

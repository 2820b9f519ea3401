//! The micro-kernel of four-bit weights by products of bytes, on x86-64.
//!
//! `VPMADDUBSW` multiplies 32 codes with 32 signed bytes of activations. The 16 bits of a rounded activation are two such
//! bytes, so the sums are those of `int4.rs`, bit by bit, in half of its instructions.

use super::int4::{Int4, PackedInt4, add_group_sums};
use super::int4_vector::{BLOCK, Int4Vector};
use super::micro_kernel::{rows_in_steps, sum_lanes, unrolled};
use super::{INT4_BYTES_ROWS, INT4_BYTES_VECTORS};
use crate::matmul::prefetch_distance::PrefetchDistance;
use crate::matmul::task::{Panel, Task};
use bpe_llama_simd::f32x16::{Avx2, Avx512, CacheLine};
use bpe_llama_simd::{Backend, Kind};
use std::arch::x86_64::*;
use std::ops::Range;

/// A backend with products of bytes.
trait Bytes: Int4Vector {
    /// Returns the sum of the products in each lane, which is exact.
    ///
    /// # Safety
    /// The CPU has the features of the backend.
    unsafe fn dot(codes: Self::Codes, x: [&CacheLine; 4]) -> Self;
}

// SAFETY of every block: the trait's callers have AVX2, and loads read what the references hold.
#[allow(clippy::undocumented_unsafe_blocks, reason = "the comment above holds for all blocks")]
impl Bytes for Avx2 {
    #[inline(always)]
    unsafe fn dot(codes: Self::Codes, x: [&CacheLine; 4]) -> Self {
        unsafe { Self([dot_half::<0>(codes[0], x), dot_half::<1>(codes[1], x)]) }
    }
}

/// Returns the sums of one half of the lanes.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn dot_half<const HALF: usize>(codes: __m256i, x: [&CacheLine; 4]) -> __m256 {
    // SAFETY: the caller's promise; a line holds two halves.
    unsafe {
        let load = |vector: usize| _mm256_load_si256(x[vector].0.as_ptr().add(8 * HALF).cast());
        let mask = _mm256_set1_epi8(15);
        let (even, odd) = (_mm256_and_si256(codes, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(codes), mask));
        // At most 4 * 15 * 128, far below the limit of 16 bits.
        let upper = _mm256_add_epi16(_mm256_maddubs_epi16(even, load(0)), _mm256_maddubs_epi16(odd, load(1)));
        let lower = _mm256_add_epi16(_mm256_maddubs_epi16(even, load(2)), _mm256_maddubs_epi16(odd, load(3)));
        let upper = _mm256_madd_epi16(upper, _mm256_set1_epi16(256));
        let lower = _mm256_madd_epi16(lower, _mm256_set1_epi16(1));
        _mm256_cvtepi32_ps(_mm256_add_epi32(upper, lower))
    }
}

// SAFETY of every block: the trait's callers have AVX-512 F and BW, and loads read what the references hold.
#[allow(clippy::undocumented_unsafe_blocks, reason = "the comment above holds for all blocks")]
impl Bytes for Avx512 {
    #[inline(always)]
    unsafe fn dot(codes: Self::Codes, x: [&CacheLine; 4]) -> Self {
        unsafe {
            let load = |vector: usize| _mm512_load_si512(x[vector].0.as_ptr().cast());
            let mask = _mm512_set1_epi8(15);
            let (even, odd) = (_mm512_and_si512(codes, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(codes), mask));
            let upper = _mm512_add_epi16(_mm512_maddubs_epi16(even, load(0)), _mm512_maddubs_epi16(odd, load(1)));
            let lower = _mm512_add_epi16(_mm512_maddubs_epi16(even, load(2)), _mm512_maddubs_epi16(odd, load(3)));
            let upper = _mm512_madd_epi16(upper, _mm512_set1_epi16(256));
            let lower = _mm512_madd_epi16(lower, _mm512_set1_epi16(1));
            Self(_mm512_cvtepi32_ps(_mm512_add_epi32(upper, lower)))
        }
    }
}

/// Multiplies some weight rows with all panels.
pub(super) fn run(task: &Task<'_>, backend: Backend, weights: Int4<'_>, rows: Range<usize>) {
    match backend.kind() {
        Kind::Portable => unreachable!("packed for backends with products of bytes"),
        // SAFETY: a `Backend` exists only if the CPU has it.
        Kind::Avx2 => unsafe { run_avx2(task, weights, rows) },
        // SAFETY: as above.
        Kind::Avx512 => unsafe { run_avx512(task, weights, rows) },
    }
}

#[target_feature(enable = "avx2,fma")]
fn run_avx2(task: &Task<'_>, weights: Int4<'_>, rows: Range<usize>) {
    // SAFETY: AVX2 and FMA are enabled here.
    unsafe { run_passes::<Avx2>(task, weights, &rows) };
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
fn run_avx512(task: &Task<'_>, weights: Int4<'_>, rows: Range<usize>) {
    // SAFETY: AVX-512 F, BW and VL are enabled here.
    unsafe { run_passes::<Avx512>(task, weights, &rows) };
}

/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn run_passes<V: Bytes>(task: &Task<'_>, weights: Int4<'_>, rows: &Range<usize>) {
    let (passes, bytes) = (task.panels.len(), rows.len() * task.matrix.row_bytes());
    for (pass, panel) in task.panels.iter().enumerate() {
        let (rows, prefetch) = (rows.clone(), PrefetchDistance::of_pass(pass, passes, bytes));
        // SAFETY: the caller's promise.
        unsafe {
            match (panel.rows, V::REGISTERS < 16) {
                (1, true) => sweep::<V, 1, 1>(task, weights, panel, rows, prefetch),
                (2, true) => sweep::<V, 1, 2>(task, weights, panel, rows, prefetch),
                (3, true) => sweep::<V, 1, 3>(task, weights, panel, rows, prefetch),
                (INT4_BYTES_ROWS, true) => sweep::<V, 1, INT4_BYTES_ROWS>(task, weights, panel, rows, prefetch),
                (1, false) => sweep::<V, 4, 1>(task, weights, panel, rows, prefetch),
                (2, false) => sweep::<V, 2, 2>(task, weights, panel, rows, prefetch),
                (3, false) => sweep::<V, 2, 3>(task, weights, panel, rows, prefetch),
                (INT4_BYTES_ROWS, false) => sweep::<V, 2, INT4_BYTES_ROWS>(task, weights, panel, rows, prefetch),
                _ => unreachable!("panels of at most {INT4_BYTES_ROWS} rows"),
            }
        }
    }
}

/// Multiplies `R` weight rows at a time, and the rest one by one, with the `M` rows of a panel.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn sweep<V: Bytes, const R: usize, const M: usize>(
    task: &Task<'_>,
    weights: Int4<'_>,
    panel: &Panel,
    rows: Range<usize>,
    prefetch: PrefetchDistance,
) {
    let (columns, x) = (task.matrix.columns, task.packed(panel));
    let first = task.output_index(0, panel.first_row);
    let mut row = rows.start;
    // SAFETY: the caller's promise.
    unsafe {
        while row + R <= rows.end {
            task.out.store(first + row, &multiply::<V, R, M>(weights, row, columns, x, prefetch));
            row += R;
        }
        for row in row..rows.end {
            task.out.store(first + row, &multiply::<V, 1, M>(weights, row, columns, x, prefetch));
        }
    }
}

/// Returns the products of `R` weight rows, the first of them `row`, with the `M` activation rows packed in `x`.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn multiply<V: Bytes, const R: usize, const M: usize>(
    weights: Int4<'_>,
    row: usize,
    columns: usize,
    x: &[CacheLine],
    mut prefetch: PrefetchDistance,
) -> [[f32; M]; R] {
    let (groups, packed) = (weights.groups, PackedInt4::<M, INT4_BYTES_VECTORS>::new(x, columns));
    let rows = rows_in_steps::<u8, R, { BLOCK / 2 }>(weights.codes, row, columns / 2);
    let scales: [_; R] = std::array::from_fn(|next| groups.of_row(weights.scales, row + next, columns));
    // SAFETY: the caller's promise.
    unsafe {
        let zero = V::splat(0.0);
        let mut accumulators = [[zero; M]; R];
        add_group_sums(&mut accumulators, scales, packed.group_sums);
        for (block, x) in packed.blocks.iter().enumerate() {
            prefetch.prefetch::<_, R, { BLOCK / 2 }>(weights.codes, row * columns / 2, block);
            unrolled!(R, next, {
                let codes = V::load_codes(rows[next].0.get(block).map_or(rows[next].1, |codes| codes.as_slice()));
                let scale = V::load_scales(groups.of_block(scales[next], block), &groups.of_lane);
                for m in 0..M {
                    let sum = V::dot(codes, [&x[0][m], &x[1][m], &x[2][m], &x[3][m]]);
                    let sum = sum.mul_add(V::load(&x[4][m].0), zero);
                    accumulators[next][m] = sum.mul_add(scale, accumulators[next][m]);
                }
            });
        }
        sum_lanes(accumulators)
    }
}

//! GEMM by float32 fused multiply-adds, with the bits of GEMV.
//!
//! A vector of the GEMV micro-kernel holds 16 columns of a weight row, and in the end its lanes are summed. Here a vector holds
//! one column of 16 weight rows: nothing is summed across lanes, and each activation is read once for all of them. Weights are
//! widened to float32 and transposed once for all activation rows.
//!
//! The sums keep their order. Lane `l` of the GEMV micro-kernel sums every 16th column from `l` on; so columns are taken lane by
//! lane. Lanes are summed as [`F32x16::sum`] does, 8 apart first: taken in the order 0, 8, 4, 12, 2 ... (bits reversed), each
//! sum can be added as soon as it is known, like carries of a binary counter.

use crate::matmul::gemv::MicroKernel;
use crate::matmul::task::{Panel, Task};
use bpe_llama_simd::Backend;
use bpe_llama_simd::f32x16::{CacheLine, F32x16, LANES};
use bpe_llama_simd::prefetch::prefetch_l2;
use std::cell::Cell;
use std::ops::Range;

/// Activation rows from which this is faster than passes of GEMV, of 8 rows with AVX-512 and of 4 without: transposing weights
/// takes as long as multiplying them with some 20 rows.
const fn min_rows(is_avx512: bool) -> usize {
    if is_avx512 { 128 } else { 48 }
}

/// Sums of 1, 2, 4, 8 and 16 lanes.
const LEVELS: usize = LANES.trailing_zeros() as usize + 1;

/// Sums of some lanes: of the 16 rows of a panel, each with `R` vectors of 16 weight rows.
type Sums<const R: usize> = [[CacheLine; R]; LANES];

/// Returns whether a product of so many activation rows is computed here.
pub(in crate::matmul) fn is_used(rows: usize, backend: Backend) -> bool {
    rows >= min_rows(backend.is_avx512())
}

/// Returns how many weight rows are multiplied at a time: their accumulators, of 8 activation rows with AVX-512 and of 6
/// without, fill the registers.
pub(in crate::matmul) const fn block_rows(is_avx512: bool) -> usize {
    if is_avx512 { 3 * LANES } else { LANES }
}

thread_local! {
    /// Widened weights; reused, as allocating memory costs more than filling it.
    static BUFFER: Cell<Vec<CacheLine>> = const { Cell::new(Vec::new()) };
}

/// Multiplies up to [`block_rows`] weight rows with all panels.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
pub(in crate::matmul) unsafe fn run<V: F32x16, K: MicroKernel>(task: &Task<'_>, kernel: K, rows: Range<usize>) {
    // SAFETY: the caller's promise.
    unsafe {
        if V::REGISTERS >= 16 {
            run_block::<V, K, 3, 8>(task, kernel, rows);
        } else {
            run_block::<V, K, 1, 6>(task, kernel, rows);
        }
    }
}

/// Multiplies up to `16 * R` weight rows with up to `M` activation rows at a time.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn run_block<V: F32x16, K: MicroKernel, const R: usize, const M: usize>(
    task: &Task<'_>,
    kernel: K,
    rows: Range<usize>,
) {
    let vectors = K::widened_vectors(task.matrix.columns);
    let mut weights = BUFFER.take();
    weights.resize(R * LANES * vectors, CacheLine::ZERO);
    let starts = rows.clone().step_by(LANES);
    for (start, weights) in starts.zip(weights.chunks_exact_mut(LANES * vectors)) {
        // SAFETY: the caller's promise.
        unsafe { kernel.widen::<V>(start..(start + LANES).min(rows.end), task.matrix.columns, weights) };
    }
    let mut sums = [[[CacheLine::ZERO; R]; LANES]; LEVELS];
    let passes = task.panels.len();
    let (next, next_lines) = (task.matrix.address(rows.end), (rows.len() * task.matrix.row_bytes()).div_ceil(64));
    for (pass, panel) in task.panels.iter().enumerate() {
        // Each pass prefetches its share of the next block.
        for line in (pass..next_lines).step_by(passes) {
            prefetch_l2(next.wrapping_add(64 * line));
        }
        // SAFETY: the caller's promise.
        unsafe {
            multiply::<V, R, M>(&weights, task.packed(panel), panel.rows, vectors, &mut sums);
            store::<V, K, R>(task, kernel, panel, rows.clone(), &sums[LEVELS - 1]);
        }
    }
    BUFFER.set(weights);
}

/// Computes the sums of all lanes for the rows of a panel.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn multiply<V: F32x16, const R: usize, const M: usize>(
    weights: &[CacheLine],
    x: &[CacheLine],
    rows: usize,
    vectors: usize,
    sums: &mut [Sums<R>; LEVELS],
) {
    for place in 0..LANES {
        let lane = place.reverse_bits() >> (usize::BITS - LANES.trailing_zeros());
        let weights = std::array::from_fn(|r| &weights[(r * LANES + lane) * vectors..][..vectors]);
        let x = &x[lane * vectors..][..vectors];
        let level = place.trailing_ones() as usize;
        for first in (0..rows).step_by(M) {
            // SAFETY: the caller's promise.
            unsafe {
                match rows - first {
                    1 => lane_sum::<V, R, 1>(weights, x, first, level, sums),
                    2 => lane_sum::<V, R, 2>(weights, x, first, level, sums),
                    3 => lane_sum::<V, R, 3>(weights, x, first, level, sums),
                    4 => lane_sum::<V, R, 4>(weights, x, first, level, sums),
                    5 => lane_sum::<V, R, 5>(weights, x, first, level, sums),
                    _ => lane_sum::<V, R, M>(weights, x, first, level, sums),
                }
            }
        }
    }
}

/// Sums one lane for `M` rows of a panel, adds the sums of all levels below `level`, and stores the result there.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn lane_sum<V: F32x16, const R: usize, const M: usize>(
    weights: [&[CacheLine]; R],
    x: &[CacheLine],
    first: usize,
    level: usize,
    sums: &mut [Sums<R>; LEVELS],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut accumulators = [[V::splat(0.0); R]; M];
        for (vector, x) in x.iter().enumerate() {
            let x = &x.0[first..first + M];
            let mut weight = [V::splat(0.0); R];
            for r in 0..R {
                weight[r] = V::load(&weights[r][vector].0);
            }
            for m in 0..M {
                let x = V::splat(x[m]);
                for r in 0..R {
                    accumulators[m][r] = weight[r].mul_add(x, accumulators[m][r]);
                }
            }
        }
        let one = V::splat(1.0);
        for before in &sums[..level] {
            for m in 0..M {
                for r in 0..R {
                    accumulators[m][r] = accumulators[m][r].mul_add(one, V::load(&before[first + m][r].0));
                }
            }
        }
        let sums = &mut sums[level][first..first + M];
        for m in 0..M {
            for r in 0..R {
                accumulators[m][r].store(&mut sums[m][r].0);
            }
        }
    }
}

/// Writes or adds the products of a block of weight rows with the rows of a panel.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn store<V: F32x16, K: MicroKernel, const R: usize>(
    task: &Task<'_>,
    kernel: K,
    panel: &Panel,
    rows: Range<usize>,
    products: &Sums<R>,
) {
    for (m, products) in products[..panel.rows].iter().enumerate() {
        for (start, products) in rows.clone().step_by(LANES).zip(products) {
            let index = task.output_index(start, panel.first_row + m);
            // SAFETY: the caller's promise.
            unsafe { task.out.store_vector::<V>(index, rows.end - start, products, kernel.scales(start)) };
        }
    }
}

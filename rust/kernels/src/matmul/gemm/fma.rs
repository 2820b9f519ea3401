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
use bpe_llama_simd::prefetch::{prefetch, prefetch_l2};
use std::cell::Cell;
use std::ops::Range;

/// Activation rows from which this is faster than passes of GEMV, of 8 rows with AVX-512 and of 6 without: transposing weights
/// takes as long as multiplying them with some 20 rows.
fn min_rows(backend: Backend) -> usize {
    if backend.is_avx512() { 96 } else { 48 }
}

/// Weight rows that are multiplied at a time.
pub(in crate::matmul) const BLOCK_ROWS: usize = GROUPS * LANES;

/// Groups of 16 weight rows in a block: with AVX-512 their accumulators, of 8 activation rows, fill the registers.
pub(in crate::matmul) const GROUPS: usize = 3;

/// One column of a block of weight rows, a vector for each group.
pub(in crate::matmul) type Column = [CacheLine; GROUPS];

/// Columns of a lane that are multiplied with all panels before the next ones: 24 KiB, which stay in the first-level cache.
const CHUNK: usize = 128;

/// Panels whose sums are held at a time: half a MiB, which stays in the second-level cache.
const MAX_PANELS: usize = 32;

/// Sums of 1, 2, 4, 8 and 16 lanes.
const LEVELS: usize = LANES.trailing_zeros() as usize + 1;

/// The products of the 16 activation rows of a panel, summed over some lanes.
type Sums = [Column; LANES];

/// Returns whether a product of so many activation rows is computed here.
pub(in crate::matmul) fn is_used(rows: usize, backend: Backend) -> bool {
    rows >= min_rows(backend)
}

/// Returns how far apart the lanes of so many vectors are. It is odd, as the same column of all lanes would otherwise fall into
/// one set of a cache.
pub(in crate::matmul) const fn lane_stride(vectors: usize) -> usize {
    vectors | 1
}

thread_local! {
    /// Widened weights, and sums; reused, as allocating memory costs more than filling it.
    static BUFFERS: Cell<(Vec<Column>, Vec<[Sums; LEVELS]>)> = const { Cell::new((Vec::new(), Vec::new())) };
}

/// Multiplies up to [`BLOCK_ROWS`] weight rows with all panels.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
pub(in crate::matmul) unsafe fn run<V: F32x16, K: MicroKernel>(task: &Task<'_>, kernel: K, rows: Range<usize>) {
    let (mut weights, mut sums) = BUFFERS.take();
    let vectors = K::widened_vectors(task.matrix.columns);
    weights.resize(LANES * lane_stride(vectors), [CacheLine::ZERO; GROUPS]);
    sums.resize(task.panels.len().min(MAX_PANELS), [[[CacheLine::ZERO; GROUPS]; LANES]; LEVELS]);
    for (group, start) in rows.clone().step_by(LANES).enumerate() {
        let end = rows.end.min(start + LANES);
        // SAFETY: the caller's promise.
        unsafe { kernel.widen::<V>(start..end, task.matrix.columns, group, &mut weights) };
    }
    let next_block = task.matrix.address(rows.end);
    let lines = (rows.len() * task.matrix.row_bytes()).div_ceil(size_of::<CacheLine>());
    let (mut step, steps) = (0, parts(vectors).count() * task.panels.len());
    for panels in task.panels.chunks(MAX_PANELS) {
        for part in parts(vectors) {
            for (index, (panel, sums)) in panels.iter().zip(&mut sums).enumerate() {
                let (weights, x) = (&weights[part.columns.clone()], &task.packed(panel)[part.columns.clone()]);
                let next = &task.packed(&panels[(index + 1) % panels.len()])[part.columns.start];
                // SAFETY: as above.
                unsafe {
                    if V::REGISTERS >= 16 {
                        multiply::<V, GROUPS, 8>(weights, x, next, panel.rows, &part, sums);
                    } else {
                        multiply::<V, 1, 6>(weights, x, next, panel.rows, &part, sums);
                    }
                }
                // Each step prefetches its share of the next block.
                for line in (step..lines).step_by(steps) {
                    prefetch_l2(next_block.wrapping_add(line * size_of::<CacheLine>()));
                }
                step += 1;
            }
        }
        for (panel, sums) in panels.iter().zip(&sums) {
            // SAFETY: as above.
            unsafe { store::<V, K>(task, kernel, panel, rows.clone(), &sums[LEVELS - 1]) };
        }
    }
    BUFFERS.set((weights, sums));
}

/// Up to [`CHUNK`] columns of one lane.
struct Part {
    columns: Range<usize>,
    is_first: bool,
    is_last: bool,
    /// Where the sums of the lane go, together with those of all levels below.
    level: usize,
}

/// Returns the parts of all lanes, each of so many vectors, in the order in which they are summed.
fn parts(vectors: usize) -> impl Iterator<Item = Part> {
    (0..LANES).flat_map(move |place| {
        let lane = place.reverse_bits() >> (usize::BITS - LANES.trailing_zeros());
        (0..vectors).step_by(CHUNK).map(move |start| {
            let (first, end) = (lane * lane_stride(vectors), vectors.min(start + CHUNK));
            Part {
                columns: first + start..first + end,
                is_first: start == 0,
                is_last: end == vectors,
                level: place.trailing_ones() as usize,
            }
        })
    })
}

/// Multiplies a part of a lane with the rows of a panel: `R` vectors of weight rows and up to `M` activation rows at a time.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn multiply<V: F32x16, const R: usize, const M: usize>(
    weights: &[Column],
    x: &[CacheLine],
    next: *const CacheLine,
    rows: usize,
    part: &Part,
    sums: &mut [Sums; LEVELS],
) {
    for group in (0..GROUPS).step_by(R) {
        for first in (0..rows).step_by(M) {
            // SAFETY: the caller's promise.
            unsafe {
                match rows - first {
                    1 => lane_sum::<V, R, 1>(weights, x, next, (group, first), part, sums),
                    2 => lane_sum::<V, R, 2>(weights, x, next, (group, first), part, sums),
                    3 => lane_sum::<V, R, 3>(weights, x, next, (group, first), part, sums),
                    4 => lane_sum::<V, R, 4>(weights, x, next, (group, first), part, sums),
                    5 => lane_sum::<V, R, 5>(weights, x, next, (group, first), part, sums),
                    _ => lane_sum::<V, R, M>(weights, x, next, (group, first), part, sums),
                }
            }
        }
    }
}

/// Adds a part of a lane to its sums, of `R` vectors of weight rows from `group` on and `M` activation rows from `first` on, and
/// after the last part the sums of all levels below.
///
/// The activations of the `next` panel are prefetched: those of a long prompt come from the third-level cache.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn lane_sum<V: F32x16, const R: usize, const M: usize>(
    weights: &[Column],
    x: &[CacheLine],
    next: *const CacheLine,
    (group, first): (usize, usize),
    part: &Part,
    sums: &mut [Sums; LEVELS],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut accumulators = [[V::splat(0.0); R]; M];
        if !part.is_first {
            for m in 0..M {
                for r in 0..R {
                    accumulators[m][r] = V::load(&sums[part.level][first + m][group + r].0);
                }
            }
        }
        for (step, (weights, x)) in weights.iter().zip(x).enumerate() {
            prefetch(next.wrapping_add(step));
            let x = &x.0[first..first + M];
            let mut weight = [V::splat(0.0); R];
            for r in 0..R {
                weight[r] = V::load(&weights[group + r].0);
            }
            for m in 0..M {
                let x = V::splat(x[m]);
                for r in 0..R {
                    accumulators[m][r] = weight[r].mul_add(x, accumulators[m][r]);
                }
            }
        }
        let (below, sums) = sums.split_at_mut(part.level);
        if part.is_last {
            let one = V::splat(1.0);
            for before in below {
                for m in 0..M {
                    for r in 0..R {
                        accumulators[m][r] = accumulators[m][r].mul_add(one, V::load(&before[first + m][group + r].0));
                    }
                }
            }
        }
        for m in 0..M {
            for r in 0..R {
                accumulators[m][r].store(&mut sums[0][first + m][group + r].0);
            }
        }
    }
}

/// Writes or adds the products of a block of weight rows with the rows of a panel.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn store<V: F32x16, K: MicroKernel>(
    task: &Task<'_>,
    kernel: K,
    panel: &Panel,
    rows: Range<usize>,
    products: &Sums,
) {
    for (m, products) in products[..panel.rows].iter().enumerate() {
        for (start, products) in rows.clone().step_by(LANES).zip(products) {
            let index = task.output_index(start, panel.first_row + m);
            // SAFETY: the caller's promise.
            unsafe { task.out.store_vector::<V>(index, rows.end - start, products, kernel.scales(start)) };
        }
    }
}

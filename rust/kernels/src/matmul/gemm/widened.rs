//! GEMM by float32 fused multiply-adds, for CPUs with fewer than 32 wide registers.
//!
//! Weights of float32, bfloat16 and int8 are widened to float32 once for all activation rows, and so are multiplied as fast as
//! float32. The micro-kernel takes one half of the lanes and then the other: 16 registers then hold the accumulators of three
//! weight rows and four activation rows. Sums have the order of the GEMV micro-kernel, and so the same bits.

use crate::backend::GEMV_ROWS_WITHOUT_AVX512;
use crate::matmul::gemv::{Halved, MicroKernel};
use crate::matmul::task::{Panel, Task};
use bpe_llama_simd::f32x16::CacheLine;
use bpe_llama_simd::prefetch::prefetch_l2;
use std::cell::Cell;
use std::ops::Range;

/// Passes of four activation rows from which widening weights once is faster: with fewer, a product still waits for memory,
/// which widening in a pass of its own does not overlap with arithmetic.
const MIN_PASSES: usize = 5;

/// Weight rows of the micro-kernel.
pub(crate) const KERNEL_ROWS: usize = 3;

/// Bytes of widened weights that stay in the second-level cache, with the activations of a panel beside them.
pub(crate) const WIDENED_BYTES: usize = 160 << 10;

/// Returns whether a product of so many passes is computed here. AVX-512 has no use for it: its own kernels are as fast.
pub(crate) const fn is_used(passes: usize, is_avx512: bool) -> bool {
    passes >= MIN_PASSES && !is_avx512
}

thread_local! {
    /// Widened weights; reused, as allocating memory costs more than filling it.
    static BUFFER: Cell<Vec<CacheLine>> = const { Cell::new(Vec::new()) };
}

/// Multiplies some weight rows with all panels.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
pub(in crate::matmul) unsafe fn run<V: Halved, K: MicroKernel>(task: &Task<'_>, kernel: K, rows: Range<usize>) {
    let (columns, passes) = (task.matrix.columns, task.panels.len());
    let vectors = K::widened_vectors(columns);
    let mut widened = BUFFER.take();
    widened.resize(rows.len() * vectors, CacheLine::ZERO);
    // Rows of the micro-kernel, and then the rest one by one.
    let whole = rows.len() / KERNEL_ROWS * KERNEL_ROWS;
    let (in_threes, in_ones) = widened.split_at_mut(whole * vectors);
    let threes = (rows.start..).step_by(KERNEL_ROWS);
    let ones = rows.start + whole..;
    // SAFETY: the caller's promise.
    unsafe {
        for (row, widened) in threes.clone().zip(in_threes.chunks_exact_mut(KERNEL_ROWS * vectors)) {
            kernel.widen::<V, KERNEL_ROWS>(row, columns, widened);
        }
        for (row, widened) in ones.clone().zip(in_ones.chunks_exact_mut(vectors)) {
            kernel.widen::<V, 1>(row, columns, widened);
        }
        for (pass, panel) in task.panels.iter().enumerate() {
            for (row, widened) in threes.clone().zip(in_threes.chunks_exact(KERNEL_ROWS * vectors)) {
                // Each pass prefetches its share of the next chunk.
                let next = task.matrix.address(row + rows.len());
                for line in (pass..(KERNEL_ROWS * task.matrix.row_bytes()).div_ceil(64)).step_by(passes) {
                    prefetch_l2(next.wrapping_add(64 * line));
                }
                multiply::<V, K, KERNEL_ROWS>(task, kernel, panel, row, widened);
            }
            for (row, widened) in ones.clone().zip(in_ones.chunks_exact(vectors)) {
                multiply::<V, K, 1>(task, kernel, panel, row, widened);
            }
        }
    }
    BUFFER.set(widened);
}

/// Multiplies `R` weight rows with the rows of a panel.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn multiply<V: Halved, K: MicroKernel, const R: usize>(
    task: &Task<'_>,
    kernel: K,
    panel: &Panel,
    row: usize,
    widened: &[CacheLine],
) {
    // SAFETY: the caller's promise.
    unsafe {
        match panel.rows {
            1 => store::<V, K, R, 1>(task, kernel, panel, row, widened),
            2 => store::<V, K, R, 2>(task, kernel, panel, row, widened),
            3 => store::<V, K, R, 3>(task, kernel, panel, row, widened),
            _ => store::<V, K, R, GEMV_ROWS_WITHOUT_AVX512>(task, kernel, panel, row, widened),
        }
    }
}

/// Writes or adds the products of `R` weight rows with the `M` rows of a panel.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn store<V: Halved, K: MicroKernel, const R: usize, const M: usize>(
    task: &Task<'_>,
    kernel: K,
    panel: &Panel,
    row: usize,
    widened: &[CacheLine],
) {
    // SAFETY: the caller's promise.
    let products = unsafe { kernel.multiply_widened::<V, R, M>(row, widened, task.packed(panel)) };
    task.out.store(task.output_index(row, panel.first_row), &products);
}

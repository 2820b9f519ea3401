//! `matmul`: products of weight matrices with the activations of one token or of many.
//!
//! | file | its part |
//! |---|---|
//! | `weights.rs`, `activations.rs` | the operands of the caller |
//! | `task.rs`, `pack.rs` | one matrix and its packed activations |
//! | `gemv/` | up to eight activation rows a pass, on every CPU |
//! | `gemm/` | more rows, on every CPU |
//! | `prefetch_distance.rs` | software prefetch of weights |

mod activations;
pub(crate) mod gemm;
mod gemv;
mod pack;
pub(crate) mod prefetch_distance;
mod task;
#[cfg(test)]
mod tests;
mod weights;

pub use activations::{Activations, Gate};
pub use weights::{Matrix, Weights};

use crate::backend::{GEMV_ROWS, GemmBackend};
use crate::output::{Output, atomic_bits};
use crate::{Error, Result, thread_pool};
use bpe_llama_simd::Backend;
use gemm::{amx, avx512_bf16, fma};
use pack::PackedActivations;
use std::sync::atomic::{AtomicUsize, Ordering};
use task::{Layout, Task};

/// Bytes of weights that a thread takes at a time for one pass, and for several.
const CHUNK_BYTES: usize = 1 << 15;
const CHUNK_BYTES_OF_PASSES: usize = 1 << 18;

/// Writes or adds the product of each activation row with the matrices, as if they were one matrix, one below the other.
///
/// In symbols, `out = x @ weights.T`, or `out += x @ weights.T` if `accumulate`.
///
/// # Arguments
/// `activations` are `(M, I)`, `out` is `(M, O)`, both row after row. `I` is the number of columns of every matrix, `O` the
/// number of rows of all. Up to `threads` threads take part; the result does not depend on them.
///
/// # Errors
/// [`Error::InvalidArgument`] if there is no matrix or if shapes do not fit.
///
/// # Cost
/// One read of the weights for up to about 16 activation rows, or 32 with AMX or AVX-512 BF16. With more rows the cost is
/// `2 * M * I * O` operations.
pub fn matmul(
    matrices: &[Matrix<'_>],
    activations: Activations<'_>,
    out: &mut [f32],
    accumulate: bool,
    threads: usize,
) -> Result<()> {
    matmul_with(Backend::best(), GemmBackend::best(), matrices, activations, out, accumulate, threads)
}

fn matmul_with(
    backend: Backend,
    gemm: GemmBackend,
    matrices: &[Matrix<'_>],
    activations: Activations<'_>,
    out: &mut [f32],
    accumulate: bool,
    threads: usize,
) -> Result<()> {
    let (columns, width) = joint_shape(matrices)?;
    let (given, length) = activations.given(columns);
    if let Activations::Normalized { weights, .. } = activations
        && weights.len() != columns
    {
        return Err(Error::InvalidArgument(format!("a norm of {} weights for {columns} columns", weights.len())));
    }
    let rows = given.len() / length;
    let gemm = if rows > GEMV_ROWS { gemm } else { GemmBackend::Fma };
    if !given.len().is_multiple_of(length) || out.len() != rows * width {
        return Err(Error::InvalidArgument(format!(
            "{} activations and {} outputs; expected {length} and {width} for each row",
            given.len(),
            out.len()
        )));
    }
    let activations = PackedActivations::new(matrices, &activations.compute(columns, backend), columns, backend, gemm);
    let out = Output { bits: atomic_bits(out), width, accumulate };
    let (mut first_column, mut chunks, mut bytes) = (0, 0, 0);
    let mut tasks = Vec::with_capacity(matrices.len());
    for matrix in matrices {
        let layout = Layout::of(&matrix.weights, rows, backend, gemm);
        let panels = activations.panels(layout);
        let chunk_rows = chunk_rows(matrix, layout, panels.len());
        tasks.push(Task { matrix, layout, panels, packed: &activations.packed, chunk_rows, first_column, out: &out });
        first_column += matrix.rows;
        chunks += matrix.rows.div_ceil(chunk_rows);
        bytes += matrix.bytes();
    }
    let threads = threads.min(bytes / CHUNK_BYTES).max(1);
    // Each thread first takes a range of consecutive chunks, so that it prefetches what it reads next, then chunks that
    // other threads have not begun.
    let ranges: Vec<_> = (0..threads)
        .map(|thread| (AtomicUsize::new(thread * chunks / threads), (thread + 1) * chunks / threads))
        .collect();
    let arrived = AtomicUsize::new(0);
    thread_pool::run(threads, &|| {
        let own = arrived.fetch_add(1, Ordering::Relaxed) % threads;
        let (before, from_own) = ranges.split_at(own);
        for (next, end) in from_own.iter().chain(before) {
            loop {
                let chunk = next.fetch_add(1, Ordering::Relaxed);
                if chunk >= *end {
                    break;
                }
                run_chunk(&tasks, chunk, backend);
            }
        }
    });
    Ok(())
}

/// Returns how many weight rows a thread takes at a time: about a fixed number of bytes, in whole register blocks.
fn chunk_rows(matrix: &Matrix<'_>, layout: Layout, passes: usize) -> usize {
    if let Layout::F32Tiles { .. } = layout {
        return fma::BLOCK_ROWS;
    }
    let (bytes, multiple) = match (layout, passes > 1) {
        (Layout::AmxTiles, false) => (CHUNK_BYTES, 32),
        (Layout::AmxTiles, true) => (2 * CHUNK_BYTES_OF_PASSES, 32),
        (Layout::Bf16Tiles, false) => (CHUNK_BYTES, 48),
        (Layout::Bf16Tiles, true) => (CHUNK_BYTES_OF_PASSES, 48),
        (_, false) => (CHUNK_BYTES, 4),
        (Layout::Int4 { .. }, true) => (CHUNK_BYTES_OF_PASSES, 4),
        (_, true) => (CHUNK_BYTES_OF_PASSES, 3),
    };
    (bytes / matrix.row_bytes().max(1)).next_multiple_of(multiple).max(multiple)
}

/// Computes one chunk; chunks are numbered over all tasks.
fn run_chunk(tasks: &[Task<'_>], mut chunk: usize, backend: Backend) {
    for task in tasks {
        let (all, size) = (task.matrix.rows, task.chunk_rows);
        let chunks = all.div_ceil(size);
        if chunk < chunks {
            let rows = chunk * size..((chunk + 1) * size).min(all);
            match task.layout {
                // SAFETY: `Layout::of` chooses this layout only where the CPU has AMX, and the panels have it.
                Layout::AmxTiles => unsafe { amx::run(task, rows) },
                // SAFETY: as above, for AVX-512 BF16.
                Layout::Bf16Tiles => unsafe { avx512_bf16::run(task, rows) },
                Layout::Sequential | Layout::EvenOdd | Layout::F32Tiles { .. } | Layout::Int4 { .. } => {
                    gemv::run(task, backend, rows);
                }
            }
            return;
        }
        chunk -= chunks;
    }
}

/// Returns the columns of every matrix and the rows of all together.
fn joint_shape(matrices: &[Matrix<'_>]) -> Result<(usize, usize)> {
    let Some(first) = matrices.first() else {
        return Err(Error::InvalidArgument("no matrix to multiply with; expected at least one".into()));
    };
    if let Some(other) = matrices.iter().find(|matrix| matrix.columns != first.columns) {
        return Err(Error::InvalidArgument(format!(
            "matrices of {} and {} columns; expected the same of all",
            first.columns, other.columns
        )));
    }
    Ok((first.columns, matrices.iter().map(Matrix::rows).sum()))
}

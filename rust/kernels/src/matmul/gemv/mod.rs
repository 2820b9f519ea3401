//! GEMV: products with up to eight activation rows at a time, by float32 fused multiply-adds. Four-bit weights are multiplied
//! as integers.
//!
//! Up to eight rows a product is bound by memory bandwidth: each weight is read once, widened and multiplied with all rows.
//! More rows take several passes over a chunk of weights that the second-level cache holds.
//!
//! | file | its part |
//! |---|---|
//! | `micro_kernel.rs` | the trait of weights that are widened to float32, and what they share |
//! | `dense.rs` | its formats: float32, bfloat16, int8 |
//! | `int4.rs` | four-bit weights |
//! | `int4_vector.rs`, `int4_pack.rs` | their vector operations on each backend, and their activations |
//!
//! Source of the register blocking: Goto and van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication".

mod dense;
mod int4;
pub(super) mod int4_pack;
mod int4_vector;
mod micro_kernel;

pub(super) use micro_kernel::MicroKernel;

use super::gemm::fma;
use super::prefetch_distance::PrefetchDistance;
use super::task::{Layout, Panel, Task};
use super::weights::Weights;
use crate::backend::{FEW_GEMV_ROWS, GEMV_ROWS, GEMV_ROWS_WITHOUT_AVX512};
#[cfg(target_arch = "aarch64")]
use bpe_llama_simd::f32x16::Neon;
#[cfg(target_arch = "x86_64")]
use bpe_llama_simd::f32x16::{Avx2, Avx512};
use bpe_llama_simd::f32x16::{F32x16, Portable};
use bpe_llama_simd::{Backend, Kind};
use dense::{Bf16, F32, Int8};
use std::ops::Range;

/// Multiplies some weight rows with all panels.
pub(super) fn run(task: &Task<'_>, backend: Backend, rows: Range<usize>) {
    match task.matrix.weights {
        Weights::F32(weights) => run_kernel(task, backend, F32(weights), rows),
        Weights::Bf16(weights) => run_kernel(task, backend, Bf16(weights), rows),
        Weights::Int8(codes, scales) => run_kernel(task, backend, Int8 { codes, scales }, rows),
        Weights::Int4(codes, scales) => int4::run(task, backend, codes, scales, &rows),
    }
}

fn run_kernel<K: MicroKernel>(task: &Task<'_>, backend: Backend, kernel: K, rows: Range<usize>) {
    match backend.kind() {
        // SAFETY: the portable backend needs no CPU feature.
        Kind::Portable => unsafe { run_passes::<Portable, K>(task, kernel, rows) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: a `Backend` exists only if the CPU has it.
        Kind::Neon => unsafe { run_passes::<Neon, K>(task, kernel, rows) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Kind::Avx2 => unsafe { run_avx2(task, kernel, rows) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Kind::Avx512 => unsafe { run_avx512(task, kernel, rows) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<K: MicroKernel>(task: &Task<'_>, kernel: K, rows: Range<usize>) {
    // SAFETY: AVX2 and FMA are enabled here.
    unsafe { run_passes::<Avx2, K>(task, kernel, rows) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
fn run_avx512<K: MicroKernel>(task: &Task<'_>, kernel: K, rows: Range<usize>) {
    // SAFETY: AVX-512 F, BW and VL are enabled here.
    unsafe { run_passes::<Avx512, K>(task, kernel, rows) };
}

/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn run_passes<V: F32x16, K: MicroKernel>(task: &Task<'_>, kernel: K, rows: Range<usize>) {
    let passes = task.panels.len();
    if let Layout::F32Tiles { .. } = task.layout {
        // SAFETY: the caller's promise.
        return unsafe { fma::run::<V, K>(task, kernel, rows) };
    }
    let bytes = rows.len() * task.matrix.row_bytes();
    for (pass, panel) in task.panels.iter().enumerate() {
        let prefetch = PrefetchDistance::of_pass(pass, passes, bytes);
        // SAFETY: as above.
        unsafe { run_pass::<V, K>(task, kernel, panel, rows.clone(), prefetch) };
    }
}

/// Chooses the register blocking for the rows of a panel.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn run_pass<V: F32x16, K: MicroKernel>(
    task: &Task<'_>,
    kernel: K,
    panel: &Panel,
    rows: Range<usize>,
    prefetch: PrefetchDistance,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match (panel.rows, V::REGISTERS < 16) {
            (1, _) => sweep::<V, K, 4, 1>(task, kernel, panel, rows, prefetch),
            (2, _) => sweep::<V, K, 2, 2>(task, kernel, panel, rows, prefetch),
            (3, false) => sweep::<V, K, 2, 3>(task, kernel, panel, rows, prefetch),
            (FEW_GEMV_ROWS, false) => sweep::<V, K, 2, FEW_GEMV_ROWS>(task, kernel, panel, rows, prefetch),
            // 24 accumulators, three weight vectors and one activation vector.
            (_, false) => sweep::<V, K, 3, GEMV_ROWS>(task, kernel, panel, rows, prefetch),
            (3, true) => sweep::<V, K, 1, 3>(task, kernel, panel, rows, prefetch),
            (4, true) => sweep::<V, K, 1, 4>(task, kernel, panel, rows, prefetch),
            (5, true) => sweep::<V, K, 1, 5>(task, kernel, panel, rows, prefetch),
            // Of AVX2's 16 registers, 12 accumulators and two halves of a weight vector.
            (_, true) => sweep::<V, K, 1, GEMV_ROWS_WITHOUT_AVX512>(task, kernel, panel, rows, prefetch),
        }
    }
}

/// Multiplies `R` weight rows at a time, and the rest one by one, with the `M` rows of a panel.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn sweep<V: F32x16, K: MicroKernel, const R: usize, const M: usize>(
    task: &Task<'_>,
    kernel: K,
    panel: &Panel,
    rows: Range<usize>,
    prefetch: PrefetchDistance,
) {
    let (columns, x) = (task.matrix.columns, task.packed(panel));
    let first = task.output_index(0, panel.first_row);
    let mut row = rows.start;
    while row + R <= rows.end {
        // SAFETY: the caller's promise.
        let products = unsafe { kernel.multiply::<V, R, M>(row, columns, x, prefetch) };
        task.out.store(first + row, &products);
        row += R;
    }
    for row in row..rows.end {
        // SAFETY: the caller's promise.
        let products = unsafe { kernel.multiply::<V, 1, M>(row, columns, x, prefetch) };
        task.out.store(first + row, &products);
    }
}

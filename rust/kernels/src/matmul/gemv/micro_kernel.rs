//! The trait of weights that are widened to float32, and what micro-kernels share.

use crate::backend::GEMV_ROWS;
use crate::matmul::gemm::fma::Column;
use crate::matmul::prefetch_distance::PrefetchDistance;
use bpe_llama_simd::f32x16::{CacheLine, F32x16};
use std::ops::Range;
use std::sync::atomic::{Ordering, compiler_fence};

/// The micro-kernel of a weight format that is widened to float32: it multiplies `R` weight rows with `M` activation rows,
/// and holds the `R * M` accumulators in registers.
///
/// Each product has one order of summation, whatever the backend, `R`, `M` and the threads are: every lane from the first
/// column on, as activations are packed; then the lanes ([`F32x16::sum`]).
pub(in crate::matmul) trait MicroKernel: Copy {
    /// Returns the products of `R` weight rows, the first of them `row`, with the `M` activation rows packed in `x`.
    ///
    /// # Safety
    /// The CPU has the features of `V`.
    unsafe fn multiply<V: F32x16, const R: usize, const M: usize>(
        self,
        row: usize,
        columns: usize,
        x: &[CacheLine],
        prefetch: PrefetchDistance,
    ) -> [[f32; M]; R];

    /// Returns the vectors of a row that is widened to float32.
    fn widened_vectors(columns: usize) -> usize;

    /// Writes up to 16 weight rows, widened and transposed, as one group of the columns of `gemm/fma.rs`.
    ///
    /// # Safety
    /// The CPU has the features of `V`.
    unsafe fn widen<V: F32x16>(self, rows: Range<usize>, columns: usize, group: usize, out: &mut [Column]);

    /// Returns the scales of the weight rows from `row` on, if any, which multiply the products of [`widen`](Self::widen).
    fn scales(&self, row: usize) -> Option<&[f32]>;
}

/// Adds the products of one vector of each weight row and each activation row.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
pub(super) unsafe fn multiply_add<V: F32x16, const R: usize, const M: usize>(
    accumulators: &mut [[V; M]; R],
    weights: [V; R],
    x: &[CacheLine; M],
) {
    for m in 0..M {
        // SAFETY: the caller's promise.
        unsafe {
            let x = V::load(&x[m].0);
            for row in 0..R {
                accumulators[row][m] = weights[row].mul_add(x, accumulators[row][m]);
            }
            if M == GEMV_ROWS {
                // Otherwise compilers load four activation vectors at a time, and spill an accumulator.
                compiler_fence(Ordering::SeqCst);
            }
        }
    }
}

/// Returns the sum of the lanes of each accumulator.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
pub(super) unsafe fn sum_lanes<V: F32x16, const R: usize, const M: usize>(accumulators: [[V; M]; R]) -> [[f32; M]; R] {
    let mut sums = [[0.0; M]; R];
    for row in 0..R {
        let (fours, rest) = accumulators[row].as_chunks::<4>();
        for four in 0..fours.len() {
            // SAFETY: the caller's promise.
            sums[row][4 * four..][..4].copy_from_slice(&unsafe { V::sum_each(fours[four]) });
        }
        for m in 0..rest.len() {
            // SAFETY: as above.
            sums[row][4 * fours.len() + m] = unsafe { rest[m].sum() };
        }
    }
    sums
}

/// Returns `R` rows, each as its steps of `N` elements and the rest.
pub(super) fn rows_in_steps<T, const R: usize, const N: usize>(
    weights: &[T],
    row: usize,
    columns: usize,
) -> [(&[[T; N]], &[T]); R] {
    std::array::from_fn(|next| weights[(row + next) * columns..][..columns].as_chunks::<N>())
}

//! The micro-kernel of float32, bfloat16 and int8 weights, which widen to float32 one by one.

use super::micro_kernel::{MicroKernel, multiply_add, rows_in_steps, sum_lanes};
use crate::matmul::gemm::fma::{Column, GROUPS, lane_stride};
use crate::matmul::prefetch_distance::PrefetchDistance;
use bpe_llama_simd::f32x16::{CacheLine, F32x16, LANES, zero_padded};
use std::ops::Range;

/// A format in which `N` consecutive weights of a row widen to `S` vectors.
trait Dense<const N: usize, const S: usize> {
    type Element: Copy + Default;

    /// # Safety
    /// The CPU has the features of `V`.
    unsafe fn widen<V: F32x16>(weights: &[Self::Element; N]) -> [V; S];
}

/// See [`MicroKernel::multiply`].
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn multiply<D: Dense<N, S>, V: F32x16, const N: usize, const S: usize, const R: usize, const M: usize>(
    weights: &[D::Element],
    row: usize,
    columns: usize,
    x: &[CacheLine],
    mut prefetch: PrefetchDistance,
) -> [[f32; M]; R] {
    let rows = rows_in_steps::<_, R, N>(weights, row, columns);
    let x = x.as_chunks::<M>().0.as_chunks::<S>().0;
    // SAFETY: the caller's promise.
    unsafe {
        let zero = V::splat(0.0);
        let mut accumulators = [[zero; M]; R];
        let whole = columns / N;
        for (step, x) in x[..whole].iter().enumerate() {
            prefetch.prefetch::<_, R, N>(weights, row * columns, step);
            let mut vectors = [[zero; R]; S];
            for next in 0..R {
                let widened = D::widen(&rows[next].0[step]);
                for vector in 0..S {
                    vectors[vector][next] = widened[vector];
                }
            }
            for vector in 0..S {
                multiply_add(&mut accumulators, vectors[vector], &x[vector]);
            }
        }
        if let Some(x) = x.get(whole) {
            let mut vectors = [[zero; R]; S];
            for next in 0..R {
                let widened = D::widen(&zero_padded(rows[next].1));
                for vector in 0..S {
                    vectors[vector][next] = widened[vector];
                }
            }
            for vector in 0..S {
                multiply_add(&mut accumulators, vectors[vector], &x[vector]);
            }
        }
        sum_lanes(accumulators)
    }
}

/// See [`MicroKernel::widen`].
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn widen<D: Dense<N, S>, V: F32x16, const N: usize, const S: usize>(
    weights: &[D::Element],
    rows: Range<usize>,
    columns: usize,
    group: usize,
    out: &mut [Column],
) {
    let (lines, stride) = (out.as_flattened_mut(), GROUPS * lane_stride(S * columns.div_ceil(N)));
    // Of fewer than 16 rows the last one is taken several times: such products are not stored.
    let rows: [_; LANES] = std::array::from_fn(|line| {
        weights[(rows.start + line).min(rows.end - 1) * columns..][..columns].as_chunks::<N>()
    });
    // SAFETY: the caller's promise.
    unsafe {
        let mut tiles = [[CacheLine::ZERO; LANES]; S];
        for step in 0..columns.div_ceil(N) {
            for line in 0..LANES {
                let (whole, rest) = rows[line];
                let widened: [V; S] =
                    if step < whole.len() { D::widen(&whole[step]) } else { D::widen(&zero_padded(rest)) };
                for vector in 0..S {
                    widened[vector].store(&mut tiles[vector][line].0);
                }
            }
            for vector in 0..S {
                V::transpose(&tiles[vector], &mut lines[(step * S + vector) * GROUPS + group..], stride);
            }
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct F32<'a>(pub(super) &'a [f32]);

impl Dense<LANES, 1> for F32<'_> {
    type Element = f32;

    #[inline(always)]
    unsafe fn widen<V: F32x16>(weights: &[f32; LANES]) -> [V; 1] {
        // SAFETY: the caller's promise.
        [unsafe { V::load(weights) }]
    }
}

/// 32 bfloat16 widen to the even columns and the odd ones.
#[derive(Clone, Copy)]
pub(super) struct Bf16<'a>(pub(super) &'a [u16]);

impl Dense<{ 2 * LANES }, 2> for Bf16<'_> {
    type Element = u16;

    #[inline(always)]
    unsafe fn widen<V: F32x16>(weights: &[u16; 2 * LANES]) -> [V; 2] {
        // SAFETY: the caller's promise.
        unsafe { V::load_bf16(weights) }
    }
}

/// Implements [`MicroKernel`] for weights without scales, which widen to so many vectors a step.
macro_rules! without_scales {
    ($weights:ident, $vectors:literal) => {
        impl MicroKernel for $weights<'_> {
            #[inline(always)]
            unsafe fn multiply<V: F32x16, const R: usize, const M: usize>(
                self,
                row: usize,
                columns: usize,
                x: &[CacheLine],
                prefetch: PrefetchDistance,
            ) -> [[f32; M]; R] {
                // SAFETY: the caller's promise.
                unsafe { multiply::<Self, V, _, _, R, M>(self.0, row, columns, x, prefetch) }
            }

            fn widened_vectors(columns: usize) -> usize {
                $vectors * columns.div_ceil($vectors * LANES)
            }

            #[inline(always)]
            unsafe fn widen<V: F32x16>(self, rows: Range<usize>, columns: usize, group: usize, out: &mut [Column]) {
                // SAFETY: the caller's promise.
                unsafe { widen::<Self, V, _, _>(self.0, rows, columns, group, out) }
            }

            fn scales(&self, _: usize) -> Option<&[f32]> {
                None
            }
        }
    };
}
without_scales!(F32, 1);
without_scales!(Bf16, 2);

/// Signed bytes; the scale of a row multiplies its sum.
#[derive(Clone, Copy)]
pub(super) struct Int8<'a> {
    pub(super) codes: &'a [i8],
    pub(super) scales: &'a [f32],
}

impl Dense<LANES, 1> for Int8<'_> {
    type Element = i8;

    #[inline(always)]
    unsafe fn widen<V: F32x16>(weights: &[i8; LANES]) -> [V; 1] {
        // SAFETY: the caller's promise.
        [unsafe { V::load_i8(weights) }]
    }
}

impl Int8<'_> {
    /// Multiplies the sums of `R` rows of codes, the first of them `row`, with their scales.
    #[inline(always)]
    fn scaled<const R: usize, const M: usize>(self, row: usize, mut sums: [[f32; M]; R]) -> [[f32; M]; R] {
        for (sums, scale) in sums.iter_mut().zip(&self.scales[row..]) {
            for sum in sums {
                *sum *= scale;
            }
        }
        sums
    }
}

impl MicroKernel for Int8<'_> {
    #[inline(always)]
    unsafe fn multiply<V: F32x16, const R: usize, const M: usize>(
        self,
        row: usize,
        columns: usize,
        x: &[CacheLine],
        prefetch: PrefetchDistance,
    ) -> [[f32; M]; R] {
        // SAFETY: the caller's promise.
        self.scaled(row, unsafe { multiply::<Self, V, _, _, R, M>(self.codes, row, columns, x, prefetch) })
    }

    fn widened_vectors(columns: usize) -> usize {
        columns.div_ceil(LANES)
    }

    #[inline(always)]
    unsafe fn widen<V: F32x16>(self, rows: Range<usize>, columns: usize, group: usize, out: &mut [Column]) {
        // SAFETY: the caller's promise.
        unsafe { widen::<Self, V, _, _>(self.codes, rows, columns, group, out) }
    }

    fn scales(&self, row: usize) -> Option<&[f32]> {
        Some(&self.scales[row..])
    }
}

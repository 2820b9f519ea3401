//! The micro-kernel of four-bit weights.

use super::half_vector::{HalfVector, half_of, half_of_mut};
use super::int4_vector::{BLOCK, BLOCK_VECTORS, Int4Vector};
use super::micro_kernel::{MicroKernel, multiply_add, multiply_add_half, rows_in_steps, sum_lanes, sum_lines};
use crate::matmul::prefetch_distance::PrefetchDistance;
use bpe_llama_simd::f32x16::{CacheLine, LANES};
use std::sync::atomic::{Ordering, compiler_fence};

/// Four-bit weights.
///
/// Lane `l` of a block holds columns `8 l` to `8 l + 7`. Let `x` be the activations there, and `scale` and `offset` those of
/// the group. The lane then adds `scale * (-8 * sum(x) + sum(code * x)) + offset * sum(x)`, in which both multiples of
/// `sum(x)` are packed beside `x`. Code `k` stays where it is in its half of the word, so it is multiplied by `16^(k % 4)`, and
/// `x` is packed divided by that power of two: both are exact.
#[derive(Clone, Copy)]
pub(super) struct Int4<'a> {
    pub(super) codes: &'a [u8],
    /// The bfloat16 scale and offset of each group, row by row.
    pub(super) scales: &'a [[u16; 2]],
}

/// Repeats `$body` for `$index` from 0 to below `$count`, at most 4. A compiler does not unroll a loop with so long a body,
/// and the arrays that the loop indexes would be in memory.
macro_rules! unrolled {
    ($count:expr, $index:ident, $body:block) => {
        const { assert!($count <= 4) };
        unrolled!(0 1 2 3; $count, $index, $body);
    };
    ($($number:literal)*; $count:expr, $index:ident, $body:block) => {
        $(if $number < $count {
            let $index = $number;
            $body
        })*
    };
}

impl MicroKernel for Int4<'_> {
    #[inline(always)]
    unsafe fn multiply<V: Int4Vector, const R: usize, const M: usize>(
        self,
        row: usize,
        columns: usize,
        x: &[CacheLine],
        mut prefetch: PrefetchDistance,
    ) -> [[f32; M]; R] {
        let groups = self.groups();
        let rows = rows_in_steps::<u8, R, { BLOCK / 2 }>(self.codes, row, columns / 2);
        let scales: [_; R] = std::array::from_fn(|next| groups.of_row(self.scales, row + next, columns));
        let x = x.as_chunks::<M>().0.as_chunks::<BLOCK_VECTORS>().0;
        // SAFETY: the caller's promise.
        unsafe {
            let mut accumulators = [[V::splat(0.0); M]; R];
            let whole = columns / BLOCK;
            for (block, x) in x[..whole].iter().enumerate() {
                prefetch.prefetch::<_, R, { BLOCK / 2 }>(self.codes, row * columns / 2, block);
                unrolled!(R, next, {
                    let codes = V::load_codes(&rows[next].0[block]);
                    add_block(&mut accumulators[next], codes, groups.of_block(scales[next], block), &groups.of_lane, x);
                });
            }
            if let Some(x) = x.get(whole) {
                prefetch.prefetch::<_, R, { BLOCK / 2 }>(self.codes, row * columns / 2, whole);
                unrolled!(R, next, {
                    let codes = V::load_codes(rows[next].1);
                    add_block(&mut accumulators[next], codes, groups.of_block(scales[next], whole), &groups.of_lane, x);
                });
            }
            sum_lanes(accumulators)
        }
    }

    fn widened_vectors(columns: usize) -> usize {
        columns.div_ceil(BLOCK) * BLOCK_VECTORS
    }

    /// Of a block: the vectors of its eight codes, of the scales, and of the offsets.
    #[inline(always)]
    unsafe fn widen<V: Int4Vector, const R: usize>(self, row: usize, columns: usize, widened: &mut [CacheLine]) {
        let rows = rows_in_steps::<u8, R, { BLOCK / 2 }>(self.codes, row, columns / 2);
        let groups = self.groups();
        let scales: [_; R] = std::array::from_fn(|next| groups.of_row(self.scales, row + next, columns));
        for (block, widened) in widened.as_chunks_mut::<R>().0.as_chunks_mut::<BLOCK_VECTORS>().0.iter_mut().enumerate()
        {
            for next in 0..R {
                let codes = rows[next].0.get(block).map_or(rows[next].1, |codes| codes.as_slice());
                // SAFETY: the caller's promise.
                unsafe {
                    let codes = V::load_codes(codes);
                    V::code::<0>(codes).store(&mut widened[0][next].0);
                    V::code::<1>(codes).store(&mut widened[1][next].0);
                    V::code::<2>(codes).store(&mut widened[2][next].0);
                    V::code::<3>(codes).store(&mut widened[3][next].0);
                    V::code::<4>(codes).store(&mut widened[4][next].0);
                    V::code::<5>(codes).store(&mut widened[5][next].0);
                    V::code::<6>(codes).store(&mut widened[6][next].0);
                    V::code::<7>(codes).store(&mut widened[7][next].0);
                    let [scale, offset] = V::load_scales(groups.of_block(scales[next], block), &groups.of_lane);
                    scale.store(&mut widened[8][next].0);
                    offset.store(&mut widened[9][next].0);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn multiply_widened<V: Int4Vector, const R: usize, const M: usize>(
        self,
        _: usize,
        widened: &[CacheLine],
        x: &[CacheLine],
    ) -> [[f32; M]; R] {
        let widened = widened.as_chunks::<R>().0.as_chunks::<BLOCK_VECTORS>().0;
        let x = x.as_chunks::<M>().0.as_chunks::<BLOCK_VECTORS>().0;
        let mut lines = [[CacheLine::ZERO; M]; R];
        // SAFETY: the caller's promise.
        unsafe {
            for half in 0..2 {
                for (widened, x) in widened.iter().zip(x) {
                    let mut sums = [[V::Half::zero(); M]; R];
                    for m in 0..M {
                        let first = V::Half::load(half_of(&x[9][m], half));
                        for row in 0..R {
                            sums[row][m] = first;
                        }
                    }
                    for code in 0..8 {
                        multiply_add_half(&mut sums, &widened[code], &x[code], half);
                    }
                    // The sums of the row are in memory: the registers hold those of the block.
                    for row in 0..R {
                        let [scale, offset] = [8, 9].map(|vector| V::Half::load(half_of(&widened[vector][row], half)));
                        for m in 0..M {
                            let line = half_of_mut(&mut lines[row][m], half);
                            let sum = sums[row][m].mul_add(scale, V::Half::load(line));
                            offset.mul_add(V::Half::load(half_of(&x[8][m], half)), sum).store(line);
                        }
                    }
                }
            }
            sum_lines::<V, R, M>(&lines)
        }
    }
}

/// Which groups of columns the lanes of a block belong to.
struct Groups {
    of_lane: [u32; LANES],
    /// The binary logarithm of the columns of a group; group sizes are powers of two.
    shift: u32,
    in_block: usize,
}

impl Groups {
    /// Returns exactly the scales of the row: those of the next one may be infinite, which a product with 0 does not hide.
    #[inline(always)]
    fn of_row<'a>(&self, scales: &'a [[u16; 2]], row: usize, columns: usize) -> &'a [[u16; 2]] {
        &scales[(row * columns) >> self.shift..][..columns >> self.shift]
    }

    /// Returns the scales and offsets of a block, from those of the row.
    #[inline(always)]
    fn of_block<'a>(&self, of_row: &'a [[u16; 2]], block: usize) -> &'a [[u16; 2]] {
        let scales = &of_row[(block * BLOCK) >> self.shift..];
        &scales[..scales.len().min(self.in_block)]
    }
}

impl Int4<'_> {
    #[inline(always)]
    fn groups(self) -> Groups {
        let group = 2 * self.codes.len() / self.scales.len().max(1);
        let shift = group.trailing_zeros();
        let of_lane = std::array::from_fn(|lane| (8 * lane / group) as u32);
        Groups { of_lane, shift, in_block: (BLOCK >> shift).max(1) }
    }
}

/// Adds the products of a block of one weight row with each activation row.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn add_block<V: Int4Vector, const M: usize>(
    accumulators: &mut [V; M],
    codes: V::Codes,
    scales: &[[u16; 2]],
    group_of_lane: &[u32; LANES],
    x: &[[CacheLine; M]; BLOCK_VECTORS],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[V::splat(0.0); M]];
        for m in 0..M {
            sums[0][m] = V::load(&x[9][m].0);
        }
        multiply_add(&mut sums, [V::code::<0>(codes)], &x[0]);
        multiply_add(&mut sums, [V::code::<1>(codes)], &x[1]);
        multiply_add(&mut sums, [V::code::<2>(codes)], &x[2]);
        multiply_add(&mut sums, [V::code::<3>(codes)], &x[3]);
        multiply_add(&mut sums, [V::code::<4>(codes)], &x[4]);
        multiply_add(&mut sums, [V::code::<5>(codes)], &x[5]);
        multiply_add(&mut sums, [V::code::<6>(codes)], &x[6]);
        multiply_add(&mut sums, [V::code::<7>(codes)], &x[7]);
        let [scale, offset] = V::load_scales(scales, group_of_lane);
        for m in 0..M {
            let sum = sums[0][m].mul_add(scale, accumulators[m]);
            accumulators[m] = offset.mul_add(V::load(&x[8][m].0), sum);
        }
        if V::REGISTERS < 16 {
            // Otherwise compilers load the activations once for all weight rows, and spill them.
            compiler_fence(Ordering::SeqCst);
        }
    }
}

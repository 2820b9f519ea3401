//! The micro-kernel of four-bit weights.

use super::half_vector::{HalfVector, half_of, half_of_mut};
use super::int4_vector::{BLOCK, BLOCK_VECTORS, Int4Vector};
use super::micro_kernel::{
    MicroKernel, multiply_add, multiply_add_half, rows_in_steps, sum_lanes, sum_lines, unrolled,
};
use crate::matmul::prefetch_distance::PrefetchDistance;
use crate::matmul::weights::group_size;
use bpe_llama_simd::f32x16::{CacheLine, LANES};
use std::sync::atomic::{Ordering, compiler_fence};

/// Four-bit weights.
///
/// Lane `l` of a block holds columns `8 l` to `8 l + 7`. Activations are rounded to `q * step`, with integers `q` of 16 bits
/// and one `step` for a block, a power of two, and `scale` is that of the group. The lane adds `sum(code * q) * step * scale`;
/// the sum is below `2^24`, so it is exact, in float32 here and in integers in `int4_bytes.rs`. What does not depend on the
/// codes, `-8 * scale * sum(q * step) + offset * sum(x)` of each group, is what the accumulators begin with.
///
/// Code `k` stays where it is in its half of the word, so it is multiplied by `16^(k % 4)`, and `q * step` is packed divided by
/// that power of two.
#[derive(Clone, Copy)]
pub(super) struct Int4<'a> {
    pub(super) codes: &'a [u8],
    /// The bfloat16 scale and offset of each group, row by row.
    pub(super) scales: &'a [[u16; 2]],
    pub(super) groups: Groups,
}

impl<'a> Int4<'a> {
    pub(super) fn new(codes: &'a [u8], scales: &'a [[u16; 2]]) -> Self {
        let shift = group_size(codes, scales).trailing_zeros();
        let of_lane = std::array::from_fn(|lane| (8 * lane as u32) >> shift);
        Self { codes, scales, groups: Groups { of_lane, shift, in_block: (BLOCK >> shift).max(1) } }
    }
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
        let (groups, packed) = (self.groups, PackedInt4::<M, BLOCK_VECTORS>::new(x, columns));
        let rows = rows_in_steps::<u8, R, { BLOCK / 2 }>(self.codes, row, columns / 2);
        let scales: [_; R] = std::array::from_fn(|next| groups.of_row(self.scales, row + next, columns));
        // SAFETY: the caller's promise.
        unsafe {
            let mut accumulators = [[V::splat(0.0); M]; R];
            add_group_sums(&mut accumulators, scales, packed.group_sums);
            for (block, x) in packed.blocks.iter().enumerate() {
                prefetch.prefetch::<_, R, { BLOCK / 2 }>(self.codes, row * columns / 2, block);
                unrolled!(R, next, {
                    let codes = V::load_codes(rows[next].0.get(block).map_or(rows[next].1, |codes| codes.as_slice()));
                    add_block(&mut accumulators[next], codes, groups.of_block(scales[next], block), &groups.of_lane, x);
                });
            }
            sum_lanes(accumulators)
        }
    }

    fn widened_vectors(self, columns: usize) -> usize {
        columns.div_ceil(BLOCK) * WIDENED_VECTORS + 2 * (columns >> self.groups.shift).div_ceil(LANES)
    }

    /// Of a block: the vectors of its eight codes, and of the scales. Then the scales and offsets of each 16 groups.
    #[inline(always)]
    unsafe fn widen<V: Int4Vector, const R: usize>(self, row: usize, columns: usize, widened: &mut [CacheLine]) {
        let rows = rows_in_steps::<u8, R, { BLOCK / 2 }>(self.codes, row, columns / 2);
        let groups = self.groups;
        let scales: [_; R] = std::array::from_fn(|next| groups.of_row(self.scales, row + next, columns));
        let (blocks, pairs) = widened.as_chunks_mut::<R>().0.split_at_mut(columns.div_ceil(BLOCK) * WIDENED_VECTORS);
        for (block, widened) in blocks.as_chunks_mut::<WIDENED_VECTORS>().0.iter_mut().enumerate() {
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
                    V::load_scales(groups.of_block(scales[next], block), &groups.of_lane)
                        .store(&mut widened[8][next].0);
                }
            }
        }
        for (line, widened) in pairs.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            for next in 0..R {
                // SAFETY: as above.
                unsafe {
                    let [scale, offset] = V::load_pairs(&scales[next][line * LANES..]);
                    scale.store(&mut widened[0][next].0);
                    offset.store(&mut widened[1][next].0);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn multiply_widened<V: Int4Vector, const R: usize, const M: usize>(
        self,
        _: usize,
        columns: usize,
        widened: &[CacheLine],
        x: &[CacheLine],
    ) -> [[f32; M]; R] {
        let packed = PackedInt4::<M, BLOCK_VECTORS>::new(x, columns);
        let (blocks, pairs) = widened.as_chunks::<R>().0.split_at(packed.blocks.len() * WIDENED_VECTORS);
        let mut lines = [[CacheLine::ZERO; M]; R];
        // SAFETY: the caller's promise.
        unsafe {
            for half in 0..2 {
                for (pairs, sums) in pairs.as_chunks::<2>().0.iter().zip(packed.group_sums) {
                    for row in 0..R {
                        let [scale, offset] = [0, 1].map(|which| V::Half::load(half_of(&pairs[which][row], half)));
                        for m in 0..M {
                            let line = half_of_mut(&mut lines[row][m], half);
                            let sum = scale.mul_add(V::Half::load(half_of(&sums[0][m], half)), V::Half::load(line));
                            offset.mul_add(V::Half::load(half_of(&sums[1][m], half)), sum).store(line);
                        }
                    }
                }
                for (widened, x) in blocks.as_chunks::<WIDENED_VECTORS>().0.iter().zip(packed.blocks) {
                    let mut sums = [[V::Half::zero(); M]; R];
                    for code in 0..8 {
                        multiply_add_half(&mut sums, &widened[code], &x[code], half);
                    }
                    // The sums of the row are in memory: the registers hold those of the block.
                    for row in 0..R {
                        let scale = V::Half::load(half_of(&widened[8][row], half));
                        for m in 0..M {
                            let line = half_of_mut(&mut lines[row][m], half);
                            sums[row][m].mul_add(scale, V::Half::load(line)).store(line);
                        }
                    }
                }
            }
            sum_lines::<V, R, M>(&lines)
        }
    }
}

/// Vectors of a widened block: the eight codes of each lane, and the scales.
const WIDENED_VECTORS: usize = 9;

/// Activations of `M` rows packed for four-bit weights, in blocks of `N` vectors.
pub(super) struct PackedInt4<'a, const M: usize, const N: usize> {
    pub(super) blocks: &'a [[[CacheLine; M]; N]],
    /// For each 16 groups the sums `-8 * sum(q * step)`, then `sum(x)`.
    pub(super) group_sums: &'a [[[CacheLine; M]; 2]],
}

impl<'a, const M: usize, const N: usize> PackedInt4<'a, M, N> {
    #[inline(always)]
    pub(super) fn new(x: &'a [CacheLine], columns: usize) -> Self {
        let (blocks, group_sums) = x.as_chunks::<M>().0.split_at(columns.div_ceil(BLOCK) * N);
        Self { blocks: blocks.as_chunks().0, group_sums: group_sums.as_chunks().0 }
    }
}

/// Which groups of columns the lanes of a block belong to.
#[derive(Clone, Copy)]
pub(super) struct Groups {
    pub(super) of_lane: [u32; LANES],
    /// The binary logarithm of the columns of a group; group sizes are powers of two.
    shift: u32,
    in_block: usize,
}

impl Groups {
    /// Returns exactly the scales of the row: those of the next one may be infinite, which a product with 0 does not hide.
    #[inline(always)]
    pub(super) fn of_row<'a>(&self, scales: &'a [[u16; 2]], row: usize, columns: usize) -> &'a [[u16; 2]] {
        &scales[(row * columns) >> self.shift..][..columns >> self.shift]
    }

    /// Returns the scales and offsets of a block, from those of its row.
    #[inline(always)]
    pub(super) fn of_block<'a>(&self, of_row: &'a [[u16; 2]], block: usize) -> &'a [[u16; 2]] {
        let scales = &of_row[(block * BLOCK) >> self.shift..];
        &scales[..scales.len().min(self.in_block)]
    }
}

/// Adds what does not depend on the codes, from the scales and offsets of whole rows.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
pub(super) unsafe fn add_group_sums<V: Int4Vector, const R: usize, const M: usize>(
    accumulators: &mut [[V; M]; R],
    scales: [&[[u16; 2]]; R],
    group_sums: &[[[CacheLine; M]; 2]],
) {
    for (line, sums) in group_sums.iter().enumerate() {
        for row in 0..R {
            // SAFETY: the caller's promise.
            unsafe {
                let [scale, offset] = V::load_pairs(&scales[row][line * LANES..]);
                for m in 0..M {
                    let sum = scale.mul_add(V::load(&sums[0][m].0), accumulators[row][m]);
                    accumulators[row][m] = offset.mul_add(V::load(&sums[1][m].0), sum);
                }
            }
        }
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
        multiply_add(&mut sums, [V::code::<0>(codes)], &x[0]);
        multiply_add(&mut sums, [V::code::<1>(codes)], &x[1]);
        multiply_add(&mut sums, [V::code::<2>(codes)], &x[2]);
        multiply_add(&mut sums, [V::code::<3>(codes)], &x[3]);
        multiply_add(&mut sums, [V::code::<4>(codes)], &x[4]);
        multiply_add(&mut sums, [V::code::<5>(codes)], &x[5]);
        multiply_add(&mut sums, [V::code::<6>(codes)], &x[6]);
        multiply_add(&mut sums, [V::code::<7>(codes)], &x[7]);
        let scale = V::load_scales(scales, group_of_lane);
        for m in 0..M {
            accumulators[m] = sums[0][m].mul_add(scale, accumulators[m]);
        }
        if V::REGISTERS < 16 {
            // Otherwise compilers load the activations once for all weight rows, and spill them.
            compiler_fence(Ordering::SeqCst);
        }
    }
}

//! The micro-kernel of four-bit weights.

use super::int4_vector::{BLOCK, Int4Vector};
use super::micro_kernel::{MicroKernel, multiply_add, rows_in_steps, sum_lanes};
use crate::matmul::prefetch_distance::PrefetchDistance;
use bpe_llama_simd::f32x16::{CacheLine, LANES};

/// Packed vectors of a block: one for each code of a word, and their sum.
const BLOCK_VECTORS: usize = 9;

/// Four-bit weights.
///
/// Lane `l` of a block holds columns `8 l` to `8 l + 7`. Let `x` be the activations there, and `scale` and `offset` those of
/// the group. The lane then adds `scale * sum((code - 8) * x) + offset * sum(x)`, in which `sum(x)` is packed beside `x`.
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
        let group = 2 * self.codes.len() / self.scales.len().max(1);
        let shift = group.trailing_zeros(); // group sizes are powers of two
        let rows = rows_in_steps::<u8, R, { BLOCK / 2 }>(self.codes, row, columns / 2);
        // Exactly the scales of the row: those of the next one may be infinite, which a product with 0 does not hide.
        let scales: [&[[u16; 2]]; R] =
            std::array::from_fn(|next| &self.scales[((row + next) * columns) >> shift..][..columns >> shift]);
        let groups_per_block = (BLOCK >> shift).max(1);
        let group_of_lane: [u32; LANES] = std::array::from_fn(|lane| (8 * lane / group) as u32);
        let x = x.as_chunks::<M>().0.as_chunks::<BLOCK_VECTORS>().0;
        // SAFETY: the caller's promise.
        unsafe {
            let mut accumulators = [[V::splat(0.0); M]; R];
            let whole = columns / BLOCK;
            for (block, x) in x[..whole].iter().enumerate() {
                prefetch.prefetch::<_, R, { BLOCK / 2 }>(self.codes, row * columns / 2, block);
                unrolled!(R, next, {
                    let codes = V::load_codes(&rows[next].0[block]);
                    let scales = &scales[next][(block * BLOCK) >> shift..][..groups_per_block];
                    add_block(&mut accumulators[next], codes, scales, &group_of_lane, x);
                });
            }
            if let Some(x) = x.get(whole) {
                prefetch.prefetch::<_, R, { BLOCK / 2 }>(self.codes, row * columns / 2, whole);
                unrolled!(R, next, {
                    let codes = V::load_codes(rows[next].1);
                    let scales = &scales[next][(whole * BLOCK) >> shift..];
                    add_block(&mut accumulators[next], codes, scales, &group_of_lane, x);
                });
            }
            sum_lanes(accumulators)
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
    mut codes: V::Codes,
    scales: &[[u16; 2]],
    group_of_lane: &[u32; LANES],
    x: &[[CacheLine; M]; BLOCK_VECTORS],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[V::splat(0.0); M]];
        for x in &x[..8] {
            let (values, rest) = V::next_code(codes);
            codes = rest;
            multiply_add(&mut sums, [values], x);
        }
        let [scale, offset] = V::load_scales(scales, group_of_lane);
        for m in 0..M {
            let sum = sums[0][m].mul_add(scale, accumulators[m]);
            accumulators[m] = offset.mul_add(V::load(&x[8][m].0), sum);
        }
    }
}

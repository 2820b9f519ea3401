//! The rows of a matrix in each format, and their products with a few vectors.

#![allow(clippy::needless_range_loop, reason = "indices into arrays unroll; iterators over them go through memory")]

use super::lanes::{LANES, Lanes, Sixteen};
use super::layout::TOGETHER;
use bpe_llama_simd::prefetch::{prefetch, prefetch_l2};
use std::sync::atomic::{Ordering, compiler_fence};

/// Vectors of lanes that the input of one block of four-bit codes takes: one for each code of a word, and their sum.
const BLOCK_VECTORS: usize = 9;
/// Four-bit codes that are read at once.
pub(crate) const BLOCK: usize = 8 * LANES;

/// Which weights a pass asks for before they are read: several rows at once are no pattern that processors foresee.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    /// How far behind those at work.
    bytes: usize,
    /// Whether these are more than the first cache is asked to hold.
    far: bool,
    /// Passes that read the same weights share the asking: each asks at every so many steps, from its own turn on.
    turns: usize,
    turn: usize,
}

impl Ahead {
    /// For a pass that reads its weights alone.
    const ALONE: Self = Self { bytes: 8192, far: false, turns: 1, turn: 0 };

    /// For a pass that asks for nothing.
    #[cfg(target_arch = "x86_64")]
    pub(crate) const NEVER: Self = Self { bytes: 0, far: true, turns: 1, turn: usize::MAX };

    /// For one of so many passes over the same bytes of weights.
    pub(crate) fn of_turn(turn: usize, turns: usize, bytes: usize) -> Self {
        if turns > 1 { Self::far(turn, turns, bytes) } else { Self::ALONE }
    }

    /// The same, where even one is to ask so far ahead.
    pub(crate) fn far(turn: usize, turns: usize, bytes: usize) -> Self {
        Self { bytes, far: true, turns, turn }
    }

    /// Asks for as many weights as one step of `R` rows takes.
    ///
    /// `step` counts the steps of `N` numbers a row from the rows that begin at `start`.
    #[inline(always)]
    pub(crate) fn ask<T, const R: usize, const N: usize>(&mut self, weights: &[T], start: usize, step: usize) {
        if self.turn > 0 {
            self.turn -= 1;
            return;
        }
        self.turn = self.turns - 1;
        let first = weights.as_ptr().wrapping_add(start + step * R * N).wrapping_byte_add(self.bytes);
        let bytes = R * N * size_of::<T>();
        for line in 0..bytes.div_ceil(64) {
            let line = first.wrapping_byte_add(64 * line);
            if self.far { prefetch_l2(line) } else { prefetch(line) }
        }
    }
}

/// Rows of weights in some format.
///
/// Whatever the instructions, the batch and the threads, each result is summed in one order: lane by lane, every lane
/// from the first column on, as the input is laid out; then the lanes ([`Lanes::total`]).
pub(crate) trait Format: Copy {
    /// Returns the products of `R` rows from `row` on with the `M` vectors laid out in `x`.
    ///
    /// # Safety
    /// The CPU has the instructions of `L`.
    unsafe fn products<L: Lanes, const R: usize, const M: usize>(
        self,
        row: usize,
        columns: usize,
        x: &[Sixteen],
        ahead: Ahead,
    ) -> [[f32; M]; R];
}

pub(crate) fn filled_up<T: Copy + Default, const N: usize>(tail: &[T]) -> [T; N] {
    let mut whole = [T::default(); N];
    whole[..tail.len()].copy_from_slice(tail);
    whole
}

/// Adds the products of one vector of weights of each row.
///
/// # Safety
/// The CPU has the instructions of `L`.
#[inline(always)]
unsafe fn add_products<L: Lanes, const R: usize, const M: usize>(
    sums: &mut [[L; M]; R],
    weights: [L; R],
    x: &[Sixteen; M],
) {
    for vector in 0..M {
        // SAFETY: the caller's promise.
        unsafe {
            let x = L::load(&x[vector].0);
            for row in 0..R {
                sums[row][vector] = weights[row].multiply_add(x, sums[row][vector]);
            }
            if M == TOGETHER {
                // Compilers like to load four numbers of the input together; then a sum would have to live in memory.
                compiler_fence(Ordering::SeqCst);
            }
        }
    }
}

/// Returns the totals of all sums.
///
/// # Safety
/// The CPU has the instructions of `L`.
#[inline(always)]
unsafe fn totals<L: Lanes, const R: usize, const M: usize>(sums: [[L; M]; R]) -> [[f32; M]; R] {
    let mut found = [[0.0; M]; R];
    for row in 0..R {
        let (fours, rest) = sums[row].as_chunks::<4>();
        for four in 0..fours.len() {
            // SAFETY: the caller's promise.
            found[row][4 * four..][..4].copy_from_slice(&unsafe { L::four_totals(fours[four]) });
        }
        for vector in 0..rest.len() {
            // SAFETY: as above.
            found[row][4 * fours.len() + vector] = unsafe { rest[vector].total() };
        }
    }
    found
}

/// Returns `R` rows cut into vectors of `N` numbers and what is left.
fn cut<T, const R: usize, const N: usize>(weights: &[T], row: usize, columns: usize) -> [(&[[T; N]], &[T]); R] {
    std::array::from_fn(|next| weights[(row + next) * columns..][..columns].as_chunks::<N>())
}

/// Float32 as it is.
#[derive(Clone, Copy)]
pub(crate) struct F32<'a>(pub(crate) &'a [f32]);

impl Format for F32<'_> {
    #[inline(always)]
    unsafe fn products<L: Lanes, const R: usize, const M: usize>(
        self,
        row: usize,
        columns: usize,
        x: &[Sixteen],
        mut ahead: Ahead,
    ) -> [[f32; M]; R] {
        let rows = cut::<f32, R, LANES>(self.0, row, columns);
        let x = x.as_chunks::<M>().0;
        // SAFETY: the caller's promise.
        unsafe {
            let zero = L::load(&[0.0; LANES]);
            let mut sums = [[zero; M]; R];
            let whole = columns / LANES;
            for (place, x) in x[..whole].iter().enumerate() {
                ahead.ask::<_, R, LANES>(self.0, row * columns, place);
                let mut weights = [zero; R];
                for next in 0..R {
                    weights[next] = L::load(&rows[next].0[place]);
                }
                add_products(&mut sums, weights, x);
            }
            if let Some(x) = x.get(whole) {
                let mut weights = [zero; R];
                for next in 0..R {
                    weights[next] = L::load(&filled_up(rows[next].1));
                }
                add_products(&mut sums, weights, x);
            }
            totals(sums)
        }
    }
}

/// Bfloat16: 32 columns are two vectors, of the even columns and of the odd ones.
#[derive(Clone, Copy)]
pub(crate) struct Bf16<'a>(pub(crate) &'a [u16]);

impl Format for Bf16<'_> {
    #[inline(always)]
    unsafe fn products<L: Lanes, const R: usize, const M: usize>(
        self,
        row: usize,
        columns: usize,
        x: &[Sixteen],
        mut ahead: Ahead,
    ) -> [[f32; M]; R] {
        let rows = cut::<u16, R, { 2 * LANES }>(self.0, row, columns);
        let x = x.as_chunks::<M>().0.as_chunks::<2>().0;
        // SAFETY: the caller's promise.
        unsafe {
            let zero = L::load(&[0.0; LANES]);
            let mut sums = [[zero; M]; R];
            let whole = columns / (2 * LANES);
            for (place, [even_x, odd_x]) in x[..whole].iter().enumerate() {
                ahead.ask::<_, R, { 2 * LANES }>(self.0, row * columns, place);
                let (mut even, mut odd) = ([zero; R], [zero; R]);
                for next in 0..R {
                    (even[next], odd[next]) = L::bf16(&rows[next].0[place]);
                }
                add_products(&mut sums, even, even_x);
                add_products(&mut sums, odd, odd_x);
            }
            if let Some([even_x, odd_x]) = x.get(whole) {
                let (mut even, mut odd) = ([zero; R], [zero; R]);
                for next in 0..R {
                    (even[next], odd[next]) = L::bf16(&filled_up(rows[next].1));
                }
                add_products(&mut sums, even, even_x);
                add_products(&mut sums, odd, odd_x);
            }
            totals(sums)
        }
    }
}

/// A signed byte a weight, a scale a row.
#[derive(Clone, Copy)]
pub(crate) struct Int8<'a> {
    pub(crate) codes: &'a [i8],
    pub(crate) scales: &'a [f32],
}

impl Format for Int8<'_> {
    #[inline(always)]
    unsafe fn products<L: Lanes, const R: usize, const M: usize>(
        self,
        row: usize,
        columns: usize,
        x: &[Sixteen],
        mut ahead: Ahead,
    ) -> [[f32; M]; R] {
        let rows = cut::<i8, R, LANES>(self.codes, row, columns);
        let x = x.as_chunks::<M>().0;
        // SAFETY: the caller's promise.
        let mut found = unsafe {
            let zero = L::load(&[0.0; LANES]);
            let mut sums = [[zero; M]; R];
            let whole = columns / LANES;
            for (place, x) in x[..whole].iter().enumerate() {
                ahead.ask::<_, R, LANES>(self.codes, row * columns, place);
                let mut weights = [zero; R];
                for next in 0..R {
                    weights[next] = L::int8(&rows[next].0[place]);
                }
                add_products(&mut sums, weights, x);
            }
            if let Some(x) = x.get(whole) {
                let mut weights = [zero; R];
                for next in 0..R {
                    weights[next] = L::int8(&filled_up(rows[next].1));
                }
                add_products(&mut sums, weights, x);
            }
            totals(sums)
        };
        for (found, scale) in found.iter_mut().zip(&self.scales[row..]) {
            for found in found {
                *found *= scale;
            }
        }
        found
    }
}

/// Repeats `$body` for `$at` from 0 to below `$count`, at most 4: loops so long compilers do not unroll, and then what they
/// index lives in memory.
macro_rules! unrolled {
    ($count:expr, $at:ident, $body:block) => {
        const { assert!($count <= 4) };
        unrolled!(0 1 2 3; $count, $at, $body);
    };
    ($($number:literal)*; $count:expr, $at:ident, $body:block) => {
        $(if $number < $count {
            let $at = $number;
            $body
        })*
    };
}

/// Four bits a weight, two in a byte, the even column's in the lower half; a scale and an offset a group.
///
/// Lane `l` holds columns `8 l` to `8 l + 7` of a block of 128: their sum less 8, times the scale of their group, plus the
/// sum of the input at these columns times the group's offset.
#[derive(Clone, Copy)]
pub(crate) struct Int4<'a> {
    pub(crate) codes: &'a [u8],
    /// Bfloat16 scale and offset of each group, row by row.
    pub(crate) pairs: &'a [[u16; 2]],
}

impl Format for Int4<'_> {
    #[inline(always)]
    unsafe fn products<L: Lanes, const R: usize, const M: usize>(
        self,
        row: usize,
        columns: usize,
        x: &[Sixteen],
        mut ahead: Ahead,
    ) -> [[f32; M]; R] {
        let group = 2 * self.codes.len() / self.pairs.len().max(1);
        let shift = group.trailing_zeros(); // groups are powers of two
        let rows = cut::<u8, R, { BLOCK / 2 }>(self.codes, row, columns / 2);
        // Never those of the next row: they may be no numbers, and zeros do not hide that.
        let pairs: [&[[u16; 2]]; R] =
            std::array::from_fn(|next| &self.pairs[((row + next) * columns) >> shift..][..columns >> shift]);
        let in_block = (BLOCK >> shift).max(1);
        let index: [u32; LANES] = std::array::from_fn(|lane| (8 * lane / group) as u32);
        let x = x.as_chunks::<M>().0.as_chunks::<BLOCK_VECTORS>().0;
        // SAFETY: the caller's promise.
        unsafe {
            let zero = L::load(&[0.0; LANES]);
            let mut sums = [[zero; M]; R];
            let whole = columns / BLOCK;
            for (block, x) in x[..whole].iter().enumerate() {
                ahead.ask::<_, R, { BLOCK / 2 }>(self.codes, row * columns / 2, block);
                unrolled!(R, next, {
                    let codes = L::codes(&rows[next].0[block]);
                    add_block(&mut sums[next], codes, &pairs[next][(block * BLOCK) >> shift..][..in_block], &index, x);
                });
            }
            if let Some(x) = x.get(whole) {
                ahead.ask::<_, R, { BLOCK / 2 }>(self.codes, row * columns / 2, whole);
                unrolled!(R, next, {
                    let codes = L::codes(rows[next].1);
                    add_block(&mut sums[next], codes, &pairs[next][(whole * BLOCK) >> shift..], &index, x);
                });
            }
            totals(sums)
        }
    }
}

/// Adds the products of one row's block with each vector.
///
/// # Safety
/// The CPU has the instructions of `L`.
#[inline(always)]
unsafe fn add_block<L: Lanes, const M: usize>(
    sums: &mut [L; M],
    mut codes: L::Codes,
    pairs: &[[u16; 2]],
    index: &[u32; LANES],
    x: &[[Sixteen; M]; BLOCK_VECTORS],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut parts = [[L::load(&[0.0; LANES]); M]];
        for x in &x[..8] {
            let (value, rest) = L::next_code(codes);
            codes = rest;
            add_products(&mut parts, [value], x);
        }
        let (scale, offset) = L::spread(pairs, index);
        for vector in 0..M {
            let sum = parts[0][vector].multiply_add(scale, sums[vector]);
            sums[vector] = offset.multiply_add(L::load(&x[8][vector].0), sum);
        }
    }
}

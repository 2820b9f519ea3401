//! Vectors in tiles: sixteen of them side by side, pairs of columns one below the other, as instructions that multiply
//! pairs of bfloat16 take them; and tiles of sums.

#![allow(clippy::wildcard_imports, reason = "the intrinsics are half the language of this file")]
#![allow(clippy::needless_range_loop, reason = "indices into arrays unroll; iterators over them go through memory")]

use super::Out;
use super::lanes::{LANES, Sixteen};
use std::arch::x86_64::*;

/// Rows of a tile, and words in a row: sixteen vectors, rows of a matrix or pairs of columns.
pub(crate) const TILE: usize = 16;
/// Columns of a tile.
pub(crate) const STEP: usize = 2 * LANES;

pub(crate) const ZERO: Sixteen = Sixteen([0.0; LANES]);

/// How 32 float32 become `N` words of two bfloat16 for each pair.
pub(crate) trait Parts<const N: usize> {
    /// # Safety
    /// The CPU has AVX-512 F, BW and VL.
    unsafe fn of(low: __m512, high: __m512) -> [__m512i; N];
}

/// Appends the tiles of a batch: for each [`STEP`] columns, each part, and each sixteen vectors one tile, whose row `l`
/// holds columns `2 l` and `2 l + 1` of all.
///
/// # Safety
/// The CPU has AVX-512 F, BW and VL.
#[inline(always)]
pub(crate) unsafe fn lay_out<P: Parts<N>, const N: usize>(x: &[f32], columns: usize, lanes: &mut Vec<Sixteen>) {
    let tiles = (x.len() / columns).div_ceil(LANES);
    lanes.reserve(columns.div_ceil(STEP) * N * tiles * TILE);
    for start in (0..columns).step_by(STEP) {
        let place = lanes.len();
        lanes.resize(place + N * tiles * TILE, ZERO);
        for (vector, x) in x.chunks_exact(columns).enumerate() {
            let there = there(columns - start);
            // SAFETY: the instructions are there, and `there` says which columns are.
            unsafe {
                let [low, high] = load(x.as_ptr().add(start), there);
                for (part, words) in P::of(low, high).into_iter().enumerate() {
                    let row = &mut lanes[place + (part * tiles + vector / LANES) * TILE + vector % LANES];
                    _mm512_store_si512(row.0.as_mut_ptr().cast(), words);
                }
            }
        }
        for tile in lanes[place..].as_chunks_mut().0 {
            // SAFETY: as above.
            unsafe { turn(tile) };
        }
    }
}

/// Returns a bit for each of so many columns, of which a step takes [`STEP`].
pub(crate) fn there(columns: usize) -> u32 {
    u32::MAX >> (STEP - columns.min(STEP))
}

/// Returns a step's numbers, zeros where there are none.
///
/// # Safety
/// The CPU has AVX-512 F, and each bit in `there` a number at `from` and after.
#[inline(always)]
pub(crate) unsafe fn load(from: *const f32, there: u32) -> [__m512; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let low = _mm512_maskz_loadu_ps(there as u16, from);
        [low, _mm512_maskz_loadu_ps((there >> 16) as u16, from.wrapping_add(LANES))]
    }
}

/// Returns the upper halves of 32 words.
///
/// # Safety
/// The CPU has AVX-512 F and BW.
#[inline(always)]
pub(crate) unsafe fn upper_halves(low: __m512i, high: __m512i) -> __m512i {
    const ORDER: [u16; 2 * LANES] = {
        let mut order = [0; 2 * LANES];
        let mut at = 0;
        while at < order.len() {
            order[at] = 2 * at as u16 + 1;
            at += 1;
        }
        order
    };
    // SAFETY: the caller's promise.
    unsafe { _mm512_permutex2var_epi16(low, _mm512_loadu_si512(ORDER.as_ptr().cast()), high) }
}

/// Makes rows columns.
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
pub(crate) unsafe fn turn(tile: &mut [Sixteen; TILE]) {
    // SAFETY: rows are aligned, and written to where they were read.
    unsafe {
        let zero = _mm512_setzero_si512();
        let (mut from, mut to) = ([zero; TILE], [zero; TILE]);
        for row in 0..TILE {
            from[row] = _mm512_load_si512(tile[row].0.as_ptr().cast());
        }
        // Of two rows side by side the same columns, of four, and then of eight and sixteen by lanes of four.
        for row in (0..TILE).step_by(2) {
            to[row] = _mm512_unpacklo_epi32(from[row], from[row + 1]);
            to[row + 1] = _mm512_unpackhi_epi32(from[row], from[row + 1]);
        }
        for row in (0..TILE).step_by(4) {
            from[row] = _mm512_unpacklo_epi64(to[row], to[row + 2]);
            from[row + 1] = _mm512_unpackhi_epi64(to[row], to[row + 2]);
            from[row + 2] = _mm512_unpacklo_epi64(to[row + 1], to[row + 3]);
            from[row + 3] = _mm512_unpackhi_epi64(to[row + 1], to[row + 3]);
        }
        for column in 0..4 {
            for row in [column, 8 + column] {
                to[row] = _mm512_shuffle_i32x4::<0x88>(from[row], from[row + 4]);
                to[row + 4] = _mm512_shuffle_i32x4::<0xdd>(from[row], from[row + 4]);
            }
        }
        for row in 0..TILE / 2 {
            from[row] = _mm512_shuffle_i32x4::<0x88>(to[row], to[row + 8]);
            from[row + 8] = _mm512_shuffle_i32x4::<0xdd>(to[row], to[row + 8]);
        }
        for row in 0..TILE {
            _mm512_store_si512(tile[row].0.as_mut_ptr().cast(), from[row]);
        }
    }
}

impl Out<'_> {
    /// Writes a tile of sums, or adds them: in row `l` those of the matrix's row `l` with sixteen vectors.
    ///
    /// `place` is where that of the first row with the first vector belongs; `scales`, if any, are those of the rows.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, BW and VL, and nobody else reads or writes these cells now.
    #[inline(always)]
    pub(crate) unsafe fn put_tile(
        &self,
        place: usize,
        (rows, vectors): (usize, usize),
        tile: &mut [Sixteen; TILE],
        scales: Option<&[f32]>,
    ) {
        // SAFETY: the caller's promise; loads and stores touch as many cells as the slice has.
        unsafe {
            turn(tile);
            let there = (u32::MAX >> (32 - rows)) as u16;
            for (vector, sums) in tile.iter().enumerate().take(vectors) {
                let cells = &self.cells[place + vector * self.width..][..rows];
                let mut sums = _mm512_load_ps(sums.0.as_ptr());
                if let Some(scales) = scales {
                    sums = _mm512_mul_ps(sums, _mm512_maskz_loadu_ps(there, scales[..rows].as_ptr()));
                }
                if self.add {
                    sums = _mm512_add_ps(sums, _mm512_maskz_loadu_ps(there, cells.as_ptr().cast()));
                }
                _mm512_mask_storeu_ps(cells.as_ptr().cast_mut().cast(), there, sums);
            }
        }
    }
}

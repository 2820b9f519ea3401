//! Tiles of 16 rows of 64 bytes: activations packed as pairs of bfloat16, and accumulators.

use crate::output::Output;
use bpe_llama_simd::f32x16::{Avx512, CacheLine, F32x16, LANES};
use std::arch::x86_64::*;

/// Rows of a tile, and 32-bit words in a row.
pub(crate) const TILE_ROWS: usize = 16;
/// Columns of a matrix in a tile: two bfloat16 in each word.
pub(crate) const TILE_COLUMNS: usize = 2 * LANES;

/// How 32 float32 become bfloat16: `N` vectors of 16 pairs.
pub(super) trait ToBf16<const N: usize> {
    /// # Safety
    /// The CPU has AVX-512 F, BW and VL.
    unsafe fn convert(low: __m512, high: __m512) -> [__m512i; N];
}

/// Appends the rows of `x` as tiles.
///
/// There is one tile for each [`TILE_COLUMNS`], each vector of the conversion and each 16 rows of `x`. Row `l` of a tile
/// holds columns `2 l` and `2 l + 1` of 16 rows: the operand layout of `TDPBF16PS`.
///
/// # Safety
/// The CPU has AVX-512 F, BW and VL.
#[inline(always)]
pub(super) unsafe fn pack<C: ToBf16<N>, const N: usize>(x: &[f32], columns: usize, packed: &mut Vec<CacheLine>) {
    let tiles = (x.len() / columns).div_ceil(LANES);
    packed.reserve(columns.div_ceil(TILE_COLUMNS) * N * tiles * TILE_ROWS);
    for start in (0..columns).step_by(TILE_COLUMNS) {
        let first = packed.len();
        packed.resize(first + N * tiles * TILE_ROWS, CacheLine::ZERO);
        for (row, x) in x.chunks_exact(columns).enumerate() {
            let mask = column_mask(columns - start);
            // SAFETY: the caller's promise, and `mask` selects columns of the row.
            unsafe {
                let [low, high] = load_masked(x.as_ptr().add(start), mask);
                for (vector, pairs) in C::convert(low, high).into_iter().enumerate() {
                    let line = &mut packed[first + (vector * tiles + row / LANES) * TILE_ROWS + row % LANES];
                    _mm512_store_si512(line.0.as_mut_ptr().cast(), pairs);
                }
            }
        }
        for tile in packed[first..].as_chunks_mut().0 {
            // SAFETY: as above.
            unsafe { transpose(tile) };
        }
    }
}

/// Returns a mask of the first `columns` of a tile.
pub(super) fn column_mask(columns: usize) -> u32 {
    u32::MAX >> (TILE_COLUMNS - columns.min(TILE_COLUMNS))
}

/// Returns 32 float32, zeros where the mask is not set.
///
/// # Safety
/// The CPU has AVX-512 F, and `from` holds a number for each bit of the mask.
#[inline(always)]
unsafe fn load_masked(from: *const f32, mask: u32) -> [__m512; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let low = _mm512_maskz_loadu_ps(mask as u16, from);
        [low, _mm512_maskz_loadu_ps((mask >> 16) as u16, from.wrapping_add(LANES))]
    }
}

/// Returns the high halves of 32 words: float32 truncated to bfloat16.
///
/// # Safety
/// The CPU has AVX-512 F and BW.
#[inline(always)]
pub(super) unsafe fn high_halves(low: __m512i, high: __m512i) -> __m512i {
    const ODD: [u16; 2 * LANES] = {
        let mut odd = [0; 2 * LANES];
        let mut index = 0;
        while index < odd.len() {
            odd[index] = 2 * index as u16 + 1;
            index += 1;
        }
        odd
    };
    // SAFETY: the caller's promise.
    unsafe { _mm512_permutex2var_epi16(low, _mm512_loadu_si512(ODD.as_ptr().cast()), high) }
}

/// Transposes 16 rows of 16 words.
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
pub(crate) unsafe fn transpose(tile: &mut [CacheLine; TILE_ROWS]) {
    // SAFETY: the caller's promise.
    unsafe {
        let from = *tile;
        Avx512::transpose(&from, tile, 1);
    }
}

/// Writes or adds a tile of accumulators to the output. Row `l` of the tile holds weight row `l` times 16 activation rows.
///
/// `index` is where the first product belongs, and `scales`, if any, are those of the weight rows.
///
/// # Safety
/// The CPU has AVX-512 F, BW and VL, and no other thread accesses these outputs now.
#[inline(always)]
pub(super) unsafe fn store(
    out: &Output<'_>,
    index: usize,
    (weight_rows, activation_rows): (usize, usize),
    accumulators: &mut [CacheLine; TILE_ROWS],
    scales: Option<&[f32]>,
) {
    // SAFETY: the caller's promise; masked loads and stores access the elements of the slices.
    unsafe {
        transpose(accumulators);
        let mask = (u32::MAX >> (32 - weight_rows)) as u16;
        for (row, sums) in accumulators.iter().enumerate().take(activation_rows) {
            let bits = &out.bits[index + row * out.width..][..weight_rows];
            let mut sums = _mm512_load_ps(sums.0.as_ptr());
            if let Some(scales) = scales {
                sums = _mm512_mul_ps(sums, _mm512_maskz_loadu_ps(mask, scales[..weight_rows].as_ptr()));
            }
            if out.accumulate {
                sums = _mm512_add_ps(sums, _mm512_maskz_loadu_ps(mask, bits.as_ptr().cast()));
            }
            _mm512_mask_storeu_ps(bits.as_ptr().cast_mut().cast(), mask, sums);
        }
    }
}

//! The AVX-512 backend.

use super::avx2::sum_8;
use super::vector::{CacheLine, F32x16, LANES};
#[allow(clippy::wildcard_imports, reason = "the intrinsics are the language of this file")]
use std::arch::x86_64::*;

/// One 512-bit register. Needs AVX-512 F, BW and VL.
#[derive(Debug, Clone, Copy)]
pub struct Avx512(pub __m512);

impl Avx512 {
    /// Returns the bfloat16 in the low and in the high halves of 16 words.
    ///
    /// # Safety
    /// Needs AVX-512 F.
    #[inline(always)]
    pub unsafe fn from_bf16_pairs(words: __m512i) -> [Self; 2] {
        // SAFETY: the caller has AVX-512 F.
        unsafe {
            let low = _mm512_slli_epi32::<16>(words);
            let high = _mm512_and_si512(words, _mm512_set1_epi32(-1 << 16));
            [Self(_mm512_castsi512_ps(low)), Self(_mm512_castsi512_ps(high))]
        }
    }
}

// SAFETY of every block: the trait's callers have AVX-512 F, BW and VL, and loads read what the references hold.
#[allow(clippy::undocumented_unsafe_blocks, reason = "the comment above holds for all blocks")]
impl F32x16 for Avx512 {
    const REGISTERS: usize = 32;

    #[inline(always)]
    unsafe fn load(from: &[f32; LANES]) -> Self {
        Self(unsafe { _mm512_loadu_ps(from.as_ptr()) })
    }

    #[inline(always)]
    unsafe fn store(self, to: &mut [f32; LANES]) {
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self {
        Self(unsafe { _mm512_fmadd_ps(self.0, by.0, plus.0) })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: &[u16; 2 * LANES]) -> [Self; 2] {
        unsafe { Self::from_bf16_pairs(_mm512_loadu_si512(from.as_ptr().cast())) }
    }

    #[inline(always)]
    unsafe fn load_i8(from: &[i8; LANES]) -> Self {
        Self(unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))) })
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe {
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0)));
            sum_8(_mm256_add_ps(_mm512_castps512_ps256(self.0), high))
        }
    }

    #[inline(always)]
    unsafe fn sum_each([a, b, c, d]: [Self; 4]) -> [f32; 4] {
        unsafe {
            // The lower halves of two registers side by side, plus their upper halves.
            let fold = |x, y| _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(x, y), _mm512_shuffle_f32x4::<0xee>(x, y));
            let (ab, cd) = (fold(a.0, b.0), fold(c.0, d.0));
            let sum_4 = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd));
            let sum_2 = _mm512_add_ps(sum_4, _mm512_permute_ps::<0x4e>(sum_4));
            let sum_1 = _mm512_add_ps(sum_2, _mm512_permute_ps::<0xb1>(sum_2));
            let first_of_four = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
            let mut sums = [0.0; 4];
            _mm_storeu_ps(sums.as_mut_ptr(), _mm512_castps512_ps128(_mm512_permutexvar_ps(first_of_four, sum_1)));
            sums
        }
    }

    #[inline(always)]
    unsafe fn transpose(tile: &[CacheLine; LANES], lanes: &mut [CacheLine], stride: usize) {
        unsafe {
            let zero = _mm512_setzero_si512();
            let (mut from, mut to) = ([zero; LANES], [zero; LANES]);
            for row in 0..LANES {
                from[row] = _mm512_load_si512(tile[row].0.as_ptr().cast());
            }
            // Interleave words of 2 rows, then of 4, then 128-bit lanes of 8 rows and of 16.
            for row in (0..LANES).step_by(2) {
                to[row] = _mm512_unpacklo_epi32(from[row], from[row + 1]);
                to[row + 1] = _mm512_unpackhi_epi32(from[row], from[row + 1]);
            }
            for row in (0..LANES).step_by(4) {
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
            for row in 0..LANES / 2 {
                from[row] = _mm512_shuffle_i32x4::<0x88>(to[row], to[row + 8]);
                from[row + 8] = _mm512_shuffle_i32x4::<0xdd>(to[row], to[row + 8]);
            }
            for row in 0..LANES {
                _mm512_store_si512(lanes[row * stride].0.as_mut_ptr().cast(), from[row]);
            }
        }
    }
}

//! The AVX2 backend.

use super::vector::{CacheLine, F32x16, LANES};
#[allow(clippy::wildcard_imports, reason = "the intrinsics are the language of this file")]
use std::arch::x86_64::*;

/// Two 256-bit registers, with lanes 0 to 7 and 8 to 15. Needs AVX2 and FMA.
#[derive(Debug, Clone, Copy)]
pub struct Avx2(pub [__m256; 2]);

/// Returns the sum of 8 lanes: lanes 4 apart are added first, then lanes 2 and 1 apart.
///
/// # Safety
/// Needs AVX.
#[inline(always)]
pub(super) unsafe fn sum_8(x: __m256) -> f32 {
    // SAFETY: the caller has AVX.
    unsafe {
        let sum_4 = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let sum_2 = _mm_add_ps(sum_4, _mm_movehl_ps(sum_4, sum_4));
        _mm_cvtss_f32(_mm_add_ss(sum_2, _mm_movehdup_ps(sum_2)))
    }
}

impl Avx2 {
    /// Returns the bfloat16 in the low and in the high halves of 16 words.
    ///
    /// # Safety
    /// Needs AVX2.
    #[inline(always)]
    pub unsafe fn from_bf16_pairs(words: [__m256i; 2]) -> [Self; 2] {
        // SAFETY: the caller has AVX2.
        unsafe {
            let mask = _mm256_set1_epi32(-1 << 16);
            let low = [_mm256_slli_epi32::<16>(words[0]), _mm256_slli_epi32::<16>(words[1])];
            let high = [_mm256_and_si256(words[0], mask), _mm256_and_si256(words[1], mask)];
            [
                Self([_mm256_castsi256_ps(low[0]), _mm256_castsi256_ps(low[1])]),
                Self([_mm256_castsi256_ps(high[0]), _mm256_castsi256_ps(high[1])]),
            ]
        }
    }
}

// SAFETY of every block: the trait's callers have AVX2 and FMA, and loads read what the references hold.
#[allow(clippy::undocumented_unsafe_blocks, reason = "the comment above holds for all blocks")]
impl F32x16 for Avx2 {
    const REGISTERS: usize = 8;

    #[inline(always)]
    unsafe fn load(from: &[f32; LANES]) -> Self {
        unsafe { Self([_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))]) }
    }

    #[inline(always)]
    unsafe fn store(self, to: &mut [f32; LANES]) {
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), self.0[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), self.0[1]);
        }
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self {
        unsafe {
            Self([_mm256_fmadd_ps(self.0[0], by.0[0], plus.0[0]), _mm256_fmadd_ps(self.0[1], by.0[1], plus.0[1])])
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: &[u16; 2 * LANES]) -> [Self; 2] {
        unsafe {
            Self::from_bf16_pairs([
                _mm256_loadu_si256(from.as_ptr().cast()),
                _mm256_loadu_si256(from.as_ptr().add(16).cast()),
            ])
        }
    }

    #[inline(always)]
    unsafe fn load_i8(from: &[i8; LANES]) -> Self {
        unsafe {
            // Two loads of 8 bytes, which VPMOVSXBD takes from memory.
            let low = _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.as_ptr().cast()));
            let high = _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.as_ptr().add(8).cast()));
            Self([_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)])
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe { sum_8(_mm256_add_ps(self.0[0], self.0[1])) }
    }

    #[inline(always)]
    unsafe fn sum_each([a, b, c, d]: [Self; 4]) -> [f32; 4] {
        unsafe {
            let sum_8 = |x: Self| _mm256_add_ps(x.0[0], x.0[1]);
            // Two vectors side by side: their lower halves plus their upper ones.
            let fold = |x, y| _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(x, y), _mm256_permute2f128_ps::<0x31>(x, y));
            let (ab, cd) = (fold(sum_8(a), sum_8(b)), fold(sum_8(c), sum_8(d)));
            let sum_2 = _mm256_add_ps(_mm256_shuffle_ps::<0x44>(ab, cd), _mm256_shuffle_ps::<0xee>(ab, cd));
            let acbd = _mm256_add_ps(sum_2, _mm256_permute_ps::<0xb1>(sum_2));
            let (ac, bd) = (_mm256_castps256_ps128(acbd), _mm256_extractf128_ps::<1>(acbd));
            let mut sums = [0.0; 4];
            let even = _mm_shuffle_ps::<0x88>(ac, bd);
            _mm_storeu_ps(sums.as_mut_ptr(), _mm_permute_ps::<0xd8>(even));
            sums
        }
    }

    #[inline(always)]
    unsafe fn transpose(tile: &[CacheLine; LANES], lanes: &mut [CacheLine], stride: usize) {
        for (row, column) in [(0, 0), (0, 8), (8, 0), (8, 8)] {
            unsafe {
                let mut from = [_mm256_setzero_ps(); 8];
                for line in 0..8 {
                    from[line] = _mm256_load_ps(tile[row + line].0.as_ptr().add(column));
                }
                let to = transposed_8x8(from);
                for line in 0..8 {
                    _mm256_store_ps(lanes[(column + line) * stride].0.as_mut_ptr().add(row), to[line]);
                }
            }
        }
    }
}

/// Returns 8 vectors of 8 lanes, transposed.
///
/// # Safety
/// Needs AVX.
#[inline(always)]
unsafe fn transposed_8x8(mut from: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: the caller has AVX.
    unsafe {
        let mut to = from;
        // Interleave words of 2 rows, then of 4, then 128-bit lanes.
        for row in (0..8).step_by(2) {
            to[row] = _mm256_unpacklo_ps(from[row], from[row + 1]);
            to[row + 1] = _mm256_unpackhi_ps(from[row], from[row + 1]);
        }
        for row in [0, 4] {
            from[row] = _mm256_shuffle_ps::<0x44>(to[row], to[row + 2]);
            from[row + 1] = _mm256_shuffle_ps::<0xee>(to[row], to[row + 2]);
            from[row + 2] = _mm256_shuffle_ps::<0x44>(to[row + 1], to[row + 3]);
            from[row + 3] = _mm256_shuffle_ps::<0xee>(to[row + 1], to[row + 3]);
        }
        for row in 0..4 {
            to[row] = _mm256_permute2f128_ps::<0x20>(from[row], from[row + 4]);
            to[row + 4] = _mm256_permute2f128_ps::<0x31>(from[row], from[row + 4]);
        }
        to
    }
}

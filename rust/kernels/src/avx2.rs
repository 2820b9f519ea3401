//! The lanes in AVX2.

use super::lanes::{LANES, Lanes, first_four};
#[allow(clippy::wildcard_imports, reason = "the intrinsics are the language of this file")]
use std::arch::x86_64::*;

/// Two registers, of the lower and upper eight lanes; needs AVX2 and FMA.
#[derive(Clone, Copy)]
pub(crate) struct Avx2([__m256; 2]);

/// Returns the sum of eight lanes: those four apart are added first, then those two apart, one.
///
/// # Safety
/// Needs AVX.
#[inline(always)]
pub(crate) unsafe fn total(eight: __m256) -> f32 {
    // SAFETY: the caller has AVX.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
}

// SAFETY of every block: the trait's callers have AVX2 and FMA, and loads read what the references hold.
#[allow(clippy::undocumented_unsafe_blocks, reason = "the one reason for all is given above")]
impl Lanes for Avx2 {
    type Codes = [__m256i; 2];

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
    unsafe fn multiply_add(self, by: Self, plus: Self) -> Self {
        unsafe {
            Self([_mm256_fmadd_ps(self.0[0], by.0[0], plus.0[0]), _mm256_fmadd_ps(self.0[1], by.0[1], plus.0[1])])
        }
    }

    #[inline(always)]
    unsafe fn bf16(from: &[u16; 2 * LANES]) -> (Self, Self) {
        unsafe {
            let both: [__m256i; 2] =
                [_mm256_loadu_si256(from.as_ptr().cast()), _mm256_loadu_si256(from.as_ptr().add(16).cast())];
            halves(both)
        }
    }

    #[inline(always)]
    unsafe fn int8(from: &[i8; LANES]) -> Self {
        unsafe {
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            let high = _mm_unpackhi_epi64(bytes, bytes);
            Self([_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high))])
        }
    }

    #[inline(always)]
    unsafe fn codes(from: &[u8]) -> Self::Codes {
        let mut part = [0; 4 * LANES];
        let bytes = from.first_chunk().unwrap_or_else(|| {
            part[..from.len()].copy_from_slice(from);
            &part
        });
        unsafe { [_mm256_loadu_si256(bytes.as_ptr().cast()), _mm256_loadu_si256(bytes.as_ptr().add(32).cast())] }
    }

    #[inline(always)]
    unsafe fn next_code(codes: Self::Codes) -> (Self, Self::Codes) {
        unsafe {
            let (low, high) = (eight_codes(codes[0]), eight_codes(codes[1]));
            (Self([low, high]), [_mm256_srli_epi32::<4>(codes[0]), _mm256_srli_epi32::<4>(codes[1])])
        }
    }

    #[inline(always)]
    unsafe fn spread(pairs: &[[u16; 2]], index: &[u32; LANES]) -> (Self, Self) {
        let four = first_four(pairs);
        unsafe {
            let four = _mm256_castsi128_si256(_mm_loadu_si128(four.as_ptr().cast()));
            let low = _mm256_permutevar8x32_epi32(four, _mm256_loadu_si256(index.as_ptr().cast()));
            let high = _mm256_permutevar8x32_epi32(four, _mm256_loadu_si256(index.as_ptr().add(8).cast()));
            halves([low, high])
        }
    }

    #[inline(always)]
    unsafe fn total(self) -> f32 {
        unsafe { total(_mm256_add_ps(self.0[0], self.0[1])) }
    }
}

/// Returns the bfloat16 in the lower halves of the words, and in the upper ones.
#[inline(always)]
unsafe fn halves(both: [__m256i; 2]) -> (Avx2, Avx2) {
    // SAFETY: the caller has AVX2.
    unsafe {
        let upper = _mm256_set1_epi32(-1 << 16);
        let low = [_mm256_slli_epi32::<16>(both[0]), _mm256_slli_epi32::<16>(both[1])];
        let high = [_mm256_and_si256(both[0], upper), _mm256_and_si256(both[1], upper)];
        (
            Avx2([_mm256_castsi256_ps(low[0]), _mm256_castsi256_ps(low[1])]),
            Avx2([_mm256_castsi256_ps(high[0]), _mm256_castsi256_ps(high[1])]),
        )
    }
}

/// Returns the lowest code of each of eight words, less 8.
#[inline(always)]
unsafe fn eight_codes(words: __m256i) -> __m256 {
    // SAFETY: the caller has AVX2.
    unsafe {
        let code = _mm256_and_si256(words, _mm256_set1_epi32(15));
        _mm256_cvtepi32_ps(_mm256_sub_epi32(code, _mm256_set1_epi32(8)))
    }
}

//! The lanes in AVX-512.

use super::lanes::{LANES, Lanes};
#[allow(clippy::wildcard_imports, reason = "the intrinsics are the language of this file")]
use std::arch::x86_64::*;

/// One register; needs AVX-512 F, BW and VL.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

// SAFETY of every block: the trait's callers have AVX-512 F, BW and VL, and loads read what the references hold.
#[allow(clippy::undocumented_unsafe_blocks, reason = "the one reason for all is given above")]
impl Lanes for Avx512 {
    type Codes = __m512i;

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
    unsafe fn multiply_add(self, by: Self, plus: Self) -> Self {
        Self(unsafe { _mm512_fmadd_ps(self.0, by.0, plus.0) })
    }

    #[inline(always)]
    unsafe fn bf16(from: &[u16; 2 * LANES]) -> (Self, Self) {
        unsafe {
            let both = _mm512_loadu_si512(from.as_ptr().cast());
            let even = _mm512_slli_epi32::<16>(both);
            let odd = _mm512_and_si512(both, _mm512_set1_epi32(-1 << 16));
            (Self(_mm512_castsi512_ps(even)), Self(_mm512_castsi512_ps(odd)))
        }
    }

    #[inline(always)]
    unsafe fn int8(from: &[i8; LANES]) -> Self {
        Self(unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))) })
    }

    #[inline(always)]
    unsafe fn codes(from: &[u8]) -> Self::Codes {
        let count = from.len().min(4 * LANES);
        // All ones, but for what is missing.
        let there = u64::MAX.checked_shr(64 - count as u32).unwrap_or(0);
        unsafe { _mm512_maskz_loadu_epi8(there, from.as_ptr().cast()) }
    }

    #[inline(always)]
    unsafe fn next_code(codes: Self::Codes) -> (Self, Self::Codes) {
        unsafe {
            let values = _mm512_setr_ps(-8., -7., -6., -5., -4., -3., -2., -1., 0., 1., 2., 3., 4., 5., 6., 7.);
            // Only the lowest four bits of each word choose.
            (Self(_mm512_permutexvar_ps(codes, values)), _mm512_srli_epi32::<4>(codes))
        }
    }

    #[inline(always)]
    unsafe fn spread(pairs: &[[u16; 2]], index: &[u32; LANES]) -> (Self, Self) {
        let there = (1 << pairs.len().min(4)) - 1;
        unsafe {
            let four = _mm512_castsi128_si512(_mm_maskz_loadu_epi32(there, pairs.as_ptr().cast()));
            let index = _mm512_loadu_si512(index.as_ptr().cast());
            let both = _mm512_permutexvar_epi32(index, four);
            let first = _mm512_slli_epi32::<16>(both);
            let second = _mm512_and_si512(both, _mm512_set1_epi32(-1 << 16));
            (Self(_mm512_castsi512_ps(first)), Self(_mm512_castsi512_ps(second)))
        }
    }

    #[inline(always)]
    unsafe fn total(self) -> f32 {
        unsafe {
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0)));
            super::avx2::total(_mm256_add_ps(_mm512_castps512_ps256(self.0), high))
        }
    }
    #[inline(always)]
    unsafe fn four_totals([a, b, c, d]: [Self; 4]) -> [f32; 4] {
        unsafe {
            // Of two registers, the first half of each beside that of the other, plus the second halves.
            let fold = |x, y| _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(x, y), _mm512_shuffle_f32x4::<0xee>(x, y));
            let (two, other) = (fold(a.0, b.0), fold(c.0, d.0));
            let fours =
                _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(two, other), _mm512_shuffle_f32x4::<0xdd>(two, other));
            let pairs = _mm512_add_ps(fours, _mm512_permute_ps::<0x4e>(fours));
            let totals = _mm512_add_ps(pairs, _mm512_permute_ps::<0xb1>(pairs));
            let first_of_four = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
            let mut found = [0.0; 4];
            let four = _mm512_castps512_ps128(_mm512_permutexvar_ps(first_of_four, totals));
            _mm_storeu_ps(found.as_mut_ptr(), four);
            found
        }
    }
}

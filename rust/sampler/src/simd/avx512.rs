//! The AVX-512 backend: one register, and flags in a mask register.

use super::vector::Vector;
use bpe_llama_simd::f32x16::{Avx512, LANES};
#[allow(clippy::wildcard_imports, reason = "the intrinsics are the language of this file")]
use std::arch::x86_64::*;

// SAFETY of every block: the trait's callers have the features of `Tier::Avx512`, and loads read what the references hold.
#[allow(clippy::undocumented_unsafe_blocks, reason = "the comment above holds for all blocks")]
impl Vector for Avx512 {
    type Mask = __mmask16;
    type Counts = usize;
    type Sums = [__m512d; 2];

    #[inline(always)]
    unsafe fn load_bits(from: &[u32; LANES]) -> Self {
        Self(unsafe { _mm512_loadu_ps(from.as_ptr().cast()) })
    }

    #[inline(always)]
    unsafe fn indices_from(start: u32) -> Self {
        unsafe {
            let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            Self(_mm512_castsi512_ps(_mm512_add_epi32(_mm512_set1_epi32(start as i32), lanes)))
        }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Self(unsafe { _mm512_sub_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        Self(unsafe { _mm512_min_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn at_least(self, limit: Self) -> Self::Mask {
        unsafe { _mm512_cmp_ps_mask::<_CMP_GE_OQ>(self.0, limit.0) }
    }

    #[inline(always)]
    unsafe fn below(self, limit: Self) -> Self::Mask {
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, limit.0) }
    }

    #[inline(always)]
    unsafe fn no_flags() -> Self::Mask {
        0
    }

    #[inline(always)]
    unsafe fn either(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        a | b
    }

    #[inline(always)]
    unsafe fn both(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        a & b
    }

    #[inline(always)]
    unsafe fn and_not(mask: Self::Mask, other: Self::Mask) -> Self::Mask {
        mask & !other
    }

    #[inline(always)]
    unsafe fn any(mask: Self::Mask) -> bool {
        mask != 0
    }

    #[inline(always)]
    unsafe fn all(mask: Self::Mask) -> bool {
        mask == 0xffff
    }

    #[inline(always)]
    unsafe fn keep(self, mask: Self::Mask) -> Self {
        Self(unsafe { _mm512_maskz_mov_ps(mask, self.0) })
    }

    #[inline(always)]
    unsafe fn add_where(self, mask: Self::Mask, other: Self) -> Self {
        Self(unsafe { _mm512_mask_add_ps(self.0, mask, self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn add_exponent(self, rounded: Self, bias: i32) -> Self {
        unsafe {
            let exponent = _mm512_sub_epi32(_mm512_castps_si512(rounded.0), _mm512_set1_epi32(bias));
            let bits = _mm512_castps_si512(self.0);
            Self(_mm512_castsi512_ps(_mm512_add_epi32(bits, _mm512_slli_epi32::<23>(exponent))))
        }
    }

    #[inline(always)]
    unsafe fn no_counts() -> Self::Counts {
        0
    }

    #[inline(always)]
    unsafe fn count(counts: &mut Self::Counts, mask: Self::Mask) {
        *counts += mask.count_ones() as usize;
    }

    #[inline(always)]
    unsafe fn total(counts: Self::Counts) -> usize {
        counts
    }

    #[inline(always)]
    unsafe fn no_sums() -> Self::Sums {
        unsafe { [_mm512_setzero_pd(); 2] }
    }

    #[inline(always)]
    unsafe fn add_to_sums(sums: &mut Self::Sums, weights: &[f32; LANES]) {
        unsafe { Self::add_selected_to_sums(sums, 0xffff, weights) }
    }

    #[inline(always)]
    unsafe fn add_selected_to_sums(sums: &mut Self::Sums, mask: Self::Mask, weights: &[f32; LANES]) {
        unsafe {
            let (low, high) = (_mm256_loadu_ps(weights.as_ptr()), _mm256_loadu_ps(weights.as_ptr().add(LANES / 2)));
            sums[0] = _mm512_mask_add_pd(sums[0], mask as __mmask8, sums[0], _mm512_cvtps_pd(low));
            sums[1] = _mm512_mask_add_pd(sums[1], (mask >> 8) as __mmask8, sums[1], _mm512_cvtps_pd(high));
        }
    }

    #[inline(always)]
    unsafe fn sums_of_lanes(sums: Self::Sums) -> [f64; LANES] {
        let mut lanes = [0f64; LANES];
        unsafe {
            _mm512_storeu_pd(lanes.as_mut_ptr(), sums[0]);
            _mm512_storeu_pd(lanes.as_mut_ptr().add(8), sums[1]);
        }
        lanes
    }

    #[inline(always)]
    unsafe fn compress(mask: Self::Mask, columns: [Self; 3], to: [*mut u32; 3]) -> usize {
        unsafe {
            for column in 0..3 {
                // VCOMPRESSPS to memory is slow on Zen 4, so to a register first.
                _mm512_storeu_ps(to[column].cast(), _mm512_maskz_compress_ps(mask, columns[column].0));
            }
        }
        mask.count_ones() as usize
    }
}

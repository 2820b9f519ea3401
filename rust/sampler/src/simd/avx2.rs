//! The AVX2 backend: two registers of eight lanes.

use super::vector::Vector;
use bpe_llama_simd::f32x16::{Avx2, LANES};
#[allow(clippy::wildcard_imports, reason = "the intrinsics are the language of this file")]
use std::arch::x86_64::*;

/// The lanes that are set in each mask of eight, in rising order: the shuffle that moves them next to each other.
///
/// # Source
/// The left-packing table of Intel's optimization manual, as bytes.
static SET_LANES: [[u8; 8]; 256] = {
    let mut table = [[0; 8]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut lane, mut length) = (0, 0);
        while lane < 8 {
            if mask >> lane & 1 == 1 {
                table[mask][length] = lane;
                length += 1;
            }
            lane += 1;
        }
        mask += 1;
    }
    table
};

// SAFETY of every block: the trait's callers have the features of `Tier::Avx2`, and loads read what the references hold.
#[allow(clippy::undocumented_unsafe_blocks, reason = "the comment above holds for all blocks")]
impl Vector for Avx2 {
    type Mask = [__m256; 2];
    type Counts = [__m256i; 2];
    type Sums = [__m256d; 4];

    #[inline(always)]
    unsafe fn load_bits(from: &[u32; LANES]) -> Self {
        unsafe { Self([_mm256_loadu_ps(from.as_ptr().cast()), _mm256_loadu_ps(from.as_ptr().add(8).cast())]) }
    }

    #[inline(always)]
    unsafe fn indices_from(start: u32) -> Self {
        unsafe {
            let low = _mm256_add_epi32(_mm256_set1_epi32(start as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
            let high = _mm256_add_epi32(low, _mm256_set1_epi32(8));
            Self([_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)])
        }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { Self([_mm256_sub_ps(self.0[0], other.0[0]), _mm256_sub_ps(self.0[1], other.0[1])]) }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { Self([_mm256_max_ps(self.0[0], other.0[0]), _mm256_max_ps(self.0[1], other.0[1])]) }
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        unsafe { Self([_mm256_min_ps(self.0[0], other.0[0]), _mm256_min_ps(self.0[1], other.0[1])]) }
    }

    #[inline(always)]
    unsafe fn at_least(self, limit: Self) -> Self::Mask {
        unsafe {
            [_mm256_cmp_ps::<_CMP_GE_OQ>(self.0[0], limit.0[0]), _mm256_cmp_ps::<_CMP_GE_OQ>(self.0[1], limit.0[1])]
        }
    }

    #[inline(always)]
    unsafe fn below(self, limit: Self) -> Self::Mask {
        unsafe {
            [_mm256_cmp_ps::<_CMP_LT_OQ>(self.0[0], limit.0[0]), _mm256_cmp_ps::<_CMP_LT_OQ>(self.0[1], limit.0[1])]
        }
    }

    #[inline(always)]
    unsafe fn no_flags() -> Self::Mask {
        unsafe { [_mm256_setzero_ps(); 2] }
    }

    #[inline(always)]
    unsafe fn either(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        unsafe { [_mm256_or_ps(a[0], b[0]), _mm256_or_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn both(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        unsafe { [_mm256_and_ps(a[0], b[0]), _mm256_and_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn and_not(mask: Self::Mask, other: Self::Mask) -> Self::Mask {
        unsafe { [_mm256_andnot_ps(other[0], mask[0]), _mm256_andnot_ps(other[1], mask[1])] }
    }

    #[inline(always)]
    unsafe fn any(mask: Self::Mask) -> bool {
        unsafe { _mm256_movemask_ps(_mm256_or_ps(mask[0], mask[1])) != 0 }
    }

    #[inline(always)]
    unsafe fn all(mask: Self::Mask) -> bool {
        unsafe { _mm256_movemask_ps(_mm256_and_ps(mask[0], mask[1])) == 0xff }
    }

    #[inline(always)]
    unsafe fn keep(self, mask: Self::Mask) -> Self {
        unsafe { Self([_mm256_and_ps(mask[0], self.0[0]), _mm256_and_ps(mask[1], self.0[1])]) }
    }

    #[inline(always)]
    unsafe fn add_where(self, mask: Self::Mask, other: Self) -> Self {
        unsafe {
            let other = other.keep(mask);
            Self([_mm256_add_ps(self.0[0], other.0[0]), _mm256_add_ps(self.0[1], other.0[1])])
        }
    }

    #[inline(always)]
    unsafe fn add_exponent(self, rounded: Self, bias: i32) -> Self {
        unsafe {
            let mut sums = self.0;
            for (sum, rounded) in sums.iter_mut().zip(rounded.0) {
                let exponent = _mm256_sub_epi32(_mm256_castps_si256(rounded), _mm256_set1_epi32(bias));
                let bits = _mm256_add_epi32(_mm256_castps_si256(*sum), _mm256_slli_epi32::<23>(exponent));
                *sum = _mm256_castsi256_ps(bits);
            }
            Self(sums)
        }
    }

    #[inline(always)]
    unsafe fn no_counts() -> Self::Counts {
        unsafe { [_mm256_setzero_si256(); 2] }
    }

    #[inline(always)]
    unsafe fn count(counts: &mut Self::Counts, mask: Self::Mask) {
        unsafe {
            counts[0] = _mm256_sub_epi32(counts[0], _mm256_castps_si256(mask[0]));
            counts[1] = _mm256_sub_epi32(counts[1], _mm256_castps_si256(mask[1]));
        }
    }

    #[inline(always)]
    unsafe fn total(counts: Self::Counts) -> usize {
        let mut lanes = [0u32; 8];
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), _mm256_add_epi32(counts[0], counts[1])) };
        lanes.iter().map(|&count| count as usize).sum()
    }

    #[inline(always)]
    unsafe fn no_sums() -> Self::Sums {
        unsafe { [_mm256_setzero_pd(); 4] }
    }

    #[inline(always)]
    unsafe fn add_to_sums(sums: &mut Self::Sums, weights: &[f32; LANES]) {
        unsafe {
            for (quarter, sum) in sums.iter_mut().enumerate() {
                *sum = _mm256_add_pd(*sum, _mm256_cvtps_pd(_mm_loadu_ps(weights.as_ptr().add(4 * quarter))));
            }
        }
    }

    #[inline(always)]
    unsafe fn add_selected_to_sums(sums: &mut Self::Sums, mask: Self::Mask, weights: &[f32; LANES]) {
        unsafe {
            for (half, mask) in mask.into_iter().enumerate() {
                let selected = _mm256_and_ps(mask, _mm256_loadu_ps(weights.as_ptr().add(8 * half)));
                let (low, high) = (_mm256_castps256_ps128(selected), _mm256_extractf128_ps::<1>(selected));
                sums[2 * half] = _mm256_add_pd(sums[2 * half], _mm256_cvtps_pd(low));
                sums[2 * half + 1] = _mm256_add_pd(sums[2 * half + 1], _mm256_cvtps_pd(high));
            }
        }
    }

    #[inline(always)]
    unsafe fn sums_of_lanes(sums: Self::Sums) -> [f64; LANES] {
        let mut lanes = [0f64; LANES];
        for (quarter, sum) in sums.into_iter().enumerate() {
            unsafe { _mm256_storeu_pd(lanes.as_mut_ptr().add(4 * quarter), sum) };
        }
        lanes
    }

    #[inline(always)]
    unsafe fn compress(mask: Self::Mask, columns: [Self; 3], to: [*mut u32; 3]) -> usize {
        unsafe {
            let mut length = 0;
            for (half, flags) in mask.into_iter().enumerate() {
                let flags = _mm256_movemask_ps(flags) as usize;
                let lanes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(SET_LANES[flags].as_ptr().cast()));
                for column in 0..3 {
                    let packed = _mm256_permutevar8x32_ps(columns[column].0[half], lanes);
                    _mm256_storeu_ps(to[column].add(length).cast(), packed);
                }
                length += flags.count_ones() as usize;
            }
            length
        }
    }
}

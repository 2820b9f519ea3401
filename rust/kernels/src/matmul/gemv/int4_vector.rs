//! The vector operations of four-bit weights: unpack codes, and load the scales of groups.

use bpe_llama_simd::bf16;
#[cfg(target_arch = "x86_64")]
use bpe_llama_simd::f32x16::{Avx2, Avx512};
use bpe_llama_simd::f32x16::{F32x16, LANES, Portable, zero_padded};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Four-bit codes of a block: eight for each lane.
pub(crate) const BLOCK: usize = 8 * LANES;

/// A vector of float32 that four-bit weights widen to.
///
/// # Safety
/// As for [`F32x16`].
pub(crate) trait Int4Vector: F32x16 {
    /// 16 words of 32 bits, each with eight codes.
    type Codes: Copy;

    /// Returns the codes in `from`, at most a [`BLOCK`], followed by zeros.
    unsafe fn load_codes(from: &[u8]) -> Self::Codes;

    /// Returns the lowest code of each word less 8, and the words shifted to the next code.
    unsafe fn next_code(codes: Self::Codes) -> (Self, Self::Codes);

    /// Returns in lane `l` the scale and the offset of group `group[l]`, below 4, or zeros if there is no such group.
    unsafe fn load_scales(scales: &[[u16; 2]], group: &[u32; LANES]) -> [Self; 2];
}

/// Returns the first four scales, followed by zeros if there are fewer.
#[inline(always)]
fn first_four(scales: &[[u16; 2]]) -> [[u16; 2]; 4] {
    match scales.first_chunk() {
        Some(four) => *four,
        None => zero_padded(scales),
    }
}

impl Int4Vector for Portable {
    type Codes = [u32; LANES];

    #[inline(always)]
    unsafe fn load_codes(from: &[u8]) -> Self::Codes {
        let mut codes = [0; LANES];
        for (code, bytes) in codes.iter_mut().zip(from.as_chunks::<4>().0) {
            *code = u32::from_le_bytes(*bytes);
        }
        codes
    }

    #[inline(always)]
    unsafe fn next_code(codes: Self::Codes) -> (Self, Self::Codes) {
        (Self(codes.map(|word| (word & 15) as f32 - 8.0)), codes.map(|word| word >> 4))
    }

    #[inline(always)]
    unsafe fn load_scales(scales: &[[u16; 2]], group: &[u32; LANES]) -> [Self; 2] {
        let four = first_four(scales);
        [0, 1].map(|which| Self(group.map(|group| bf16::to_f32(four[group as usize & 3][which]))))
    }
}

// SAFETY of every block: the trait's callers have AVX2, and loads read what the references hold.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks, reason = "the comment above holds for all blocks")]
impl Int4Vector for Avx2 {
    type Codes = [__m256i; 2];

    #[inline(always)]
    unsafe fn load_codes(from: &[u8]) -> Self::Codes {
        let mut padded = [0; 4 * LANES];
        let bytes = from.first_chunk().unwrap_or_else(|| {
            padded[..from.len()].copy_from_slice(from);
            &padded
        });
        unsafe { [_mm256_loadu_si256(bytes.as_ptr().cast()), _mm256_loadu_si256(bytes.as_ptr().add(32).cast())] }
    }

    #[inline(always)]
    unsafe fn next_code(codes: Self::Codes) -> (Self, Self::Codes) {
        unsafe {
            let (low, high) = (lowest_codes(codes[0]), lowest_codes(codes[1]));
            (Self([low, high]), [_mm256_srli_epi32::<4>(codes[0]), _mm256_srli_epi32::<4>(codes[1])])
        }
    }

    #[inline(always)]
    unsafe fn load_scales(scales: &[[u16; 2]], group: &[u32; LANES]) -> [Self; 2] {
        let four = first_four(scales);
        unsafe {
            let four = _mm256_castsi128_si256(_mm_loadu_si128(four.as_ptr().cast()));
            let low = _mm256_permutevar8x32_epi32(four, _mm256_loadu_si256(group.as_ptr().cast()));
            let high = _mm256_permutevar8x32_epi32(four, _mm256_loadu_si256(group.as_ptr().add(8).cast()));
            Self::from_bf16_pairs([low, high])
        }
    }
}

/// Returns the lowest code of each of eight words less 8.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn lowest_codes(words: __m256i) -> __m256 {
    // SAFETY: the caller has AVX2.
    unsafe {
        let code = _mm256_and_si256(words, _mm256_set1_epi32(15));
        _mm256_cvtepi32_ps(_mm256_sub_epi32(code, _mm256_set1_epi32(8)))
    }
}

// SAFETY of every block: the trait's callers have AVX-512 F, BW and VL, and loads read what the references hold.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks, reason = "the comment above holds for all blocks")]
impl Int4Vector for Avx512 {
    type Codes = __m512i;

    #[inline(always)]
    unsafe fn load_codes(from: &[u8]) -> Self::Codes {
        let count = from.len().min(4 * LANES);
        let mask = u64::MAX.checked_shr(64 - count as u32).unwrap_or(0);
        unsafe { _mm512_maskz_loadu_epi8(mask, from.as_ptr().cast()) }
    }

    #[inline(always)]
    unsafe fn next_code(codes: Self::Codes) -> (Self, Self::Codes) {
        unsafe {
            let values = _mm512_setr_ps(-8., -7., -6., -5., -4., -3., -2., -1., 0., 1., 2., 3., 4., 5., 6., 7.);
            // VPERMPS looks up the lowest four bits of each word.
            (Self(_mm512_permutexvar_ps(codes, values)), _mm512_srli_epi32::<4>(codes))
        }
    }

    #[inline(always)]
    unsafe fn load_scales(scales: &[[u16; 2]], group: &[u32; LANES]) -> [Self; 2] {
        let mask = (1 << scales.len().min(4)) - 1;
        unsafe {
            let four = _mm512_castsi128_si512(_mm_maskz_loadu_epi32(mask, scales.as_ptr().cast()));
            Self::from_bf16_pairs(_mm512_permutexvar_epi32(_mm512_loadu_si512(group.as_ptr().cast()), four))
        }
    }
}

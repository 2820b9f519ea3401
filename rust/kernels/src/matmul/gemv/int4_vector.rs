//! The vector operations of four-bit weights: unpack codes, and load the scales of groups.

use super::half_vector::HalfVector;
use bpe_llama_simd::bf16;
#[cfg(target_arch = "aarch64")]
use bpe_llama_simd::f32x16::Neon;
#[cfg(target_arch = "x86_64")]
use bpe_llama_simd::f32x16::{Avx2, Avx512};
use bpe_llama_simd::f32x16::{F32x16, LANES, Portable, zero_padded};
#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Four-bit codes of a block: eight for each lane.
pub(crate) const BLOCK: usize = 8 * LANES;
/// Packed vectors of a block: the activations of each of the eight codes, their sum, and -8 times their sum.
pub(crate) const BLOCK_VECTORS: usize = 10;

/// A vector of float32 that four-bit weights widen to.
///
/// # Safety
/// As for [`F32x16`].
pub(crate) trait Int4Vector: F32x16 {
    /// 16 words of 32 bits, each with eight codes.
    type Codes: Copy;

    /// Half of the lanes.
    type Half: HalfVector;

    /// Returns the codes in `from`, at most a [`BLOCK`], followed by zeros.
    unsafe fn load_codes(from: &[u8]) -> Self::Codes;

    /// Returns code `K` of each word, times [`factor`]`(K)`: a mask and a conversion. Only codes 4 and above are shifted, all
    /// together.
    unsafe fn code<const K: usize>(codes: Self::Codes) -> Self;

    /// Returns in lane `l` the scale and the offset of group `group[l]`, below 4, or zeros if there is no such group.
    unsafe fn load_scales(scales: &[[u16; 2]], group: &[u32; LANES]) -> [Self; 2];
}

/// The power of two by which [`Int4Vector::code`] multiplies code `k`, and by which the activation of code `k` is divided.
///
/// Both are exact, but for activations below `2^-114`.
pub(crate) const fn factor(k: usize) -> f32 {
    (1 << (4 * (k % 4))) as f32
}

/// The bits of code `k` in a word that is shifted right by [`shift`]`(k)`.
const fn mask(k: usize) -> i32 {
    15 << (4 * (k % 4))
}

const fn shift(k: usize) -> i32 {
    16 * (k as i32 / 4)
}

impl Int4Vector for Portable {
    type Codes = [u32; LANES];
    type Half = [f32; LANES / 2];

    #[inline(always)]
    unsafe fn load_codes(from: &[u8]) -> Self::Codes {
        let mut codes = [0; LANES];
        for (code, bytes) in codes.iter_mut().zip(from.as_chunks::<4>().0) {
            *code = u32::from_le_bytes(*bytes);
        }
        codes
    }

    #[inline(always)]
    unsafe fn code<const K: usize>(codes: Self::Codes) -> Self {
        Self(codes.map(|word| ((word >> shift(K)) as i32 & mask(K)) as f32))
    }

    #[inline(always)]
    unsafe fn load_scales(scales: &[[u16; 2]], group: &[u32; LANES]) -> [Self; 2] {
        let four: [_; 4] = zero_padded(&scales[..scales.len().min(4)]);
        [0, 1].map(|which| Self(group.map(|group| bf16::to_f32(four[group as usize & 3][which]))))
    }
}

// SAFETY of every block: the trait's callers have AVX2, and loads read what the references hold.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks, reason = "the comment above holds for all blocks")]
impl Int4Vector for Avx2 {
    type Codes = [__m256i; 2];
    type Half = __m256;

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
    unsafe fn code<const K: usize>(codes: Self::Codes) -> Self {
        unsafe {
            let [mut low, mut high] = codes;
            if K >= 4 {
                (low, high) = (_mm256_srli_epi32::<16>(low), _mm256_srli_epi32::<16>(high));
            }
            let mask = _mm256_set1_epi32(mask(K));
            Self([_mm256_cvtepi32_ps(_mm256_and_si256(low, mask)), _mm256_cvtepi32_ps(_mm256_and_si256(high, mask))])
        }
    }

    #[inline(always)]
    unsafe fn load_scales(scales: &[[u16; 2]], group: &[u32; LANES]) -> [Self; 2] {
        unsafe {
            // A copy of up to four would be a call, around which every register is spilled.
            let there = _mm_cmpgt_epi32(_mm_set1_epi32(scales.len() as i32), _mm_setr_epi32(0, 1, 2, 3));
            let four = _mm256_castsi128_si256(_mm_maskload_epi32(scales.as_ptr().cast(), there));
            let low = _mm256_permutevar8x32_epi32(four, _mm256_loadu_si256(group.as_ptr().cast()));
            let high = _mm256_permutevar8x32_epi32(four, _mm256_loadu_si256(group.as_ptr().add(8).cast()));
            Self::from_bf16_pairs([low, high])
        }
    }
}

// SAFETY of every block: the trait's callers have AVX-512 F, BW and VL, and loads read what the references hold.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks, reason = "the comment above holds for all blocks")]
impl Int4Vector for Avx512 {
    type Codes = __m512i;
    type Half = __m256;

    #[inline(always)]
    unsafe fn load_codes(from: &[u8]) -> Self::Codes {
        let count = from.len().min(4 * LANES);
        let mask = u64::MAX.checked_shr(64 - count as u32).unwrap_or(0);
        unsafe { _mm512_maskz_loadu_epi8(mask, from.as_ptr().cast()) }
    }

    #[inline(always)]
    unsafe fn code<const K: usize>(codes: Self::Codes) -> Self {
        unsafe {
            let words = if K >= 4 { _mm512_srli_epi32::<16>(codes) } else { codes };
            Self(_mm512_cvtepi32_ps(_mm512_and_si512(words, _mm512_set1_epi32(mask(K)))))
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

// SAFETY of every block: the trait's callers have NEON, and loads read what the references hold.
#[cfg(target_arch = "aarch64")]
#[allow(clippy::undocumented_unsafe_blocks, reason = "the comment above holds for all blocks")]
impl Int4Vector for Neon {
    type Codes = [int32x4_t; 4];
    type Half = [float32x4_t; 2];

    #[inline(always)]
    unsafe fn load_codes(from: &[u8]) -> Self::Codes {
        let mut padded = [0; 4 * LANES];
        let bytes = from.first_chunk().unwrap_or_else(|| {
            padded[..from.len()].copy_from_slice(from);
            &padded
        });
        unsafe {
            let words: *const i32 = bytes.as_ptr().cast(); // NEON loads need no alignment
            [vld1q_s32(words), vld1q_s32(words.add(4)), vld1q_s32(words.add(8)), vld1q_s32(words.add(12))]
        }
    }

    #[inline(always)]
    unsafe fn code<const K: usize>(codes: Self::Codes) -> Self {
        unsafe {
            let mut values = [vdupq_n_f32(0.0); 4];
            for quarter in 0..4 {
                let mut words = codes[quarter];
                if K >= 4 {
                    words = vreinterpretq_s32_u32(vshrq_n_u32::<16>(vreinterpretq_u32_s32(words)));
                }
                values[quarter] = vcvtq_f32_s32(vandq_s32(words, vdupq_n_s32(mask(K))));
            }
            Self(values)
        }
    }

    #[inline(always)]
    unsafe fn load_scales(scales: &[[u16; 2]], group: &[u32; LANES]) -> [Self; 2] {
        unsafe {
            // Groups begin at whole registers: one broadcast for each register.
            let mut pairs = [[vdupq_n_f32(0.0); 4]; 2];
            for quarter in 0..4 {
                let [scale, offset] = scales.get(group[4 * quarter] as usize).copied().unwrap_or_default();
                pairs[0][quarter] = vdupq_n_f32(bf16::to_f32(scale));
                pairs[1][quarter] = vdupq_n_f32(bf16::to_f32(offset));
            }
            pairs.map(Self)
        }
    }
}

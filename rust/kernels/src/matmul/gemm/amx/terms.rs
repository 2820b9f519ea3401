//! Splits activations and weights into bfloat16 terms.

use crate::matmul::gemm::tile::{self, TILE_COLUMNS, ToBf16, high_halves};
use bpe_llama_simd::bf16;
use bpe_llama_simd::f32x16::CacheLine;
use std::arch::x86_64::*;

/// The bfloat16 terms of a float32.
pub(super) const TERMS: usize = 3;

/// Appends the tiles of a panel, three for each, one of each term.
///
/// # Safety
/// The CPU has AVX-512 F, BW and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) unsafe fn pack(x: &[f32], columns: usize, packed: &mut Vec<CacheLine>) {
    // SAFETY: the features are enabled here.
    unsafe { tile::pack::<Split, TERMS>(x, columns, packed) };
}

/// Returns the terms of each float32, as float32 whose low halves are zero.
#[inline(always)]
unsafe fn split(x: [__m512; 2]) -> [[__m512; 2]; TERMS] {
    let mut terms = [x; TERMS];
    // SAFETY: the caller has AVX-512 F.
    unsafe {
        let mut rest = x;
        for term in 0..TERMS - 1 {
            for half in 0..2 {
                let rounded = _mm512_add_epi32(_mm512_castps_si512(rest[half]), _mm512_set1_epi32(1 << 15));
                terms[term][half] = _mm512_castsi512_ps(_mm512_and_si512(rounded, _mm512_set1_epi32(-1 << 16)));
                rest[half] = _mm512_sub_ps(rest[half], terms[term][half]);
            }
        }
        // The rest has no more digits than a bfloat16.
        terms[TERMS - 1] = rest;
    }
    terms
}

struct Split;

impl ToBf16<TERMS> for Split {
    #[inline(always)]
    unsafe fn convert(low: __m512, high: __m512) -> [__m512i; TERMS] {
        // SAFETY: the caller's promise.
        unsafe {
            let terms = split([low, high]);
            let mut pairs = [_mm512_setzero_si512(); TERMS];
            for term in 0..TERMS {
                let [low, high] = terms[term];
                pairs[term] = high_halves(_mm512_castps_si512(low), _mm512_castps_si512(high));
            }
            pairs
        }
    }
}

/// A weight format, and how [`TILE_COLUMNS`] weights of a row become terms.
pub(super) trait WeightTerms: Copy {
    /// Terms of a weight: 1 or [`TERMS`].
    const COUNT: usize;
    /// Bytes of [`TILE_COLUMNS`] weights.
    const BYTES: usize;
    /// Whether AMX can load rows from where they are.
    const IN_PLACE: bool = false;

    /// Returns the terms of the weights at `index` and after, each as 16 pairs; those beyond [`Self::COUNT`] are unused.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, BW and VL, and there is a weight for each bit of `mask`.
    unsafe fn load(self, index: usize, mask: u32) -> [__m512i; TERMS];
}

#[derive(Clone, Copy)]
pub(super) struct Bf16<'a>(pub(super) &'a [u16]);

impl WeightTerms for Bf16<'_> {
    const COUNT: usize = 1;
    const BYTES: usize = 2 * TILE_COLUMNS;
    const IN_PLACE: bool = true;

    #[inline(always)]
    unsafe fn load(self, index: usize, mask: u32) -> [__m512i; TERMS] {
        // SAFETY: the caller's promise.
        unsafe { [_mm512_maskz_loadu_epi16(mask, self.0.as_ptr().add(index).cast()); TERMS] }
    }
}

/// Signed bytes, without the scales of the rows.
#[derive(Clone, Copy)]
pub(super) struct Int8<'a>(pub(super) &'a [i8]);

impl WeightTerms for Int8<'_> {
    const COUNT: usize = 1;
    const BYTES: usize = TILE_COLUMNS;

    #[inline(always)]
    unsafe fn load(self, index: usize, mask: u32) -> [__m512i; TERMS] {
        // SAFETY: the caller's promise.
        unsafe {
            let codes = _mm512_castsi512_si256(_mm512_maskz_loadu_epi8(u64::from(mask), self.0.as_ptr().add(index)));
            let low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(codes)));
            let high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256::<1>(codes)));
            [high_halves(_mm512_castps_si512(low), _mm512_castps_si512(high)); TERMS]
        }
    }
}

/// Dequantized four-bit weights.
#[derive(Clone, Copy)]
pub(super) struct Int4<'a> {
    pub(super) codes: &'a [u8],
    pub(super) scales: &'a [[u16; 2]],
    /// The binary logarithm of the group size, a multiple of [`TILE_COLUMNS`].
    pub(super) group_log2: u32,
}

impl WeightTerms for Int4<'_> {
    const COUNT: usize = TERMS;
    const BYTES: usize = TILE_COLUMNS / 2;

    #[inline(always)]
    unsafe fn load(self, index: usize, mask: u32) -> [__m512i; TERMS] {
        // SAFETY: the caller's promise.
        unsafe {
            let mask = mask as u16; // all columns or none
            let scales = self.scales[index >> self.group_log2];
            let [scale, offset] = scales.map(|bits| _mm512_set1_ps(bf16::to_f32(bits)));
            let codes = _mm_maskz_loadu_epi8(mask, self.codes.as_ptr().add(index / 2).cast());
            let codes = _mm512_cvtepu8_epi32(codes);
            let mut weights = [scale; 2];
            for (half, code) in
                [_mm512_and_si512(codes, _mm512_set1_epi32(15)), _mm512_srli_epi32::<4>(codes)].into_iter().enumerate()
            {
                let code = _mm512_sub_ps(_mm512_cvtepi32_ps(code), _mm512_set1_ps(8.0));
                weights[half] = _mm512_maskz_mov_ps(mask, _mm512_fmadd_ps(code, scale, offset));
            }
            let terms = split(weights);
            let mut pairs = [_mm512_setzero_si512(); TERMS];
            for term in 0..TERMS {
                let [even, odd] = terms[term];
                let even = _mm512_srli_epi32::<16>(_mm512_castps_si512(even));
                pairs[term] = _mm512_or_si512(even, _mm512_castps_si512(odd));
            }
            pairs
        }
    }
}

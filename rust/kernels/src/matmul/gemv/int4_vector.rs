//! The vector operations of four-bit weights: unpack codes, multiply them with rounded activations, and load the scales of groups.

#[cfg(target_arch = "aarch64")]
use bpe_llama_simd::f32x16::Neon;
#[cfg(target_arch = "x86_64")]
use bpe_llama_simd::f32x16::{Avx2, Avx512};
use bpe_llama_simd::f32x16::{CacheLine, F32x16, LANES, Portable, zero_padded};
use bpe_llama_simd::{Backend, Kind, bf16};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
#[cfg(target_arch = "aarch64")]
use std::arch::{aarch64::*, asm};

/// Four-bit codes of a block: eight for each lane.
pub(crate) const BLOCK: usize = 8 * LANES;

/// Packed vectors of a block as bytes: the third, second and first byte of even columns, then of odd columns; then
/// `-8 * sum(q)` of each lane, and `step`.
pub(crate) const BYTES_VECTORS: usize = 8;
/// Packed vectors of a block as words: `q` of each of the eight codes; then as above.
pub(crate) const WORDS_VECTORS: usize = 10;

/// Loads of four-bit weights.
///
/// # Safety
/// As for [`F32x16`].
pub(crate) trait Int4Vector: F32x16 {
    /// 16 words of 32 bits, each with eight codes.
    type Codes: Copy;

    /// Returns the codes in `from`, at most a [`BLOCK`], followed by zeros.
    unsafe fn load_codes(from: &[u8]) -> Self::Codes;

    /// Returns in lane `l` the scale of group `group[l]`, below 4, or zero if there is no such group.
    unsafe fn load_scales(scales: &[[u16; 2]], group: &[u32; LANES]) -> Self;

    /// Returns the first 16 offsets, followed by zeros.
    unsafe fn load_offsets(scales: &[[u16; 2]]) -> Self;
}

/// Products of four-bit codes with rounded activations, which are packed in `N` vectors for a block and row.
pub(crate) trait Int4Dot<const N: usize>: Int4Vector {
    /// Returns in each lane `sum((code - 8) * q)` of row `m`, an exact sum rounded to float32.
    ///
    /// # Safety
    /// The CPU has the features of the backend, and with `DOT` those of [`Products::Dot`].
    unsafe fn dot<const DOT: bool, const M: usize>(codes: Self::Codes, x: &[[CacheLine; M]; N], m: usize) -> Self;
}

/// How a backend multiplies codes, which says how activations are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Products {
    /// Of words.
    Words,
    /// Of bytes.
    Bytes,
    /// Of bytes, four of them added to a word in one instruction: AVX-VNNI, AVX-512 VNNI, or NEON's dot products.
    Dot,
}

impl Products {
    pub(crate) fn of(backend: Backend) -> Self {
        let (has_dot, without) = match backend.kind() {
            Kind::Portable => (false, Self::Words),
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => (std::arch::is_aarch64_feature_detected!("dotprod"), Self::Words),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => (is_x86_feature_detected!("avxvnni"), Self::Bytes),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => (is_x86_feature_detected!("avx512vnni"), Self::Bytes),
        };
        if has_dot { Self::Dot } else { without }
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
    unsafe fn load_scales(scales: &[[u16; 2]], group: &[u32; LANES]) -> Self {
        let four: [_; 4] = zero_padded(&scales[..scales.len().min(4)]);
        Self(group.map(|group| bf16::to_f32(four[group as usize & 3][0])))
    }

    #[inline(always)]
    unsafe fn load_offsets(scales: &[[u16; 2]]) -> Self {
        let pairs: [_; LANES] = zero_padded(&scales[..scales.len().min(LANES)]);
        Self(pairs.map(|[_, offset]: [u16; 2]| bf16::to_f32(offset)))
    }
}

impl Int4Dot<WORDS_VECTORS> for Portable {
    #[inline(always)]
    unsafe fn dot<const DOT: bool, const M: usize>(
        codes: Self::Codes,
        x: &[[CacheLine; M]; WORDS_VECTORS],
        m: usize,
    ) -> Self {
        let mut sums = x[8][m].0.map(|word| word.to_bits() as i32);
        for code in 0..8 {
            for lane in 0..LANES {
                sums[lane] += ((codes[lane] >> (4 * code)) & 15) as i32 * x[code][m].0[lane].to_bits() as i32;
            }
        }
        Self(sums.map(|sum| sum as f32))
    }
}

// SAFETY of every block: the trait's callers have AVX2, and loads read what the references hold.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks, reason = "the comment above holds for all blocks")]
impl Int4Vector for Avx2 {
    type Codes = [__m256i; 2];

    #[inline(always)]
    unsafe fn load_codes(from: &[u8]) -> Self::Codes {
        unsafe {
            if from.len() >= 4 * LANES {
                return [_mm256_loadu_si256(from.as_ptr().cast()), _mm256_loadu_si256(from.as_ptr().add(32).cast())];
            }
            load_words(from.as_ptr().cast(), from.len() / 4)
        }
    }

    #[inline(always)]
    unsafe fn load_scales(scales: &[[u16; 2]], group: &[u32; LANES]) -> Self {
        unsafe {
            // A copy of up to four would be a call, around which every register is spilled.
            let there = _mm_cmpgt_epi32(_mm_set1_epi32(scales.len() as i32), _mm_setr_epi32(0, 1, 2, 3));
            let four = _mm256_castsi128_si256(_mm_maskload_epi32(scales.as_ptr().cast(), there));
            let low = _mm256_permutevar8x32_epi32(four, _mm256_loadu_si256(group.as_ptr().cast()));
            let high = _mm256_permutevar8x32_epi32(four, _mm256_loadu_si256(group.as_ptr().add(8).cast()));
            let [scale, _] = Self::from_bf16_pairs([low, high]);
            scale
        }
    }

    #[inline(always)]
    unsafe fn load_offsets(scales: &[[u16; 2]]) -> Self {
        let [_, offset] = unsafe { Self::from_bf16_pairs(load_words(scales.as_ptr().cast(), scales.len())) };
        offset
    }
}

// SAFETY of every block: the callers have AVX2, with `DOT` AVX-VNNI too; loads read what the references hold.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks, reason = "the comment above holds for all blocks")]
impl Int4Dot<BYTES_VECTORS> for Avx2 {
    #[inline(always)]
    unsafe fn dot<const DOT: bool, const M: usize>(
        codes: Self::Codes,
        x: &[[CacheLine; M]; BYTES_VECTORS],
        m: usize,
    ) -> Self {
        unsafe {
            let mask = _mm256_set1_epi8(15);
            let mut sums = [_mm256_setzero_ps(); 2];
            for half in 0..2 {
                let odd = _mm256_srli_epi16::<4>(codes[half]);
                let codes = [_mm256_and_si256(codes[half], mask), _mm256_and_si256(odd, mask)];
                let line = |vector: usize| &x[vector][m].0.as_chunks().0[half];
                let upper = add_256::<DOT>(_mm256_setzero_si256(), codes, [line(0), line(3)]);
                let upper = add_256::<DOT>(_mm256_slli_epi32::<8>(upper), codes, [line(1), line(4)]);
                let lower = add_256::<DOT>(_mm256_load_si256(line(6).as_ptr().cast()), codes, [line(2), line(5)]);
                sums[half] = _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_slli_epi32::<8>(upper), lower));
            }
            Self(sums)
        }
    }
}

/// As `add_512`.
///
/// # Safety
/// The CPU has AVX2, and with `DOT` AVX-VNNI; the halves are those of lines.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn add_256<const DOT: bool>(sum: __m256i, [even, odd]: [__m256i; 2], x: [&[f32; LANES / 2]; 2]) -> __m256i {
    // SAFETY: the caller's promise, and halves of lines are aligned.
    unsafe {
        let (for_even, for_odd) = (_mm256_load_si256(x[0].as_ptr().cast()), _mm256_load_si256(x[1].as_ptr().cast()));
        if DOT {
            return _mm256_dpbusd_avx_epi32(_mm256_dpbusd_avx_epi32(sum, even, for_even), odd, for_odd);
        }
        let fours = _mm256_add_epi16(_mm256_maddubs_epi16(even, for_even), _mm256_maddubs_epi16(odd, for_odd));
        _mm256_add_epi32(sum, _mm256_madd_epi16(fours, _mm256_set1_epi16(1)))
    }
}

/// Returns the first 16 of `count` words, followed by zeros. A copy of a length known only at run time would be a call, around
/// which every register is spilled.
///
/// # Safety
/// The CPU has AVX2, and `count` words from there can be read.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn load_words(from: *const i32, count: usize) -> [__m256i; 2] {
    // SAFETY: the caller's promise; lanes from `count` on are not read.
    unsafe {
        let count = _mm256_set1_epi32(count.min(LANES) as i32);
        let low = _mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        let high = _mm256_cmpgt_epi32(count, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15));
        [_mm256_maskload_epi32(from, low), _mm256_maskload_epi32(from.wrapping_add(8), high)]
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
    unsafe fn load_scales(scales: &[[u16; 2]], group: &[u32; LANES]) -> Self {
        let mask = (1 << scales.len().min(4)) - 1;
        unsafe {
            let four = _mm512_castsi128_si512(_mm_maskz_loadu_epi32(mask, scales.as_ptr().cast()));
            let words = _mm512_permutexvar_epi32(_mm512_loadu_si512(group.as_ptr().cast()), four);
            let [scale, _] = Self::from_bf16_pairs(words);
            scale
        }
    }

    #[inline(always)]
    unsafe fn load_offsets(scales: &[[u16; 2]]) -> Self {
        let mask = ((1u32 << scales.len().min(LANES)) - 1) as u16;
        let [_, offset] = unsafe { Self::from_bf16_pairs(_mm512_maskz_loadu_epi32(mask, scales.as_ptr().cast())) };
        offset
    }
}

// SAFETY of every block: the callers have AVX-512 F and BW, with `DOT` VNNI too; loads read what the references hold.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks, reason = "the comment above holds for all blocks")]
impl Int4Dot<BYTES_VECTORS> for Avx512 {
    #[inline(always)]
    unsafe fn dot<const DOT: bool, const M: usize>(
        codes: Self::Codes,
        x: &[[CacheLine; M]; BYTES_VECTORS],
        m: usize,
    ) -> Self {
        unsafe {
            let mask = _mm512_set1_epi8(15);
            let codes = [_mm512_and_si512(codes, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(codes), mask)];
            let upper = add_512::<DOT>(_mm512_setzero_si512(), codes, [&x[0][m], &x[3][m]]);
            let upper = add_512::<DOT>(_mm512_slli_epi32::<8>(upper), codes, [&x[1][m], &x[4][m]]);
            let lower = add_512::<DOT>(_mm512_load_si512(x[6][m].0.as_ptr().cast()), codes, [&x[2][m], &x[5][m]]);
            Self(_mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32::<8>(upper), lower)))
        }
    }
}

/// Adds to each word the products of its even and its odd codes with bytes. A closure might not be inlined.
///
/// # Safety
/// The CPU has AVX-512 F and BW, and with `DOT` VNNI.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn add_512<const DOT: bool>(sum: __m512i, [even, odd]: [__m512i; 2], x: [&CacheLine; 2]) -> __m512i {
    // SAFETY: the caller's promise, and lines are aligned.
    unsafe {
        let (for_even, for_odd) =
            (_mm512_load_si512(x[0].0.as_ptr().cast()), _mm512_load_si512(x[1].0.as_ptr().cast()));
        if DOT {
            return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum, even, for_even), odd, for_odd);
        }
        // At most 4 * 15 * 128, far below the limit of 16 bits.
        let fours = _mm512_add_epi16(_mm512_maddubs_epi16(even, for_even), _mm512_maddubs_epi16(odd, for_odd));
        _mm512_add_epi32(sum, _mm512_madd_epi16(fours, _mm512_set1_epi16(1)))
    }
}

// SAFETY of every block: the trait's callers have NEON, and loads read what the references hold.
#[cfg(target_arch = "aarch64")]
#[allow(clippy::undocumented_unsafe_blocks, reason = "the comment above holds for all blocks")]
impl Int4Vector for Neon {
    type Codes = [uint32x4_t; 4];

    #[inline(always)]
    unsafe fn load_codes(from: &[u8]) -> Self::Codes {
        let mut padded = [0; 4 * LANES];
        let bytes = from.first_chunk().unwrap_or_else(|| {
            padded[..from.len()].copy_from_slice(from);
            &padded
        });
        let words: *const u32 = bytes.as_ptr().cast(); // NEON loads need no alignment
        unsafe { [0, 4, 8, 12].map(|word| vld1q_u32(words.add(word))) }
    }

    #[inline(always)]
    unsafe fn load_scales(scales: &[[u16; 2]], group: &[u32; LANES]) -> Self {
        // Groups begin at whole registers: one broadcast for each register.
        let scale = |quarter: usize| scales.get(group[4 * quarter] as usize).map_or(0.0, |pair| bf16::to_f32(pair[0]));
        unsafe { Self([0, 1, 2, 3].map(|quarter| vdupq_n_f32(scale(quarter)))) }
    }

    #[inline(always)]
    unsafe fn load_offsets(scales: &[[u16; 2]]) -> Self {
        let pairs: [_; LANES] = zero_padded(&scales[..scales.len().min(LANES)]);
        let [_, offset] = unsafe { Self::load_bf16(pairs.as_flattened().first_chunk().expect("two for each lane")) };
        offset
    }
}

// SAFETY of every block: the callers have NEON, and loads read what the references hold.
#[cfg(target_arch = "aarch64")]
#[allow(clippy::undocumented_unsafe_blocks, reason = "the comment above holds for all blocks")]
impl Int4Dot<WORDS_VECTORS> for Neon {
    #[inline(always)]
    unsafe fn dot<const DOT: bool, const M: usize>(
        codes: Self::Codes,
        x: &[[CacheLine; M]; WORDS_VECTORS],
        m: usize,
    ) -> Self {
        unsafe {
            let mut sums = [vdupq_n_f32(0.0); 4];
            for quarter in 0..4 {
                let load = |vector: usize| vld1q_s32(x[vector][m].0.as_ptr().add(4 * quarter).cast());
                let add = |sum, codes, code| {
                    let codes = vandq_u32(codes, vdupq_n_u32(15));
                    vmlaq_s32(sum, vreinterpretq_s32_u32(codes), load(code))
                };
                let words = codes[quarter];
                let mut sum = add(load(8), words, 0);
                sum = add(sum, vshrq_n_u32::<4>(words), 1);
                sum = add(sum, vshrq_n_u32::<8>(words), 2);
                sum = add(sum, vshrq_n_u32::<12>(words), 3);
                sum = add(sum, vshrq_n_u32::<16>(words), 4);
                sum = add(sum, vshrq_n_u32::<20>(words), 5);
                sum = add(sum, vshrq_n_u32::<24>(words), 6);
                sum = add(sum, vshrq_n_u32::<28>(words), 7);
                sums[quarter] = vcvtq_f32_s32(sum);
            }
            Self(sums)
        }
    }
}

// SAFETY of every block: the callers have NEON and its dot products, and loads read what the references hold.
#[cfg(target_arch = "aarch64")]
#[allow(clippy::undocumented_unsafe_blocks, reason = "the comment above holds for all blocks")]
impl Int4Dot<BYTES_VECTORS> for Neon {
    #[inline(always)]
    unsafe fn dot<const DOT: bool, const M: usize>(
        codes: Self::Codes,
        x: &[[CacheLine; M]; BYTES_VECTORS],
        m: usize,
    ) -> Self {
        unsafe {
            let mut sums = [vdupq_n_f32(0.0); 4];
            for quarter in 0..4 {
                let codes = vreinterpretq_u8_u32(codes[quarter]);
                let codes = [vandq_u8(codes, vdupq_n_u8(15)), vshrq_n_u8::<4>(codes)];
                let line = |vector: usize| &x[vector][m].0.as_chunks().0[quarter];
                let upper = add_dot(vdupq_n_s32(0), codes, [line(0), line(3)]);
                let upper = add_dot(vshlq_n_s32::<8>(upper), codes, [line(1), line(4)]);
                let lower = add_dot(vld1q_s32(line(6).as_ptr().cast()), codes, [line(2), line(5)]);
                sums[quarter] = vcvtq_f32_s32(vaddq_s32(vshlq_n_s32::<8>(upper), lower));
            }
            Self(sums)
        }
    }
}

/// Adds to each word the products of its even and its odd codes with bytes. Rust's own function is not stable.
///
/// # Safety
/// The CPU has NEON's dot products.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
unsafe fn add_dot(mut sum: int32x4_t, codes: [uint8x16_t; 2], x: [&[f32; LANES / 4]; 2]) -> int32x4_t {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {sum:v}.4s, {even:v}.16b, {for_even:v}.16b",
            "sdot {sum:v}.4s, {odd:v}.16b, {for_odd:v}.16b",
            sum = inout(vreg) sum,
            even = in(vreg) codes[0],
            odd = in(vreg) codes[1],
            for_even = in(vreg) vld1q_s32(x[0].as_ptr().cast()),
            for_odd = in(vreg) vld1q_s32(x[1].as_ptr().cast()),
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

//! AVX2 and AVX-512.
//!
//! No closures here: a closure is compiled without the target features of its function, so an intrinsic in it becomes a
//! call, which takes thirty times as long as the instruction.
#![allow(clippy::wildcard_imports, reason = "a dozen intrinsics, each with its family's prefix")]
#![allow(clippy::cast_ptr_alignment, reason = "all loads and stores are the unaligned ones")]

use std::arch::asm;
use std::arch::x86_64::*;

#[cfg(test)]
use super::backend::{AsciiMasks, LeadMasks};
use super::backend::{BLOCK, ByteVector};
use super::splitter::{self, BitmaskGrammar};
use bpe_llama_simd::Tier;

#[inline(always)]
pub(crate) fn has_avx512() -> bool {
    Tier::Avx512.is_used() && is_x86_feature_detected!("avx512vbmi2")
}

#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(crate) fn fill_ends_avx2<G: BitmaskGrammar>(text: &[u8], start: usize, ends: &mut Vec<usize>) {
    splitter::fill_ends::<Avx2, G>(text, start, ends);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(crate) fn fill_ends_avx512<G: BitmaskGrammar>(text: &[u8], start: usize, ends: &mut Vec<usize>) {
    splitter::fill_ends::<Avx512, G>(text, start, ends);
}

/// Two vectors of 32 bytes. Used only within [`fill_ends_avx2`].
#[derive(Clone, Copy)]
struct Avx2(__m256i, __m256i);

impl Avx2 {
    /// The high bit of each byte.
    #[inline(always)]
    fn mask(self) -> u64 {
        // SAFETY: only called where AVX2 is enabled.
        let (low, high) = unsafe { (movemask(self.0), movemask(self.1)) };
        u64::from(low) | u64::from(high) << 32
    }
}

impl ByteVector for Avx2 {
    #[inline(always)]
    fn load(bytes: &[u8; BLOCK]) -> Self {
        let at = bytes.as_ptr().cast::<__m256i>();
        // SAFETY: 64 bytes may be read, at any alignment; only called where AVX2 is enabled.
        unsafe { Self(_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1))) }
    }

    #[inline(always)]
    fn range(self, first: u8, last: u8) -> u64 {
        // SAFETY: only called where AVX2 is enabled.
        unsafe {
            let (first, width) = (_mm256_set1_epi8(first as i8), _mm256_set1_epi8((last - first) as i8));
            let (low, high) = (_mm256_sub_epi8(self.0, first), _mm256_sub_epi8(self.1, first));
            let low_in = _mm256_cmpeq_epi8(_mm256_min_epu8(low, width), low);
            let high_in = _mm256_cmpeq_epi8(_mm256_min_epu8(high, width), high);
            Self(low_in, high_in).mask()
        }
    }

    #[inline(always)]
    fn equal(self, byte: u8) -> u64 {
        // SAFETY: only called where AVX2 is enabled.
        unsafe {
            let wanted = _mm256_set1_epi8(byte as i8);
            Self(_mm256_cmpeq_epi8(self.0, wanted), _mm256_cmpeq_epi8(self.1, wanted)).mask()
        }
    }

    #[inline(always)]
    fn non_ascii(self) -> u64 {
        self.mask()
    }
}

/// `_mm256_movemask_epi8`.
///
/// As inline assembly: LLVM combines the intrinsic's masks as vectors of bits and extracts them byte by byte, which doubles
/// the time of a block.
#[inline]
#[target_feature(enable = "avx2")]
fn movemask(vector: __m256i) -> u32 {
    let mask: u32;
    // SAFETY: the instruction reads one register and writes another.
    unsafe {
        asm!(
            "vpmovmskb {mask:e}, {vector}",
            mask = lateout(reg) mask,
            vector = in(ymm_reg) vector,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    mask
}

/// One vector of 64 bytes. Used only within [`fill_ends_avx512`].
#[derive(Clone, Copy)]
struct Avx512(__m512i);

impl ByteVector for Avx512 {
    #[inline(always)]
    fn load(bytes: &[u8; BLOCK]) -> Self {
        // SAFETY: 64 bytes may be read, at any alignment; only called where AVX-512 is enabled.
        Self(unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) })
    }

    #[inline(always)]
    fn range(self, first: u8, last: u8) -> u64 {
        // SAFETY: only called where AVX-512BW is enabled.
        unsafe {
            let offset = _mm512_sub_epi8(self.0, _mm512_set1_epi8(first as i8));
            _mm512_cmple_epu8_mask(offset, _mm512_set1_epi8((last - first) as i8))
        }
    }

    #[inline(always)]
    fn equal(self, byte: u8) -> u64 {
        // SAFETY: only called where AVX-512BW is enabled.
        unsafe { _mm512_cmpeq_epi8_mask(self.0, _mm512_set1_epi8(byte as i8)) }
    }

    #[inline(always)]
    fn non_ascii(self) -> u64 {
        // SAFETY: only called where AVX-512BW is enabled.
        unsafe { _mm512_movepi8_mask(self.0) }
    }

    #[inline(always)]
    fn push_all(bits: u64, first: usize, ends: &mut Vec<usize>) {
        debug_assert!(ends.capacity() - ends.len() >= BLOCK);
        let count = bits.count_ones() as usize;
        let mut positions = [0_u8; BLOCK];
        // SAFETY: only called where the features are enabled. `positions` has 64 bytes. At least 64 ends fit after the
        // length; eight are written at a time, and the first `count` of them are initialised.
        unsafe {
            let order = _mm512_loadu_si512(ORDER.as_ptr().cast());
            _mm512_storeu_si512(positions.as_mut_ptr().cast(), _mm512_maskz_compress_epi8(bits, order));
            let out = ends.as_mut_ptr().add(ends.len());
            let base = _mm512_set1_epi64(first as i64);
            // At least 24 are written: a branch on 8 or 24 would be mispredicted, which costs more than the stores.
            for eight in (0..count.max(USUAL)).step_by(8) {
                let offsets = _mm512_cvtepu8_epi64(_mm_loadl_epi64(positions.as_ptr().add(eight).cast()));
                _mm512_storeu_si512(out.add(eight).cast(), _mm512_add_epi64(offsets, base));
            }
            ends.set_len(ends.len() + count);
        }
    }
}

/// The masks of every backend that this CPU can run.
#[cfg(test)]
pub(crate) fn masks(bytes: &[u8; BLOCK]) -> Vec<(AsciiMasks, LeadMasks)> {
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn avx2(bytes: &[u8; BLOCK]) -> (AsciiMasks, LeadMasks) {
        (Avx2::ascii(bytes), Avx2::leads(bytes))
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn avx512(bytes: &[u8; BLOCK]) -> (AsciiMasks, LeadMasks) {
        (Avx512::ascii(bytes), Avx512::leads(bytes))
    }
    let mut masks = Vec::new();
    if Tier::Avx2.is_used() {
        // SAFETY: the CPU has what the function is compiled for.
        masks.push(unsafe { avx2(bytes) });
    }
    if has_avx512() {
        // SAFETY: as above.
        masks.push(unsafe { avx512(bytes) });
    }
    masks
}

/// Most blocks have at most this many ends.
const USUAL: usize = 24;

/// 0, 1, 2 … 63
static ORDER: [u8; BLOCK] = {
    let mut order = [0; BLOCK];
    let mut index = 0;
    while index < BLOCK {
        order[index] = index as u8;
        index += 1;
    }
    order
};

//! Half a vector of 16 float32: a kernel that takes one half of all lanes and then the other has registers for twice as many
//! accumulators.

#[cfg(target_arch = "aarch64")]
use bpe_llama_simd::f32x16::Neon;
#[cfg(target_arch = "x86_64")]
use bpe_llama_simd::f32x16::{Avx2, Avx512};
use bpe_llama_simd::f32x16::{CacheLine, F32x16, LANES, Portable};
#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Lanes 0 to 7 of a vector, or lanes 8 to 15.
///
/// # Safety
/// Each function needs the CPU features of its backend. The array needs none.
pub(crate) trait HalfVector: Copy {
    /// Returns 8 zeros. `VXORPS`.
    unsafe fn zero() -> Self;

    /// Returns 8 float32 from memory. `VMOVUPS`.
    unsafe fn load(from: &[f32; LANES / 2]) -> Self;

    /// Writes the lanes to memory. `VMOVUPS`.
    unsafe fn store(self, to: &mut [f32; LANES / 2]);

    /// Returns `self * by + plus`, rounded once. `VFMADD`.
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self;
}

/// A vector of float32 that can be taken by halves.
pub(crate) trait Halved: F32x16 {
    /// Half of the lanes.
    type Half: HalfVector;
}

impl Halved for Portable {
    type Half = [f32; LANES / 2];
}

#[cfg(target_arch = "x86_64")]
impl Halved for Avx2 {
    type Half = __m256;
}

#[cfg(target_arch = "x86_64")]
impl Halved for Avx512 {
    type Half = __m256;
}

#[cfg(target_arch = "aarch64")]
impl Halved for Neon {
    type Half = [float32x4_t; 2];
}

/// Returns one half of a vector in memory.
#[inline(always)]
pub(super) fn half_of(line: &CacheLine, half: usize) -> &[f32; LANES / 2] {
    &line.0.as_chunks().0[half]
}

/// As [`half_of`], to write to.
#[inline(always)]
pub(super) fn half_of_mut(line: &mut CacheLine, half: usize) -> &mut [f32; LANES / 2] {
    &mut line.0.as_chunks_mut().0[half]
}

/// The portable backend.
impl HalfVector for [f32; LANES / 2] {
    #[inline(always)]
    unsafe fn zero() -> Self {
        [0.0; LANES / 2]
    }

    #[inline(always)]
    unsafe fn load(from: &[f32; LANES / 2]) -> Self {
        *from
    }

    #[inline(always)]
    unsafe fn store(self, to: &mut [f32; LANES / 2]) {
        *to = self;
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self {
        std::array::from_fn(|lane| self[lane].mul_add(by[lane], plus[lane]))
    }
}

/// The AVX2 backend.
// SAFETY of every block: the trait's callers have AVX2 and FMA, and loads read what the references hold.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks, reason = "the comment above holds for all blocks")]
impl HalfVector for __m256 {
    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: &[f32; LANES / 2]) -> Self {
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn store(self, to: &mut [f32; LANES / 2]) {
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), self) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self {
        unsafe { _mm256_fmadd_ps(self, by, plus) }
    }
}

/// The NEON backend.
// SAFETY of every block: the trait's callers have NEON, and loads read what the references hold.
#[cfg(target_arch = "aarch64")]
#[allow(clippy::undocumented_unsafe_blocks, reason = "the comment above holds for all blocks")]
impl HalfVector for [float32x4_t; 2] {
    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { [vdupq_n_f32(0.0); 2] }
    }

    #[inline(always)]
    unsafe fn load(from: &[f32; LANES / 2]) -> Self {
        unsafe { [vld1q_f32(from.as_ptr()), vld1q_f32(from.as_ptr().add(4))] }
    }

    #[inline(always)]
    unsafe fn store(self, to: &mut [f32; LANES / 2]) {
        unsafe {
            vst1q_f32(to.as_mut_ptr(), self[0]);
            vst1q_f32(to.as_mut_ptr().add(4), self[1]);
        }
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self {
        unsafe { [vfmaq_f32(plus[0], self[0], by[0]), vfmaq_f32(plus[1], self[1], by[1])] }
    }
}

//! The NEON backend.

use super::vector::{F32x16, LANES};
#[allow(clippy::wildcard_imports, reason = "the intrinsics are the language of this file")]
use std::arch::aarch64::*;

/// Four 128-bit registers, with lanes 0 to 3, 4 to 7, 8 to 11 and 12 to 15. Needs NEON.
#[derive(Debug, Clone, Copy)]
pub struct Neon(pub [float32x4_t; 4]);

// SAFETY of every block: the trait's callers have NEON, and loads read what the references hold.
#[allow(clippy::undocumented_unsafe_blocks, reason = "the comment above holds for all blocks")]
impl F32x16 for Neon {
    const REGISTERS: usize = 8;

    #[inline(always)]
    unsafe fn load(from: &[f32; LANES]) -> Self {
        unsafe {
            let from = from.as_ptr();
            Self([vld1q_f32(from), vld1q_f32(from.add(4)), vld1q_f32(from.add(8)), vld1q_f32(from.add(12))])
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: &mut [f32; LANES]) {
        for (quarter, values) in self.0.into_iter().enumerate() {
            unsafe { vst1q_f32(to.as_mut_ptr().add(4 * quarter), values) };
        }
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self {
        let mut sums = plus.0;
        for (quarter, sum) in sums.iter_mut().enumerate() {
            *sum = unsafe { vfmaq_f32(*sum, self.0[quarter], by.0[quarter]) };
        }
        Self(sums)
    }

    #[inline(always)]
    unsafe fn load_bf16(from: &[u16; 2 * LANES]) -> [Self; 2] {
        unsafe {
            let mut pairs = [[vdupq_n_f32(0.0); 4]; 2];
            let [evens, odds] = &mut pairs;
            for (quarter, (even, odd)) in evens.iter_mut().zip(odds).enumerate() {
                let words = vreinterpretq_u32_u16(vld1q_u16(from.as_ptr().add(8 * quarter)));
                *even = vreinterpretq_f32_u32(vshlq_n_u32::<16>(words));
                *odd = vreinterpretq_f32_u32(vandq_u32(words, vdupq_n_u32(0xffff_0000)));
            }
            pairs.map(Self)
        }
    }

    #[inline(always)]
    unsafe fn load_i8(from: &[i8; LANES]) -> Self {
        unsafe {
            let bytes = vld1q_s8(from.as_ptr());
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            Self([
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
                vcvtq_f32_s32(vmovl_high_s16(low)),
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
                vcvtq_f32_s32(vmovl_high_s16(high)),
            ])
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe {
            let [a, b, c, d] = self.0;
            let sum_4 = vaddq_f32(vaddq_f32(a, c), vaddq_f32(b, d));
            let sum_2 = vadd_f32(vget_low_f32(sum_4), vget_high_f32(sum_4));
            vpadds_f32(sum_2)
        }
    }
}

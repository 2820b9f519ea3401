//! The portable backend.

use super::vector::{F32x16, LANES};
use crate::bf16;

/// An array of 16 float32 whose operations the compiler vectorizes. It runs on every CPU, and is the oracle of the others.
#[derive(Debug, Clone, Copy)]
pub struct Portable(pub [f32; LANES]);

impl F32x16 for Portable {
    const REGISTERS: usize = 8;

    #[inline(always)]
    unsafe fn load(from: &[f32; LANES]) -> Self {
        Self(*from)
    }

    #[inline(always)]
    unsafe fn store(self, to: &mut [f32; LANES]) {
        *to = self.0;
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane].mul_add(by.0[lane], plus.0[lane])))
    }

    #[inline(always)]
    unsafe fn load_bf16(from: &[u16; 2 * LANES]) -> [Self; 2] {
        let every_other = |odd: usize| Self(std::array::from_fn(|lane| bf16::to_f32(from[2 * lane + odd])));
        [every_other(0), every_other(1)]
    }

    #[inline(always)]
    unsafe fn load_i8(from: &[i8; LANES]) -> Self {
        Self(from.map(f32::from))
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut sums = self.0;
        let mut width = LANES / 2;
        while width > 0 {
            for lane in 0..width {
                sums[lane] += sums[lane + width];
            }
            width /= 2;
        }
        sums[0]
    }
}

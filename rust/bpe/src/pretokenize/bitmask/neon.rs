//! NEON, on 64-bit ARM.
#![allow(clippy::wildcard_imports, reason = "a dozen intrinsics, each with its family's prefix")]

use std::arch::aarch64::*;

#[cfg(test)]
use super::backend::{AsciiMasks, LeadMasks};
use super::backend::{BLOCK, ByteVector};
use super::splitter::{self, BitmaskGrammar};

#[target_feature(enable = "neon")]
pub(crate) fn fill_ends<G: BitmaskGrammar>(text: &[u8], start: usize, ends: &mut Vec<usize>) {
    splitter::fill_ends::<Neon, G>(text, start, ends);
}

/// Four vectors of 16 bytes. Used only within [`fill_ends`].
#[derive(Clone, Copy)]
struct Neon(uint8x16_t, uint8x16_t, uint8x16_t, uint8x16_t);

impl Neon {
    /// Collects one bit of each byte, which is 0 or 0xff, by pairwise additions (`ADDP`).
    #[inline(always)]
    fn mask(self) -> u64 {
        static BITS: [u8; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128];
        // SAFETY: only called where NEON is enabled; `BITS` holds the 16 bytes read.
        unsafe {
            let bits = vld1q_u8(BITS.as_ptr());
            let low = vpaddq_u8(vandq_u8(self.0, bits), vandq_u8(self.1, bits));
            let high = vpaddq_u8(vandq_u8(self.2, bits), vandq_u8(self.3, bits));
            let sums = vpaddq_u8(low, high);
            vgetq_lane_u64::<0>(vreinterpretq_u64_u8(vpaddq_u8(sums, sums)))
        }
    }
}

impl ByteVector for Neon {
    #[inline(always)]
    fn load(bytes: &[u8; BLOCK]) -> Self {
        let at = bytes.as_ptr();
        // SAFETY: each load reads 16 of the 64 bytes; only called where NEON is enabled.
        unsafe { Self(vld1q_u8(at), vld1q_u8(at.add(16)), vld1q_u8(at.add(32)), vld1q_u8(at.add(48))) }
    }

    #[inline(always)]
    fn range(self, first: u8, last: u8) -> u64 {
        // SAFETY: only called where NEON is enabled.
        unsafe {
            let (first, width) = (vdupq_n_u8(first), vdupq_n_u8(last - first));
            Self(
                vcleq_u8(vsubq_u8(self.0, first), width),
                vcleq_u8(vsubq_u8(self.1, first), width),
                vcleq_u8(vsubq_u8(self.2, first), width),
                vcleq_u8(vsubq_u8(self.3, first), width),
            )
            .mask()
        }
    }
}

/// The masks of every backend that this CPU can run.
#[cfg(test)]
pub(crate) fn masks(bytes: &[u8; BLOCK]) -> Vec<(AsciiMasks, LeadMasks)> {
    #[target_feature(enable = "neon")]
    fn neon(bytes: &[u8; BLOCK]) -> (AsciiMasks, LeadMasks) {
        (Neon::ascii(bytes), Neon::leads(bytes))
    }
    // SAFETY: every 64-bit ARM has NEON.
    vec![unsafe { neon(bytes) }]
}

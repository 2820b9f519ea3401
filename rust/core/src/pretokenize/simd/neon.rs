//! NEON, on 64-bit ARM.
#![allow(clippy::wildcard_imports, reason = "a dozen intrinsics, each with its family's prefix")]

use std::arch::aarch64::*;

use super::super::block::{self, Ascii, BLOCK, BlockGrammar, Wide};
use super::Tier;

/// Four vectors of 16 bytes. To be used only within [`fill_ends`].
struct Neon;

#[target_feature(enable = "neon")]
pub(super) fn fill_ends<G: BlockGrammar>(text: &[u8], start: usize, ends: &mut Vec<usize>) {
    block::fill_ends::<Neon, G>(text, start, ends);
}

#[derive(Clone, Copy)]
struct Vectors([uint8x16_t; 4]);

impl Vectors {
    #[inline(always)]
    fn load(bytes: &[u8; BLOCK]) -> Self {
        // SAFETY: each load reads 16 of the 64 bytes; only called where NEON is enabled.
        Self([0, 16, 32, 48].map(|offset| unsafe { vld1q_u8(bytes.as_ptr().add(offset)) }))
    }

    /// One bit for each byte, from vectors whose bytes are 0 or 0xff: pairwise sums of one bit a lane.
    #[inline(always)]
    fn mask(self, test: impl Fn(uint8x16_t) -> uint8x16_t) -> u64 {
        static BITS: [u8; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128];
        // SAFETY: only called where NEON is enabled; `BITS` holds the 16 bytes read.
        unsafe {
            let bits = vld1q_u8(BITS.as_ptr());
            let [a, b, c, d] = self.0.map(|vector| vandq_u8(test(vector), bits));
            let sums = vpaddq_u8(vpaddq_u8(a, b), vpaddq_u8(c, d));
            vgetq_lane_u64::<0>(vreinterpretq_u64_u8(vpaddq_u8(sums, sums)))
        }
    }

    #[inline(always)]
    fn equal(self, byte: u8) -> u64 {
        // SAFETY: only called where NEON is enabled.
        self.mask(|vector| unsafe { vceqq_u8(vector, vdupq_n_u8(byte)) })
    }

    #[inline(always)]
    fn range(self, first: u8, last: u8) -> u64 {
        // SAFETY: only called where NEON is enabled.
        self.mask(|vector| unsafe { vcleq_u8(vsubq_u8(vector, vdupq_n_u8(first)), vdupq_n_u8(last - first)) })
    }
}

impl Tier for Neon {
    #[inline(always)]
    fn ascii(bytes: &[u8; BLOCK]) -> Ascii {
        let vectors = Vectors::load(bytes);
        let blank = vectors.equal(b' ');
        Ascii {
            upper: vectors.range(b'A', b'Z'),
            lower: vectors.range(b'a', b'z'),
            number: vectors.range(b'0', b'9'),
            graph: vectors.range(b'!', b'~'),
            space: vectors.range(b'\t', b'\r') | blank,
            newline: vectors.equal(b'\n') | vectors.equal(b'\r'),
            blank,
            apostrophe: vectors.equal(b'\''),
            slash: vectors.equal(b'/'),
            wide: vectors.range(0x80, 0xff),
        }
    }

    #[inline(always)]
    fn wide(bytes: &[u8; BLOCK]) -> Wide {
        let vectors = Vectors::load(bytes);
        let next = |first: u8, last: u8| vectors.range(first, last) >> 1;
        let third = |first: u8, last: u8| vectors.range(first, last) >> 2;
        let cyrillic = vectors.equal(0xd0);
        let kana = (next(0x81, 0x81) & !third(0x80, 0x80))
            | (next(0x82, 0x82) & !third(0x97, 0x9c) & !third(0xa0, 0xa0))
            | (next(0x83, 0x83) & !third(0xbb, 0xbb));
        Wide {
            lead: vectors.range(0xc0, 0xff),
            han_or_kana: vectors.range(0xe5, 0xe8)
                | (vectors.equal(0xe4) & next(0xb8, 0xbf))
                | (vectors.equal(0xe9) & next(0x80, 0xbd))
                | (vectors.equal(0xe3) & kana),
            hangul: vectors.range(0xeb, 0xec)
                | (vectors.equal(0xea) & next(0xb0, 0xbf))
                | (vectors.equal(0xed) & next(0x80, 0x9d)),
            upper: cyrillic & next(0x80, 0xaf),
            lower: (cyrillic & next(0xb0, 0xbf)) | (vectors.equal(0xd1) & next(0x80, 0x9f)),
        }
    }
}

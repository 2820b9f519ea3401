//! Eight bytes at a time in a 64-bit register, for every CPU.

use super::backend::{AsciiMasks, BLOCK, ByteVector, LeadMasks};

/// Eight words of eight bytes.
#[derive(Clone, Copy)]
pub(crate) struct Portable([u64; BLOCK / 8]);

const HIGH: u64 = 0x8080_8080_8080_8080;

/// Eight bytes, the first in the lowest bits.
#[derive(Clone, Copy)]
struct Word(u64);

impl Word {
    /// Sets the high bit of each ASCII byte in `first..=last`.
    #[inline(always)]
    fn ascii_range(self, first: u8, last: u8) -> u64 {
        let low = self.0 & !HIGH;
        // Each byte's sum is below 0x100, so no carry crosses bytes.
        let at_least_first = low + splat(0x80 - first);
        let above_last = low + splat(0x7f - last);
        at_least_first & !above_last & !self.0 & HIGH
    }

    /// Sets the high bit of each byte in `first..=last`, both at least 0x80.
    #[inline(always)]
    fn non_ascii_range(self, first: u8, last: u8) -> u64 {
        Word(self.0 ^ HIGH).ascii_range(first ^ 0x80, last ^ 0x80)
    }
}

const fn splat(byte: u8) -> u64 {
    byte as u64 * 0x0101_0101_0101_0101
}

/// Collects the high bit of each byte in eight bits.
#[inline(always)]
fn gather(high_bits: u64) -> u64 {
    (high_bits >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56
}

impl Portable {
    /// Calls `classify` on each word and collects its masks.
    #[inline(always)]
    fn masks<const N: usize>(self, classify: impl Fn(Word) -> [u64; N]) -> [u64; N] {
        let mut masks = [0; N];
        for (index, word) in self.0.into_iter().enumerate() {
            for (mask, bits) in masks.iter_mut().zip(classify(Word(word))) {
                *mask |= gather(bits) << (8 * index);
            }
        }
        masks
    }
}

impl ByteVector for Portable {
    #[inline(always)]
    fn load(bytes: &[u8; BLOCK]) -> Self {
        let words = bytes.as_chunks::<8>().0;
        Self(std::array::from_fn(|index| u64::from_le_bytes(words[index])))
    }

    #[inline(always)]
    fn range(self, first: u8, last: u8) -> u64 {
        let [mask] = self.masks(|word| {
            [if first < 0x80 { word.ascii_range(first, last) } else { word.non_ascii_range(first, last) }]
        });
        mask
    }

    /// Computes all masks of a word before the next word.
    #[inline(always)]
    fn ascii(bytes: &[u8; BLOCK]) -> AsciiMasks {
        let [upper, lower, number, graph, whitespace, newline, space, apostrophe, slash, non_ascii] = Self::load(bytes)
            .masks(|word| {
                let space = word.ascii_range(b' ', b' ');
                [
                    word.ascii_range(b'A', b'Z'),
                    word.ascii_range(b'a', b'z'),
                    word.ascii_range(b'0', b'9'),
                    word.ascii_range(b'!', b'~'),
                    word.ascii_range(b'\t', b'\r') | space,
                    word.ascii_range(b'\n', b'\n') | word.ascii_range(b'\r', b'\r'),
                    space,
                    word.ascii_range(b'\'', b'\''),
                    word.ascii_range(b'/', b'/'),
                    word.0 & HIGH,
                ]
            });
        AsciiMasks { upper, lower, number, graph, whitespace, newline, space, apostrophe, slash, non_ascii }
    }

    /// Classifies no script: here a table look-up costs less than the masks.
    #[inline(always)]
    fn leads(bytes: &[u8; BLOCK]) -> LeadMasks {
        LeadMasks { lead: Self::load(bytes).range(0xc0, 0xff), ..LeadMasks::default() }
    }
}

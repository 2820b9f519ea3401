//! Eight bytes at a time in a general register: what runs where no vector unit is known.

use super::super::block::{Ascii, BLOCK, Wide};
use super::Backend;

pub(super) struct Portable;

const HIGH: u64 = 0x8080_8080_8080_8080;

/// Eight bytes, the first in the lowest bits.
#[derive(Clone, Copy)]
struct Word(u64);

impl Word {
    /// The high bit of each ASCII byte in `first..=last`.
    #[inline(always)]
    fn ascii_range(self, first: u8, last: u8) -> u64 {
        let low = self.0 & !HIGH;
        // Sums below 0x100 in each byte, so no carry crosses bytes.
        let at_least_first = low + splat(0x80 - first);
        let above_last = low + splat(0x7f - last);
        at_least_first & !above_last & !self.0 & HIGH
    }

    /// The high bit of each byte in `first..=last`, both at least 0x80.
    #[inline(always)]
    fn wide_range(self, first: u8, last: u8) -> u64 {
        Word(self.0 ^ HIGH).ascii_range(first ^ 0x80, last ^ 0x80)
    }
}

const fn splat(byte: u8) -> u64 {
    byte as u64 * 0x0101_0101_0101_0101
}

/// The high bit of each byte, as eight bits.
#[inline(always)]
fn gather(high_bits: u64) -> u64 {
    (high_bits >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56
}

/// Calls `classify` on the eight words of a block and collects each of its masks.
#[inline(always)]
fn masks<const N: usize>(bytes: &[u8; BLOCK], classify: impl Fn(Word) -> [u64; N]) -> [u64; N] {
    let mut masks = [0; N];
    for (index, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
        for (mask, bits) in masks.iter_mut().zip(classify(Word(u64::from_le_bytes(*word)))) {
            *mask |= gather(bits) << (8 * index);
        }
    }
    masks
}

impl Backend for Portable {
    #[inline(always)]
    fn ascii(bytes: &[u8; BLOCK]) -> Ascii {
        let [upper, lower, number, graph, space, newline, blank, apostrophe, slash, wide] = masks(bytes, |word| {
            let blank = word.ascii_range(b' ', b' ');
            [
                word.ascii_range(b'A', b'Z'),
                word.ascii_range(b'a', b'z'),
                word.ascii_range(b'0', b'9'),
                word.ascii_range(b'!', b'~'),
                word.ascii_range(b'\t', b'\r') | blank,
                word.ascii_range(b'\n', b'\n') | word.ascii_range(b'\r', b'\r'),
                blank,
                word.ascii_range(b'\'', b'\''),
                word.ascii_range(b'/', b'/'),
                word.0 & HIGH,
            ]
        });
        Ascii { upper, lower, number, graph, space, newline, blank, apostrophe, slash, wide }
    }

    #[inline(always)]
    fn wide_range(bytes: &[u8; BLOCK], first: u8, last: u8) -> u64 {
        let [mask] = masks(bytes, |word| [word.wide_range(first, last)]);
        mask
    }

    /// The leads alone: here looking up a character costs less than the other masks.
    #[inline(always)]
    fn wide(bytes: &[u8; BLOCK]) -> Wide {
        Wide { lead: Self::wide_range(bytes, 0xc0, 0xff), ..Wide::default() }
    }
}

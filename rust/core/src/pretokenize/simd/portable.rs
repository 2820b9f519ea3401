//! Eight bytes at a time in a general register: what runs where no vector unit is known.

use super::super::block::{Ascii, BLOCK, Wide};
use super::Tier;

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

impl Tier for Portable {
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
    fn wide(bytes: &[u8; BLOCK]) -> Wide {
        let [lead, e3, e4, e5_to_e8, e9, ea, eb_to_ec, ed, d0, d1] = masks(bytes, |word| {
            [
                word.wide_range(0xc0, 0xff),
                word.wide_range(0xe3, 0xe3),
                word.wide_range(0xe4, 0xe4),
                word.wide_range(0xe5, 0xe8),
                word.wide_range(0xe9, 0xe9),
                word.wide_range(0xea, 0xea),
                word.wide_range(0xeb, 0xec),
                word.wide_range(0xed, 0xed),
                word.wide_range(0xd0, 0xd0),
                word.wide_range(0xd1, 0xd1),
            ]
        });
        let next = |first: u8, last: u8| masks(bytes, |word| [word.wide_range(first, last)])[0] >> 1;
        let third = |first: u8, last: u8| next(first, last) >> 1;
        let kana = if e3 == 0 {
            0
        } else {
            (next(0x81, 0x81) & !third(0x80, 0x80))
                | (next(0x82, 0x82) & !third(0x97, 0x9c) & !third(0xa0, 0xa0))
                | (next(0x83, 0x83) & !third(0xbb, 0xbb))
        };
        Wide {
            lead,
            han_or_kana: e5_to_e8 | (e4 & next(0xb8, 0xbf)) | (e9 & next(0x80, 0xbd)) | (e3 & kana),
            hangul: eb_to_ec | (ea & next(0xb0, 0xbf)) | (ed & next(0x80, 0x9d)),
            upper: d0 & next(0x80, 0xaf),
            lower: (d0 & next(0xb0, 0xbf)) | (d1 & next(0x80, 0x9f)),
        }
    }
}

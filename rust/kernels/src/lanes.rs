//! Sixteen float32 lanes, and how each format of weights becomes lanes: the one vocabulary of the kernels.

use super::formats::filled_up;

/// How many numbers the kernels work on at once.
pub(crate) const LANES: usize = 16;

/// Sixteen float32 in memory, where a line of the cache begins: one that lies across two takes twice as long to read.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Sixteen(pub(crate) [f32; LANES]);

/// Sixteen float32 in registers.
///
/// Every implementation gives the same bits: conversions are exact, and sums and products are rounded as IEEE 754 says,
/// multiply-adds once.
///
/// # Safety
/// Each function needs the instructions of its type's backend; [`Portable`] needs none.
pub(crate) trait Lanes: Copy {
    /// Sixteen 32-bit words, each of eight four-bit codes.
    type Codes: Copy;

    /// How many of these the registers hold.
    const REGISTERS: usize;

    unsafe fn load(from: &[f32; LANES]) -> Self;

    unsafe fn store(self, to: &mut [f32; LANES]);

    /// Returns `self * by + plus`.
    unsafe fn multiply_add(self, by: Self, plus: Self) -> Self;

    /// Returns the bfloat16 at even places, and at odd ones.
    unsafe fn bf16(from: &[u16; 2 * LANES]) -> (Self, Self);

    unsafe fn int8(from: &[i8; LANES]) -> Self;

    /// Returns as many codes as there are, at most 128, and zeros.
    unsafe fn codes(from: &[u8]) -> Self::Codes;

    /// Returns each word's lowest code less 8, and the words without it.
    unsafe fn next_code(codes: Self::Codes) -> (Self, Self::Codes);

    /// Returns in lane `l` the bfloat16 pair number `index[l]`, below 4, or zeros if there is none.
    unsafe fn spread(pairs: &[[u16; 2]], index: &[u32; LANES]) -> (Self, Self);

    /// Returns the sum of the lanes: those eight apart are added first, then those four apart, two, one.
    unsafe fn total(self) -> f32;

    /// Returns the total of each, the same bits. Not by `map`: an array that a closure meets is kept in memory.
    #[inline(always)]
    unsafe fn four_totals([a, b, c, d]: [Self; 4]) -> [f32; 4] {
        // SAFETY: the caller's promise.
        unsafe { [a.total(), b.total(), c.total(), d.total()] }
    }
}

/// Lanes in whatever the compiler makes of an array: the twin that every CPU runs, in NEON on arm64.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable([f32; LANES]);

pub(crate) fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Returns the first four pairs, and zeros for those that are not there.
#[inline(always)]
pub(crate) fn first_four(pairs: &[[u16; 2]]) -> [[u16; 2]; 4] {
    match pairs.first_chunk() {
        Some(four) => *four,
        None => filled_up(pairs),
    }
}

impl Lanes for Portable {
    type Codes = [u32; LANES];

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
    unsafe fn multiply_add(self, by: Self, plus: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane].mul_add(by.0[lane], plus.0[lane])))
    }

    #[inline(always)]
    unsafe fn bf16(from: &[u16; 2 * LANES]) -> (Self, Self) {
        let every_other = |odd: usize| Self(std::array::from_fn(|lane| from_bf16(from[2 * lane + odd])));
        (every_other(0), every_other(1))
    }

    #[inline(always)]
    unsafe fn int8(from: &[i8; LANES]) -> Self {
        Self(from.map(f32::from))
    }

    #[inline(always)]
    unsafe fn codes(from: &[u8]) -> Self::Codes {
        let mut codes = [0; LANES];
        for (code, bytes) in codes.iter_mut().zip(from.as_chunks::<4>().0) {
            *code = u32::from_le_bytes(*bytes);
        }
        codes
    }

    #[inline(always)]
    unsafe fn next_code(codes: Self::Codes) -> (Self, Self::Codes) {
        (Self(codes.map(|word| (word & 15) as f32 - 8.0)), codes.map(|word| word >> 4))
    }

    #[inline(always)]
    unsafe fn spread(pairs: &[[u16; 2]], index: &[u32; LANES]) -> (Self, Self) {
        let four = first_four(pairs);
        let spread = |which: usize| Self(index.map(|place| from_bf16(four[place as usize & 3][which])));
        (spread(0), spread(1))
    }

    #[inline(always)]
    unsafe fn total(self) -> f32 {
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

//! The trait that every backend implements, and its operand in memory.

/// SIMD lanes of a vector.
pub const LANES: usize = 16;

/// 16 float32 that begin at a cache line: a load across two lines takes twice as long.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct CacheLine(pub [f32; LANES]);

impl CacheLine {
    /// 16 zeros.
    pub const ZERO: Self = Self([0.0; LANES]);
}

/// Returns the elements of `tail`, at most `N`, followed by zeros.
pub fn zero_padded<T: Copy + Default, const N: usize>(tail: &[T]) -> [T; N] {
    let mut padded = [T::default(); N];
    padded[..tail.len()].copy_from_slice(tail);
    padded
}

/// A vector of 16 float32 in registers.
///
/// All backends return the same bits: conversions are exact, and sums and products round as IEEE 754 says, multiply-adds
/// once.
///
/// # Safety
/// Each function needs the CPU features of its backend. [`Portable`](super::Portable) needs none.
#[allow(clippy::missing_safety_doc, reason = "the trait states the one requirement of all functions")]
pub trait F32x16: Copy {
    /// How many vectors the registers of the CPU hold.
    const REGISTERS: usize;

    /// Returns 16 float32 from memory. `VMOVUPS`.
    unsafe fn load(from: &[f32; LANES]) -> Self;

    /// Returns `x` in every lane. `VBROADCASTSS`.
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::load(&[x; LANES]) }
    }

    /// Writes the lanes to memory. `VMOVUPS`.
    unsafe fn store(self, to: &mut [f32; LANES]);

    /// Returns `self * by + plus`, rounded once. `VFMADD`.
    #[must_use]
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self;

    /// Returns the 16 bfloat16 at even positions and the 16 at odd positions. A shift and a mask.
    unsafe fn load_bf16(from: &[u16; 2 * LANES]) -> [Self; 2];

    /// Returns 16 signed bytes as float32. `VPMOVSXBD`, `VCVTDQ2PS`.
    unsafe fn load_i8(from: &[i8; LANES]) -> Self;

    /// Returns the sum of all lanes. Lanes 8 apart are added first, then lanes 4, 2 and 1 apart.
    unsafe fn sum(self) -> f32;

    /// Returns [`sum`](Self::sum) of each vector.
    ///
    /// The default lists the vectors: passing an array to `map` would move it from registers to memory.
    #[inline(always)]
    unsafe fn sum_each([a, b, c, d]: [Self; 4]) -> [f32; 4] {
        // SAFETY: the caller's promise.
        unsafe { [a.sum(), b.sum(), c.sum(), d.sum()] }
    }

    /// Writes a tile transposed: lane `l` of the 16 lines to `to[l * stride]`.
    #[inline(always)]
    unsafe fn transpose(tile: &[CacheLine; LANES], to: &mut [CacheLine], stride: usize) {
        for (line, from) in tile.iter().enumerate() {
            for (lane, element) in from.0.into_iter().enumerate() {
                to[lane * stride].0[line] = element;
            }
        }
    }
}

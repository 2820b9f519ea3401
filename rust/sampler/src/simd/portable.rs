//! The portable backend: arrays, of which the compiler vectorizes most operations. The oracle of the other backends.

use super::vector::Vector;
use bpe_llama_simd::f32x16::{LANES, Portable};
use std::array::from_fn;

/// Returns all bits set for true, as vector comparisons do.
#[inline(always)]
fn flag(set: bool) -> u32 {
    if set { u32::MAX } else { 0 }
}

impl Vector for Portable {
    type Mask = [u32; LANES];
    type Counts = [u32; LANES];
    type Sums = [f64; LANES];

    #[inline(always)]
    unsafe fn load_bits(from: &[u32; LANES]) -> Self {
        Self(from.map(f32::from_bits))
    }

    #[inline(always)]
    unsafe fn indices_from(start: u32) -> Self {
        Self(from_fn(|lane| f32::from_bits(start + lane as u32)))
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Self(from_fn(|lane| self.0[lane] - other.0[lane]))
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        Self(from_fn(|lane| if self.0[lane] > other.0[lane] { self.0[lane] } else { other.0[lane] }))
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        Self(from_fn(|lane| if self.0[lane] < other.0[lane] { self.0[lane] } else { other.0[lane] }))
    }

    #[inline(always)]
    unsafe fn at_least(self, limit: Self) -> Self::Mask {
        from_fn(|lane| flag(self.0[lane] >= limit.0[lane]))
    }

    #[inline(always)]
    unsafe fn below(self, limit: Self) -> Self::Mask {
        from_fn(|lane| flag(self.0[lane] < limit.0[lane]))
    }

    #[inline(always)]
    unsafe fn no_flags() -> Self::Mask {
        [0; LANES]
    }

    #[inline(always)]
    unsafe fn either(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        from_fn(|lane| a[lane] | b[lane])
    }

    #[inline(always)]
    unsafe fn both(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        from_fn(|lane| a[lane] & b[lane])
    }

    #[inline(always)]
    unsafe fn and_not(mask: Self::Mask, other: Self::Mask) -> Self::Mask {
        from_fn(|lane| mask[lane] & !other[lane])
    }

    #[inline(always)]
    unsafe fn any(mask: Self::Mask) -> bool {
        mask.iter().fold(0, |any, flag| any | flag) != 0
    }

    #[inline(always)]
    unsafe fn all(mask: Self::Mask) -> bool {
        mask.iter().fold(u32::MAX, |all, flag| all & flag) != 0
    }

    #[inline(always)]
    unsafe fn keep(self, mask: Self::Mask) -> Self {
        Self(from_fn(|lane| f32::from_bits(self.0[lane].to_bits() & mask[lane])))
    }

    #[inline(always)]
    unsafe fn add_where(self, mask: Self::Mask, other: Self) -> Self {
        Self(from_fn(|lane| self.0[lane] + f32::from_bits(other.0[lane].to_bits() & mask[lane])))
    }

    #[inline(always)]
    unsafe fn add_exponent(self, rounded: Self, bias: i32) -> Self {
        Self(from_fn(|lane| {
            let exponent = rounded.0[lane].to_bits().wrapping_sub(bias as u32) << 23;
            f32::from_bits(self.0[lane].to_bits().wrapping_add(exponent))
        }))
    }

    #[inline(always)]
    unsafe fn no_counts() -> Self::Counts {
        [0; LANES]
    }

    #[inline(always)]
    unsafe fn count(counts: &mut Self::Counts, mask: Self::Mask) {
        for lane in 0..LANES {
            counts[lane] = counts[lane].wrapping_sub(mask[lane]);
        }
    }

    #[inline(always)]
    unsafe fn total(counts: Self::Counts) -> usize {
        counts.iter().map(|&count| count as usize).sum()
    }

    #[inline(always)]
    unsafe fn no_sums() -> Self::Sums {
        [0.0; LANES]
    }

    #[inline(always)]
    unsafe fn add_to_sums(sums: &mut Self::Sums, weights: &[f32; LANES]) {
        for lane in 0..LANES {
            sums[lane] += f64::from(weights[lane]);
        }
    }

    #[inline(always)]
    unsafe fn add_selected_to_sums(sums: &mut Self::Sums, mask: Self::Mask, weights: &[f32; LANES]) {
        for lane in 0..LANES {
            sums[lane] += f64::from(f32::from_bits(weights[lane].to_bits() & mask[lane]));
        }
    }

    #[inline(always)]
    unsafe fn sums_of_lanes(sums: Self::Sums) -> [f64; LANES] {
        sums
    }

    #[inline(always)]
    unsafe fn compress(mask: Self::Mask, columns: [Self; 3], to: [*mut u32; 3]) -> usize {
        let mut length = 0;
        for (lane, flag) in mask.into_iter().enumerate() {
            for column in 0..3 {
                // SAFETY: each target has room for sixteen elements, and `length` is at most `lane`.
                unsafe { to[column].add(length).write(columns[column].0[lane].to_bits()) };
            }
            length += (flag & 1) as usize;
        }
        length
    }
}

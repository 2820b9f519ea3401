//! The NEON backend: four registers of four lanes.

use super::vector::Vector;
use bpe_llama_simd::f32x16::{F32x16, LANES, Neon};
#[allow(clippy::wildcard_imports, reason = "the intrinsics are the language of this file")]
use std::arch::aarch64::*;
use std::array::from_fn;

/// The number of lanes that are set in each mask of four. NEON counts bits only in vector registers.
static COUNTS: [usize; 16] = [0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4];

/// The bytes of the lanes that are set in each mask of four, in rising order: the shuffle that moves them next to each
/// other.
static SET_LANES: [[u8; 16]; 16] = {
    let mut table = [[0; 16]; 16];
    let mut mask = 0;
    while mask < 16 {
        let (mut byte, mut length) = (0, 0);
        while byte < 16 {
            if mask >> (byte / 4) & 1 == 1 {
                table[mask][length] = byte;
                length += 1;
            }
            byte += 1;
        }
        mask += 1;
    }
    table
};

// SAFETY of every block: every CPU of this target has NEON, and loads read what the references hold.
#[allow(clippy::undocumented_unsafe_blocks, reason = "the comment above holds for all blocks")]
impl Vector for Neon {
    type Mask = [uint32x4_t; 4];
    type Counts = [uint32x4_t; 4];
    type Sums = [float64x2_t; 8];

    #[inline(always)]
    unsafe fn load_bits(from: &[u32; LANES]) -> Self {
        Self(from_fn(|quarter| unsafe { vreinterpretq_f32_u32(vld1q_u32(from.as_ptr().add(4 * quarter))) }))
    }

    #[inline(always)]
    unsafe fn indices_from(start: u32) -> Self {
        unsafe {
            let lanes = vld1q_u32([0, 1, 2, 3].as_ptr());
            Self(from_fn(|quarter| vreinterpretq_f32_u32(vaddq_u32(lanes, vdupq_n_u32(start + 4 * quarter as u32)))))
        }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Self(from_fn(|quarter| unsafe { vsubq_f32(self.0[quarter], other.0[quarter]) }))
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        Self(from_fn(|quarter| unsafe { vmaxq_f32(self.0[quarter], other.0[quarter]) }))
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        Self(from_fn(|quarter| unsafe { vminq_f32(self.0[quarter], other.0[quarter]) }))
    }

    #[inline(always)]
    unsafe fn at_least(self, limit: Self) -> Self::Mask {
        from_fn(|quarter| unsafe { vcgeq_f32(self.0[quarter], limit.0[quarter]) })
    }

    #[inline(always)]
    unsafe fn below(self, limit: Self) -> Self::Mask {
        from_fn(|quarter| unsafe { vcltq_f32(self.0[quarter], limit.0[quarter]) })
    }

    #[inline(always)]
    unsafe fn no_flags() -> Self::Mask {
        unsafe { [vdupq_n_u32(0); 4] }
    }

    #[inline(always)]
    unsafe fn either(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        from_fn(|quarter| unsafe { vorrq_u32(a[quarter], b[quarter]) })
    }

    #[inline(always)]
    unsafe fn both(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        from_fn(|quarter| unsafe { vandq_u32(a[quarter], b[quarter]) })
    }

    #[inline(always)]
    unsafe fn and_not(mask: Self::Mask, other: Self::Mask) -> Self::Mask {
        from_fn(|quarter| unsafe { vbicq_u32(mask[quarter], other[quarter]) })
    }

    #[inline(always)]
    unsafe fn any([a, b, c, d]: Self::Mask) -> bool {
        unsafe { vmaxvq_u32(vorrq_u32(vorrq_u32(a, b), vorrq_u32(c, d))) != 0 }
    }

    #[inline(always)]
    unsafe fn all([a, b, c, d]: Self::Mask) -> bool {
        unsafe { vminvq_u32(vandq_u32(vandq_u32(a, b), vandq_u32(c, d))) != 0 }
    }

    #[inline(always)]
    unsafe fn keep(self, mask: Self::Mask) -> Self {
        Self(from_fn(|quarter| unsafe {
            vreinterpretq_f32_u32(vandq_u32(mask[quarter], vreinterpretq_u32_f32(self.0[quarter])))
        }))
    }

    #[inline(always)]
    unsafe fn add_where(self, mask: Self::Mask, other: Self) -> Self {
        unsafe {
            let other = other.keep(mask);
            Self(from_fn(|quarter| vaddq_f32(self.0[quarter], other.0[quarter])))
        }
    }

    #[inline(always)]
    unsafe fn add_exponent(self, rounded: Self, bias: i32) -> Self {
        Self(from_fn(|quarter| unsafe {
            let exponent = vsubq_s32(vreinterpretq_s32_f32(rounded.0[quarter]), vdupq_n_s32(bias));
            let bits = vreinterpretq_s32_f32(self.0[quarter]);
            vreinterpretq_f32_s32(vaddq_s32(bits, vshlq_n_s32::<23>(exponent)))
        }))
    }

    #[inline(always)]
    unsafe fn no_counts() -> Self::Counts {
        unsafe { [vdupq_n_u32(0); 4] }
    }

    #[inline(always)]
    unsafe fn count(counts: &mut Self::Counts, mask: Self::Mask) {
        for (count, mask) in counts.iter_mut().zip(mask) {
            *count = unsafe { vsubq_u32(*count, mask) };
        }
    }

    #[inline(always)]
    unsafe fn total(counts: Self::Counts) -> usize {
        counts.into_iter().map(|count| unsafe { vaddlvq_u32(count) } as usize).sum()
    }

    #[inline(always)]
    unsafe fn no_sums() -> Self::Sums {
        unsafe { [vdupq_n_f64(0.0); 8] }
    }

    #[inline(always)]
    unsafe fn add_to_sums(sums: &mut Self::Sums, weights: &[f32; LANES]) {
        unsafe {
            for (quarter, weights) in Self::load(weights).0.into_iter().enumerate() {
                sums[2 * quarter] = vaddq_f64(sums[2 * quarter], vcvt_f64_f32(vget_low_f32(weights)));
                sums[2 * quarter + 1] = vaddq_f64(sums[2 * quarter + 1], vcvt_high_f64_f32(weights));
            }
        }
    }

    #[inline(always)]
    unsafe fn add_selected_to_sums(sums: &mut Self::Sums, mask: Self::Mask, weights: &[f32; LANES]) {
        unsafe {
            let mut selected = [0.0; LANES];
            Self::load(weights).keep(mask).store(&mut selected);
            Self::add_to_sums(sums, &selected);
        }
    }

    #[inline(always)]
    unsafe fn sums_of_lanes(sums: Self::Sums) -> [f64; LANES] {
        let mut lanes = [0f64; LANES];
        for (eighth, sum) in sums.into_iter().enumerate() {
            unsafe { vst1q_f64(lanes.as_mut_ptr().add(2 * eighth), sum) };
        }
        lanes
    }

    #[inline(always)]
    unsafe fn compress(mask: Self::Mask, columns: [Self; 3], to: [*mut u32; 3]) -> usize {
        unsafe {
            // The flags of each quarter as four bits, and all quarters in one register.
            let bit = vld1q_u32([1, 2, 4, 8].as_ptr());
            let [a, b, c, d] = mask.map(|flags| vandq_u32(flags, bit));
            let quarters = vpaddq_u32(vpaddq_u32(a, b), vpaddq_u32(c, d));
            let flags = vget_lane_u64::<0>(vreinterpret_u64_u16(vmovn_u32(quarters)));
            let mut length = 0;
            for quarter in 0..4 {
                let flags = (flags >> (16 * quarter)) as usize & 0xf;
                let lanes = vld1q_u8(SET_LANES[flags].as_ptr());
                for column in 0..3 {
                    let packed = vqtbl1q_u8(vreinterpretq_u8_f32(columns[column].0[quarter]), lanes);
                    vst1q_u8(to[column].add(length).cast(), packed);
                }
                length += COUNTS[flags];
            }
            length
        }
    }
}

//! bfloat16, the upper half of a float32, as its bits.

/// Returns the float32 of a bfloat16; exact.
#[inline(always)]
pub fn to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Returns the nearest bfloat16, ties to even; NaN stays NaN.
#[inline(always)]
pub fn from_f32(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40; // the dropped half may hold the whole payload
    }
    ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_the_nearest_and_ties_go_to_even() {
        for (bits, expected) in [
            (0x3f80_7fff, 0x3f80),
            (0x3f80_8000, 0x3f80),
            (0x3f80_8001, 0x3f81),
            (0x3f81_8000, 0x3f82),
            (0x7f7f_ffff, 0x7f80),
            (0xff80_0000, 0xff80),
            (0x8000_0000, 0x8000),
        ] {
            assert_eq!(from_f32(f32::from_bits(bits)), expected, "{bits:x}");
        }
        assert!(to_f32(from_f32(f32::from_bits(0x7f80_0001))).is_nan());
        for bits in (0..=u16::MAX).filter(|bits| !to_f32(*bits).is_nan()) {
            assert_eq!(from_f32(to_f32(bits)), bits);
        }
    }
}

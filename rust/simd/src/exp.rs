//! `exp((x - highest) / temperature)`: a polynomial in float32 for speed, and one in float64 for exact decisions.
//!
//! Both are fused multiply-adds, additions and bit shifts in a fixed order, so every CPU returns the same bits.

use std::f64::consts::LOG2_E;

/// Adding it rounds a float32 to the nearest integer, which then sits in the low bits.
pub const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23

/// `(2^r - 1) / r` on [-1/2, 1/2], highest power first: minimax for the relative error of `2^r`, 2e-9.
pub const POLYNOMIAL: [f32; 6] = [
    f32::from_bits(0x3920_fdde),
    f32::from_bits(0x3aaf_9f2a),
    f32::from_bits(0x3c1d_96a6),
    f32::from_bits(0x3d63_5774),
    f32::from_bits(0x3e75_fdee),
    f32::from_bits(0x3f31_7218),
];

/// An upper bound of the relative error of [`Scale::weight`], tested below.
pub const RELATIVE_ERROR: f64 = 1.0 / (1u64 << 22) as f64;

/// The constants of one row's float32 weights.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Subtracted from a logit first.
    pub shift: f32,
    /// `log2(e) / temperature`, rounded to float32.
    pub factor: f32,
    /// The rounding error of `factor`.
    pub factor_low: f32,
    /// Subtracted from the bits of the rounded product to give the exponent of the weight.
    pub exponent: i32,
    /// Rounded products below it have weight 0.
    pub lowest: f32,
}

impl Scale {
    /// Returns the constants for a row whose highest logit is `highest`.
    ///
    /// Weights are relative to a power of two near the highest weight, so no logit is subtracted and no digit is lost.
    /// If `highest / temperature` is too large to round that way, the highest logit is subtracted first. The difference
    /// is then exact for every logit whose weight is not 0.
    pub fn new(highest: f32, temperature: f64) -> Self {
        let factor = (LOG2_E / temperature).min(f64::from(f32::MAX));
        let top = f64::from(highest) * factor;
        let near = top.abs() < f64::from(1 << 20);
        let exponent = if near { top.round() as i32 } else { 0 };
        let high = factor as f32;
        Self {
            shift: if near { 0.0 } else { highest },
            factor: high,
            factor_low: (factor - f64::from(high)) as f32,
            exponent: MAGIC.to_bits() as i32 + exponent,
            lowest: MAGIC + exponent as f32 - 125.0,
        }
    }

    /// Returns a constant times `exp(logit / temperature)`, within [`RELATIVE_ERROR`]; 0 for -inf and for weights below
    /// 2^-125 times the highest.
    #[inline(always)]
    pub fn weight(&self, logit: f32) -> f32 {
        let x = logit - self.shift;
        let rounded = x.mul_add(self.factor, MAGIC);
        let r = x.mul_add(self.factor, MAGIC - rounded);
        let r = x.mul_add(self.factor_low, r);
        let mut q = POLYNOMIAL[0];
        for coefficient in &POLYNOMIAL[1..] {
            q = q.mul_add(r, *coefficient);
        }
        let power = q.mul_add(r, 1.0);
        let exponent = (rounded.to_bits() as i32).wrapping_sub(self.exponent);
        let weight = f32::from_bits((power.to_bits() as i32).wrapping_add(exponent << 23) as u32);
        if rounded >= self.lowest { weight } else { 0.0 }
    }
}

/// Returns `exp(z)` for `z <= 0` in float64, within 2^-51 relatively; 0 below -745 and for -inf.
#[inline(always)]
pub fn exp64(z: f64) -> f64 {
    const MAGIC64: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52
    const LN2_HIGH: f64 = f64::from_bits(0x3fe6_2e42_fee0_0000);
    const LN2_LOW: f64 = f64::from_bits(0x3dea_39ef_3579_3c76);
    // 1/13! down to 1/2!: on this short interval the Taylor series is exact to the last bit.
    const INVERSE_FACTORIALS: [f64; 12] = [
        1.0 / 6_227_020_800.0,
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        1.0 / 2.0,
    ];
    let clamped = if z > -746.0 { z } else { -746.0 };
    let rounded = clamped.mul_add(LOG2_E, MAGIC64);
    let n = rounded - MAGIC64;
    let r = n.mul_add(-LN2_HIGH, clamped);
    let r = n.mul_add(-LN2_LOW, r);
    let mut q = INVERSE_FACTORIALS[0];
    for coefficient in &INVERSE_FACTORIALS[1..] {
        q = q.mul_add(r, *coefficient);
    }
    let power = (q * r).mul_add(r, r) + 1.0;
    // Two factors: 2^n alone may be subnormal.
    let n = (rounded.to_bits() as i64).wrapping_sub(MAGIC64.to_bits() as i64);
    let half = n >> 1;
    let two_to = |n: i64| f64::from_bits(((n + 1023) << 52) as u64);
    power * two_to(half) * two_to(n - half)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn float32_weights_are_within_the_error_bound() {
        let mut worst: f64 = 0.0;
        for temperature in [1.0, 0.8, 0.3, 1.7, 1e-3, 1e-6, 40.0, 1e9] {
            for highest in [0.0f32, 17.3, -22.5, 1e-3, 812.7, 1e6] {
                let scale = Scale::new(highest, temperature);
                let (mut least, mut most) = (f64::INFINITY, 0.0_f64);
                for i in 0..20_000u32 {
                    let gap = f64::from(i) * 0.004_3 * temperature;
                    let x = (f64::from(highest) - gap) as f32;
                    let exact = ((f64::from(x) - f64::from(highest)) / temperature).exp();
                    if exact < 1e-37 {
                        break;
                    }
                    let ratio = f64::from(scale.weight(x)) / exact;
                    (least, most) = (least.min(ratio), most.max(ratio));
                }
                // Each weight is then within the error of their geometric mean times its exact value.
                worst = worst.max(most / least - 1.0);
            }
        }
        assert!(worst < 2.0 * RELATIVE_ERROR, "{worst:e}");
        assert!(worst > 1e-9, "a worst error of about 0 tests nothing");
    }

    #[test]
    fn very_low_logits_have_weight_zero() {
        for temperature in [1.0, 1e-40, 1e40, 1e-300, 1e300] {
            for highest in [0.0f32, -5.0, 3e38, -3e38] {
                let scale = Scale::new(highest, temperature);
                assert_eq!(scale.weight(f32::NEG_INFINITY).to_bits(), 0, "{highest} {temperature}");
                let top = scale.weight(highest);
                assert!((0.7..1.5).contains(&top), "{highest} {temperature} {top}");
                assert!(scale.weight(f32::MIN) <= 1.5);
            }
        }
        assert_eq!(Scale::new(0.0, 1.0).weight(-200.0).to_bits(), 0);
    }

    #[test]
    fn float64_exponential_is_within_two_ulps() {
        for i in 0..400_000 {
            let z = -f64::from(i) * 0.001_77;
            let exact = z.exp();
            let got = exp64(z);
            assert!((got - exact).abs() <= exact * 4.5e-16 + 5e-324, "{z}: {got} {exact}");
        }
        assert_eq!(exp64(0.0).to_bits(), 1f64.to_bits());
        assert_eq!(exp64(f64::NEG_INFINITY).to_bits(), 0);
    }
}

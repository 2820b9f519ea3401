//! What the products of queries and keys become before the softmax: scaled, and bounded by a soft cap.

use bpe_llama_simd::exp::{MAGIC, POLYNOMIAL};

/// `2 log2(e)`: `exp(2 x)` is two to the power of `FACTOR x`.
const FACTOR: f32 = 2.885_39;

/// Its hyperbolic tangent is 1 in float32.
const LIMIT: f32 = 10.0;

/// How products of queries and keys are scaled.
#[derive(Debug, Clone, Copy)]
pub(super) struct ScoreScale {
    /// Products times it are the arguments of the hyperbolic tangent; 0 without a soft cap.
    factor: f32,
    /// What the softmax divides by.
    pub(super) temperature: f64,
}

impl ScoreScale {
    /// Returns the scale of products of `head_dim` features, which are divided by its root.
    pub(super) fn new(head_dim: usize, softcap: f32) -> Self {
        let root = (head_dim as f64).sqrt();
        if softcap == 0.0 {
            return Self { factor: 0.0, temperature: root };
        }
        // The cap is a factor of what the softmax takes, so dividing by its inverse applies it.
        let softcap = f64::from(softcap);
        Self { factor: (1.0 / (root * softcap)) as f32, temperature: 1.0 / softcap }
    }

    /// Replaces products by what the softmax takes.
    #[inline(always)]
    pub(super) fn bound(self, products: &mut [f32]) {
        if self.factor != 0.0 {
            for product in products {
                *product = tanh(*product * self.factor);
            }
        }
    }
}

/// Returns the hyperbolic tangent, `e / (e + 2)` with `e = exp(2 x) - 1`; every backend computes the same bits.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    let x = if x > LIMIT { LIMIT } else { x };
    let x = if x < -LIMIT { -LIMIT } else { x };
    // 2^n (2^r - 1) + (2^n - 1) with a whole n: exact for small x, where n is 0.
    let rounded = x.mul_add(FACTOR, MAGIC);
    let r = x.mul_add(FACTOR, MAGIC - rounded);
    let mut q = POLYNOMIAL[0];
    for coefficient in &POLYNOMIAL[1..] {
        q = q.mul_add(r, *coefficient);
    }
    let n = (rounded.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32);
    let power = f32::from_bits((n.wrapping_add(127) << 23) as u32);
    let e = power.mul_add(q * r, power - 1.0);
    e / (e + 2.0)
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "these are exact")]
mod tests {
    use super::*;

    #[test]
    fn the_hyperbolic_tangent_is_within_four_ulps() {
        let mut worst: f64 = 0.0;
        for i in 1..200_000 {
            for x in [i as f32 * 6e-5, -(i as f32) * 6e-5, 1e-30 * i as f32] {
                let exact = f64::from(x).tanh();
                worst = worst.max((f64::from(tanh(x)) - exact).abs() / exact.abs());
            }
        }
        assert!(worst < 4.0 * f64::from(f32::EPSILON), "{worst:e}");
        assert!(tanh(0.0) == 0.0 && tanh(f32::INFINITY) == 1.0 && tanh(f32::NEG_INFINITY) == -1.0);
        assert!(tanh(f32::NAN).is_nan());
    }
}

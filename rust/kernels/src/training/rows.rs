//! What the functions of training compute for one row.

use bpe_llama_simd::exp::Scale;
use bpe_llama_simd::f32x16::{F32x16, LANES, Portable};

/// `1 / (1 + exp(-x))`.
#[inline(always)]
pub(super) fn sigmoid(exp: Scale, x: f32) -> f32 {
    // exp(88) leaves the range of float32, and the sigmoid is nearly 0 before that.
    let exponent = if -x < 87.0 { -x } else { 87.0 };
    1.0 / (1.0 + exp.weight(exponent))
}

#[inline(always)]
pub(super) fn norm_row_backward(
    gradient: &[f32],
    x: &[f32],
    weights: &[f32],
    scale: f32,
    for_x: &mut [f32],
    for_weights: &mut [f32],
) {
    // With n = x * scale: d n / d x gives scale * (g w - n mean(g w n)).
    let mut sums = [0.0; LANES];
    let (gradients, xs, factors) = (gradient.as_chunks().0, x.as_chunks().0, weights.as_chunks().0);
    let chunks = gradients.iter().zip(xs).zip(factors).zip(for_weights.as_chunks_mut().0);
    for (((gradient, x), weights), for_weights) in chunks {
        let (gradient, x, weights): (&[f32; LANES], &[f32; LANES], &[f32; LANES]) = (gradient, x, weights);
        let mut with_row: [f32; LANES] = *for_weights;
        for lane in 0..LANES {
            sums[lane] = (gradient[lane] * weights[lane]).mul_add(x[lane], sums[lane]);
            with_row[lane] += gradient[lane] * (x[lane] * scale);
        }
        *for_weights = with_row;
    }
    for at in x.len() / LANES * LANES..x.len() {
        sums[at % LANES] = (gradient[at] * weights[at]).mul_add(x[at], sums[at % LANES]);
        for_weights[at] += gradient[at] * (x[at] * scale);
    }
    // SAFETY: the portable backend needs no CPU feature.
    let sum = unsafe { Portable::load(&sums).sum() };
    let factor = sum * scale * scale / x.len() as f32;
    for (((gradient, x), weight), for_x) in gradient.iter().zip(x).zip(weights).zip(for_x) {
        *for_x = scale * x.mul_add(-factor, gradient * weight);
    }
}

/// The products and the sum are each rounded, as `PyTorch`'s are.
#[inline(always)]
pub(super) fn rotate_head(x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32], sign: impl Fn(f32) -> f32) {
    let pairs = cos.len();
    let (x, rest) = x.split_at(2 * pairs);
    let (out, copied) = out.split_at_mut(2 * pairs);
    copied.copy_from_slice(rest);
    let ((first, second), (to_first, to_second)) = (x.split_at(pairs), out.split_at_mut(pairs));
    for at in 0..pairs {
        let sin = sign(sin[at]);
        to_first[at] = first[at] * cos[at] + second[at] * -sin;
        to_second[at] = second[at] * cos[at] + first[at] * sin;
    }
}

/// Which cross-entropy [`ElementWise::cross_entropy`](super::ElementWise::cross_entropy) computes.
#[derive(Debug, Clone, Copy)]
pub struct Loss {
    /// The part of the probability that is spread over all classes.
    pub label_smoothing: f32,
    /// The weight of the squared logarithm of the softmax's denominator.
    pub z_loss: f32,
    /// Whether the logits are overwritten by their gradient.
    pub gradient: bool,
}

/// Returns the loss of a row times its factor, 0 if that is 0; see [`ElementWise::cross_entropy`](super::ElementWise::cross_entropy).
#[inline(always)]
pub(super) fn cross_entropy_row(logits: &mut [f32], label: usize, factor: f32, loss: Loss) -> f32 {
    if factor == 0.0 {
        if loss.gradient {
            logits.fill(0.0);
        }
        return 0.0;
    }
    let (chunks, tail) = logits.as_chunks::<LANES>();
    let (mut highest, mut sums) = ([f32::NEG_INFINITY; LANES], [0.0_f32; LANES]);
    for chunk in chunks {
        for lane in 0..LANES {
            highest[lane] = if chunk[lane] > highest[lane] { chunk[lane] } else { highest[lane] };
            sums[lane] += chunk[lane];
        }
    }
    let highest = highest.iter().chain(tail).copied().fold(f32::NEG_INFINITY, f32::max);
    let sum_of_logits = sums.iter().chain(tail).sum::<f32>();
    if sum_of_logits.is_nan() || highest.is_infinite() {
        if loss.gradient {
            logits.fill(f32::NAN);
        }
        return f32::NAN;
    }
    let (exp, size, at_label) = (Scale::new(highest, 1.0), logits.len() as f32, logits[label]);
    let (chunks, tail) = logits.as_chunks_mut::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        let mut weights = *chunk;
        for lane in 0..LANES {
            weights[lane] = exp.weight(weights[lane]);
            sums[lane] += weights[lane];
        }
        if loss.gradient {
            *chunk = weights;
        }
    }
    for (sum, logit) in sums.iter_mut().zip(tail) {
        let weight = exp.weight(*logit);
        *sum += weight;
        if loss.gradient {
            *logit = weight;
        }
    }
    // SAFETY: the portable backend needs no CPU feature.
    let sum = unsafe { Portable::load(&sums).sum() };
    let log_sum = highest + (sum / exp.weight(highest)).ln();
    if loss.gradient {
        let slope = factor * (2.0 * loss.z_loss).mul_add(log_sum, 1.0) / sum;
        let smoothed = factor * (loss.label_smoothing / size);
        for logit in &mut *logits {
            *logit = logit.mul_add(slope, -smoothed);
        }
        logits[label] += factor * (loss.label_smoothing - 1.0);
    }
    let smoothed = if loss.label_smoothing == 0.0 { 0.0 } else { loss.label_smoothing * (sum_of_logits / size) };
    factor * (log_sum - (1.0 - loss.label_smoothing) * at_label - smoothed + loss.z_loss * log_sum * log_sum)
}

//! Activations: the input of a product, with `RMSNorm` or `SwiGLU` fused into it.

use bpe_llama_simd::exp::Scale;
use bpe_llama_simd::f32x16::{F32x16, LANES, Portable};
use bpe_llama_simd::{Backend, Kind, bf16};
use std::borrow::Cow;

/// The weights of an `RMSNorm`, one for each input feature.
#[derive(Debug, Clone, Copy)]
pub enum NormWeights<'a> {
    /// Float32.
    F32(&'a [f32]),
    /// The bits of bfloat16.
    Bf16(&'a [u16]),
}

/// The input of a product: `M` rows, `(M, I)` in float32, and what is computed from it first.
#[derive(Debug, Clone, Copy)]
pub enum Activations<'a> {
    /// The activations themselves.
    Plain(&'a [f32]),
    /// `x / sqrt(mean(x^2) + eps) * weights`. `RMSNorm`: Zhang and Sennrich 2019, arXiv:1910.07467.
    RmsNorm {
        /// The rows to normalize.
        x: &'a [f32],
        /// A factor for each input feature.
        weights: NormWeights<'a>,
        /// Added to the mean square, so that the root is not zero.
        eps: f32,
    },
    /// `silu(gate) * up` of rows `[gate, up]`, `(M, 2 * I)`. `SwiGLU`: Shazeer 2020, arXiv:2002.05202.
    SwiGlu(&'a [f32]),
}

impl NormWeights<'_> {
    pub(crate) fn len(self) -> usize {
        match self {
            Self::F32(weights) => weights.len(),
            Self::Bf16(weights) => weights.len(),
        }
    }
}

impl<'a> Activations<'a> {
    /// Returns the given elements, and how many of them a row of `columns` activations takes.
    pub(crate) fn given(self, columns: usize) -> (&'a [f32], usize) {
        match self {
            Self::Plain(x) | Self::RmsNorm { x, .. } => (x, columns),
            Self::SwiGlu(x) => (x, 2 * columns),
        }
    }

    /// Returns the activations, `(M, columns)`; every backend computes the same bits.
    pub(crate) fn compute(self, columns: usize, backend: Backend) -> Cow<'a, [f32]> {
        if let Self::Plain(x) = self {
            return Cow::Borrowed(x);
        }
        let (given, length) = self.given(columns);
        let mut out = vec![0.0; given.len() / length * columns];
        match backend.kind() {
            Kind::Portable => compute(self, columns, &mut out),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Backend` exists only if the CPU has it; AVX-512's includes AVX2's.
            Kind::Avx2 | Kind::Avx512 => unsafe { compute_avx2(self, columns, &mut out) },
        }
        Cow::Owned(out)
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn compute_avx2(activations: Activations<'_>, columns: usize, out: &mut [f32]) {
    compute(activations, columns, out);
}

#[inline(always)]
fn compute(activations: Activations<'_>, columns: usize, out: &mut [f32]) {
    match activations {
        Activations::Plain(x) => out.copy_from_slice(x),
        Activations::RmsNorm { x, weights, eps } => {
            for (x, out) in x.chunks_exact(columns).zip(out.chunks_exact_mut(columns)) {
                let scale = 1.0 / (sum_of_squares(x) / columns as f32 + eps).sqrt();
                match weights {
                    NormWeights::F32(weights) => {
                        for ((out, x), weight) in out.iter_mut().zip(x).zip(weights) {
                            *out = x * scale * weight;
                        }
                    }
                    NormWeights::Bf16(weights) => {
                        for ((out, x), weight) in out.iter_mut().zip(x).zip(weights) {
                            *out = x * scale * bf16::to_f32(*weight);
                        }
                    }
                }
            }
        }
        Activations::SwiGlu(x) => {
            let exp = Scale::new(0.0, 1.0);
            for (x, out) in x.chunks_exact(2 * columns).zip(out.chunks_exact_mut(columns)) {
                let (gate, up) = x.split_at(columns);
                for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                    // exp(88) leaves the range of float32, and silu of a gate below -87 is nearly 0.
                    let negative = if -gate < 87.0 { -gate } else { 87.0 };
                    *out = gate / (1.0 + exp.weight(negative)) * up;
                }
            }
        }
    }
}

#[inline(always)]
fn sum_of_squares(x: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] = chunk[lane].mul_add(chunk[lane], sums[lane]);
        }
    }
    for (sum, x) in sums.iter_mut().zip(tail) {
        *sum = x.mul_add(*x, *sum);
    }
    // SAFETY: the portable backend needs no CPU feature.
    unsafe { Portable::load(&sums).sum() }
}

//! Activations: the input of a product, with a norm or a gate fused into it.

use crate::norm::{NormWeights, Statistics, write_normalized};
use bpe_llama_simd::exp::Scale;
use bpe_llama_simd::{Backend, Kind};
use std::borrow::Cow;

/// The activation of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// `x * sigmoid(x)`, of `SwiGLU`.
    Silu,
    /// `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`, of `GEGLU`: Hendrycks and Gimpel 2016, arXiv:1606.08415.
    GeluTanh,
}

/// The input of a product: `M` rows, `(M, I)` in float32, and what is computed from it first.
#[derive(Debug, Clone, Copy)]
pub enum Activations<'a> {
    /// The activations themselves.
    Plain(&'a [f32]),
    /// `RMSNorm` or `LayerNorm` of each row, as [`normalize`](crate::normalize) computes it.
    Normalized {
        /// The rows to normalize.
        x: &'a [f32],
        /// Weights for each input feature.
        weights: NormWeights<'a>,
        /// Added to the mean square, so that the root is not zero.
        eps: f32,
    },
    /// `activation(gate) * up` of rows `[gate, up]`, `(M, 2 * I)`: Shazeer 2020, arXiv:2002.05202.
    Gated(Gate, &'a [f32]),
}

impl<'a> Activations<'a> {
    /// Returns the given elements, and how many of them a row of `columns` activations takes.
    pub(crate) fn given(self, columns: usize) -> (&'a [f32], usize) {
        match self {
            Self::Plain(x) | Self::Normalized { x, .. } => (x, columns),
            Self::Gated(_, x) => (x, 2 * columns),
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
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => compute(self, columns, &mut out),
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
        Activations::Normalized { x, weights, eps } => {
            for (x, out) in x.chunks_exact(columns).zip(out.chunks_exact_mut(columns)) {
                let statistics = Statistics::of(x, weights, eps);
                write_normalized(x.iter().copied().zip(out), statistics, weights);
            }
        }
        Activations::Gated(Gate::Silu, x) => gate(x, columns, out, |x| -x),
        Activations::Gated(Gate::GeluTanh, x) => gate(x, columns, out, |x| {
            // 1 + tanh(u) = 2 / (1 + exp(-2 u))
            const FACTOR: f32 = -1.595_769; // -2 sqrt(2 / pi)
            FACTOR * x * (x * x).mul_add(0.044_715, 1.0)
        }),
    }
}

/// Writes `gate / (1 + exp(exponent(gate))) * up` of each row.
#[inline(always)]
fn gate(rows: &[f32], columns: usize, out: &mut [f32], exponent: impl Fn(f32) -> f32) {
    let exp = Scale::new(0.0, 1.0);
    for (row, out) in rows.chunks_exact(2 * columns).zip(out.chunks_exact_mut(columns)) {
        let (gate, up) = row.split_at(columns);
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            // exp(88) leaves the range of float32, and the gate is nearly 0 before that.
            let exponent = exponent(*gate);
            let exponent = if exponent < 87.0 { exponent } else { 87.0 };
            *out = gate / (1.0 + exp.weight(exponent)) * up;
        }
    }
}

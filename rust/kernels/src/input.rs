//! What a product's vectors are made of: given as they are, or normalised or gated on the way.

use super::lanes::{LANES, Lanes, Portable, from_bf16};
use bpe_llama_simd::exp::Scale;
use bpe_llama_simd::{Backend, Kind};
use std::borrow::Cow;

/// Numbers in the model's format.
#[derive(Debug, Clone, Copy)]
pub enum Numbers<'a> {
    /// Float32.
    F32(&'a [f32]),
    /// Bfloat16, as bits.
    Bf16(&'a [u16]),
}

/// Vectors, one after the other, that a matrix is multiplied with.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// The vectors themselves.
    Plain(&'a [f32]),
    /// `x / sqrt(mean(x^2) + eps) * weight`: `RMSNorm`, Zhang and Sennrich 2019, arXiv:1910.07467.
    Normed {
        /// The vectors.
        x: &'a [f32],
        /// A factor for each of a vector's numbers.
        weight: Numbers<'a>,
        /// Keeps the root from zero.
        eps: f32,
    },
    /// `silu(gate) * up`, for vectors of twice the length, `gate` first: `SwiGLU`, Shazeer 2020, arXiv:2002.05202.
    Gated(&'a [f32]),
}

impl Numbers<'_> {
    pub(crate) fn len(self) -> usize {
        match self {
            Self::F32(numbers) => numbers.len(),
            Self::Bf16(numbers) => numbers.len(),
        }
    }
}

impl<'a> Input<'a> {
    /// Returns the numbers given, and how many of them a vector of `columns` takes.
    pub(crate) fn given(self, columns: usize) -> (&'a [f32], usize) {
        match self {
            Self::Plain(x) | Self::Normed { x, .. } => (x, columns),
            Self::Gated(x) => (x, 2 * columns),
        }
    }

    /// Returns the vectors of `columns` numbers that the matrix meets; the same bits whatever the backend.
    pub(crate) fn made(self, columns: usize, backend: Backend) -> Cow<'a, [f32]> {
        if let Self::Plain(x) = self {
            return Cow::Borrowed(x);
        }
        let (given, length) = self.given(columns);
        let mut made = vec![0.0; given.len() / length * columns];
        match backend.kind() {
            Kind::Portable => make(self, columns, &mut made),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Backend` is only ever one that this CPU has; AVX-512's includes AVX2's.
            Kind::Avx2 | Kind::Avx512 => unsafe { make_avx2(self, columns, &mut made) },
        }
        Cow::Owned(made)
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn make_avx2(input: Input<'_>, columns: usize, made: &mut [f32]) {
    make(input, columns, made);
}

#[inline(always)]
fn make(input: Input<'_>, columns: usize, made: &mut [f32]) {
    match input {
        Input::Plain(x) => made.copy_from_slice(x),
        Input::Normed { x, weight, eps } => {
            for (x, made) in x.chunks_exact(columns).zip(made.chunks_exact_mut(columns)) {
                let scale = 1.0 / (sum_of_squares(x) / columns as f32 + eps).sqrt();
                match weight {
                    Numbers::F32(weight) => {
                        for ((made, x), weight) in made.iter_mut().zip(x).zip(weight) {
                            *made = x * scale * weight;
                        }
                    }
                    Numbers::Bf16(weight) => {
                        for ((made, x), weight) in made.iter_mut().zip(x).zip(weight) {
                            *made = x * scale * from_bf16(*weight);
                        }
                    }
                }
            }
        }
        Input::Gated(x) => {
            let exponential = Scale::new(0.0, 1.0);
            for (x, made) in x.chunks_exact(2 * columns).zip(made.chunks_exact_mut(columns)) {
                let (gate, up) = x.split_at(columns);
                for ((made, gate), up) in made.iter_mut().zip(gate).zip(up) {
                    // Beyond 87 the exponential leaves float32, and the quotient is next to nothing.
                    let negative = if -gate < 87.0 { -gate } else { 87.0 };
                    *made = gate / (1.0 + exponential.weight(negative)) * up;
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
    // SAFETY: the portable lanes need no instructions of their own.
    unsafe { Portable::load(&sums).total() }
}

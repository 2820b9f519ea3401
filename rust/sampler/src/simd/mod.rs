//! The vector passes over a row of logits.
//!
//! A logit's *weight* is its unnormalised probability; *mass* is a sum of weights.
//!
//! | file | what it has |
//! |---|---|
//! | `results.rs` | what the passes return |
//! | `vector.rs` | [`Vector`](vector::Vector): the operations of a vector of sixteen float32 |
//! | `portable.rs`, `avx2.rs`, `avx512.rs`, `neon.rs` | the same trait for each backend |
//! | `passes.rs` | the passes over float32 weights, generic over the trait, and their dispatch |
//! | `passes_f64.rs` | the passes over float64 weights, which few rows need: loops that the compiler vectorizes |
//!
//! Every backend does the same operations in each of sixteen lanes and adds the lanes as the same balanced tree, so all
//! backends return the same bits.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod passes;
mod passes_f64;
mod portable;
mod results;
mod vector;

pub(crate) use bpe_llama_simd::f32x16::LANES;
pub(crate) use passes::{Weight, approximate_cumulative, compute_weights, cumulative, extrema, moments_below};
pub(crate) use passes_f64::compute_weights_f64;
pub(crate) use results::{Candidates, Cumulative, Extrema};

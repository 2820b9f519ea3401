//! The vector passes over a row of logits.
//!
//! A logit's *weight* is its unnormalised probability; *mass* is a sum of weights.
//!
//! Each pass is a loop over sixteen lanes, compiled for every backend (`passes.rs`). A pass that the compiler
//! vectorizes badly has twins in intrinsics (`avx2.rs`, `avx512.rs`). All of them do the same operations in each lane
//! and add the lanes as the same balanced tree (`lanes.rs`), so all backends return the same bits.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod lanes;
mod passes;

pub(crate) use lanes::{Candidates, Cumulative, Extrema, LANES};
pub(crate) use passes::{
    Weight, approximate_cumulative, compute_weights, compute_weights_f64, cumulative, extrema, moments_below,
};

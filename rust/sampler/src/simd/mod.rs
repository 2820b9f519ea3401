//! The vector passes over a row of logits.
//!
//! Each pass is a loop over sixteen lanes (`passes.rs`), compiled for every backend. Where the compiler's code is slower,
//! a twin in intrinsics (`avx2.rs`, `avx512.rs`) does the same operations lane by lane. All backends add the lanes as one
//! balanced tree (`lanes.rs`) and so return the same bits.

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

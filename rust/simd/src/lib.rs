//! CPU features, a vector of 16 float32, `exp`, prefetch, huge pages, scratch memory, threads and interrupts.
//!
//! The tokenizer, the sampler and the CPU kernels share this crate. It is the leaf of the workspace: it depends on none of
//! the others.
//!
//! | module | contents |
//! |---|---|
//! | [`tier`] | [`Tier`]: the instructions in use, detected at run time and capped by `BPE_LLAMA_SIMD` |
//! | [`backend`] | [`Backend`]: the instruction set that a kernel is compiled for |
//! | [`f32x16`] | [`F32x16`]: a vector of 16 float32 in AVX-512, in AVX2 and in portable Rust |
//! | [`bf16`] | bfloat16 to float32 and back |
//! | [`exp`] | `exp` in float32 and float64 |
//! | [`prefetch`] | software prefetch |
//! | [`pages`] | advice to the system about pages of memory |
//! | [`scratch`] | [`ScratchPool`]: buffers that threads reuse from call to call |
//! | [`threads`] | how many threads one call may use |
//! | [`interrupt`] | [`Interrupt`]: the check by which a caller stops a long call |
//!
//! # Example
//! A kernel is generic over [`F32x16`] and compiled once for each [`Backend`]:
//!
//! ```
//! use bpe_llama_simd::f32x16::{F32x16, Portable};
//! use bpe_llama_simd::{Backend, exp::Scale};
//!
//! println!("this CPU runs the {:?} kernels", Backend::best().kind());
//! // SAFETY: the portable backend needs no CPU feature.
//! let sum = unsafe { Portable::splat(0.5).sum() };
//! assert_eq!(sum, 8.0);
//!
//! let scale = Scale::new(2.0, 1.0); // the highest logit, the temperature
//! let ratio = scale.weight(1.0) / scale.weight(2.0);
//! assert!((ratio - (-1.0f32).exp()).abs() < 1e-6);
//! ```
//!
//! # Design
//! - **Bit-identical backends.** Every backend computes the same IEEE 754 operations in the same order, so a result does not
//!   depend on the CPU. Conversions are exact; a multiply-add rounds once; a horizontal sum has one fixed order.
//! - **A [`Backend`] proves its instruction set**: only detection can create one, so calling a `target_feature` function for
//!   it is sound.
//! - One trait with several backends follows the `Vector` trait of the memchr crate.

pub mod backend;
pub mod bf16;
pub mod exp;
pub mod f32x16;
pub mod interrupt;
pub mod pages;
pub mod prefetch;
pub mod scratch;
pub mod threads;
pub mod tier;

pub use backend::{Backend, Kind};
pub use f32x16::F32x16;
pub use interrupt::Interrupt;
pub use scratch::ScratchPool;
pub use tier::Tier;
#[cfg(target_arch = "x86_64")]
pub use tier::cpuid;

/// Tests the example of the crate's page on crates.io.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

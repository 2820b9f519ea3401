//! CPU kernels for decoding a language model: matrix products with quantized weights, and attention over a KV cache.
//!
//! [`matmul`] multiplies the activations of one token or of many with weights in float32, bfloat16, int8 or int4, and fuses
//! a norm (`RMSNorm`, `LayerNorm`) or a gate (`SwiGLU`, `GEGLU`) into its input. [`attend`] applies `RoPE` to new queries and keys, appends keys and
//! values to a cache, and computes attention. [`normalize`] normalizes rows or heads where no product does. For training,
//! [`ElementWise`] computes `RMSNorm`, `SwiGLU`, `RoPE` and cross-entropy, forward and backward. All read their operands in
//! memory of the caller, and use several threads.
//!
//! # Example
//! ```
//! use bpe_llama_kernels::{Activations, Matrix, Weights, matmul};
//!
//! let matrix = Matrix::new(2, 3, Weights::F32(&[1.0, 2.0, 3.0, 0.0, 0.5, 0.0]))?;
//! let mut out = [0.0; 2];
//! matmul(&[matrix], Activations::Plain(&[1.0, 10.0, 100.0]), &mut out, false, 1)?;
//! assert_eq!(out, [321.0, 5.0]);
//! # Ok::<(), bpe_llama_kernels::Error>(())
//! ```
//!
//! # Backends
//! The CPU is detected at run time.
//!
//! | weights | 1 to 8 activation rows | more, with AMX | more, with AVX-512 BF16 (not Intel) | more, with neither |
//! |---|---|---|---|---|
//! | float32 | FMA | FMA | FMA | FMA |
//! | bfloat16 | FMA | AMX, 3 products | `VDPBF16PS` | FMA |
//! | int8 | FMA | AMX, 3 products | FMA | FMA |
//! | int4 | integers | AMX, 6 products | integers | integers |
//!
//! - **FMA** widens weights to float32 and uses fused multiply-adds of AVX-512, of AVX2, of NEON, or of the baseline. One pass
//!   over the weights takes 8 activation rows with AVX-512, 4 without. From 96 rows on with AVX-512, and 48 without, weights are
//!   widened and transposed once for all rows.
//! - **Integers**: activations are rounded to 23 bits of the largest of each 8 columns, and their products with four-bit codes
//!   summed exactly: by `VPDPBUSD` (AVX-512 VNNI, AVX-VNNI), `VPMADDUBSW` (AVX2, AVX-512 BW), `SDOT` (NEON's dot products) or
//!   products of words.
//! - **AMX** splits each float32 into three bfloat16 terms, and sums 3 or 6 products of terms in float32: as accurate as
//!   float32. It takes precedence over AVX-512 BF16.
//! - **`VDPBF16PS`** rounds activations to bfloat16. Intel's CPUs use FMA instead, which is faster there.
//! - Attention in float32 uses FMA. With AVX-512 BF16, without AMX and not on Intel, more than 8 consecutive tokens of a slot
//!   attend to a bfloat16 cache by `VDPBF16PS`.
//!
//! # Design
//! - **Roofline.** With one activation row a product reads each weight once, so its time is weight bytes / memory bandwidth.
//!   Weights are read in place, several rows at a time, and prefetched 8 KiB ahead.
//! - **Batch-invariant.** All but AMX and AVX-512 BF16 sum in an order that the weight format alone fixes: the result of a row
//!   has the same bits on every CPU, for every number of threads, and for every batch. AMX and AVX-512 BF16 sum in another
//!   order, which is the same for every number of threads and for every batch of more than 8 rows; so AMX, although up to 1.5
//!   times as fast there, does not serve float32 weights.
//! - **Packed activations.** Activations are repacked once for each product, in the order that a micro-kernel reads. Weights
//!   are only for many rows, some dozen at a time.
//! - **Thread pool.** A product takes microseconds, so workers spin for 0.1 ms before they sleep. A forked child starts its own
//!   pool. [`ElementWise`], which runs between operations of `PyTorch`, uses `PyTorch`'s OpenMP threads where there are any,
//!   but in no forked process.
//! - **Tests.** Every backend is compared with a float64 oracle, and bit by bit with the portable one. AMX and AVX-512 BF16
//!   are emulated where the CPU lacks them.
//!
//! # Sources
//! Register blocking: Goto and van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication". Three terms: Henry,
//! Tang and Heinecke 2019, arXiv:1904.06376. Online softmax: Milakov and Gimelshein 2018, arXiv:1805.02867. Attention in
//! chunks of keys: Dao et al. 2022, arXiv:2205.14135.

#![allow(clippy::wildcard_imports, reason = "the intrinsics are half the language of the files that use them")]
#![allow(clippy::needless_range_loop, reason = "loops over array indices unroll; iterators would spill the arrays")]

mod attention;
mod backend;
mod error;
mod matmul;
mod norm;
mod openmp;
mod output;
mod thread_pool;
mod training;

pub use attention::{AttentionShape, KvCache, NewTokens, attend};
pub use backend::{has_amx, has_avx512, has_avx512_bf16};
pub use error::{Error, Result};
pub use matmul::{Activations, Gate, Matrix, Weights, matmul};
pub use norm::{NormWeights, normalize};
pub use openmp::remember_process;
pub use training::{Angles, ElementWise, Loss};

/// Tests the example of the crate's page on crates.io.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

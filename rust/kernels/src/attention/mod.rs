//! `attend`: attention of new tokens, one or several of each sequence, over a KV cache.
//!
//! | file | its part |
//! |---|---|
//! | `inputs.rs` | the operands of the caller, and their validation |
//! | `layer.rs` | rotates queries and keys, appends to the cache, shares blocks of queries among threads |
//! | `scores.rs` | what the products of queries and keys become before the softmax: scaled, and bounded by a soft cap |
//! | `f32x16.rs` | attention of a block in float32, on every CPU |
//! | `avx512_bf16.rs`, `online_softmax.rs` | attention of a block over a bfloat16 cache by AVX-512 BF16 |
//!
//! Shapes: `M` tokens, `N` query heads, `K` KV heads, `H` features of a head, `R` of them rotated, `B` slots of the cache,
//! `S` positions of a slot.

#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
mod element;
mod f32x16;
mod inputs;
mod layer;
#[cfg(target_arch = "x86_64")]
mod online_softmax;
mod scores;
mod scratch;
#[cfg(test)]
mod tests;

pub use inputs::{AttentionShape, KvCache, NewTokens};

use crate::Result;
use crate::backend::GemmBackend;
use bpe_llama_simd::Backend;
use layer::Layer;

/// Computes the attention of new tokens: applies `RoPE`, appends keys and values to the cache, and writes the attention
/// output to `out`, `(M, N * H)`.
///
/// A token attends to its slot up to its own position. The result depends neither on `threads`, the number of threads that
/// may take part, nor on other tokens; see [the crate](crate#backends) for the one exception.
///
/// # Errors
/// [`Error::InvalidArgument`](crate::Error) if shapes do not fit or a position is outside the cache. Nothing is then written.
///
/// # Cost
/// One read of the keys and values for each token, or for several consecutive tokens of a slot together; four operations
/// for each element and query head.
///
/// # Source
/// `RoPE`: Su et al. 2021, arXiv:2104.09864. Grouped queries: Ainslie et al. 2023, arXiv:2305.13245. Soft cap: Gemma Team
/// 2024, arXiv:2408.00118.
pub fn attend(
    shape: AttentionShape,
    tokens: NewTokens<'_>,
    cache: KvCache<'_>,
    out: &mut [f32],
    threads: usize,
) -> Result<()> {
    attend_with(Backend::best(), GemmBackend::best(), shape, tokens, cache, out, threads)
}

fn attend_with(
    backend: Backend,
    gemm: GemmBackend,
    shape: AttentionShape,
    tokens: NewTokens<'_>,
    cache: KvCache<'_>,
    out: &mut [f32],
    threads: usize,
) -> Result<()> {
    let layer = Layer { backend, gemm, shape, tokens };
    match cache {
        KvCache::F32(keys, values) => layer.run(keys, values, out, threads),
        KvCache::Bf16(keys, values) => layer.run(keys, values, out, threads),
    }
}

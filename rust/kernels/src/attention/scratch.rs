//! The buffers of one thread, reused from block to block.

#[cfg(target_arch = "x86_64")]
use bpe_llama_simd::f32x16::CacheLine;
use std::ops::Range;

#[derive(Default)]
pub(super) struct Scratch {
    /// The rotated queries, each padded with zeros to whole vectors.
    pub(super) queries: Vec<f32>,
    /// The keys that each query attends to.
    pub(super) attended: Vec<Range<usize>>,
    /// The attention output of each query, padded as `queries`.
    pub(super) output: Vec<f32>,
    /// Scores, then attention weights.
    pub(super) scores: Vec<f32>,
    /// Keys or values widened to float32 and padded.
    pub(super) widened: Vec<f32>,
    /// The queries as tiles.
    #[cfg(target_arch = "x86_64")]
    pub(super) tiles: Vec<CacheLine>,
    /// The values of two keys, interleaved.
    #[cfg(target_arch = "x86_64")]
    pub(super) value_pairs: Vec<u32>,
}

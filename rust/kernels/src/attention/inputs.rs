//! What the caller of `attend` passes.

use crate::{Error, Result};

/// The keys and values of one layer, each `(B, K, S, H)`.
#[derive(Debug)]
pub enum KvCache<'a> {
    /// Float32.
    F32(&'a mut [f32], &'a mut [f32]),
    /// The bits of bfloat16.
    Bf16(&'a mut [u16], &'a mut [u16]),
}

/// The sizes of the attention of a layer and of its cache.
#[derive(Debug, Clone, Copy)]
pub struct AttentionShape {
    /// Query heads, `N`: a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values, `K`.
    pub kv_heads: usize,
    /// Features of a head, `H`.
    pub head_dim: usize,
    /// Positions of a slot, `S`.
    pub capacity: usize,
    /// The sliding window: how many positions a query attends to, its own included. 0 means all.
    pub window: usize,
    /// The soft cap: scores are bounded by `softcap * tanh(score / softcap)`. 0 means no bound.
    pub softcap: f32,
    /// Whether `RoPE` rotates neighbours, feature `2 i` with `2 i + 1`, and not feature `i` with `i + R / 2`.
    pub interleaved: bool,
}

/// The new tokens, row after row.
#[derive(Debug, Clone, Copy)]
pub struct NewTokens<'a> {
    /// Queries, keys and values, `(M, (N + 2K) * H)`.
    pub qkv: &'a [f32],
    /// Cosines of the rotary angles, `(M, R / 2)`.
    pub cos: &'a [f32],
    /// Sines of the rotary angles, `(M, R / 2)`.
    pub sin: &'a [f32],
    /// The slot and the position of each token; a row with `None` is skipped. Earlier positions hold keys and values.
    pub positions: &'a [Option<(usize, usize)>],
}

impl AttentionShape {
    /// Checks the sizes of all operands.
    pub(super) fn check(&self, tokens: &NewTokens<'_>, keys: usize, values: usize, out: usize) -> Result<()> {
        let Self { heads, kv_heads, head_dim, capacity, .. } = *self;
        let NewTokens { qkv, cos, sin, positions } = *tokens;
        let invalid = |message: String| Err(Error::InvalidArgument(message));
        if head_dim == 0 || kv_heads == 0 || heads == 0 || !heads.is_multiple_of(kv_heads) {
            return invalid(format!("{heads} heads of size {head_dim} for {kv_heads} KV heads; expected a multiple"));
        }
        if !self.softcap.is_finite() || self.softcap < 0.0 {
            return invalid(format!("a soft cap of {}; expected a positive number, or 0", self.softcap));
        }
        let rows = positions.len();
        let all_heads = kv_heads.saturating_mul(2).saturating_add(heads);
        if product([all_heads, head_dim, rows]) != Some(qkv.len()) || product([heads, head_dim, rows]) != Some(out) {
            return invalid(format!("{} elements in qkv and {out} in out do not fit {rows} rows", qkv.len()));
        }
        let half = cos.len() / rows.max(1);
        if cos.len() != sin.len() || cos.len() != half * rows || half > head_dim / 2 {
            return invalid(format!("{} cosines and {} sines for {rows} rows", cos.len(), sin.len()));
        }
        let slot_size = product([kv_heads, capacity, head_dim]).unwrap_or(0);
        if keys != values || slot_size == 0 || !keys.is_multiple_of(slot_size) {
            return invalid(format!("{keys} keys and {values} values do not fit slots of {capacity} positions"));
        }
        let slots = keys / slot_size;
        match positions.iter().flatten().find(|(slot, position)| *slot >= slots || *position >= capacity) {
            Some((slot, position)) => invalid(format!(
                "position {position} of slot {slot}; expected one of {slots} slots of {capacity} positions"
            )),
            None => Ok(()),
        }
    }
}

/// Returns the product, unless it overflows.
fn product(sizes: [usize; 3]) -> Option<usize> {
    sizes.into_iter().try_fold(1, usize::checked_mul)
}

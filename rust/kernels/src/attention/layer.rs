//! One layer's attention: `RoPE`, the cache, and blocks of queries for the threads.

#[cfg(target_arch = "x86_64")]
use super::avx512_bf16;
use super::element::Element;
use super::f32x16::KeysAndValues;
use super::inputs::{AttentionShape, NewTokens};
use super::scores::ScoreScale;
use super::scratch::Scratch;
use crate::backend::{GEMV_ROWS, GemmBackend};
use crate::output::atomic_bits;
use crate::{Result, thread_pool};
use bpe_llama_simd::f32x16::{LANES, Portable};
use bpe_llama_simd::{Backend, Kind};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// About how many queries share a read of the keys: those of a group of heads, for one or several tokens.
const BLOCK_QUERIES: usize = 16;

/// The same with AVX-512 BF16: two tiles.
const BLOCK_QUERIES_BF16: usize = 32;

/// Elements of keys that are worth another thread.
const ELEMENTS_PER_THREAD: usize = 1 << 17;

/// Other architectures have no AVX-512 BF16, and no block selects it.
#[cfg(not(target_arch = "x86_64"))]
mod avx512_bf16 {
    pub(super) unsafe fn attend(_: usize, _: super::ScoreScale, _: &[u16], _: &[u16], _: &mut super::Scratch) -> bool {
        unreachable!("not selected on this architecture")
    }
}

pub(super) struct Layer<'a> {
    pub(super) backend: Backend,
    pub(super) gemm: GemmBackend,
    pub(super) shape: AttentionShape,
    pub(super) tokens: NewTokens<'a>,
}

/// Consecutive tokens of a slot that share a read of its keys and values.
struct Block {
    rows: Range<usize>,
    slot: usize,
    /// The position of the first row.
    position: usize,
    avx512_bf16: bool,
}

impl Block {
    /// Returns the row, slot and position that would extend the block.
    fn next(&self) -> (usize, usize, usize) {
        (self.rows.end, self.slot, self.position + self.rows.len())
    }
}

impl Layer<'_> {
    pub(super) fn run<T: Element>(
        &self,
        keys: &mut [T],
        values: &mut [T],
        out: &mut [f32],
        threads: usize,
    ) -> Result<()> {
        let AttentionShape { kv_heads, head_dim, .. } = self.shape;
        self.shape.check(&self.tokens, keys.len(), values.len(), out.len())?;
        self.append(keys, values);
        let (keys, values) = (&*keys, &*values);
        let blocks = self.blocks(self.gemm == GemmBackend::Avx512Bf16 && T::as_bf16(keys).is_some());
        let attended: usize =
            self.tokens.positions.iter().flatten().map(|(_, position)| self.attended(*position).len()).sum();
        let threads = threads.min(attended * kv_heads * head_dim / ELEMENTS_PER_THREAD + 1);
        let (units, next, out) = (blocks.len() * kv_heads, AtomicUsize::new(0), atomic_bits(out));
        thread_pool::run(threads.min(units), &|| {
            let mut scratch = Scratch::default();
            loop {
                let unit = next.fetch_add(1, Ordering::Relaxed);
                let Some(block) = blocks.get(unit / kv_heads) else { break };
                let kv_head = unit % kv_heads;
                let index = |position| self.cache_index(block.slot, kv_head, position);
                let cached = index(self.attended(block.position).start)..index(block.position + block.rows.len());
                self.attend(block, kv_head, &keys[cached.clone()], &values[cached], &mut scratch, out);
            }
        });
        Ok(())
    }

    /// Writes the rotated keys and the values of the new tokens to the cache.
    fn append<T: Element>(&self, keys: &mut [T], values: &mut [T]) {
        let AttentionShape { heads, kv_heads, .. } = self.shape;
        for (row, position) in self.tokens.positions.iter().enumerate() {
            let Some((slot, position)) = *position else { continue };
            for head in 0..kv_heads {
                let to = self.cache_index(slot, head, position)..self.cache_index(slot, head, position + 1);
                self.rotate(row, heads + head, |feature, x| keys[to.start + feature] = T::from_f32(x));
                let value = self.head(row, heads + kv_heads + head);
                values[to].iter_mut().zip(value).for_each(|(to, from)| *to = T::from_f32(*from));
            }
        }
    }

    /// Returns the tokens as blocks of consecutive tokens in one slot; large ones for AVX-512 BF16 if it is `usable`.
    fn blocks(&self, usable: bool) -> Vec<Block> {
        let mut runs: Vec<Block> = Vec::new();
        for (row, position) in self.tokens.positions.iter().enumerate() {
            let Some((slot, position)) = *position else { continue };
            match runs.last_mut() {
                Some(last) if last.next() == (row, slot, position) => last.rows.end += 1,
                _ => runs.push(Block { rows: row..row + 1, slot, position, avx512_bf16: false }),
            }
        }
        let group = self.shape.heads / self.shape.kv_heads;
        let mut blocks = Vec::new();
        for Block { rows, slot, position, .. } in runs {
            let avx512_bf16 = usable && rows.len() > GEMV_ROWS && group <= BLOCK_QUERIES_BF16;
            let most = (if avx512_bf16 { BLOCK_QUERIES_BF16 } else { BLOCK_QUERIES } / group).max(1);
            blocks.extend(rows.clone().step_by(most).map(|row| Block {
                rows: row..(row + most).min(rows.end),
                slot,
                position: position + row - rows.start,
                avx512_bf16,
            }));
        }
        blocks
    }

    /// Returns where the cache holds a position of a slot for one head.
    fn cache_index(&self, slot: usize, kv_head: usize, position: usize) -> usize {
        ((slot * self.shape.kv_heads + kv_head) * self.shape.capacity + position) * self.shape.head_dim
    }

    /// Returns the positions that a query attends to.
    fn attended(&self, position: usize) -> Range<usize> {
        let first = if self.shape.window > 0 { (position + 1).saturating_sub(self.shape.window) } else { 0 };
        first..position + 1
    }

    /// Returns the features of a head, before rotation. Heads are numbered queries first, then keys, then values.
    fn head(&self, row: usize, head: usize) -> &[f32] {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        &self.tokens.qkv[(row * (heads + 2 * kv_heads) + head) * head_dim..][..head_dim]
    }

    /// Applies `RoPE` to a head, and passes each feature to `put`.
    #[inline(always)]
    fn rotate(&self, row: usize, head: usize, mut put: impl FnMut(usize, f32)) {
        let features = self.head(row, head);
        let half = self.tokens.cos.len() / self.tokens.positions.len();
        let angles = row * half..(row + 1) * half;
        let (cos, sin) = (&self.tokens.cos[angles.clone()], &self.tokens.sin[angles]);
        let mut put_pair = |first: usize, second: usize, (cos, sin): (&f32, &f32)| {
            let (x, y) = (features[first], features[second]);
            put(first, x * cos - y * sin);
            put(second, y * cos + x * sin);
        };
        let pairs = cos.iter().zip(sin).enumerate();
        if self.shape.interleaved {
            pairs.for_each(|(pair, angle)| put_pair(2 * pair, 2 * pair + 1, angle));
        } else {
            pairs.for_each(|(pair, angle)| put_pair(pair, half + pair, angle));
        }
        for (feature, x) in features.iter().enumerate().skip(2 * half) {
            put(feature, *x);
        }
    }

    /// Writes the attention output of a block's queries in the group of one KV head.
    fn attend<T: Element>(
        &self,
        block: &Block,
        kv_head: usize,
        keys: &[T],
        values: &[T],
        scratch: &mut Scratch,
        out: &[AtomicU32],
    ) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let (group, padded_dim) = (heads / kv_heads, head_dim.next_multiple_of(LANES));
        let first = self.attended(block.position).start;
        scratch.queries.clear();
        scratch.queries.resize(block.rows.len() * group * padded_dim, 0.0);
        scratch.attended.clear();
        for (index, query) in scratch.queries.chunks_exact_mut(padded_dim).enumerate() {
            let head = kv_head * group + index % group;
            self.rotate(block.rows.start + index / group, head, |feature, x| query[feature] = x);
            let attended = self.attended(block.position + index / group);
            scratch.attended.push(attended.start - first..attended.end - first);
        }
        scratch.output.clear();
        scratch.output.resize(scratch.queries.len(), 0.0);
        let scale = ScoreScale::new(head_dim, self.shape.softcap);
        let cached = KeysAndValues { head_dim, padded_dim, scale, keys, values };
        let by_bf16 = match (T::as_bf16(keys), T::as_bf16(values)) {
            // SAFETY: blocks select AVX-512 BF16 only where the CPU has it.
            (Some(keys), Some(values)) if block.avx512_bf16 => unsafe {
                avx512_bf16::attend(head_dim, scale, keys, values, scratch)
            },
            _ => false,
        };
        match self.backend.kind() {
            _ if by_bf16 => {}
            // SAFETY: the portable backend needs no CPU feature.
            Kind::Portable => unsafe { cached.attend::<Portable>(scratch) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => unsafe { cached.attend::<Portable>(scratch) },
            // SAFETY: a `Backend` exists only if the CPU has it.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { cached.attend_avx2(scratch) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => unsafe { cached.attend_avx512(scratch) },
        }
        for (index, output) in scratch.output.chunks_exact(padded_dim).enumerate() {
            let head = (block.rows.start + index / group) * heads + kv_head * group + index % group;
            for (bits, x) in out[head * head_dim..][..head_dim].iter().zip(output) {
                bits.store(x.to_bits(), Ordering::Relaxed);
            }
        }
    }
}

//! Attention of new tokens, one or a few of each sequence, over keys and values in a cache.
//!
//! Arithmetic is float32 in an order that the sizes alone fix: a token gathers the same bits on every CPU, for every
//! number of threads, alone or beside others. But where there are instructions for pairs of bfloat16, more than eight
//! tokens of a slot look at a cache of that format by these (`pairs.rs`).
//!
//! Shapes: `M` rows, `N` heads, `K` key-value heads, `H` numbers of a head, `R` rotated ones, `B` slots, `S` columns.

use super::lanes::{LANES, Portable};
use super::layout::TOGETHER;
use super::{Many, cells, crew};
use crate::{Error, Result};
use bpe_llama_simd::{Backend, Kind};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use work::{Number, Scratch, Work};

#[cfg(target_arch = "x86_64")]
mod pairs;
/// Other processors have no such instructions.
#[cfg(not(target_arch = "x86_64"))]
mod pairs {
    pub(crate) unsafe fn gather(_: usize, _: &[u16], _: &[u16], _: &mut super::Scratch) -> bool {
        unreachable!("they are not there")
    }
}
#[cfg(test)]
mod tests;
mod work;

/// Queries, about, that meet a key while it is in the nearest cache: those of a group, for several rows if need be.
const QUERIES: usize = 16;

/// The same by pairs of bfloat16: those of two tiles.
const QUERIES_BY_PAIRS: usize = 32;

/// Numbers of keys, about, that are worth another thread.
const SHARE: usize = 1 << 17;

/// Keys and values of one layer, each `(B, K, S, H)`.
#[derive(Debug)]
pub enum Store<'a> {
    /// Float32.
    F32(&'a mut [f32], &'a mut [f32]),
    /// Bfloat16, as bits.
    Bf16(&'a mut [u16], &'a mut [u16]),
}

/// The sizes of a layer's attention and of the cache.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Query heads, `N`: a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values, `K`.
    pub kv_heads: usize,
    /// Numbers of a head, `H`.
    pub size: usize,
    /// Columns of a slot, `S`.
    pub capacity: usize,
    /// Columns a query looks at, its own included; 0 is all.
    pub window: usize,
}

/// The new tokens' numbers, row after row.
#[derive(Debug, Clone, Copy)]
pub struct Tokens<'a> {
    /// Queries, keys and values, `(M, (N + 2K) * H)`.
    pub qkv: &'a [f32],
    /// Cosines of the angles, `(M, R / 2)`; pairs are half-split.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
    /// The slot and the column of each; rows without are left alone. Columns before it hold keys and values.
    pub places: &'a [Option<(usize, usize)>],
}

/// Turns queries and keys by their angles, writes keys and values to the cache, and writes to `out`, `(M, N * H)`, what
/// each row gathers from its slot up to its own column.
///
/// # Errors
/// [`Error::InvalidArgument`] if shapes do not fit, or a place is not in the cache; then nothing is written.
///
/// # Cost
/// One read of the keys and values for each row, or for several of one slot that follow one another; four operations a
/// number and query head.
pub fn attend(shape: Shape, tokens: Tokens<'_>, store: Store<'_>, out: &mut [f32], threads: usize) -> Result<()> {
    attend_with(Backend::best(), Many::best(), shape, tokens, store, out, threads)
}

fn attend_with(
    backend: Backend,
    many: Many,
    shape: Shape,
    tokens: Tokens<'_>,
    store: Store<'_>,
    out: &mut [f32],
    threads: usize,
) -> Result<()> {
    match store {
        Store::F32(keys, values) => Pass { backend, many, shape, tokens }.run(keys, values, out, threads),
        Store::Bf16(keys, values) => Pass { backend, many, shape, tokens }.run(keys, values, out, threads),
    }
}

struct Pass<'a> {
    backend: Backend,
    many: Many,
    shape: Shape,
    tokens: Tokens<'a>,
}

impl Pass<'_> {
    fn run<T: Number>(&self, keys: &mut [T], values: &mut [T], out: &mut [f32], threads: usize) -> Result<()> {
        let Shape { heads, kv_heads, size, .. } = self.shape;
        self.check(keys.len(), values.len(), out.len())?;
        for (row, place) in self.tokens.places.iter().enumerate() {
            let Some((slot, column)) = *place else { continue };
            for head in 0..kv_heads {
                let to = self.at(slot, head, column)..self.at(slot, head, column + 1);
                self.turned(row, heads + head, |at, number| keys[to.start + at] = T::of(number));
                let value = self.head(row, heads + kv_heads + head);
                values[to].iter_mut().zip(value).for_each(|(to, from)| *to = T::of(*from));
            }
        }
        let (keys, values) = (&*keys, &*values);
        let blocks = self.blocks(self.many == Many::Pairs && T::as_bf16(keys).is_some());
        let seen: usize = self.tokens.places.iter().flatten().map(|place| self.seen(place.1).len()).sum();
        let (units, next, out) = (blocks.len() * kv_heads, AtomicUsize::new(0), cells(out));
        crew::run(threads.min(seen * kv_heads * size / SHARE + 1).min(units), &|| {
            let mut scratch = Scratch::default();
            loop {
                let unit = next.fetch_add(1, Ordering::Relaxed);
                let Some(block) = blocks.get(unit / kv_heads) else { break };
                let kv_head = unit % kv_heads;
                let at = |column| self.at(block.slot, kv_head, column);
                let held = at(self.seen(block.column).start)..at(block.column + block.rows.len());
                self.gather(block, kv_head, &keys[held.clone()], &values[held], &mut scratch, out);
            }
        });
        Ok(())
    }

    /// Returns the rows with a place, in runs of neighbours in one slot; long ones by pairs, if that is possible.
    fn blocks(&self, pairs: bool) -> Vec<Block> {
        let mut runs: Vec<Block> = Vec::new();
        for (row, place) in self.tokens.places.iter().enumerate() {
            let Some((slot, column)) = *place else { continue };
            match runs.last_mut() {
                Some(last) if last.next() == (row, slot, column) => last.rows.end += 1,
                _ => runs.push(Block { rows: row..row + 1, slot, column, by_pairs: false }),
            }
        }
        let group = self.shape.heads / self.shape.kv_heads;
        let mut blocks = Vec::new();
        for Block { rows, slot, column, .. } in runs {
            let by_pairs = pairs && rows.len() > TOGETHER && group <= QUERIES_BY_PAIRS;
            let most = (if by_pairs { QUERIES_BY_PAIRS } else { QUERIES } / group).max(1);
            blocks.extend(rows.clone().step_by(most).map(|row| Block {
                rows: row..(row + most).min(rows.end),
                slot,
                column: column + row - rows.start,
                by_pairs,
            }));
        }
        blocks
    }

    fn check(&self, keys: usize, values: usize, out: usize) -> Result<()> {
        let Shape { heads, kv_heads, size, capacity, .. } = self.shape;
        let Tokens { qkv, cos, sin, places } = self.tokens;
        let wrong = |what: String| Err(Error::InvalidArgument(what));
        if size == 0 || kv_heads == 0 || heads == 0 || !heads.is_multiple_of(kv_heads) {
            return wrong(format!("{heads} heads of {size} numbers on {kv_heads} of keys; expected a multiple"));
        }
        let rows = places.len();
        let all = kv_heads.saturating_mul(2).saturating_add(heads);
        if product([all, size, rows]) != Some(qkv.len()) || product([heads, size, rows]) != Some(out) {
            return wrong(format!("{} numbers in and {out} out do not fit {rows} rows", qkv.len()));
        }
        let half = cos.len() / rows.max(1);
        if cos.len() != sin.len() || cos.len() != half * rows || half > size / 2 {
            return wrong(format!("{} cosines and {} sines for {rows} rows", cos.len(), sin.len()));
        }
        let slot_size = product([kv_heads, capacity, size]).unwrap_or(0);
        if keys != values || slot_size == 0 || !keys.is_multiple_of(slot_size) {
            return wrong(format!("{keys} keys and {values} values are no slots of {capacity} columns"));
        }
        let slots = keys / slot_size;
        match places.iter().flatten().find(|(slot, column)| *slot >= slots || *column >= capacity) {
            Some((slot, column)) => {
                wrong(format!("column {column} of slot {slot}, in a cache of {slots} slots of {capacity} columns"))
            }
            None => Ok(()),
        }
    }

    /// Returns where a head's numbers of one column begin.
    fn at(&self, slot: usize, kv_head: usize, column: usize) -> usize {
        ((slot * self.shape.kv_heads + kv_head) * self.shape.capacity + column) * self.shape.size
    }

    /// Returns the columns that a query at `column` looks at.
    fn seen(&self, column: usize) -> Range<usize> {
        let first = if self.shape.window > 0 { (column + 1).saturating_sub(self.shape.window) } else { 0 };
        first..column + 1
    }

    fn head(&self, row: usize, head: usize) -> &[f32] {
        let Shape { heads, kv_heads, size, .. } = self.shape;
        &self.tokens.qkv[(row * (heads + 2 * kv_heads) + head) * size..][..size]
    }

    /// Puts the numbers of one head, turned by its row's angles.
    #[inline(always)]
    fn turned(&self, row: usize, head: usize, mut put: impl FnMut(usize, f32)) {
        let numbers = self.head(row, head);
        let half = self.tokens.cos.len() / self.tokens.places.len();
        let angles = row * half..(row + 1) * half;
        let (cos, sin) = (&self.tokens.cos[angles.clone()], &self.tokens.sin[angles]);
        for (at, (cos, sin)) in cos.iter().zip(sin).enumerate() {
            let (first, second) = (numbers[at], numbers[half + at]);
            put(at, first * cos - second * sin);
            put(half + at, second * cos + first * sin);
        }
        for (at, number) in numbers.iter().enumerate().skip(2 * half) {
            put(at, *number);
        }
    }

    /// Writes what the queries of a block's rows and one group of heads gather from these keys and values.
    fn gather<T: Number>(
        &self,
        block: &Block,
        kv_head: usize,
        keys: &[T],
        values: &[T],
        scratch: &mut Scratch,
        out: &[AtomicU32],
    ) {
        let Shape { heads, kv_heads, size, .. } = self.shape;
        let (group, width) = (heads / kv_heads, size.next_multiple_of(LANES));
        let first = self.seen(block.column).start;
        scratch.query.clear();
        scratch.query.resize(block.rows.len() * group * width, 0.0);
        scratch.seen.clear();
        for (at, query) in scratch.query.chunks_exact_mut(width).enumerate() {
            self.turned(block.rows.start + at / group, kv_head * group + at % group, |at, number| query[at] = number);
            let seen = self.seen(block.column + at / group);
            scratch.seen.push(seen.start - first..seen.end - first);
        }
        scratch.gathered.clear();
        scratch.gathered.resize(scratch.query.len(), 0.0);
        let work = Work { size, width, keys, values };
        match self.backend.kind() {
            // SAFETY: blocks are by pairs where the instructions are.
            _ if block.by_pairs
                && let Some(keys) = T::as_bf16(keys)
                && let Some(values) = T::as_bf16(values)
                && unsafe { pairs::gather(size, keys, values, scratch) } => {}
            // SAFETY: the portable lanes need no instructions of their own.
            Kind::Portable => unsafe { work.run::<Portable>(scratch) },
            // SAFETY: a `Backend` is only ever one that this CPU has.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { work.run_avx2(scratch) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => unsafe { work.run_avx512(scratch) },
        }
        for (at, gathered) in scratch.gathered.chunks_exact(width).enumerate() {
            let head = (block.rows.start + at / group) * heads + kv_head * group + at % group;
            for (cell, number) in out[head * size..][..size].iter().zip(gathered) {
                cell.store(number.to_bits(), Ordering::Relaxed);
            }
        }
    }
}

/// Rows of a slot, one behind the other, that meet a key together.
struct Block {
    rows: Range<usize>,
    slot: usize,
    /// Of the first row.
    column: usize,
    by_pairs: bool,
}

impl Block {
    /// Returns the row, slot and column that would come next.
    fn next(&self) -> (usize, usize, usize) {
        (self.rows.end, self.slot, self.column + self.rows.len())
    }
}

/// Returns the product, unless it is too large.
fn product(sizes: [usize; 3]) -> Option<usize> {
    sizes.into_iter().try_fold(1, usize::checked_mul)
}

//! Attention of new tokens, one or a few of each sequence, over keys and values in a cache.
//!
//! Arithmetic is float32 in an order that the sizes alone fix: a token gathers the same bits on every CPU, for every
//! number of threads, alone or beside others.
//!
//! Shapes: `M` rows, `N` heads, `K` key-value heads, `H` numbers of a head, `R` rotated ones, `B` slots, `S` columns.

#![allow(clippy::needless_range_loop, reason = "indices into arrays unroll; iterators over them go through memory")]

#[cfg(target_arch = "x86_64")]
use super::avx2::Avx2;
#[cfg(target_arch = "x86_64")]
use super::avx512::Avx512;
use super::crew;
use super::lanes::{LANES, Lanes, Portable, from_bf16};
use crate::cpu::{Kind, Tier};
use crate::sampler::exponential::Scale;
use crate::{Error, Result};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

#[cfg(test)]
mod tests;

/// Keys that all heads of a group look at before the next are read, so that they come from the nearest cache.
const TOGETHER: usize = 32;

/// Queries that meet a key while it is in registers, where these hold 16 sums and more.
const MOST_QUERIES: usize = 4;

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
/// One read of the keys and values for each row, four operations a number and query head of its group.
pub fn attend(shape: Shape, tokens: Tokens<'_>, store: Store<'_>, out: &mut [f32], threads: usize) -> Result<()> {
    attend_with(Tier::best(), shape, tokens, store, out, threads)
}

fn attend_with(
    tier: Tier,
    shape: Shape,
    tokens: Tokens<'_>,
    store: Store<'_>,
    out: &mut [f32],
    threads: usize,
) -> Result<()> {
    match store {
        Store::F32(keys, values) => Pass { tier, shape, tokens }.run(keys, values, out, threads),
        Store::Bf16(keys, values) => Pass { tier, shape, tokens }.run(keys, values, out, threads),
    }
}

/// A number of the cache.
trait Number: Copy + Sync {
    fn of(number: f32) -> Self;

    fn wide(self) -> f32;

    /// Returns the numbers themselves, where they are float32.
    fn as_f32(numbers: &[Self]) -> Option<&[f32]>;
}

impl Number for f32 {
    fn of(number: f32) -> Self {
        number
    }

    fn wide(self) -> f32 {
        self
    }

    fn as_f32(numbers: &[Self]) -> Option<&[f32]> {
        Some(numbers)
    }
}

impl Number for u16 {
    /// Rounds to the nearest bfloat16, of two to the even one.
    fn of(number: f32) -> Self {
        let bits = number.to_bits();
        if number.is_nan() {
            return (bits >> 16) as u16 | 0x40; // its digits may all be in the half that is dropped
        }
        ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) as u16
    }

    fn wide(self) -> f32 {
        from_bf16(self)
    }

    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }
}

struct Pass<'a> {
    tier: Tier,
    shape: Shape,
    tokens: Tokens<'a>,
}

/// What one thread needs to look at the keys of a group of heads.
#[derive(Default)]
struct Scratch {
    /// The group's queries, turned; each padded with zeros to whole lanes.
    query: Vec<f32>,
    scores: Vec<f32>,
    /// Keys or values that are not float32, or not in whole lanes.
    wide: Vec<f32>,
    gathered: Vec<f32>,
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
        let seen: usize = self.tokens.places.iter().flatten().map(|place| self.seen(place.1).len()).sum();
        let groups = Mutex::new(out.chunks_exact_mut(heads / kv_heads * size).enumerate());
        crew::run(threads.min(seen * kv_heads * size / SHARE + 1).min(self.tokens.places.len() * kv_heads), &|| {
            let mut scratch = Scratch::default();
            loop {
                let next = groups.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((group, out)) = next else { break };
                let (row, kv_head) = (group / kv_heads, group % kv_heads);
                if let Some((slot, column)) = self.tokens.places[row] {
                    let seen = self.seen(column);
                    let held = self.at(slot, kv_head, seen.start)..self.at(slot, kv_head, seen.end);
                    self.gather(row, kv_head, &keys[held.clone()], &values[held], &mut scratch, out);
                }
            }
        });
        Ok(())
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

    /// Writes what the queries of one group gather from these keys and values.
    fn gather<T: Number>(
        &self,
        row: usize,
        kv_head: usize,
        keys: &[T],
        values: &[T],
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        let size = self.shape.size;
        let (group, width) = (self.shape.heads / self.shape.kv_heads, size.next_multiple_of(LANES));
        scratch.query.clear();
        scratch.query.resize(group * width, 0.0);
        for (head, query) in scratch.query.chunks_exact_mut(width).enumerate() {
            self.turned(row, kv_head * group + head, |at, number| query[at] = number);
        }
        scratch.gathered.clear();
        scratch.gathered.resize(group * width, 0.0);
        let work = Work { size, width, keys, values };
        match self.tier.kind() {
            // SAFETY: the portable lanes need no instructions of their own.
            Kind::Portable => unsafe { work.run::<Portable>(scratch) },
            // SAFETY: a `Tier` is only ever one that this CPU has.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { work.run_avx2(scratch) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => unsafe { work.run_avx512(scratch) },
        }
        for (out, gathered) in out.chunks_exact_mut(size).zip(scratch.gathered.chunks_exact(width)) {
            out.copy_from_slice(&gathered[..size]);
        }
    }
}

/// Returns the product, unless it is too large.
fn product(sizes: [usize; 3]) -> Option<usize> {
    sizes.into_iter().try_fold(1, usize::checked_mul)
}

/// Keys and values of the columns that a group's queries look at.
struct Work<'a, T> {
    size: usize,
    width: usize,
    keys: &'a [T],
    values: &'a [T],
}

impl<T: Number> Work<'_, T> {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn run_avx2(&self, scratch: &mut Scratch) {
        // SAFETY: this function has what the lanes need.
        unsafe { self.run::<Avx2>(scratch) }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    fn run_avx512(&self, scratch: &mut Scratch) {
        // SAFETY: this function has what the lanes need.
        unsafe { self.run::<Avx512>(scratch) }
    }

    /// Writes to `gathered`, which is all zeros, what each query gathers.
    ///
    /// # Safety
    /// Needs the instructions of the lanes.
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self, scratch: &mut Scratch) {
        let Scratch { query, scores, wide, gathered } = scratch;
        let (count, width) = (self.keys.len() / self.size, self.width);
        let most = if L::REGISTERS < 32 { 1 } else { MOST_QUERIES };
        scores.resize(query.len() / width * count, 0.0);
        for (part, keys) in self.keys.chunks(TOGETHER * self.size).enumerate() {
            let keys = self.widened(keys, wide).as_chunks().0;
            let queries = query.chunks(most * width).zip(scores.chunks_mut(most * count));
            for (queries, scores) in queries {
                let (queries, scores) = (queries.as_chunks().0, &mut scores[part * TOGETHER..]);
                // SAFETY: the caller's promise.
                unsafe {
                    match queries.len() * LANES / width {
                        1 => score::<L, 1>(queries, keys, scores, count),
                        2 => score::<L, 2>(queries, keys, scores, count),
                        3 => score::<L, 3>(queries, keys, scores, count),
                        _ => score::<L, MOST_QUERIES>(queries, keys, scores, count),
                    }
                }
            }
        }
        // Scores are divided by the root of the size as if it were a temperature.
        let temperature = (self.size as f64).sqrt();
        scores.chunks_exact_mut(count).for_each(|scores| soften(scores, temperature));
        for (part, values) in self.values.chunks(TOGETHER * self.size).enumerate() {
            let values = self.widened(values, wide).as_chunks().0;
            let queries = scores.chunks(most * count).zip(gathered.chunks_mut(most * width));
            for (scores, gathered) in queries {
                let (scores, gathered) = (&scores[part * TOGETHER..], gathered.as_chunks_mut().0);
                // SAFETY: the caller's promise.
                unsafe {
                    match gathered.len() * LANES / width {
                        1 => add_shares::<L, 1>(scores, count, values, gathered),
                        2 => add_shares::<L, 2>(scores, count, values, gathered),
                        3 => add_shares::<L, 3>(scores, count, values, gathered),
                        _ => add_shares::<L, MOST_QUERIES>(scores, count, values, gathered),
                    }
                }
            }
        }
    }

    /// Returns the numbers of some columns as float32, each column's in whole lanes.
    #[inline(always)]
    fn widened<'a>(&self, numbers: &'a [T], wide: &'a mut Vec<f32>) -> &'a [f32] {
        if self.width == self.size
            && let Some(numbers) = T::as_f32(numbers)
        {
            return numbers;
        }
        wide.clear();
        wide.resize(numbers.len() / self.size * self.width, 0.0);
        for (wide, numbers) in wide.chunks_exact_mut(self.width).zip(numbers.chunks_exact(self.size)) {
            wide.iter_mut().zip(numbers).for_each(|(wide, number)| *wide = number.wide());
        }
        wide
    }
}

/// Writes the products of `Q` queries with each key, those of a query `count` numbers after those of the one before.
///
/// # Safety
/// Needs the instructions of the lanes.
#[inline(always)]
unsafe fn score<L: Lanes, const Q: usize>(
    queries: &[[f32; LANES]],
    keys: &[[f32; LANES]],
    scores: &mut [f32],
    count: usize,
) {
    let width = queries.len() / Q;
    let fours = keys.chunks_exact(4 * width);
    let rest = fours.remainder().chunks_exact(width);
    let whole = fours.len() * 4;
    for (four, keys) in fours.enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [[L::load(&[0.0; LANES]); 4]; Q];
            for at in 0..width {
                for key in 0..4 {
                    let numbers = L::load(&keys[key * width + at]);
                    for query in 0..Q {
                        sums[query][key] =
                            numbers.multiply_add(L::load(&queries[query * width + at]), sums[query][key]);
                    }
                }
            }
            for query in 0..Q {
                scores[query * count + 4 * four..][..4].copy_from_slice(&L::four_totals(sums[query]));
            }
        }
    }
    for (key, numbers) in rest.enumerate() {
        for query in 0..Q {
            // SAFETY: as above.
            unsafe {
                let mut sum = L::load(&[0.0; LANES]);
                for at in 0..width {
                    sum = L::load(&numbers[at]).multiply_add(L::load(&queries[query * width + at]), sum);
                }
                scores[query * count + whole + key] = sum.total();
            }
        }
    }
}

/// Returns the higher score; NaN is the highest, so that it spoils all shares.
#[inline(always)]
fn higher(a: f32, b: f32) -> f32 {
    if b > a || b.is_nan() { b } else { a }
}

/// Replaces scores by their shares of the sum of all `exp(score / temperature)`.
#[inline(always)]
fn soften(scores: &mut [f32], temperature: f64) {
    let (whole, rest) = scores.as_chunks_mut::<LANES>();
    let mut highest = [f32::NEG_INFINITY; LANES];
    for scores in whole.iter() {
        for lane in 0..LANES {
            highest[lane] = higher(highest[lane], scores[lane]);
        }
    }
    let highest = highest.iter().chain(rest.iter()).copied().fold(f32::NEG_INFINITY, higher);
    let scale = Scale::new(highest, temperature);
    let mut sums = [0.0; LANES];
    for scores in whole.iter_mut() {
        for lane in 0..LANES {
            scores[lane] = scale.weight(scores[lane]);
            sums[lane] += scores[lane];
        }
    }
    for (score, sum) in rest.iter_mut().zip(&mut sums) {
        *score = scale.weight(*score);
        *sum += *score;
    }
    // SAFETY: the portable lanes need no instructions of their own.
    let part = 1.0 / unsafe { Portable::load(&sums).total() };
    for score in scores {
        *score *= part;
    }
}

/// Adds to what each of `Q` queries gathers its share of the values of each column; shares are `count` numbers apart.
///
/// # Safety
/// Needs the instructions of the lanes.
#[inline(always)]
unsafe fn add_shares<L: Lanes, const Q: usize>(
    shares: &[f32],
    count: usize,
    values: &[[f32; LANES]],
    gathered: &mut [[f32; LANES]],
) {
    let width = gathered.len() / Q;
    let whole = width - width % 4;
    for at in (0..whole).step_by(4) {
        // SAFETY: the caller's promise.
        unsafe { add_to::<L, Q, 4>(shares, count, values, gathered, at) };
    }
    for at in whole..width {
        // SAFETY: the caller's promise.
        unsafe { add_to::<L, Q, 1>(shares, count, values, gathered, at) };
    }
}

/// Does so for `N` lanes of each column.
///
/// # Safety
/// Needs the instructions of the lanes.
#[inline(always)]
unsafe fn add_to<L: Lanes, const Q: usize, const N: usize>(
    shares: &[f32],
    count: usize,
    values: &[[f32; LANES]],
    gathered: &mut [[f32; LANES]],
    at: usize,
) {
    let width = gathered.len() / Q;
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[L::load(&[0.0; LANES]); N]; Q];
        for query in 0..Q {
            for lane in 0..N {
                sums[query][lane] = L::load(&gathered[query * width + at + lane]);
            }
        }
        for (column, value) in values.chunks_exact(width).enumerate() {
            for query in 0..Q {
                let share = L::load(&[shares[query * count + column]; LANES]);
                for lane in 0..N {
                    sums[query][lane] = L::load(&value[at + lane]).multiply_add(share, sums[query][lane]);
                }
            }
        }
        for query in 0..Q {
            for lane in 0..N {
                sums[query][lane].store(&mut gathered[query * width + at + lane]);
            }
        }
    }
}

//! Attention of new tokens, one or a few of each sequence, over keys and values in a cache.
//!
//! Arithmetic is float32 in an order that the sizes alone fix: a token gathers the same bits on every CPU, for every
//! number of threads, alone or beside others.
//!
//! Shapes: `M` rows, `N` heads, `K` key-value heads, `H` numbers of a head, `R` rotated ones, `B` slots, `S` columns.

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

/// Keys that all heads of a group look at before the next are read, so that they come from the nearest cache.
const TOGETHER: usize = 32;

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
        let times = |a: usize, b: usize| a.checked_mul(b);
        let width = kv_heads.checked_mul(2).and_then(|both| both.checked_add(heads)).and_then(|all| times(all, size));
        let (given, gathered) =
            (width.and_then(|width| times(width, rows)), times(rows, times(heads, size).unwrap_or(0)));
        if width.is_none() || given != Some(qkv.len()) || gathered != Some(out) {
            return wrong(format!("{} numbers in and {out} out do not fit {rows} rows", qkv.len()));
        }
        let half = cos.len() / rows.max(1);
        if cos.len() != sin.len() || cos.len() != half * rows || half > size / 2 {
            return wrong(format!("{} cosines and {} sines for {rows} rows", cos.len(), sin.len()));
        }
        let slot_size = times(kv_heads, capacity).and_then(|columns| times(columns, size)).unwrap_or(0);
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
        scores.resize(query.len() / width * count, 0.0);
        for (part, keys) in self.keys.chunks(TOGETHER * self.size).enumerate() {
            let keys = self.widened(keys, wide);
            for (query, scores) in query.chunks_exact(width).zip(scores.chunks_exact_mut(count)) {
                // SAFETY: the caller's promise.
                unsafe { score::<L>(query.as_chunks().0, keys.as_chunks().0, &mut scores[part * TOGETHER..]) };
            }
        }
        // Scores are divided by the root of the size as if it were a temperature.
        let temperature = (self.size as f64).sqrt();
        scores.chunks_exact_mut(count).for_each(|scores| soften(scores, temperature));
        for (part, values) in self.values.chunks(TOGETHER * self.size).enumerate() {
            let values = self.widened(values, wide);
            for (scores, gathered) in scores.chunks_exact(count).zip(gathered.chunks_exact_mut(width)) {
                let gathered = gathered.as_chunks_mut().0;
                // SAFETY: the caller's promise.
                unsafe { add_shares::<L>(&scores[part * TOGETHER..], values.as_chunks().0, gathered) };
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

/// Writes the product of a query with each key.
///
/// # Safety
/// Needs the instructions of the lanes.
#[inline(always)]
unsafe fn score<L: Lanes>(query: &[[f32; LANES]], keys: &[[f32; LANES]], scores: &mut [f32]) {
    let width = query.len();
    let fours = keys.chunks_exact(4 * width);
    let rest = fours.remainder().chunks_exact(width);
    let whole = fours.len() * 4;
    for (keys, scores) in fours.zip(scores.as_chunks_mut::<4>().0) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [L::load(&[0.0; LANES]); 4];
            for (at, query) in query.iter().enumerate() {
                let query = L::load(query);
                for (key, sum) in sums.iter_mut().enumerate() {
                    *sum = L::load(&keys[key * width + at]).multiply_add(query, *sum);
                }
            }
            *scores = L::four_totals(sums);
        }
    }
    for (key, score) in rest.zip(&mut scores[whole..]) {
        // SAFETY: as above.
        unsafe {
            let mut sum = L::load(&[0.0; LANES]);
            for (key, query) in key.iter().zip(query) {
                sum = L::load(key).multiply_add(L::load(query), sum);
            }
            *score = sum.total();
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

/// Adds to `gathered` its share of the values of each column.
///
/// # Safety
/// Needs the instructions of the lanes.
#[inline(always)]
unsafe fn add_shares<L: Lanes>(shares: &[f32], values: &[[f32; LANES]], gathered: &mut [[f32; LANES]]) {
    let width = gathered.len();
    let (fours, rest) = gathered.as_chunks_mut::<4>();
    let whole = 4 * fours.len();
    for (at, gathered) in fours.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [L::load(&gathered[0]), L::load(&gathered[1]), L::load(&gathered[2]), L::load(&gathered[3])];
            for (value, share) in values.chunks_exact(width).zip(shares) {
                let share = L::load(&[*share; LANES]);
                for (lanes, sum) in sums.iter_mut().enumerate() {
                    *sum = L::load(&value[4 * at + lanes]).multiply_add(share, *sum);
                }
            }
            for (sum, gathered) in sums.into_iter().zip(gathered) {
                sum.store(gathered);
            }
        }
    }
    for (at, gathered) in rest.iter_mut().enumerate() {
        // SAFETY: as above.
        unsafe {
            let mut sum = L::load(gathered);
            for (value, share) in values.chunks_exact(width).zip(shares) {
                sum = L::load(&value[whole + at]).multiply_add(L::load(&[*share; LANES]), sum);
            }
            sum.store(gathered);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that fails")]
#[allow(clippy::float_cmp, reason = "these are exact")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Returns what each row gathers and what the cache holds then, by definition in float64.
    fn naive(shape: Shape, tokens: Tokens<'_>, keys: &mut [f64], values: &mut [f64], bf16: bool) -> Vec<f64> {
        let Shape { heads, kv_heads, size, capacity, window } = shape;
        let half = tokens.cos.len() / tokens.places.len();
        let stored = |x: f64| if bf16 { f64::from(from_bf16(u16::of(x as f32))) } else { x };
        let head = |row: usize, head: usize, turn: bool| -> Vec<f64> {
            let x = &tokens.qkv[(row * (heads + 2 * kv_heads) + head) * size..][..size];
            let angle = |i: usize| [tokens.cos, tokens.sin].map(|part| f64::from(part[row * half + i % half]));
            (0..size)
                .map(|i| match i {
                    _ if !turn || i >= 2 * half => f64::from(x[i]),
                    _ if i < half => f64::from(x[i]) * angle(i)[0] - f64::from(x[i + half]) * angle(i)[1],
                    _ => f64::from(x[i]) * angle(i)[0] + f64::from(x[i - half]) * angle(i)[1],
                })
                .collect()
        };
        for (row, place) in tokens.places.iter().enumerate() {
            let Some((slot, column)) = *place else { continue };
            for k in 0..kv_heads {
                let at = ((slot * kv_heads + k) * capacity + column) * size;
                for (i, x) in head(row, heads + k, true).into_iter().enumerate() {
                    keys[at + i] = stored(x);
                }
                for (i, x) in head(row, heads + kv_heads + k, false).into_iter().enumerate() {
                    values[at + i] = stored(x);
                }
            }
        }
        let mut out = vec![0.0; tokens.places.len() * heads * size];
        for (row, place) in tokens.places.iter().enumerate() {
            let Some((slot, column)) = *place else { continue };
            for n in 0..heads {
                let query = head(row, n, true);
                let first = if window == 0 { 0 } else { (column + 1).saturating_sub(window) };
                let at = |s: usize| ((slot * kv_heads + n * kv_heads / heads) * capacity + s) * size;
                let product = |s: usize| (0..size).map(|i| query[i] * keys[at(s) + i]).sum::<f64>();
                let shares: Vec<f64> = (first..=column).map(|s| (product(s) / (size as f64).sqrt()).exp()).collect();
                let total: f64 = shares.iter().sum();
                for i in 0..size {
                    out[(row * heads + n) * size + i] =
                        (first..=column).zip(&shares).map(|(s, share)| share / total * values[at(s) + i]).sum();
                }
            }
        }
        out
    }

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_tier_gathers_the_same_bits_and_what_the_definition_says(
            kv_heads in 1_usize..4,
            group in 1_usize..5,
            size in prop_oneof![Just(64), Just(16), Just(128), 2_usize..50],
            rotated in 0_usize..=10,
            window in prop_oneof![Just(0_usize), 1_usize..40],
            columns in prop::collection::vec(prop_oneof![3 => (0_usize..70).prop_map(Some), 1 => Just(None)], 1..4),
            bf16 in any::<bool>(),
            seed in any::<u64>(),
        ) {
            let heads = kv_heads * group;
            let shape = Shape { heads, kv_heads, size, capacity: 70, window };
            let half = size / 2 * rotated / 10;
            // Two rows of one slot, the second right behind the first, and others in slots of their own.
            let mut places: Vec<_> = columns.iter().enumerate().map(|(slot, column)| column.map(|c| (slot, c))).collect();
            if let Some((slot, column)) = places[0] && column + 1 < 70 {
                places.push(Some((slot, column + 1)));
            }
            let rows = places.len();
            let qkv = numbers(rows * (heads + 2 * kv_heads) * size, seed);
            let angles = numbers(rows * half, seed ^ 1);
            let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|angle| (angle.cos(), angle.sin())).unzip();
            let tokens = Tokens { qkv: &qkv, cos: &cos, sin: &sin, places: &places };
            let held = 2 * columns.len() * kv_heads * 70 * size;
            let narrow: Vec<u16> = numbers(held, seed ^ 2).into_iter().map(u16::of).collect();
            let wide: Vec<f32> = narrow.iter().map(|bits| from_bf16(*bits)).collect();
            let mut exact: Vec<f64> = wide.iter().copied().map(f64::from).collect();
            let (exact_keys, exact_values) = exact.split_at_mut(held / 2);
            let expected = naive(shape, tokens, exact_keys, exact_values, bf16);

            let mut first: Option<(Vec<f32>, Vec<f32>)> = None;
            for tier in Tier::available() {
                for threads in [1, 3] {
                    let mut out = vec![0.0; rows * heads * size];
                    let (mut narrow, mut wide) = (narrow.clone(), wide.clone());
                    let store = if bf16 {
                        let (keys, values) = narrow.split_at_mut(held / 2);
                        Store::Bf16(keys, values)
                    } else {
                        let (keys, values) = wide.split_at_mut(held / 2);
                        Store::F32(keys, values)
                    };
                    attend_with(tier, shape, tokens, store, &mut out, threads).unwrap();
                    let found = if bf16 { narrow.iter().map(|bits| from_bf16(*bits)).collect() } else { wide };
                    let near = |found: &[f32], exact: &[f64], tolerance: f64| {
                        found.iter().zip(exact).all(|(found, exact)| (f64::from(*found) - exact).abs() < tolerance)
                    };
                    let tolerance = if bf16 { 2e-2 } else { 1e-5 };
                    prop_assert!(near(&found, &exact, tolerance));
                    prop_assert!(near(&out, &expected, tolerance));
                    let (held, gathered) = first.get_or_insert((found.clone(), out.clone()));
                    prop_assert_eq!(&*held, &found);
                    prop_assert_eq!(&*gathered, &out);
                }
            }
        }
    }

    #[test]
    fn large_scores_give_all_to_the_highest_and_broken_numbers_stay_broken() {
        let shape = Shape { heads: 1, kv_heads: 1, size: 2, capacity: 3, window: 0 };
        let gather = |query: f32| {
            let (mut keys, mut values) = ([1e20, 0.0, 2e20, 0.0, 0.0, 0.0], [5.0, 1.0, 7.0, 2.0, 0.0, 0.0]);
            let qkv = [query, 0.0, -3e20, 0.0, 9.0, 9.0];
            let tokens = Tokens { qkv: &qkv, cos: &[], sin: &[], places: &[Some((0, 2))] };
            let mut out = [0.0; 2];
            attend(shape, tokens, Store::F32(&mut keys, &mut values), &mut out, 1).unwrap();
            out
        };
        assert_eq!(gather(1e10), [7.0, 2.0]);
        assert_eq!(gather(-1e10), [9.0, 9.0]);
        assert!(gather(f32::NAN).iter().all(|x| x.is_nan()));
        assert!(gather(1e30).iter().all(|x| x.is_nan()));
        for broken in 0..20 {
            let (mut keys, mut values) = ([1.0; 40], [1.0; 40]);
            keys[2 * broken] = f32::NAN;
            let tokens = Tokens { qkv: &[1.0; 6], cos: &[], sin: &[], places: &[Some((0, 20))] };
            let (mut keys, mut values) =
                ([keys.as_slice(), &[1.0; 2]].concat(), [values.as_mut_slice(), &mut [1.0; 2]].concat());
            let mut out = [0.0; 2];
            attend(Shape { capacity: 21, ..shape }, tokens, Store::F32(&mut keys, &mut values), &mut out, 1).unwrap();
            assert!(out.iter().all(|x| x.is_nan()), "{broken}");
        }
    }

    #[test]
    fn wrong_shapes_and_places_are_refused() {
        let shape = Shape { heads: 2, kv_heads: 1, size: 2, capacity: 3, window: 0 };
        let refused = |shape: Shape, qkv: usize, half: usize, place: (usize, usize), held: usize| {
            let (mut keys, mut values) = (vec![0.0; held], vec![0.0; held]);
            let (qkv, angles) = (vec![0.0; qkv], vec![0.0; half]);
            let tokens = Tokens { qkv: &qkv, cos: &angles, sin: &angles, places: &[Some(place)] };
            let store = Store::F32(&mut keys, &mut values);
            attend(shape, tokens, store, &mut [0.0; 4], 1).unwrap_err().to_string()
        };
        assert!(refused(shape, 7, 1, (0, 0), 6).contains("7 numbers in"));
        assert!(refused(shape, 8, 2, (0, 0), 6).contains("2 cosines"));
        assert!(refused(shape, 8, 1, (0, 3), 6).contains("column 3 of slot 0"));
        assert!(refused(shape, 8, 1, (1, 0), 6).contains("column 0 of slot 1"));
        assert!(refused(shape, 8, 1, (0, 0), 7).contains("7 keys"));
        assert!(refused(Shape { kv_heads: 0, ..shape }, 8, 1, (0, 0), 6).contains("2 heads of 2 numbers on 0"));
        let huge = Shape { heads: 1 << 32, size: 1 << 32, ..shape };
        assert!(refused(huge, 8, 1, (0, 0), 6).contains("do not fit"));
        let none = Tokens { qkv: &[], cos: &[], sin: &[], places: &[] };
        assert!(attend(huge, none, Store::F32(&mut [], &mut []), &mut [], 1).is_err());
    }
}

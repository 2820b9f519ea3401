//! What queries gather from keys and values: scores, shares, sums.

#![allow(clippy::needless_range_loop, reason = "indices into arrays unroll; iterators over them go through memory")]

#[cfg(target_arch = "x86_64")]
use super::super::avx2::Avx2;
#[cfg(target_arch = "x86_64")]
use super::super::avx512::Avx512;
#[cfg(target_arch = "x86_64")]
use super::super::lanes::Sixteen;
use super::super::lanes::{LANES, Lanes, Portable, from_bf16};
use bpe_llama_simd::exp::Scale;
use std::ops::Range;

/// Keys that all queries look at before the next are read, so that they come from the nearest cache.
const TOGETHER: usize = 32;

/// Queries that meet a key while it is in registers, where these hold 16 sums and more.
const MOST_QUERIES: usize = 4;

/// A number of the cache.
pub(super) trait Number: Copy + Sync {
    fn of(number: f32) -> Self;

    fn wide(self) -> f32;

    /// Returns the numbers themselves, where they are float32.
    fn as_f32(numbers: &[Self]) -> Option<&[f32]>;

    /// Returns the bits, where they are bfloat16.
    fn as_bf16(numbers: &[Self]) -> Option<&[u16]>;
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

    fn as_bf16(_: &[Self]) -> Option<&[u16]> {
        None
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

    fn as_bf16(numbers: &[Self]) -> Option<&[u16]> {
        Some(numbers)
    }
}

/// What one thread needs to look at the keys of a block and a group of heads.
#[derive(Default)]
pub(super) struct Scratch {
    /// The queries, turned; each padded with zeros to whole lanes.
    pub(super) query: Vec<f32>,
    /// Which of the keys and values each looks at.
    pub(super) seen: Vec<Range<usize>>,
    scores: Vec<f32>,
    /// Keys or values that are not float32, or not in whole lanes.
    wide: Vec<f32>,
    /// The queries in tiles.
    #[cfg(target_arch = "x86_64")]
    pub(super) lanes: Vec<Sixteen>,
    /// Values of two keys side by side.
    #[cfg(target_arch = "x86_64")]
    pub(super) pairs: Vec<u32>,
    pub(super) gathered: Vec<f32>,
}

/// Keys and values of the columns that a group's queries look at.
pub(super) struct Work<'a, T> {
    pub(super) size: usize,
    /// Numbers of a query: the size, in whole lanes.
    pub(super) width: usize,
    pub(super) keys: &'a [T],
    pub(super) values: &'a [T],
}

impl<T: Number> Work<'_, T> {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn run_avx2(&self, scratch: &mut Scratch) {
        // SAFETY: this function has what the lanes need.
        unsafe { self.run::<Avx2>(scratch) }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) fn run_avx512(&self, scratch: &mut Scratch) {
        // SAFETY: this function has what the lanes need.
        unsafe { self.run::<Avx512>(scratch) }
    }

    /// Writes to `gathered`, which is all zeros, what each query gathers.
    ///
    /// # Safety
    /// Needs the instructions of the lanes.
    #[inline(always)]
    pub(super) unsafe fn run<L: Lanes>(&self, scratch: &mut Scratch) {
        let Scratch { query, seen, scores, wide, gathered, .. } = scratch;
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
        for (scores, seen) in scores.chunks_exact_mut(count).zip(seen.iter()) {
            soften(&mut scores[seen.clone()], temperature);
        }
        for (part, values) in self.values.chunks(TOGETHER * self.size).enumerate() {
            let values = self.widened(values, wide).as_chunks().0;
            let columns = part * TOGETHER..part * TOGETHER + values.len() * LANES / width;
            let queries = scores.chunks(most * count).zip(gathered.chunks_mut(most * width)).zip(seen.chunks(most));
            for ((scores, gathered), seen) in queries {
                let gathered = gathered.as_chunks_mut().0;
                if seen.iter().any(|seen| seen.start > columns.start || seen.end < columns.end) {
                    // Each its own: what it does not look at may be no number, which a share of 0 does not hide.
                    for (query, seen) in seen.iter().enumerate() {
                        let own = seen.start.max(columns.start)..seen.end.min(columns.end);
                        if own.is_empty() {
                            continue;
                        }
                        let gathered = &mut gathered[query * width / LANES..][..width / LANES];
                        let of = |column| (column - columns.start) * width / LANES;
                        let values = &values[of(own.start)..of(own.end)];
                        let shares = &scores[query * count..][own];
                        // SAFETY: the caller's promise.
                        unsafe { add_shares::<L, 1>(shares, count, values, gathered) };
                    }
                    continue;
                }
                let shares = &scores[columns.start..];
                // SAFETY: the caller's promise.
                unsafe {
                    match seen.len() {
                        1 => add_shares::<L, 1>(shares, count, values, gathered),
                        2 => add_shares::<L, 2>(shares, count, values, gathered),
                        3 => add_shares::<L, 3>(shares, count, values, gathered),
                        _ => add_shares::<L, MOST_QUERIES>(shares, count, values, gathered),
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
    let queries: [&[[f32; LANES]]; Q] = std::array::from_fn(|query| &queries[query * width..][..width]);
    let fours = keys.chunks_exact(4 * width);
    let rest = fours.remainder().chunks_exact(width);
    let whole = fours.len() * 4;
    for (four, keys) in fours.enumerate() {
        let keys: [&[[f32; LANES]]; 4] = std::array::from_fn(|key| &keys[key * width..][..width]);
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [[L::load(&[0.0; LANES]); 4]; Q];
            for at in 0..width {
                for key in 0..4 {
                    let numbers = L::load(&keys[key][at]);
                    for query in 0..Q {
                        sums[query][key] = numbers.multiply_add(L::load(&queries[query][at]), sums[query][key]);
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
                for (numbers, query) in numbers.iter().zip(queries[query]) {
                    sum = L::load(numbers).multiply_add(L::load(query), sum);
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
    let mut all = sums; // sums themselves stay in registers
    for (score, sum) in rest.iter_mut().zip(&mut all) {
        *score = scale.weight(*score);
        *sum += *score;
    }
    // SAFETY: the portable lanes need no instructions of their own.
    let part = 1.0 / unsafe { Portable::load(&all).total() };
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
    let columns = values.len() / width;
    let shares: [&[f32]; Q] = std::array::from_fn(|query| &shares[query * count..][..columns]);
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[L::load(&[0.0; LANES]); N]; Q];
        for query in 0..Q {
            for lane in 0..N {
                sums[query][lane] = L::load(&gathered[query * width + at + lane]);
            }
        }
        for (column, value) in (0..columns).zip(values.chunks_exact(width)) {
            let value = &value[at..][..N];
            for query in 0..Q {
                let share = L::load(&[shares[query][column]; LANES]);
                for lane in 0..N {
                    sums[query][lane] = L::load(&value[lane]).multiply_add(share, sums[query][lane]);
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

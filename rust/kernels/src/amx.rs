//! Products in the matrix unit of some processors, Intel's AMX.
//!
//! The unit multiplies bfloat16 and sums in float32. A float32 is the sum of three bfloat16, its parts, so products of
//! parts make the product: all three of a number of the input with a weight that is a bfloat16 itself, and with one that
//! is not, the six that matter, which leaves an error below 2^-25 of the product: less than rounding it to float32.
//! Infinite numbers are no sum of parts, and give NaN; subnormal ones count as zero.
//!
//! Source: Henry, Tang and Heinecke 2019, arXiv:1904.06376.

#![allow(clippy::wildcard_imports, reason = "the intrinsics are half the language of this file")]
#![allow(clippy::needless_range_loop, reason = "indices into arrays unroll; iterators over them go through memory")]

use super::lanes::{LANES, Sixteen, from_bf16};
use super::layout::{Batch, ROWS_IN_UNIT as ROWS};
use super::tiles::{self, Parts, STEP, TILE, ZERO, load, there, upper_halves};
use super::{Task, Weights};
use bpe_llama_simd::prefetch::prefetch_l2;
use std::arch::x86_64::*;
use std::cell::Cell;
use std::ops::Range;
use std::sync::LazyLock;
use unit::{Amx, Rows, Unit};

mod unit;

/// Bytes of vectors, about, that meet some rows before they meet the next: the second-level cache keeps them.
const TOGETHER: usize = 3 << 18;
/// Parts of a float32.
const PARTS: usize = 3;

/// Returns whether this processor has the unit, and the system lets us use it.
pub(crate) fn is_there() -> bool {
    static THERE: LazyLock<bool> = LazyLock::new(|| {
        /// In `edx` of leaf 7: bfloat16 in tiles, and tiles.
        const UNIT: u32 = 1 << 22 | 1 << 24;
        /// Asks for the use of a part of the processor's state, here that of the tiles.
        const ARCH_REQ_XCOMP_PERM: i32 = 0x1023;
        const XFEATURE_XTILEDATA: i32 = 18;
        // SAFETY: the call reads and writes no memory; systems and sandboxes that do not know it refuse.
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && __cpuid_count(7, 0).edx & UNIT == UNIT
            && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) } == 0
    });
    *THERE
}

/// Appends the tiles of a batch, of three parts.
///
/// # Safety
/// [`is_there`], or in tests the vector instructions alone.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) unsafe fn lay_out(x: &[f32], columns: usize, lanes: &mut Vec<Sixteen>) {
    // SAFETY: the instructions are enabled here.
    unsafe { tiles::lay_out::<Split, PARTS>(x, columns, lanes) };
}

/// Weights in some format, and how a step's become parts: 16 words, of two columns each.
trait Format: Copy {
    /// Parts that a weight has: 1, whose others are not looked at, or [`PARTS`].
    const COUNT: usize;
    /// Bytes of [`STEP`] weights.
    const LINE: usize;
    /// Whether the unit can read rows where they are.
    const AS_IT_IS: bool = false;

    /// # Safety
    /// The CPU has AVX-512 F, BW and VL, and each bit in `there` a weight at `place` and after.
    unsafe fn parts(self, place: usize, there: u32) -> [__m512i; PARTS];
}

/// Takes float32 apart: the lower halves of the parts are zeros.
#[inline(always)]
unsafe fn split(numbers: [__m512; 2]) -> [[__m512; 2]; PARTS] {
    let mut parts = [numbers; PARTS];
    // SAFETY: the caller has AVX-512 F.
    unsafe {
        let mut rest = numbers;
        for part in 0..PARTS - 1 {
            for half in 0..2 {
                let near = _mm512_add_epi32(_mm512_castps_si512(rest[half]), _mm512_set1_epi32(1 << 15));
                parts[part][half] = _mm512_castsi512_ps(_mm512_and_si512(near, _mm512_set1_epi32(-1 << 16)));
                rest[half] = _mm512_sub_ps(rest[half], parts[part][half]);
            }
        }
        // What is left has no more digits than a part.
        parts[PARTS - 1] = rest;
    }
    parts
}

struct Split;

impl Parts<PARTS> for Split {
    #[inline(always)]
    unsafe fn of(low: __m512, high: __m512) -> [__m512i; PARTS] {
        // SAFETY: the caller's promise.
        unsafe {
            let parts = split([low, high]);
            let mut words = [_mm512_setzero_si512(); PARTS];
            for part in 0..PARTS {
                let [low, high] = parts[part];
                words[part] = upper_halves(_mm512_castps_si512(low), _mm512_castps_si512(high));
            }
            words
        }
    }
}

#[derive(Clone, Copy)]
struct F32<'a>(&'a [f32]);

impl Format for F32<'_> {
    const COUNT: usize = PARTS;
    const LINE: usize = 4 * STEP;

    #[inline(always)]
    unsafe fn parts(self, place: usize, there: u32) -> [__m512i; PARTS] {
        // SAFETY: the caller's promise.
        unsafe {
            let [low, high] = load(self.0.as_ptr().add(place), there);
            Split::of(low, high)
        }
    }
}

#[derive(Clone, Copy)]
struct Bf16<'a>(&'a [u16]);

impl Format for Bf16<'_> {
    const COUNT: usize = 1;
    const LINE: usize = 2 * STEP;
    const AS_IT_IS: bool = true;

    #[inline(always)]
    unsafe fn parts(self, place: usize, there: u32) -> [__m512i; PARTS] {
        // SAFETY: the caller's promise.
        unsafe { [_mm512_maskz_loadu_epi16(there, self.0.as_ptr().add(place).cast()); PARTS] }
    }
}

#[derive(Clone, Copy)]
struct Int8<'a>(&'a [i8]);

impl Format for Int8<'_> {
    const COUNT: usize = 1;
    const LINE: usize = STEP;

    #[inline(always)]
    unsafe fn parts(self, place: usize, there: u32) -> [__m512i; PARTS] {
        // SAFETY: the caller's promise.
        unsafe {
            let codes = _mm512_castsi512_si256(_mm512_maskz_loadu_epi8(u64::from(there), self.0.as_ptr().add(place)));
            let low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(codes)));
            let high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256::<1>(codes)));
            [upper_halves(_mm512_castps_si512(low), _mm512_castps_si512(high)); PARTS]
        }
    }
}

#[derive(Clone, Copy)]
struct Int4<'a> {
    codes: &'a [u8],
    pairs: &'a [[u16; 2]],
    /// A group has 2 to so many columns; it is whole steps.
    group: u32,
}

impl Format for Int4<'_> {
    const COUNT: usize = PARTS;
    const LINE: usize = STEP / 2;

    #[inline(always)]
    unsafe fn parts(self, place: usize, there: u32) -> [__m512i; PARTS] {
        // SAFETY: the caller's promise.
        unsafe {
            let there = there as u16; // all or none
            let [scale, offset] = self.pairs[place >> self.group].map(|bits| _mm512_set1_ps(from_bf16(bits)));
            let codes = _mm_maskz_loadu_epi8(there, self.codes.as_ptr().add(place / 2).cast());
            let codes = _mm512_cvtepu8_epi32(codes);
            let mut numbers = [scale; 2];
            for (half, code) in
                [_mm512_and_si512(codes, _mm512_set1_epi32(15)), _mm512_srli_epi32::<4>(codes)].into_iter().enumerate()
            {
                let code = _mm512_sub_ps(_mm512_cvtepi32_ps(code), _mm512_set1_ps(8.0));
                numbers[half] = _mm512_maskz_mov_ps(there, _mm512_fmadd_ps(code, scale, offset));
            }
            let parts = split(numbers);
            let mut words = [_mm512_setzero_si512(); PARTS];
            for part in 0..PARTS {
                let [even, odd] = parts[part];
                let even = _mm512_srli_epi32::<16>(_mm512_castps_si512(even));
                words[part] = _mm512_or_si512(even, _mm512_castps_si512(odd));
            }
            words
        }
    }
}

thread_local! {
    /// Rows as parts; kept, as new memory costs more than what is written there.
    static KEPT: Cell<Vec<Sixteen>> = const { Cell::new(Vec::new()) };
}

/// Computes some rows.
///
/// # Safety
/// [`is_there`], or in tests the vector instructions alone; and the vectors are laid out as tiles.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) unsafe fn run(task: &Task<'_>, rows: Range<usize>) {
    #[cfg(test)]
    if !is_there() {
        // SAFETY: the caller's promise.
        return unsafe { run_in::<unit::Emulated>(task, rows) };
    }
    // SAFETY: as above.
    unsafe { run_in::<Amx>(task, rows) };
}

/// # Safety
/// As of [`run`].
#[inline(always)]
unsafe fn run_in<U: Unit>(task: &Task<'_>, rows: Range<usize>) {
    // SAFETY: the caller's promise.
    unsafe {
        match task.matrix.weights {
            Weights::F32(weights) => sweep::<U, _>(task, F32(weights), weights.as_ptr().cast(), rows, None),
            Weights::Bf16(weights) => sweep::<U, _>(task, Bf16(weights), weights.as_ptr().cast(), rows, None),
            Weights::Int8(codes, scales) => {
                sweep::<U, _>(task, Int8(codes), codes.as_ptr().cast(), rows, Some(scales));
            }
            Weights::Int4(codes, pairs) => {
                let group = (2 * codes.len() / pairs.len().max(1)).ilog2();
                sweep::<U, _>(task, Int4 { codes, pairs, group }, codes.as_ptr(), rows, None);
            }
        }
    }
}

/// # Safety
/// As of [`run`].
#[inline(always)]
unsafe fn sweep<U: Unit, F: Format>(
    task: &Task<'_>,
    format: F,
    start: *const u8,
    rows: Range<usize>,
    scales: Option<&[f32]>,
) {
    let mut staged = KEPT.take();
    let steps = task.matrix.columns.div_ceil(STEP);
    // Where several batches meet the same rows, all steps are kept.
    let kept = if task.batches.len() > 1 { steps } else { 2 };
    staged.resize(kept * F::COUNT * 2 * TILE, ZERO);
    // SAFETY: the caller's promise.
    let mut unit = unsafe { U::new() };
    let together = (TOGETHER / (steps * PARTS * 2 * TILE * size_of::<Sixteen>())).max(1);
    for batches in task.batches.chunks(together) {
        for first in rows.clone().step_by(ROWS) {
            let rows = first..(first + ROWS).min(rows.end);
            for (turn, batch) in batches.iter().enumerate() {
                let (rows, fresh) = (rows.clone(), turn == 0);
                let mut pass = Pass { task, format, start, rows, batch, staged: &mut staged, fresh };
                // SAFETY: the caller's promise.
                unsafe {
                    pass.run(&mut unit);
                    pass.put(&mut unit, scales);
                }
            }
        }
    }
    KEPT.set(staged);
}

/// Up to [`ROWS`] rows and a batch that they meet.
struct Pass<'a, F> {
    task: &'a Task<'a>,
    format: F,
    /// Where the weights begin.
    start: *const u8,
    rows: Range<usize>,
    batch: &'a Batch,
    /// The rows' parts; of two steps or more, in turns.
    staged: &'a mut [Sixteen],
    /// Whether these rows meet their first batch.
    fresh: bool,
}

impl<F: Format> Pass<'_, F> {
    /// Returns where a weight is.
    fn address(&self, place: usize) -> *const u8 {
        self.start.wrapping_add(place * F::LINE / STEP)
    }

    /// Sums the products.
    ///
    /// # Safety
    /// As of [`run`].
    #[inline(always)]
    unsafe fn run(&mut self, unit: &mut impl Unit) {
        let tiles = self.batch.count.div_ceil(LANES);
        let vectors = self.task.lanes[self.batch.lanes.clone()].chunks_exact(PARTS * tiles * TILE);
        unit.clear();
        // The next rows are asked for a little after each of a step's 3 or 6 sums.
        let ahead = self.address(self.rows.end * self.task.matrix.columns);
        let lines = (ROWS * F::LINE).div_ceil(64 * 3 * F::COUNT.div_ceil(2));
        // SAFETY: the caller's promise.
        let mut rows = unsafe { self.stage(0) };
        for (step, vectors) in vectors.enumerate() {
            let mut next = rows;
            if (step + 1) * STEP < self.task.matrix.columns {
                // They become parts while the unit is at work.
                // SAFETY: as above.
                next = unsafe { self.stage(step + 1) };
            }
            let mut ahead = ahead.wrapping_add(step * ROWS * F::LINE);
            for part in 0..F::COUNT {
                // SAFETY: there they are.
                unsafe { unit.take(rows, part) };
                for vectors in vectors.chunks_exact(tiles * TILE).take(PARTS - part) {
                    unit.add(vectors);
                    if self.fresh {
                        for line in 0..lines {
                            prefetch_l2(ahead.wrapping_add(64 * line));
                        }
                        ahead = ahead.wrapping_add(64 * lines);
                    }
                }
            }
            rows = next;
        }
    }

    /// Returns where the rows of a step are for the unit to read.
    ///
    /// # Safety
    /// As of [`run`].
    #[inline(always)]
    unsafe fn stage(&mut self, step: usize) -> Rows {
        let (format, columns, size) = (self.format, self.task.matrix.columns, F::COUNT * 2 * TILE);
        let first = self.rows.start * columns + step * STEP;
        let whole = self.rows.len() == ROWS && (step + 1) * STEP <= columns;
        if F::AS_IT_IS && whole && self.task.batches.len() == 1 {
            let first = self.address(first);
            return Rows { first, second: first.wrapping_add(TILE * 2 * columns), stride: 2 * columns };
        }
        let place = step % (self.staged.len() / size) * size;
        let staged = &mut self.staged[place..place + size];
        // SAFETY: the caller's promise; each row has the columns that are there.
        unsafe {
            if self.fresh && whole {
                for row in 0..ROWS {
                    stage(format, first + row * columns, u32::MAX, row, staged);
                }
            } else if self.fresh {
                for row in 0..ROWS {
                    let there = if row < self.rows.len() { there(columns - step * STEP) } else { 0 };
                    stage(format, first + row.min(self.rows.len() - 1) * columns, there, row, staged);
                }
            }
        }
        Rows { first: staged.as_ptr().cast(), second: staged[TILE..].as_ptr().cast(), stride: 64 }
    }

    /// Writes the sums, or adds them, to where they belong.
    ///
    /// # Safety
    /// As of [`run`].
    #[inline(always)]
    unsafe fn put(&self, unit: &mut impl Unit, scales: Option<&[f32]>) {
        let mut sums = [ZERO; 4 * TILE];
        unit.sums(&mut sums);
        for (at, tile) in sums.as_chunks_mut().0.iter_mut().enumerate() {
            let (vectors, rows) = (at / 2 * LANES..self.batch.count, at % 2 * TILE..self.rows.len());
            if vectors.is_empty() || rows.is_empty() {
                continue;
            }
            let row = self.rows.start + rows.start;
            let out = self.task.out;
            let place = (self.batch.first + vectors.start) * out.width + self.task.offset + row;
            let shape = (rows.len().min(TILE), vectors.len().min(TILE));
            // SAFETY: the caller's promise, and these rows are this thread's.
            unsafe { out.put_tile(place, shape, tile, scales.map(|scales| &scales[row..])) };
        }
    }
}

/// Writes the parts of one row's columns to where the unit reads them.
///
/// # Safety
/// As of [`Format::parts`].
#[inline(always)]
unsafe fn stage<F: Format>(format: F, place: usize, there: u32, row: usize, staged: &mut [Sixteen]) {
    // SAFETY: the caller's promise.
    unsafe {
        let parts = format.parts(place, there);
        for (part, words) in parts.iter().take(F::COUNT).enumerate() {
            _mm512_store_si512(staged[part * 2 * TILE + row].0.as_mut_ptr().cast(), *words);
        }
    }
}

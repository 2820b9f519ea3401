//! The kernel: 32 weight rows times a panel of up to 32 activation rows.

#[cfg(test)]
use super::emulated::Emulated;
use super::terms::{Bf16, Int4, Int8, TERMS, WeightTerms};
use super::tile_registers::{Amx, TileRegisters, WeightTiles};
use crate::matmul::gemm::tile::{self, TILE_COLUMNS, TILE_ROWS, column_mask};
use crate::matmul::task::{Panel, Task};
use crate::matmul::weights::Weights;
#[cfg(test)]
use bpe_llama_simd::Tier;
use bpe_llama_simd::f32x16::{CacheLine, LANES};
use bpe_llama_simd::prefetch::prefetch_l2;
use std::arch::x86_64::*;
use std::cell::Cell;
use std::ops::Range;

/// Weight rows of the kernel: two tiles.
const KERNEL_ROWS: usize = 2 * TILE_ROWS;

/// Bytes of packed activations that stay in the second-level cache while several weight rows are multiplied with them.
const CACHED_BYTES: usize = 3 << 18;

thread_local! {
    /// Staged weights; reused, as allocating memory costs more than filling it.
    static BUFFER: Cell<Vec<CacheLine>> = const { Cell::new(Vec::new()) };
}

/// Multiplies some weight rows with all panels.
///
/// # Safety
/// The CPU has AMX, in tests AVX-512 alone; and the panels are packed by [`pack`](super::pack).
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) unsafe fn run(task: &Task<'_>, rows: Range<usize>) {
    #[cfg(test)]
    if !Tier::Amx.is_used() {
        // SAFETY: the caller's promise.
        return unsafe { run_in::<Emulated>(task, rows) };
    }
    // SAFETY: as above.
    unsafe { run_in::<Amx>(task, rows) };
}

/// # Safety
/// As for [`run`].
#[inline(always)]
unsafe fn run_in<A: TileRegisters>(task: &Task<'_>, rows: Range<usize>) {
    // SAFETY: the caller's promise.
    unsafe {
        match task.matrix.weights {
            Weights::Bf16(weights) => sweep::<A, _>(task, Bf16(weights), weights.as_ptr().cast(), rows, None),
            Weights::Int8(codes, scales) => {
                sweep::<A, _>(task, Int8(codes), codes.as_ptr().cast(), rows, Some(scales));
            }
            Weights::Int4(codes, scales) => {
                let group_log2 = (2 * codes.len() / scales.len().max(1)).ilog2();
                sweep::<A, _>(task, Int4 { codes, scales, group_log2 }, codes.as_ptr(), rows, None);
            }
            Weights::F32(_) => unreachable!("`Layout::of` gives float32 another layout"),
        }
    }
}

/// # Safety
/// As for [`run`].
#[inline(always)]
unsafe fn sweep<A: TileRegisters, W: WeightTerms>(
    task: &Task<'_>,
    weights: W,
    start: *const u8,
    rows: Range<usize>,
    scales: Option<&[f32]>,
) {
    let mut staged = BUFFER.take();
    let steps = task.matrix.columns.div_ceil(TILE_COLUMNS);
    // Several panels reuse the staged weights of all steps.
    let staged_steps = if task.panels.len() > 1 { steps } else { 2 };
    staged.resize(staged_steps * W::COUNT * KERNEL_ROWS, CacheLine::ZERO);
    // SAFETY: the caller's promise.
    let mut registers = unsafe { A::new() };
    let cached_panels = (CACHED_BYTES / (steps * TERMS * 2 * TILE_ROWS * size_of::<CacheLine>())).max(1);
    for panels in task.panels.chunks(cached_panels) {
        for first in rows.clone().step_by(KERNEL_ROWS) {
            let rows = first..(first + KERNEL_ROWS).min(rows.end);
            for (index, panel) in panels.iter().enumerate() {
                let (rows, is_first) = (rows.clone(), index == 0);
                let mut kernel = Kernel { task, weights, start, rows, panel, staged: &mut staged, is_first };
                // SAFETY: the caller's promise.
                unsafe {
                    kernel.multiply(&mut registers);
                    kernel.store(&mut registers, scales);
                }
            }
        }
    }
    BUFFER.set(staged);
}

/// Up to [`KERNEL_ROWS`] weight rows and a panel.
struct Kernel<'a, W> {
    task: &'a Task<'a>,
    weights: W,
    /// The address of the first weight of the matrix.
    start: *const u8,
    rows: Range<usize>,
    panel: &'a Panel,
    /// The terms of the rows: of all steps, or of two steps alternately.
    staged: &'a mut [CacheLine],
    /// Whether this panel is the first for these rows, so that they are to be staged and the next rows prefetched.
    is_first: bool,
}

impl<W: WeightTerms> Kernel<'_, W> {
    /// Returns the address of a weight.
    fn address(&self, index: usize) -> *const u8 {
        self.start.wrapping_add(index * W::BYTES / TILE_COLUMNS)
    }

    /// Computes the products, in the accumulators of the tile registers.
    ///
    /// # Safety
    /// As for [`run`].
    #[inline(always)]
    unsafe fn multiply(&mut self, registers: &mut impl TileRegisters) {
        let tiles = self.panel.rows.div_ceil(LANES);
        let x = self.task.packed(self.panel).chunks_exact(TERMS * tiles * TILE_ROWS);
        registers.clear();
        // The prefetches of the next rows are spread over the 3 or 6 products of each step.
        let next_rows = self.address(self.rows.end * self.task.matrix.columns);
        let lines = (KERNEL_ROWS * W::BYTES).div_ceil(64 * 3 * W::COUNT.div_ceil(2));
        // SAFETY: the caller's promise.
        let mut staged = unsafe { self.stage(0) };
        for (step, x) in x.enumerate() {
            let mut next = staged;
            if (step + 1) * TILE_COLUMNS < self.task.matrix.columns {
                // AVX-512 stages the next step while AMX multiplies this one.
                // SAFETY: as above.
                next = unsafe { self.stage(step + 1) };
            }
            let mut ahead = next_rows.wrapping_add(step * KERNEL_ROWS * W::BYTES);
            for term in 0..W::COUNT {
                // SAFETY: `stage` returned where the weights are.
                unsafe { registers.load_weights(staged, term) };
                for x in x.chunks_exact(tiles * TILE_ROWS).take(TERMS - term) {
                    registers.multiply_add(x);
                    if self.is_first {
                        for line in 0..lines {
                            prefetch_l2(ahead.wrapping_add(64 * line));
                        }
                        ahead = ahead.wrapping_add(64 * lines);
                    }
                }
            }
            staged = next;
        }
    }

    /// Stages the weights of a step, unless AMX can load them from the matrix, and returns where they are.
    ///
    /// # Safety
    /// As for [`run`].
    #[inline(always)]
    unsafe fn stage(&mut self, step: usize) -> WeightTiles {
        let (weights, columns, size) = (self.weights, self.task.matrix.columns, W::COUNT * KERNEL_ROWS);
        let first = self.rows.start * columns + step * TILE_COLUMNS;
        let whole = self.rows.len() == KERNEL_ROWS && (step + 1) * TILE_COLUMNS <= columns;
        if W::IN_PLACE && whole && self.task.panels.len() == 1 {
            let first = self.address(first);
            return WeightTiles { first, second: first.wrapping_add(TILE_ROWS * 2 * columns), stride: 2 * columns };
        }
        let start = step % (self.staged.len() / size) * size;
        let staged = &mut self.staged[start..start + size];
        // SAFETY: the caller's promise; the masks select columns of the rows.
        unsafe {
            if self.is_first && whole {
                for row in 0..KERNEL_ROWS {
                    stage_row(weights, first + row * columns, u32::MAX, row, staged);
                }
            } else if self.is_first {
                for row in 0..KERNEL_ROWS {
                    let mask = if row < self.rows.len() { column_mask(columns - step * TILE_COLUMNS) } else { 0 };
                    stage_row(weights, first + row.min(self.rows.len() - 1) * columns, mask, row, staged);
                }
            }
        }
        WeightTiles { first: staged.as_ptr().cast(), second: staged[TILE_ROWS..].as_ptr().cast(), stride: 64 }
    }

    /// Writes or adds the accumulators to the output.
    ///
    /// # Safety
    /// As for [`run`].
    #[inline(always)]
    unsafe fn store(&self, registers: &mut impl TileRegisters, scales: Option<&[f32]>) {
        let mut accumulators = [CacheLine::ZERO; 4 * TILE_ROWS];
        registers.store(&mut accumulators);
        for (index, tile) in accumulators.as_chunks_mut().0.iter_mut().enumerate() {
            let activation_rows = index / 2 * LANES..self.panel.rows;
            let weight_rows = index % 2 * TILE_ROWS..self.rows.len();
            if activation_rows.is_empty() || weight_rows.is_empty() {
                continue;
            }
            let row = self.rows.start + weight_rows.start;
            let index = self.task.output_index(row, self.panel.first_row + activation_rows.start);
            let shape = (weight_rows.len().min(TILE_ROWS), activation_rows.len().min(TILE_ROWS));
            // SAFETY: the caller's promise; this thread alone computes these weight rows.
            unsafe { tile::store(self.task.out, index, shape, tile, scales.map(|scales| &scales[row..])) };
        }
    }
}

/// Writes the terms of one row to where AMX loads them.
///
/// # Safety
/// As for [`WeightTerms::load`].
#[inline(always)]
unsafe fn stage_row<W: WeightTerms>(weights: W, index: usize, mask: u32, row: usize, staged: &mut [CacheLine]) {
    // SAFETY: the caller's promise.
    unsafe {
        let terms = weights.load(index, mask);
        for (term, pairs) in terms.iter().take(W::COUNT).enumerate() {
            _mm512_store_si512(staged[term * KERNEL_ROWS + row].0.as_mut_ptr().cast(), *pairs);
        }
    }
}

//! Packs activations: panels of rows, in the column order that a micro-kernel reads, the same columns of all rows together.

use super::gemm::{amx, avx512_bf16};
#[cfg(target_arch = "x86_64")]
use super::gemv::INT4_BYTES_VECTORS;
use super::gemv::{INT4_BLOCK, INT4_BLOCK_VECTORS, int4_factor};
use super::task::{Layout, Panel};
use super::weights::Matrix;
use crate::backend::{GEMM_ROWS, GEMV_ROWS, GEMV_ROWS_WITHOUT_AVX512, GemmBackend};
use bpe_llama_simd::Backend;
use bpe_llama_simd::f32x16::{CacheLine, LANES, zero_padded};
use std::cell::Cell;

/// Appends the activation rows `x` in a layout.
fn append(layout: Layout, x: &[f32], columns: usize, packed: &mut Vec<CacheLine>) {
    match layout {
        // SAFETY: `Layout::of` chooses this layout only where the CPU has AMX.
        Layout::AmxTiles => unsafe { amx::pack(x, columns, packed) },
        // SAFETY: as above, for AVX-512 BF16.
        Layout::Bf16Tiles => unsafe { avx512_bf16::pack(x, columns, packed) },
        Layout::Sequential => append_strided::<LANES, 1>(x, columns, packed),
        Layout::EvenOdd => append_strided::<{ 2 * LANES }, 2>(x, columns, packed),
        Layout::Int4 => append_int4(x, columns, packed, write_int4),
        #[cfg(target_arch = "x86_64")]
        Layout::Int4Bytes => append_int4(x, columns, packed, write_int4_bytes),
    }
}

/// Appends, for each `N` columns and each start below `STRIDE`, every `STRIDE`th column of all rows.
#[inline(always)]
fn append_strided<const N: usize, const STRIDE: usize>(x: &[f32], columns: usize, packed: &mut Vec<CacheLine>) {
    for column in (0..columns).step_by(N) {
        for start in 0..STRIDE {
            packed.extend(x.chunks_exact(columns).map(|row| {
                let tail;
                let block = if let Some(block) = row[column..].first_chunk::<N>() {
                    block
                } else {
                    tail = zero_padded(&row[column..]);
                    &tail
                };
                CacheLine(std::array::from_fn(|lane| block[STRIDE * lane + start]))
            }));
        }
    }
}

/// The activations of a block of four-bit weights, rounded to `quantized * step`.
struct Int4Block {
    /// Integers of at most 32,639, whose upper byte, rounded, and lower byte are signed.
    quantized: [f32; INT4_BLOCK],
    /// A power of two; NaN if an activation is infinite or NaN.
    step: f32,
    /// The sums of the eight activations of each lane, before rounding, and after it.
    sums: [f32; LANES],
    quantized_sums: [f32; LANES],
}

impl Int4Block {
    const MOST: f32 = 32_639.0;

    fn new(x: &[f32; INT4_BLOCK]) -> Self {
        // As integers, the bits of magnitudes are ordered as their values.
        let most = x.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7fff_ffff));
        // 2^14 divided by the power of two below the largest magnitude, at most 2^126.
        let exponent = (268 - (most >> 23)).min(253);
        let mut factor = f32::from_bits(exponent << 23);
        if f32::from_bits(most) * factor > Self::MOST {
            factor /= 2.0;
        }
        let finite = most < 0x7f80_0000;
        let mut block = Self {
            quantized: [0.0; INT4_BLOCK],
            step: if finite { 1.0 / factor } else { f32::NAN },
            sums: [0.0; LANES],
            quantized_sums: [0.0; LANES],
        };
        if finite {
            // Adding 1.5 * 2^23 rounds to an integer, ties to even.
            const ROUND: f32 = 12_582_912.0;
            for (quantized, x) in block.quantized.iter_mut().zip(x) {
                *quantized = (x * factor + ROUND) - ROUND;
            }
        }
        for lane in 0..LANES {
            for code in 0..8 {
                block.sums[lane] += x[8 * lane + code];
                block.quantized_sums[lane] += block.quantized[8 * lane + code];
            }
        }
        block
    }
}

/// Appends `N` vectors for each block and row, written by `write(vectors, block)`: the first vector of each row, then the
/// second, and so on.
#[inline(always)]
fn append_int4<const N: usize>(
    x: &[f32],
    columns: usize,
    packed: &mut Vec<CacheLine>,
    write: impl Fn([&mut CacheLine; N], &Int4Block),
) {
    let rows = x.len() / columns;
    for column in (0..columns).step_by(INT4_BLOCK) {
        let first = packed.len();
        packed.resize(first + N * rows, CacheLine::ZERO);
        for (row, x) in x.chunks_exact(columns).enumerate() {
            let x = x[column..].first_chunk().copied().unwrap_or_else(|| zero_padded(&x[column..]));
            let mut vectors = packed[first + row..].iter_mut().step_by(rows);
            let vectors = std::array::from_fn(|_| vectors.next().expect("one line for each vector and row"));
            write(vectors, &Int4Block::new(&x));
        }
    }
}

/// Writes the vectors of [`Layout::Int4`].
fn write_int4(vectors: [&mut CacheLine; INT4_BLOCK_VECTORS], block: &Int4Block) {
    for (code, vector) in vectors.into_iter().enumerate() {
        for lane in 0..LANES {
            vector.0[lane] = match code {
                8 => block.sums[lane],
                9 => -8.0 * block.quantized_sums[lane],
                10 => block.step,
                _ => block.quantized[8 * lane + code] / int4_factor(code),
            };
        }
    }
}

/// Writes the vectors of [`Layout::Int4Bytes`].
#[cfg(target_arch = "x86_64")]
fn write_int4_bytes(vectors: [&mut CacheLine; INT4_BYTES_VECTORS], block: &Int4Block) {
    let mut bytes = [[0u8; INT4_BLOCK / 2]; 4];
    for (index, pair) in block.quantized.as_chunks::<2>().0.iter().enumerate() {
        for odd in 0..2 {
            let [lower, upper] = ((pair[odd] as i32 + 128) as u16).to_le_bytes();
            bytes[odd][index] = upper;
            bytes[2 + odd][index] = lower.wrapping_sub(128);
        }
    }
    let [even_upper, odd_upper, even_lower, odd_lower, offsets, steps, sums] = vectors;
    for (vector, bytes) in [even_upper, odd_upper, even_lower, odd_lower].into_iter().zip(&bytes) {
        for (word, bytes) in vector.0.iter_mut().zip(bytes.as_chunks().0) {
            *word = f32::from_bits(u32::from_le_bytes(*bytes));
        }
    }
    *offsets = CacheLine(block.quantized_sums.map(|sum| f32::from_bits((-8 * sum as i32) as u32)));
    *steps = CacheLine([block.step; LANES]);
    *sums = CacheLine(block.sums);
}

/// Activations packed in every layout that the matrices of a product need.
pub(super) struct PackedActivations {
    pub(super) packed: Vec<CacheLine>,
    panels: Vec<(Layout, Vec<Panel>)>,
}

/// A larger buffer is freed after the product: 8 MiB.
const MAX_REUSED: usize = (8 << 20) / size_of::<CacheLine>();

thread_local! {
    /// The buffer of the last product: allocating one costs more than filling it.
    static BUFFER: Cell<Vec<CacheLine>> = const { Cell::new(Vec::new()) };
}

impl PackedActivations {
    /// Packs the rows of `x`, `(M, columns)`, for the matrices.
    pub(super) fn new(matrices: &[Matrix<'_>], x: &[f32], columns: usize, backend: Backend, gemm: GemmBackend) -> Self {
        let mut packed = BUFFER.take();
        packed.clear();
        let mut activations = Self { packed, panels: Vec::with_capacity(1) };
        for matrix in matrices {
            let layout = Layout::of(&matrix.weights, backend, gemm, x.len() / columns);
            if activations.panels.iter().all(|(other, _)| *other != layout) {
                activations.pack(layout, x, columns, backend);
            }
        }
        activations
    }

    fn pack(&mut self, layout: Layout, x: &[f32], columns: usize, backend: Backend) {
        let (rows, mut first_row, mut panels) = (x.len() / columns, 0, Vec::new());
        while first_row < rows {
            let panel_rows = match rows - first_row {
                left if matches!(layout, Layout::AmxTiles | Layout::Bf16Tiles) => left.min(GEMM_ROWS),
                GEMV_ROWS.. if backend.is_avx512() => GEMV_ROWS,
                left => left.min(GEMV_ROWS_WITHOUT_AVX512),
            };
            let start = self.packed.len();
            append(layout, &x[first_row * columns..][..panel_rows * columns], columns, &mut self.packed);
            panels.push(Panel { first_row, rows: panel_rows, packed: start..self.packed.len() });
            first_row += panel_rows;
        }
        self.panels.push((layout, panels));
    }

    /// Returns the panels of a layout.
    pub(super) fn panels(&self, layout: Layout) -> &[Panel] {
        self.panels.iter().find(|(other, _)| *other == layout).map_or(&[], |(_, panels)| panels)
    }
}

impl Drop for PackedActivations {
    fn drop(&mut self) {
        if self.packed.capacity() <= MAX_REUSED {
            BUFFER.set(std::mem::take(&mut self.packed));
        }
    }
}

//! Packs activations: panels of rows, in the column order that a micro-kernel reads, the same columns of all rows together.

use super::gemm::{amx, avx512_bf16};
use super::gemv::{INT4_BLOCK, INT4_BLOCK_VECTORS, INT4_BYTES_ROWS, INT4_BYTES_VECTORS, int4_factor};
use super::task::{Layout, Panel};
use super::weights::{Matrix, SMALLEST_GROUP};
use crate::backend::{GEMM_ROWS, GEMV_ROWS, GEMV_ROWS_WITHOUT_AVX512, GemmBackend};
use bpe_llama_simd::f32x16::{CacheLine, LANES, zero_padded};
use bpe_llama_simd::{Backend, Kind};
use std::cell::Cell;

/// Appends the activation rows `x` in a layout.
fn append(layout: Layout, x: &[f32], columns: usize, backend: Backend, packed: &mut Vec<CacheLine>) {
    match backend.kind() {
        Kind::Portable => append_rows(layout, x, columns, packed),
        #[cfg(target_arch = "aarch64")]
        Kind::Neon => append_rows(layout, x, columns, packed),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a `Backend` exists only if the CPU has it; AVX-512's includes AVX2's.
        Kind::Avx2 | Kind::Avx512 => unsafe { append_avx2(layout, x, columns, packed) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn append_avx2(layout: Layout, x: &[f32], columns: usize, packed: &mut Vec<CacheLine>) {
    append_rows(layout, x, columns, packed);
}

#[inline(always)]
fn append_rows(layout: Layout, x: &[f32], columns: usize, packed: &mut Vec<CacheLine>) {
    match layout {
        // SAFETY: `Layout::of` chooses this layout only where the CPU has AMX.
        Layout::AmxTiles => unsafe { amx::pack(x, columns, packed) },
        // SAFETY: as above, for AVX-512 BF16.
        Layout::Bf16Tiles => unsafe { avx512_bf16::pack(x, columns, packed) },
        Layout::Sequential => append_strided::<LANES, 1>(x, columns, packed),
        Layout::EvenOdd => append_strided::<{ 2 * LANES }, 2>(x, columns, packed),
        Layout::Int4 { group } => append_int4(x, columns, group, packed, write_int4),
        Layout::Int4Bytes { group } => append_int4(x, columns, group, packed, write_int4_bytes),
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
    /// Integers `256 * upper + lower` of two signed bytes, from -32,639 to 32,639.
    quantized: [i32; INT4_BLOCK],
    /// A power of two; NaN if an activation is 2^121 or more, or NaN.
    step: f32,
}

impl Int4Block {
    const MOST: f32 = 32_639.0;

    /// The bits of 2^121: eight products of it with a code are below 2^128, so that no sum in float32 overflows.
    const TOO_LARGE: u32 = 0x7c00_0000;

    /// 1.5 * 2^23: adding it rounds to an integer, ties to even, which the lower bits then hold.
    const ROUND: f32 = 12_582_912.0;

    #[inline(always)]
    fn new(x: &[f32; INT4_BLOCK]) -> Self {
        // As integers, the bits of magnitudes are ordered as their values.
        let most = x.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7fff_ffff));
        if most >= Self::TOO_LARGE {
            return Self { quantized: [0; INT4_BLOCK], step: f32::NAN };
        }
        // 2^14 divided by the power of two below the largest magnitude, at most 2^100, so that step / 16^3 is a normal number.
        let mut factor = f32::from_bits((268 - (most >> 23)).min(227) << 23);
        if f32::from_bits(most) * factor > Self::MOST {
            factor /= 2.0;
        }
        Self {
            quantized: x.map(|x| (x * factor + Self::ROUND).to_bits() as i32 - Self::ROUND.to_bits() as i32),
            step: 1.0 / factor,
        }
    }
}

/// Appends `N` vectors for each block and row, written by `write(block, vectors)`: the first vector of each row, then the
/// second, and so on. Then, for each 16 groups, a vector of `-8` times the sums of rounded activations, and one of the sums of
/// activations.
#[inline(always)]
fn append_int4<const N: usize>(
    x: &[f32],
    columns: usize,
    group: usize,
    packed: &mut Vec<CacheLine>,
    write: impl Fn(&Int4Block, [&mut CacheLine; N]),
) {
    let (rows, first) = (x.len() / columns, packed.len());
    let in_blocks = N * columns.div_ceil(INT4_BLOCK) * rows;
    packed.resize(first + in_blocks + 2 * (columns / group).div_ceil(LANES) * rows, CacheLine::ZERO);
    let (blocks, group_sums) = packed[first..].split_at_mut(in_blocks);
    for (row, x) in x.chunks_exact(columns).enumerate() {
        for (block, start) in (0..columns).step_by(INT4_BLOCK).enumerate() {
            let tail;
            let x = if let Some(x) = x[start..].first_chunk::<INT4_BLOCK>() {
                x
            } else {
                tail = zero_padded(&x[start..]);
                &tail
            };
            let rounded = Int4Block::new(x);
            let mut vectors = blocks[N * rows * block + row..].iter_mut().step_by(rows);
            write(&rounded, std::array::from_fn(|_| vectors.next().expect("one line for each vector and row")));
            // Every group size is a multiple of the smallest.
            let parts = x.as_chunks::<SMALLEST_GROUP>().0.iter().zip(rounded.quantized.as_chunks::<SMALLEST_GROUP>().0);
            for (part, (x, quantized)) in parts.enumerate().take((columns - start) / SMALLEST_GROUP) {
                let index = (start + part * SMALLEST_GROUP) / group;
                let sums = &mut group_sums[2 * rows * (index / LANES) + row..];
                sums[0].0[index % LANES] += (-8 * quantized.iter().sum::<i32>()) as f32 * rounded.step;
                sums[rows].0[index % LANES] += sum(x);
            }
        }
    }
}

/// Returns the sum, in an order that vectorizes.
#[inline(always)]
fn sum(x: &[f32; SMALLEST_GROUP]) -> f32 {
    let eights: [f32; 8] = std::array::from_fn(|lane| (x[lane] + x[8 + lane]) + (x[16 + lane] + x[24 + lane]));
    eights.iter().sum()
}

/// Writes the vectors of [`Layout::Int4`].
fn write_int4(block: &Int4Block, vectors: [&mut CacheLine; INT4_BLOCK_VECTORS]) {
    for (code, vector) in vectors.into_iter().enumerate() {
        let step = block.step / int4_factor(code);
        vector.0 = std::array::from_fn(|lane| block.quantized[8 * lane + code] as f32 * step);
    }
}

/// Writes the vectors of [`Layout::Int4Bytes`].
#[inline(always)]
fn write_int4_bytes(block: &Int4Block, vectors: [&mut CacheLine; INT4_BYTES_VECTORS]) {
    let [even_upper, odd_upper, even_lower, odd_lower, steps] = vectors;
    for (parity, upper, lower) in [(0, even_upper, even_lower), (1, odd_upper, odd_lower)] {
        let biased: [i32; INT4_BLOCK / 2] = std::array::from_fn(|index| block.quantized[2 * index + parity] + 128);
        *upper = line_of_bytes(biased.map(|biased| (biased >> 8) as u8));
        *lower = line_of_bytes(biased.map(|biased| (biased as u8).wrapping_sub(128)));
    }
    *steps = CacheLine([block.step; LANES]);
}

/// Returns the bytes in the order of memory.
#[inline(always)]
fn line_of_bytes(bytes: [u8; INT4_BLOCK / 2]) -> CacheLine {
    CacheLine(std::array::from_fn(|word| f32::from_bits(u32::from_le_bytes(bytes.as_chunks().0[word]))))
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
                left if matches!(layout, Layout::Int4Bytes { .. }) => left.min(INT4_BYTES_ROWS),
                GEMV_ROWS.. if backend.is_avx512() => GEMV_ROWS,
                left => left.min(GEMV_ROWS_WITHOUT_AVX512),
            };
            let start = self.packed.len();
            append(layout, &x[first_row * columns..][..panel_rows * columns], columns, backend, &mut self.packed);
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

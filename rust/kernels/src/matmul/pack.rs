//! Packs activations: panels of rows, in the column order that a micro-kernel reads, the same columns of all rows together.

use super::gemm::{amx, avx512_bf16};
use super::gemv::int4_pack;
use super::task::{Layout, Panel};
use super::weights::Matrix;
use crate::backend::{GEMM_ROWS, GEMV_ROWS, GEMV_ROWS_WITHOUT_AVX512, GemmBackend};
use bpe_llama_simd::Backend;
use bpe_llama_simd::f32x16::{CacheLine, LANES, zero_padded};
use std::cell::Cell;

/// Appends the activation rows `x` in a layout.
fn append(layout: Layout, x: &[f32], columns: usize, backend: Backend, packed: &mut Vec<CacheLine>) {
    match layout {
        // SAFETY: `Layout::of` chooses this layout only where the CPU has AMX.
        Layout::AmxTiles => unsafe { amx::pack(x, columns, packed) },
        // SAFETY: as above, for AVX-512 BF16.
        Layout::Bf16Tiles => unsafe { avx512_bf16::pack(x, columns, packed) },
        Layout::Sequential => append_strided::<LANES, 1>(x, columns, packed),
        Layout::EvenOdd => append_strided::<{ 2 * LANES }, 2>(x, columns, packed),
        Layout::Int4 { group } => int4_pack::append(x, columns, group, backend, packed),
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
            let layout = Layout::of(&matrix.weights, gemm);
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

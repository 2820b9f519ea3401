//! Packs activations: panels of rows, in the column order that a micro-kernel reads, the same columns of all rows together.

use super::gemm::fma::lane_stride;
use super::gemm::{amx, avx512_bf16};
use super::gemv::int4_pack;
use super::task::{Layout, Panel};
use super::weights::Matrix;
use crate::backend::{FEW_GEMV_ROWS, GEMM_ROWS, GEMV_ROWS, GEMV_ROWS_WITHOUT_AVX512, GemmBackend};
#[cfg(target_arch = "aarch64")]
use bpe_llama_simd::f32x16::Neon;
#[cfg(target_arch = "x86_64")]
use bpe_llama_simd::f32x16::{Avx2, Avx512};
use bpe_llama_simd::f32x16::{CacheLine, F32x16, LANES, Portable, zero_padded};
use bpe_llama_simd::{Backend, Kind};
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
        Layout::F32Tiles { stride: 1 } => append_tiles::<LANES, 1>(x, columns, backend, packed),
        Layout::F32Tiles { .. } => append_tiles::<{ 2 * LANES }, 2>(x, columns, backend, packed),
        Layout::Int4 { group } => int4_pack::append(x, columns, group, backend, packed),
    }
}

/// Appends, for each `N` columns and each start below `STRIDE`, every `STRIDE`th column of all rows.
#[inline(always)]
fn append_strided<const N: usize, const STRIDE: usize>(x: &[f32], columns: usize, packed: &mut Vec<CacheLine>) {
    for column in (0..columns).step_by(N) {
        for start in 0..STRIDE {
            packed.extend(x.chunks_exact(columns).map(|row| strided::<N, STRIDE>(&row[column..], start)));
        }
    }
}

/// Returns every `STRIDE`th of the first `N` elements, from `start` on.
#[inline(always)]
fn strided<const N: usize, const STRIDE: usize>(row: &[f32], start: usize) -> CacheLine {
    let tail;
    let block = if let Some(block) = row.first_chunk::<N>() {
        block
    } else {
        tail = zero_padded(row);
        &tail
    };
    CacheLine(std::array::from_fn(|lane| block[STRIDE * lane + start]))
}

/// Appends what [`append_strided`] does of up to 16 rows, transposed.
fn append_tiles<const N: usize, const STRIDE: usize>(
    x: &[f32],
    columns: usize,
    backend: Backend,
    packed: &mut Vec<CacheLine>,
) {
    match backend.kind() {
        // SAFETY: the portable backend needs no CPU feature.
        Kind::Portable => unsafe { append_transposed::<Portable, N, STRIDE>(x, columns, packed) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: a `Backend` exists only if the CPU has it.
        Kind::Neon => unsafe { append_transposed::<Neon, N, STRIDE>(x, columns, packed) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Kind::Avx2 => unsafe { append_tiles_avx2::<N, STRIDE>(x, columns, packed) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Kind::Avx512 => unsafe { append_tiles_avx512::<N, STRIDE>(x, columns, packed) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn append_tiles_avx2<const N: usize, const STRIDE: usize>(x: &[f32], columns: usize, packed: &mut Vec<CacheLine>) {
    // SAFETY: AVX2 and FMA are enabled here.
    unsafe { append_transposed::<Avx2, N, STRIDE>(x, columns, packed) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
fn append_tiles_avx512<const N: usize, const STRIDE: usize>(x: &[f32], columns: usize, packed: &mut Vec<CacheLine>) {
    // SAFETY: AVX-512 F, BW and VL are enabled here.
    unsafe { append_transposed::<Avx512, N, STRIDE>(x, columns, packed) };
}

/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn append_transposed<V: F32x16, const N: usize, const STRIDE: usize>(
    x: &[f32],
    columns: usize,
    packed: &mut Vec<CacheLine>,
) {
    let (first, vectors) = (packed.len(), STRIDE * columns.div_ceil(N));
    let stride = lane_stride(vectors);
    packed.resize(first + LANES * stride, CacheLine::ZERO);
    let mut tile = [CacheLine::ZERO; LANES];
    for vector in 0..vectors {
        for (line, row) in tile.iter_mut().zip(x.chunks_exact(columns)) {
            *line = strided::<N, STRIDE>(&row[vector / STRIDE * N..], vector % STRIDE);
        }
        // SAFETY: the caller's promise.
        unsafe { V::transpose(&tile, &mut packed[first + vector..], stride) };
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
            let layout = Layout::of(&matrix.weights, x.len() / columns, backend, gemm);
            if activations.panels.iter().all(|(other, _)| *other != layout) {
                activations.pack(layout, x, columns, backend);
            }
        }
        activations
    }

    fn pack(&mut self, layout: Layout, x: &[f32], columns: usize, backend: Backend) {
        let (rows, mut first_row, mut panels) = (x.len() / columns, 0, Vec::new());
        while first_row < rows {
            let left = rows - first_row;
            let panel_rows = left.min(match layout {
                Layout::AmxTiles | Layout::Bf16Tiles => GEMM_ROWS,
                Layout::F32Tiles { .. } => LANES,
                _ if backend.is_avx512() && left >= GEMV_ROWS => GEMV_ROWS,
                Layout::Sequential | Layout::EvenOdd if !backend.is_avx512() => GEMV_ROWS_WITHOUT_AVX512,
                _ => FEW_GEMV_ROWS,
            });
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

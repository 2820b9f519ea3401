//! A task: one matrix, the activations packed for it, and the place of its results.

use super::gemm::fma;
use super::weights::{Matrix, Weights, group_size};
use crate::backend::GemmBackend;
use crate::output::Output;
use bpe_llama_simd::Backend;
use bpe_llama_simd::f32x16::CacheLine;
use std::ops::Range;

/// In which order activations are packed. Zeros pad the last columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// 16 columns at a time.
    Sequential,
    /// Of 32 columns, first the even ones, then the odd ones, as bfloat16 weights widen.
    EvenOdd,
    /// Rounded to integers, and the sums of each `group` of columns: see `gemv/int4.rs`.
    Int4 { group: usize },
    /// Tiles of 16 columns of 16 rows, transposed: `Sequential`, or with a stride of 2 in the order of `EvenOdd`.
    F32Tiles { stride: usize },
    /// Tiles of three bfloat16 terms, for AMX.
    AmxTiles,
    /// Tiles rounded to bfloat16, for AVX-512 BF16.
    Bf16Tiles,
}

impl Layout {
    /// Returns the layout that a product of these weights with so many activation rows needs. Both layouts of float32 give a
    /// row the same bits, as its result must not depend on the number of rows.
    pub(crate) fn of(weights: &Weights<'_>, rows: usize, backend: Backend, gemm: GemmBackend) -> Self {
        let many = fma::is_used(rows, backend);
        match weights {
            Weights::F32(_) if many => Self::F32Tiles { stride: 1 },
            Weights::F32(_) => Self::Sequential,
            _ if gemm == GemmBackend::Amx => Self::AmxTiles,
            Weights::Bf16(_) if gemm == GemmBackend::Avx512Bf16 => Self::Bf16Tiles,
            Weights::Int8(..) if many => Self::F32Tiles { stride: 1 },
            Weights::Bf16(_) if many => Self::F32Tiles { stride: 2 },
            Weights::Int8(..) => Self::Sequential,
            Weights::Bf16(_) => Self::EvenOdd,
            Weights::Int4(codes, scales) => Self::Int4 { group: group_size(codes, scales) },
        }
    }
}

/// Activation rows that one pass over the weights multiplies.
pub(crate) struct Panel {
    pub(crate) first_row: usize,
    pub(crate) rows: usize,
    /// Where the packed activations are.
    pub(crate) packed: Range<usize>,
}

/// The product of one matrix with all panels.
pub(crate) struct Task<'a> {
    pub(crate) matrix: &'a Matrix<'a>,
    pub(crate) layout: Layout,
    pub(crate) panels: &'a [Panel],
    pub(crate) packed: &'a [CacheLine],
    /// Weight rows that a thread takes at a time.
    pub(crate) chunk_rows: usize,
    /// The output column of the first weight row.
    pub(crate) first_column: usize,
    pub(crate) out: &'a Output<'a>,
}

impl Task<'_> {
    /// Returns the packed activations of a panel.
    pub(crate) fn packed(&self, panel: &Panel) -> &[CacheLine] {
        &self.packed[panel.packed.clone()]
    }

    /// Returns where the product of a weight row with an activation row belongs in the output.
    pub(crate) fn output_index(&self, weight_row: usize, activation_row: usize) -> usize {
        activation_row * self.out.width + self.first_column + weight_row
    }
}

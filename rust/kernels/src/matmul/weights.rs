//! Weight matrices in memory of the caller.

use crate::{Error, Result};

/// Columns that may share a scale in [`Weights::Int4`].
pub(crate) const GROUP_SIZES: [usize; 4] = [32, 64, 128, 256];

/// A matrix of more columns fits no memory, and multiples of their number may overflow.
const MAX_COLUMNS: usize = usize::MAX >> 8;

/// The weights of a matrix, row after row.
#[derive(Debug, Clone, Copy)]
pub enum Weights<'a> {
    /// Float32.
    F32(&'a [f32]),
    /// The bits of bfloat16.
    Bf16(&'a [u16]),
    /// Signed bytes, and a float32 scale for each row: a weight is `code * scale`.
    Int8(&'a [i8], &'a [f32]),
    /// Four-bit codes, two in a byte with the even column in the low half, and the bits of a bfloat16 scale and offset for
    /// each group of columns of each row: a weight is `(code - 8) * scale + offset`.
    Int4(&'a [u8], &'a [[u16; 2]]),
}

/// Returns how many columns share a scale of [`Weights::Int4`].
pub(crate) fn group_size(codes: &[u8], scales: &[[u16; 2]]) -> usize {
    (2 * codes.len()).checked_div(scales.len()).unwrap_or(GROUP_SIZES[0]) // of no rows, any will do
}

/// A weight matrix: `rows` output features, `columns` input features.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) weights: Weights<'a>,
}

impl<'a> Matrix<'a> {
    /// Returns the matrix of that shape.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there are no columns or too many, if the number of weights or scales does not fit the
    /// shape, or if the groups of [`Weights::Int4`] have other sizes than 32, 64, 128 or 256 columns.
    pub fn new(rows: usize, columns: usize, weights: Weights<'a>) -> Result<Self> {
        let expected = rows.checked_mul(columns);
        let (found, scales_fit) = match weights {
            Weights::F32(weights) => (weights.len(), true),
            Weights::Bf16(weights) => (weights.len(), true),
            Weights::Int8(codes, scales) => (codes.len(), scales.len() == rows),
            Weights::Int4(codes, scales) => {
                let fits = |group| expected == Some(scales.len() * group) && columns.is_multiple_of(group);
                (2 * codes.len(), GROUP_SIZES.into_iter().any(fits))
            }
        };
        if columns == 0 || columns > MAX_COLUMNS {
            return Err(Error::InvalidArgument(format!("a matrix of {columns} columns; expected 1 to {MAX_COLUMNS}")));
        }
        if expected != Some(found) {
            return Err(Error::InvalidArgument(format!(
                "{found} weights for a matrix of {rows} rows and {columns} columns"
            )));
        }
        if !scales_fit {
            return Err(Error::InvalidArgument(format!(
                "the scales do not fit a matrix of {rows} rows and {columns} columns"
            )));
        }
        Ok(Self { rows, columns, weights })
    }

    /// Returns the number of rows, which are output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the number of columns, which are input features.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Returns the bytes of the weights, without scales.
    pub fn bytes(&self) -> usize {
        self.rows * self.row_bytes()
    }

    /// Returns where a row begins, or would begin if the matrix had more rows.
    pub(crate) fn address(&self, row: usize) -> *const u8 {
        let start: *const u8 = match self.weights {
            Weights::F32(weights) => weights.as_ptr().cast(),
            Weights::Bf16(weights) => weights.as_ptr().cast(),
            Weights::Int8(codes, _) => codes.as_ptr().cast(),
            Weights::Int4(codes, _) => codes.as_ptr(),
        };
        start.wrapping_add(row * self.row_bytes())
    }

    pub(crate) fn row_bytes(&self) -> usize {
        match self.weights {
            Weights::F32(_) => 4 * self.columns,
            Weights::Bf16(_) => 2 * self.columns,
            Weights::Int8(..) => self.columns,
            Weights::Int4(..) => self.columns / 2,
        }
    }
}

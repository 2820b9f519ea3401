//! Views of logits in the caller's memory: any float type, any strides.

use crate::error::Result;
use crate::simd::{Extrema, extrema};
use bpe_llama_simd::Backend;

/// Borrowed logits in one of the dtypes that models return.
#[derive(Debug, Clone, Copy)]
pub enum Elements<'a> {
    /// IEEE single precision.
    F32(&'a [f32]),
    /// IEEE double precision; rounded to single before anything else.
    F64(&'a [f64]),
    /// IEEE half precision, as bits.
    F16(&'a [u16]),
    /// bfloat16, as bits.
    Bf16(&'a [u16]),
}

impl Elements<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F32(data) => data.len(),
            Self::F64(data) => data.len(),
            Self::F16(data) | Self::Bf16(data) => data.len(),
        }
    }
}

/// A strided matrix of logits, (B, V): element (row, id) is `data[offset + row * row_stride + id * id_stride]`.
#[derive(Debug, Clone, Copy)]
pub struct LogitsView<'a> {
    data: Elements<'a>,
    offset: usize,
    rows: usize,
    vocab_size: usize,
    row_stride: isize,
    id_stride: isize,
}

impl<'a> LogitsView<'a> {
    /// Returns a view of a contiguous matrix, (rows, `vocab_size`).
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if the length of `data` is not the product of the two, or `vocab_size` is 0.
    pub fn contiguous(data: Elements<'a>, rows: usize, vocab_size: usize) -> Result<Self> {
        if rows.checked_mul(vocab_size) != Some(data.len()) {
            return Err(invalid!("logits have {} elements; expected {rows} rows of {vocab_size}", data.len()));
        }
        Self::strided(data, 0, (rows, vocab_size), (vocab_size as isize, 1))
    }

    /// Returns a view of the given shape and strides, both in elements, that starts at `data[offset]`.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if `vocab_size` is 0 or exceeds 32 bits, or an element lies outside `data`.
    pub fn strided(
        data: Elements<'a>,
        offset: usize,
        (rows, vocab_size): (usize, usize),
        (row_stride, id_stride): (isize, isize),
    ) -> Result<Self> {
        if vocab_size == 0 {
            return Err(invalid!("logits have an empty row; expected at least one logit"));
        }
        if u32::try_from(vocab_size).is_err() {
            return Err(invalid!("logits have rows of {vocab_size}; expected ids of at most 32 bits"));
        }
        if rows > 0 {
            // The lowest and the highest index are at corners of the matrix.
            let mut low = offset as i128;
            let mut high = offset as i128;
            for (count, stride) in [(rows, row_stride), (vocab_size, id_stride)] {
                let reach = (count as i128 - 1) * stride as i128;
                low += reach.min(0);
                high += reach.max(0);
            }
            if low < 0 || high >= data.len() as i128 {
                return Err(invalid!(
                    "logits have {} elements; strides ({row_stride}, {id_stride}) from offset {offset} leave them",
                    data.len()
                ));
            }
        }
        Ok(Self { data, offset, rows, vocab_size, row_stride, id_stride })
    }

    /// Returns the number of rows, B.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the number of logits per row, V.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Returns an error if a row has fewer than `top_n` logits.
    ///
    /// # Errors
    /// [`crate::Error`], naming both numbers.
    pub fn check_top_n(&self, top_n: usize) -> Result<()> {
        if top_n > self.vocab_size {
            return Err(invalid!("top_n is {top_n}, but the vocabulary has {} ids", self.vocab_size));
        }
        Ok(())
    }

    /// Returns a row without a copy, if it is contiguous float32.
    pub(crate) fn contiguous_row(&self, row: usize) -> Option<&'a [f32]> {
        match self.data {
            Elements::F32(data) if self.id_stride == 1 => {
                let start = self.start(row);
                Some(&data[start..start + self.vocab_size])
            }
            _ => None,
        }
    }

    /// Writes a row to `out` as float32.
    pub(crate) fn copy_row(&self, row: usize, out: &mut Vec<f32>) {
        out.clear();
        match self.data {
            Elements::F32(data) => self.convert_row(row, data, out, |value| value),
            Elements::F64(data) => self.convert_row(row, data, out, |value| value as f32),
            Elements::F16(data) => self.convert_row(row, data, out, half_to_f32),
            Elements::Bf16(data) => self.convert_row(row, data, out, |bits| f32::from_bits(u32::from(bits) << 16)),
        }
    }

    /// Returns the extrema of a row that can be sampled from.
    ///
    /// `values` is the row in float32; `is_changed` if biases, bans or penalties changed it.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] naming the row and its first NaN or +inf, or if every logit is -inf.
    pub(crate) fn checked_extrema(
        &self,
        row: usize,
        values: &[f32],
        is_changed: bool,
        backend: Backend,
    ) -> Result<Extrema> {
        let when = if is_changed { " after biases, bans and penalties" } else { "" };
        let extrema = extrema(backend, values);
        if !extrema.valid {
            let invalid = values.iter().enumerate().find(|(_, value)| value.is_nan() || **value == f32::INFINITY);
            if let Some((index, value)) = invalid {
                return Err(match self.rounded_to_infinity(row, index) {
                    Some(wide) => invalid!("row {row}: logit {index} is {wide:e}; expected at most {:e}", f32::MAX),
                    None => invalid!("row {row}: logit {index} is {value}{when}; expected a finite number or -inf"),
                });
            }
        }
        if extrema.max == f32::NEG_INFINITY {
            return Err(invalid!("row {row}: every logit is -inf{when}; at least one must be finite"));
        }
        Ok(extrema)
    }

    /// Returns a float64 logit that is finite, but not in float32.
    fn rounded_to_infinity(&self, row: usize, id: usize) -> Option<f64> {
        let Elements::F64(data) = self.data else { return None };
        let wide = data[(self.start(row) as isize + id as isize * self.id_stride) as usize];
        (wide.is_finite() && (wide as f32).is_infinite()).then_some(wide)
    }

    fn start(&self, row: usize) -> usize {
        (self.offset as isize + row as isize * self.row_stride) as usize
    }

    fn convert_row<T: Copy>(&self, row: usize, data: &[T], out: &mut Vec<f32>, convert: impl Fn(T) -> f32) {
        let start = self.start(row);
        if self.id_stride == 1 {
            out.extend(data[start..start + self.vocab_size].iter().map(|&value| convert(value)));
        } else {
            out.extend(
                (0..self.vocab_size as isize).map(|id| convert(data[(start as isize + id * self.id_stride) as usize])),
            );
        }
    }
}

/// Converts half to single precision, exactly and without branches, so that loops vectorize.
#[inline(always)]
fn half_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff);
    let sign = u32::from(bits & 0x8000) << 16;
    // The exponents differ by 112; multiplying by 2^112 also normalises the subnormals.
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23);
    let special = if magnitude >= 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(scaled.to_bits() | special | sign)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition in IEEE 754, in float64.
    fn half_by_definition(bits: u16) -> f64 {
        let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
        let exponent = i32::from(bits >> 10 & 31);
        let fraction = f64::from(bits & 1023);
        match exponent {
            0 => sign * fraction * 2f64.powi(-24),
            31 if fraction == 0.0 => sign * f64::INFINITY,
            31 => f64::NAN,
            _ => sign * (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15),
        }
    }

    #[test]
    fn converts_every_half() {
        for bits in 0..=u16::MAX {
            let got = f64::from(half_to_f32(bits));
            let expected = half_by_definition(bits);
            assert!(got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan()), "{bits:#x}: {got}");
        }
    }

    #[test]
    fn reads_strided_and_reversed_rows() {
        let data: Vec<f32> = (0..12u8).map(f32::from).collect();
        let mut out = Vec::new();
        let transposed = LogitsView::strided(Elements::F32(&data), 0, (4, 3), (1, 4)).expect("in range");
        transposed.copy_row(1, &mut out);
        assert_eq!(out, [1.0, 5.0, 9.0]);
        let reversed = LogitsView::strided(Elements::F32(&data), 11, (3, 4), (-4, -1)).expect("in range");
        reversed.copy_row(0, &mut out);
        assert_eq!(out, [11.0, 10.0, 9.0, 8.0]);
        assert!(reversed.contiguous_row(0).is_none());
        assert!(LogitsView::strided(Elements::F32(&data), 0, (3, 4), (5, 1)).is_err());
        assert!(LogitsView::strided(Elements::F32(&data), 0, (3, 4), (-4, 1)).is_err());
        assert!(LogitsView::contiguous(Elements::F32(&data), 3, 5).is_err());
        assert!(LogitsView::contiguous(Elements::F32(&[]), 3, 0).is_err());
        assert!(LogitsView::contiguous(Elements::F32(&[]), 0, 5).is_ok());
    }
}

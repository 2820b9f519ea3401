//! Rows of logits as they lie in someone else's memory: any float type, any strides.

use crate::{Error, Result};

/// The numbers of a logits array, borrowed, in one of the types models emit.
#[derive(Debug, Clone, Copy)]
pub enum Elements<'a> {
    /// IEEE single precision.
    F32(&'a [f32]),
    /// IEEE double precision; each is rounded to single before anything else happens.
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

/// A matrix of logits, one row a draw: element (row, id) is `data[offset + row * row_stride + id * id_stride]`.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    data: Elements<'a>,
    offset: usize,
    count: usize,
    vocab_size: usize,
    row_stride: isize,
    id_stride: isize,
}

impl<'a> Rows<'a> {
    /// Returns a matrix of `rows` rows of `vocab_size` logits each, one after the other.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the data is not exactly that long or a row is empty.
    pub fn contiguous(data: Elements<'a>, rows: usize, vocab_size: usize) -> Result<Self> {
        if rows.checked_mul(vocab_size) != Some(data.len()) {
            return Err(Error::InvalidArgument(format!(
                "{rows} rows of {vocab_size} logits were announced, but there are {} numbers",
                data.len()
            )));
        }
        Self::strided(data, 0, (rows, vocab_size), (vocab_size as isize, 1))
    }

    /// Returns a matrix of the given shape, steps of `strides` elements apart, its first element at `offset`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a row is empty, ids would not fit 32 bits, or an element lies outside the data.
    pub fn strided(
        data: Elements<'a>,
        offset: usize,
        (rows, vocab_size): (usize, usize),
        (row_stride, id_stride): (isize, isize),
    ) -> Result<Self> {
        if vocab_size == 0 {
            return Err(Error::InvalidArgument("logits have an empty row; expected at least one logit".into()));
        }
        if u32::try_from(vocab_size).is_err() {
            return Err(Error::InvalidArgument(format!("a row of {vocab_size} logits has ids beyond 32 bits")));
        }
        if rows > 0 {
            // The extremes of a linear map over a box lie at its corners.
            let mut low = offset as i128;
            let mut high = offset as i128;
            for (count, stride) in [(rows, row_stride), (vocab_size, id_stride)] {
                let reach = (count as i128 - 1) * stride as i128;
                low += reach.min(0);
                high += reach.max(0);
            }
            if low < 0 || high >= data.len() as i128 {
                return Err(Error::InvalidArgument(format!(
                    "strides ({row_stride}, {id_stride}) from {offset} leave the {} numbers given",
                    data.len()
                )));
            }
        }
        Ok(Self { data, offset, count: rows, vocab_size, row_stride, id_stride })
    }

    /// Returns how many rows there are.
    pub fn rows(&self) -> usize {
        self.count
    }

    /// Returns how many logits a row has.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Returns a row where it lies, if it is contiguous float32.
    pub(crate) fn borrow(&self, row: usize) -> Option<&'a [f32]> {
        match self.data {
            Elements::F32(data) if self.id_stride == 1 => {
                let start = self.start(row);
                Some(&data[start..start + self.vocab_size])
            }
            _ => None,
        }
    }

    /// Writes a row to `out` as float32.
    pub(crate) fn widen(&self, row: usize, out: &mut Vec<f32>) {
        out.clear();
        match self.data {
            Elements::F32(data) => self.copy(row, data, out, |value| value),
            Elements::F64(data) => self.copy(row, data, out, |value| value as f32),
            Elements::F16(data) => self.copy(row, data, out, half_to_f32),
            Elements::Bf16(data) => self.copy(row, data, out, |bits| f32::from_bits(u32::from(bits) << 16)),
        }
    }

    fn start(&self, row: usize) -> usize {
        (self.offset as isize + row as isize * self.row_stride) as usize
    }

    fn copy<T: Copy>(&self, row: usize, data: &[T], out: &mut Vec<f32>, convert: impl Fn(T) -> f32) {
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

/// Returns a half-precision number as a single: exact, without branches, so that loops of it become vector code.
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

    /// The definition: sign, exponent and fraction put together in float64.
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
    fn widens_every_half() {
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
        let transposed = Rows::strided(Elements::F32(&data), 0, (4, 3), (1, 4)).expect("in range");
        transposed.widen(1, &mut out);
        assert_eq!(out, [1.0, 5.0, 9.0]);
        let reversed = Rows::strided(Elements::F32(&data), 11, (3, 4), (-4, -1)).expect("in range");
        reversed.widen(0, &mut out);
        assert_eq!(out, [11.0, 10.0, 9.0, 8.0]);
        assert!(reversed.borrow(0).is_none());
        assert!(Rows::strided(Elements::F32(&data), 0, (3, 4), (5, 1)).is_err());
        assert!(Rows::strided(Elements::F32(&data), 0, (3, 4), (-4, 1)).is_err());
        assert!(Rows::contiguous(Elements::F32(&data), 3, 5).is_err());
        assert!(Rows::contiguous(Elements::F32(&[]), 3, 0).is_err());
        assert!(Rows::contiguous(Elements::F32(&[]), 0, 5).is_ok());
    }
}

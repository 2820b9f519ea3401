//! `Linear` for Python: products with weights in NumPy arrays, where they lie.
#![allow(clippy::doc_markdown, reason = "these are Python docstrings")]

use crate::arguments::at_least;
use crate::error::value_error;
use bpe_llama_kernels::{Input, Matrix, Numbers, Weights, has_avx512, has_pairs, has_unit, multiply};
use numpy::ndarray::Dimension;
use numpy::{Element, PyArray, PyArray1, PyArray2, PyArray3, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

/// Return whether this processor has AVX-512, and `Linear` and `attend` use it.
///
/// Example:
///     >>> from bpe_llama._core import has_avx512
///     >>> has_avx512() in (True, False)
///     True
#[pyfunction(name = "has_avx512")]
pub(crate) fn py_has_avx512() -> bool {
    has_avx512()
}

/// Return whether this processor has a unit for matrices, Intel's AMX, and we may use it: `Linear` then multiplies more
/// than eight vectors there.
///
/// Example:
///     >>> from bpe_llama._core import has_matrix_unit
///     >>> has_matrix_unit() in (True, False)
///     True
#[pyfunction(name = "has_matrix_unit")]
pub(crate) fn py_has_matrix_unit() -> bool {
    has_unit()
}

/// Return whether this processor multiplies pairs of bfloat16, by AVX-512 BF16 and not in a unit for matrices: `Linear`
/// then rounds more than eight vectors to bfloat16 for a matrix of that format.
///
/// Example:
///     >>> from bpe_llama._core import has_bfloat16_pairs
///     >>> has_bfloat16_pairs() in (True, False)
///     True
#[pyfunction(name = "has_bfloat16_pairs")]
pub(crate) fn py_has_bfloat16_pairs() -> bool {
    has_pairs()
}

/// Below this many bytes of weights a call is over before another thread could use the interpreter.
const RELEASE_BYTES: usize = 1 << 15;

const EXPECTED: &str = "expected a float32 or uint16 array (O, I), an int8 array (O, I) with a float32 array (O,), or a \
    uint8 array (O, I / 2) with a uint16 array (O, Q, 2)";

/// Arrays that hold one matrix.
enum Part {
    F32(Py<PyArray2<f32>>),
    Bf16(Py<PyArray2<u16>>),
    Int8(Py<PyArray2<i8>>, Py<PyArray1<f32>>),
    Int4(Py<PyArray2<u8>>, Py<PyArray3<u16>>),
}

impl Part {
    fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(array) = object.cast::<PyArray2<f32>>() {
            return Ok(Self::F32(array.clone().unbind()));
        }
        if let Ok(array) = object.cast::<PyArray2<u16>>() {
            return Ok(Self::Bf16(array.clone().unbind()));
        }
        if let Ok((codes, scales)) = object.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>() {
            if let (Ok(codes), Ok(scales)) = (codes.cast::<PyArray2<i8>>(), scales.cast::<PyArray1<f32>>()) {
                return Ok(Self::Int8(codes.clone().unbind(), scales.clone().unbind()));
            }
            if let (Ok(codes), Ok(pairs)) = (codes.cast::<PyArray2<u8>>(), scales.cast::<PyArray3<u16>>()) {
                return Ok(Self::Int4(codes.clone().unbind(), pairs.clone().unbind()));
            }
        }
        Err(PyTypeError::new_err(format!("a matrix is {}; {EXPECTED}", object.repr()?)))
    }

    fn matrix<'py>(&'py self, py: Python<'py>) -> PyResult<Matrix<'py>> {
        let ([rows, columns], weights) = match self {
            Self::F32(array) => (shape(array, py), Weights::F32(numbers(array, py)?)),
            Self::Bf16(array) => (shape(array, py), Weights::Bf16(numbers(array, py)?)),
            Self::Int8(codes, scales) => (shape(codes, py), Weights::Int8(numbers(codes, py)?, numbers(scales, py)?)),
            Self::Int4(codes, pairs) => {
                let [rows, bytes] = shape(codes, py);
                let found = pairs.bind(py).shape();
                if (found[0], found[2]) != (rows, 2) {
                    let wrong = format!("scales and offsets have shape {found:?}; expected ({rows}, Q, 2)");
                    return Err(PyValueError::new_err(wrong));
                }
                ([rows, 2 * bytes], Weights::Int4(numbers(codes, py)?, numbers(pairs, py)?.as_chunks().0))
            }
        };
        Matrix::new(rows, columns, weights).map_err(value_error)
    }
}

fn shape<T: Element>(array: &Py<PyArray2<T>>, py: Python<'_>) -> [usize; 2] {
    let shape = array.bind(py).shape();
    [shape[0], shape[1]]
}

fn numbers<'py, T: Element, D: Dimension>(array: &'py Py<PyArray<T, D>>, py: Python<'py>) -> PyResult<&'py [T]> {
    let array = array.bind(py);
    check_order(array)?;
    // SAFETY: the array is contiguous and aligned, and keeps its memory. That nobody writes to it meanwhile is the
    // caller's duty, as for every NumPy function that releases the lock.
    Ok(unsafe { array.as_slice() }?)
}

/// Refuses what is not laid out row after row; a slice alone would be made of columns, too.
pub(crate) fn check_order<T: Element, D: Dimension>(array: &Bound<'_, PyArray<T, D>>) -> PyResult<()> {
    if array.is_c_contiguous() && array.is_aligned() {
        return Ok(());
    }
    Err(PyValueError::new_err("an array is not contiguous and aligned; expected C order"))
}

enum Norm {
    F32(Py<PyArray1<f32>>),
    Bf16(Py<PyArray1<u16>>),
}

/// Matrices, one below the other, that a few vectors are multiplied with: as fast as the weights can be read.
///
/// Arithmetic is float32 in an order that the format of the weights fixes: a vector's product has the same bits on every
/// CPU, for every number of threads, alone or beside others. Beside more than seven, it has others where there is a unit
/// for matrices (`has_matrix_unit`), and where pairs of bfloat16 are multiplied (`has_bfloat16_pairs`) and the weights are
/// bfloat16: vectors are then rounded to that format first. Beside any such number it has the same. Weights are read
/// where they lie; whatever is written to them is seen by the next call. Safe to share among threads.
///
/// Args:
///     matrices: Each a float32 array (O, I); a uint16 array (O, I), the bits of bfloat16; an int8 array (O, I) and its
///         scales, float32 (O,); or a uint8 array (O, I / 2), four bits a weight, the even column's in the lower half, and
///         scale and offset of each of Q groups as the bits of bfloat16, uint16 (O, Q, 2): `(code - 8) * scale + offset`.
///         All C-contiguous, all with the same I.
///     norm: Weights (I,), float32 or the bits of bfloat16, if vectors are normalised first (RMSNorm).
///     eps: Of the norm.
///     gated: Whether vectors are made of twice as many numbers, `silu(first half) * second half`. Excludes a norm.
///
/// Raises:
///     TypeError: If an array has another dtype or number of axes.
///     ValueError: If shapes do not fit, or an array is not contiguous.
///
/// Example:
///     >>> import numpy as np
///     >>> from bpe_llama._core import Linear
///     >>> linear = Linear([np.eye(2, dtype=np.float32), np.ones((1, 2), dtype=np.float32)])
///     >>> out = np.zeros((1, 3), dtype=np.float32)
///     >>> linear.multiply(np.array([[5, 7]], dtype=np.float32), out)
///     >>> out
///     array([[ 5.,  7., 12.]], dtype=float32)
#[pyclass(frozen, name = "Linear", module = "bpe_llama._core")]
pub(crate) struct PyLinear {
    parts: Vec<Part>,
    norm: Option<Norm>,
    eps: f32,
    gated: bool,
    bytes: usize,
}

#[pymethods]
impl PyLinear {
    #[new]
    #[pyo3(signature = (matrices, norm=None, eps=1e-5, gated=false))]
    fn new(
        py: Python<'_>,
        matrices: Vec<Bound<'_, PyAny>>,
        norm: Option<&Bound<'_, PyAny>>,
        eps: f32,
        gated: bool,
    ) -> PyResult<Self> {
        if gated && norm.is_some() {
            return Err(PyValueError::new_err("gated vectors are not normalised; expected norm=None"));
        }
        let norm = match norm {
            None => None,
            Some(array) => Some(if let Ok(array) = array.cast::<PyArray1<f32>>() {
                Norm::F32(array.clone().unbind())
            } else if let Ok(array) = array.cast::<PyArray1<u16>>() {
                Norm::Bf16(array.clone().unbind())
            } else {
                let found = array.repr()?;
                return Err(PyTypeError::new_err(format!("the norm is {found}; expected float32 or uint16 (I,)")));
            }),
        };
        let parts = matrices.iter().map(Part::of).collect::<PyResult<Vec<_>>>()?;
        let linear = Self { parts, norm, eps, gated, bytes: 0 };
        let matrices = linear.matrices(py)?;
        let bytes = matrices.iter().map(Matrix::bytes).sum();
        // No vector at all: what is wrong with the shapes is said now.
        multiply(&matrices, linear.input(py, &[])?, &mut [], false, 1).map_err(value_error)?;
        drop(matrices);
        Ok(Self { bytes, ..linear })
    }

    /// Write the product with each of M vectors to `out`, or add it there.
    ///
    /// Args:
    ///     x: float32 (M, I), or (M, 2 * I) if gated; C-contiguous.
    ///     out: float32 (M, the matrices' O together), C-contiguous; no part of `x`.
    ///     add: Whether to add to what `out` holds.
    ///     num_threads: Threads that may take part.
    ///
    /// Raises:
    ///     TypeError: If an array is no float32 of two axes, or `out` may not be written to.
    ///     ValueError: If shapes do not fit, an array is not contiguous, or `num_threads` is below 1.
    ///
    /// Cost: one read of the weights for up to about 16 vectors, 32 in a unit for matrices or as pairs of bfloat16, then
    /// two operations a weight and vector.
    #[pyo3(signature = (x, out, add=false, num_threads=1))]
    fn multiply<'py>(
        &self,
        py: Python<'py>,
        x: &Bound<'py, PyArray2<f32>>,
        out: &Bound<'py, PyArray2<f32>>,
        add: bool,
        num_threads: i64,
    ) -> PyResult<()> {
        let num_threads = at_least(1, "num_threads", num_threads)?;
        let given = x.try_readonly().map_err(|error| PyValueError::new_err(format!("x: {error}")))?;
        let mut written = out.try_readwrite().map_err(|error| PyTypeError::new_err(format!("out: {error}")))?;
        check_order(x)?;
        check_order(out)?;
        let matrices = self.matrices(py)?;
        let input = self.input(py, given.as_slice()?)?;
        let columns = matrices.first().map_or(0, Matrix::columns) * if self.gated { 2 } else { 1 };
        let rows: usize = matrices.iter().map(Matrix::rows).sum();
        let (from, to) = (x.shape(), out.shape());
        if from[0] != to[0] || from[1] != columns || to[1] != rows {
            return Err(PyValueError::new_err(format!(
                "x has shape {from:?} and out {to:?}; expected (M, {columns}) and (M, {rows})"
            )));
        }
        let out = written.as_slice_mut()?;
        let mut run = || multiply(&matrices, input, out, add, num_threads);
        if self.bytes < RELEASE_BYTES { run() } else { py.detach(run) }.map_err(value_error)
    }
}

impl PyLinear {
    fn matrices<'py>(&'py self, py: Python<'py>) -> PyResult<Vec<Matrix<'py>>> {
        self.parts.iter().map(|part| part.matrix(py)).collect()
    }

    fn input<'py>(&'py self, py: Python<'py>, x: &'py [f32]) -> PyResult<Input<'py>> {
        let weight = match &self.norm {
            None => return Ok(if self.gated { Input::Gated(x) } else { Input::Plain(x) }),
            Some(Norm::F32(weight)) => Numbers::F32(numbers(weight, py)?),
            Some(Norm::Bf16(weight)) => Numbers::Bf16(numbers(weight, py)?),
        };
        Ok(Input::Normed { x, weight, eps: self.eps })
    }
}

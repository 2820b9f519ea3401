//! `Linear` for Python: matrix products with weights in NumPy arrays.

use crate::arguments::{at_least, collect};
use crate::error::{run_kernel, value_error};
use crate::named::{self, shown, wrong_type};
use bpe_llama_kernels::{
    Activations, Gate, Matrix, NormWeights, Weights, has_amx, has_avx512, has_avx512_bf16, matmul,
};
use numpy::ndarray::Dimension;
use numpy::{Element, PyArray, PyArray1, PyArray2, PyArray3, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

/// Return whether `Linear` and `attend` use AVX-512.
///
/// Example:
///     >>> from bpe_llama._core import has_avx512
///     >>> has_avx512() in (True, False)
///     True
#[pyfunction(name = "has_avx512")]
pub(crate) fn py_has_avx512() -> bool {
    has_avx512()
}

/// Return whether `Linear` multiplies more than eight rows with AMX; float32 weights never.
///
/// Example:
///     >>> from bpe_llama._core import has_amx
///     >>> has_amx() in (True, False)
///     True
#[pyfunction(name = "has_amx")]
pub(crate) fn py_has_amx() -> bool {
    has_amx()
}

/// Return whether `Linear` rounds more than eight rows to bfloat16 for AVX-512 BF16, with bfloat16 weights.
///
/// False where `has_amx`, which takes precedence, and on Intel's CPUs, where float32 is faster.
///
/// Example:
///     >>> from bpe_llama._core import has_avx512_bf16
///     >>> has_avx512_bf16() in (True, False)
///     True
#[pyfunction(name = "has_avx512_bf16")]
pub(crate) fn py_has_avx512_bf16() -> bool {
    has_avx512_bf16()
}

const EXPECTED: &str = "expected a float32 or uint16 array (O, I), an int8 array (O, I) with a float32 array (O,), or a \
    uint8 array (O, I / 2) with a uint16 array (O, Q, 2)";

/// The arrays of one matrix.
enum Arrays {
    F32(Py<PyArray2<f32>>),
    Bf16(Py<PyArray2<u16>>),
    Int8(Py<PyArray2<i8>>, Py<PyArray1<f32>>),
    Int4(Py<PyArray2<u8>>, Py<PyArray3<u16>>),
}

impl Arrays {
    fn extract(object: &Bound<'_, PyAny>) -> PyResult<Self> {
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
            if let (Ok(codes), Ok(scales)) = (codes.cast::<PyArray2<u8>>(), scales.cast::<PyArray3<u16>>()) {
                return Ok(Self::Int4(codes.clone().unbind(), scales.clone().unbind()));
            }
        }
        Err(PyTypeError::new_err(format!("matrices holds {}; {EXPECTED}", shown(object))))
    }

    fn matrix<'py>(&'py self, py: Python<'py>) -> PyResult<Matrix<'py>> {
        let ([rows, columns], weights) = match self {
            Self::F32(array) => (shape(array, py), Weights::F32(elements(array, py)?)),
            Self::Bf16(array) => (shape(array, py), Weights::Bf16(elements(array, py)?)),
            Self::Int8(codes, scales) => (shape(codes, py), Weights::Int8(elements(codes, py)?, elements(scales, py)?)),
            Self::Int4(codes, scales) => {
                let [rows, bytes] = shape(codes, py);
                let found = scales.bind(py).shape();
                if (found[0], found[2]) != (rows, 2) {
                    let message = format!("scales and offsets have shape {found:?}; expected ({rows}, Q, 2)");
                    return Err(PyValueError::new_err(message));
                }
                ([rows, 2 * bytes], Weights::Int4(elements(codes, py)?, elements(scales, py)?.as_chunks().0))
            }
        };
        Matrix::new(rows, columns, weights).map_err(value_error)
    }
}

fn shape<T: Element>(array: &Py<PyArray2<T>>, py: Python<'_>) -> [usize; 2] {
    let shape = array.bind(py).shape();
    [shape[0], shape[1]]
}

fn elements<'py, T: Element, D: Dimension>(array: &'py Py<PyArray<T, D>>, py: Python<'py>) -> PyResult<&'py [T]> {
    let array = array.bind(py);
    check_order("an array", array)?;
    // SAFETY: the array is contiguous and aligned, and the reference keeps its memory alive. The caller must not write to it
    // during the call, as for every NumPy function that releases the GIL.
    Ok(unsafe { array.as_slice() }?)
}

/// Returns an error unless the array is in C order. `as_slice` would accept Fortran order, too.
pub(crate) fn check_order<T: Element, D: Dimension>(name: &str, array: &Bound<'_, PyArray<T, D>>) -> PyResult<()> {
    if array.is_c_contiguous() && array.is_aligned() {
        return Ok(());
    }
    Err(PyValueError::new_err(format!("{name} is not contiguous and aligned; expected C order")))
}

/// The weights of a norm.
pub(crate) enum Norm {
    F32(Py<PyArray1<f32>>),
    Bf16(Py<PyArray1<u16>>),
    Layer(Py<PyArray2<f32>>),
}

impl Norm {
    pub(crate) fn extract(array: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(array) = array.cast::<PyArray1<f32>>() {
            Ok(Self::F32(array.clone().unbind()))
        } else if let Ok(array) = array.cast::<PyArray1<u16>>() {
            Ok(Self::Bf16(array.clone().unbind()))
        } else if let Ok(array) = array.cast::<PyArray2<f32>>()
            && array.shape()[1] == 2
        {
            Ok(Self::Layer(array.clone().unbind()))
        } else {
            Err(PyTypeError::new_err(format!(
                "norm is {}; expected float32 or uint16 (I,), or float32 (I, 2)",
                shown(array)
            )))
        }
    }

    pub(crate) fn weights<'py>(&'py self, py: Python<'py>) -> PyResult<NormWeights<'py>> {
        Ok(match self {
            Self::F32(weights) => NormWeights::F32(elements(weights, py)?),
            Self::Bf16(weights) => NormWeights::Bf16(elements(weights, py)?),
            Self::Layer(weights) => NormWeights::Layer(elements(weights, py)?.as_chunks().0),
        })
    }
}

/// Several linear layers on the same input: one matrix product with their weights, `x @ W.T`.
///
/// The weights may be quantized. Arrays are read in place, so the next call sees what is written to them.
/// Arithmetic is float32; for 4-bit weights, except with AMX, the input is rounded to 23 bits of the largest of each
/// 8 columns and multiplied as integers. The product of a row has the same bits on every CPU, for every number of
/// threads and for every batch, with two exceptions in batches of more than eight rows: AMX (`has_amx`) sums in
/// another order for all weights but float32, and so does AVX-512 BF16 (`has_avx512_bf16`) with bfloat16 weights,
/// after rounding the rows to bfloat16. Either order is the same for all such batches. Safe to share among threads.
///
/// Args:
///     matrices: The weights of each layer; all C-contiguous, all with the same I:
///         float32 (O, I);
///         bfloat16, its bits as uint16 (O, I);
///         int8 (O, I) and scales float32 (O,), a weight being `code * scale`;
///         4-bit codes as uint8 (O, I / 2), the even column in the low half of a byte, and for Q groups of columns
///         the bits of a bfloat16 scale and offset as uint16 (O, Q, 2), a weight being
///         `(code - 8) * scale + offset`.
///     norm: RMSNorm factors (I,), float32 or the bits of bfloat16; or LayerNorm factors and biases, float32 (I,
///         2); None does not normalize.
///     eps: The epsilon of the norm.
///     gate: If the input is `[gate, up]`, and the product is with `activation(gate) * up`, the activation: "silu"
///         (SwiGLU) or "gelu_tanh" (GEGLU). Excludes `norm`.
///
/// Raises:
///     TypeError: If an array has another dtype or number of axes.
///     ValueError: If shapes do not fit, an array is not contiguous, or the activation is unknown.
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
    matrices: Vec<Arrays>,
    norm: Option<Norm>,
    eps: f32,
    gate: Option<Gate>,
    bytes: usize,
}

#[pymethods]
impl PyLinear {
    #[new]
    #[pyo3(signature = (matrices, norm=None, eps=1e-5, gate=None))]
    fn new(
        py: Python<'_>,
        matrices: &Bound<'_, PyAny>,
        norm: Option<&Bound<'_, PyAny>>,
        #[pyo3(from_py_with = named::eps)] eps: f32,
        #[pyo3(from_py_with = named::gate)] gate: Option<&str>,
    ) -> PyResult<Self> {
        if gate.is_some() && norm.is_some() {
            return Err(PyValueError::new_err("gated input is not normalized; expected norm=None"));
        }
        let norm = norm.map(Norm::extract).transpose()?;
        let gate = match gate {
            None => None,
            Some("silu") => Some(Gate::Silu),
            Some("gelu_tanh") => Some(Gate::GeluTanh),
            Some(other) => {
                let other: String = other.chars().take(80).collect();
                let message = format!("gate is {other:?}; expected \"silu\", \"gelu_tanh\" or None");
                return Err(PyValueError::new_err(message));
            }
        };
        let arrays = matrices.try_iter().map_err(|_| wrong_type("matrices", "a list of arrays", matrices))?;
        let matrices = collect(py, "matrices", arrays.map(|array| Arrays::extract(&array?)))?;
        let linear = Self { matrices, norm, eps, gate, bytes: 0 };
        let matrices = linear.matrices(py)?;
        let bytes = matrices.iter().map(Matrix::bytes).sum();
        // An empty batch raises the errors of shapes now.
        matmul(&matrices, linear.activations(py, &[])?, &mut [], false, 1).map_err(value_error)?;
        drop(matrices);
        Ok(Self { bytes, ..linear })
    }

    /// Write the product with each of M rows to `out`, or add it to `out`.
    ///
    /// Args:
    ///     x: The activations, float32 (M, I), or (M, 2 * I) with a `gate`; C-contiguous.
    ///     out: float32 (M, O), where O is the sum of all layers; C-contiguous, without overlap with `x`.
    ///     add: Whether to add to `out`.
    ///     num_threads: The most threads to use.
    ///
    /// Raises:
    ///     TypeError: If an array is not float32 with two axes, or `out` is not writable.
    ///     ValueError: If shapes do not fit, an array is not contiguous, or `num_threads` is below 1.
    ///
    /// Cost: one read of the weights for up to about 16 rows, or 32 with AMX or AVX-512 BF16; beyond, `2 * M * I * O`
    /// operations. AMX serves all weights but float32.
    #[pyo3(signature = (x, out, add=false, num_threads=1))]
    fn multiply<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = named::x)] x: Bound<'py, PyArray2<f32>>,
        #[pyo3(from_py_with = named::out)] out: Bound<'py, PyArray2<f32>>,
        #[pyo3(from_py_with = named::add)] add: bool,
        #[pyo3(from_py_with = named::num_threads)] num_threads: i64,
    ) -> PyResult<()> {
        let num_threads = at_least(1, "num_threads", num_threads)?;
        let given = x.try_readonly().map_err(|error| PyValueError::new_err(format!("x: {error}")))?;
        let mut written = out.try_readwrite().map_err(|error| PyTypeError::new_err(format!("out: {error}")))?;
        check_order("x", &x)?;
        check_order("out", &out)?;
        let matrices = self.matrices(py)?;
        let activations = self.activations(py, given.as_slice()?)?;
        let columns = matrices.first().map_or(0, Matrix::columns) * if self.gate.is_some() { 2 } else { 1 };
        let rows: usize = matrices.iter().map(Matrix::rows).sum();
        let (from, to) = (x.shape(), out.shape());
        if from[0] != to[0] || from[1] != columns || to[1] != rows {
            return Err(PyValueError::new_err(format!(
                "x has shape {from:?} and out {to:?}; expected (M, {columns}) and (M, {rows})"
            )));
        }
        let out = written.as_slice_mut()?;
        run_kernel(py, self.bytes, || matmul(&matrices, activations, out, add, num_threads))
    }
}

impl PyLinear {
    fn matrices<'py>(&'py self, py: Python<'py>) -> PyResult<Vec<Matrix<'py>>> {
        self.matrices.iter().map(|arrays| arrays.matrix(py)).collect()
    }

    fn activations<'py>(&'py self, py: Python<'py>, x: &'py [f32]) -> PyResult<Activations<'py>> {
        Ok(match (&self.norm, self.gate) {
            (Some(norm), _) => Activations::Normalized { x, weights: norm.weights(py)?, eps: self.eps },
            (None, Some(gate)) => Activations::Gated(gate, x),
            (None, None) => Activations::Plain(x),
        })
    }
}

//! `normalize` for Python: RMSNorm and LayerNorm in place in a NumPy array.

use crate::arguments::at_least;
use crate::error::run_kernel;
use crate::linear::{Norm, check_order};
use crate::named;
use bpe_llama_kernels::normalize;
use numpy::{PyArray2, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

/// Normalize columns of M rows in place, in groups of H columns: with as many groups as heads, each head alone.
///
/// RMSNorm is `x / sqrt(mean(x ** 2) + eps) * factors`. LayerNorm subtracts the mean of `x` first, and adds biases
/// last. Arithmetic is float32. A row has the same bits on every CPU, for every number of threads and for every
/// batch.
///
/// Args:
///     x: float32 (M, O), C-contiguous; written to.
///     weights: For RMSNorm the factor of each feature (H,), float32 or the bits of bfloat16 as uint16; for
///         LayerNorm the factor and the bias of each feature, float32 (H, 2).
///     eps: The epsilon of the norm.
///     start: The first column.
///     stop: The column after the last one.
///     num_threads: The most threads to use.
///
/// Raises:
///     TypeError: If an array has another dtype or number of axes, or `x` is not writable.
///     ValueError: If `start` to `stop` are not columns in whole groups, an array is not contiguous, or
///         `num_threads` is below 1.
///
/// Example:
///     >>> import numpy as np
///     >>> from bpe_llama._core import normalize
///     >>> x = np.array([[3, 3, 8, 8, 5]], dtype=np.float32)
///     >>> normalize(x, np.array([1, 10], dtype=np.float32), 0.0, 0, 4)
///     >>> x
///     array([[ 1., 10.,  1., 10.,  5.]], dtype=float32)
#[pyfunction(name = "normalize")]
#[pyo3(signature = (x, weights, eps, start, stop, num_threads=1))]
pub(crate) fn py_normalize<'py>(
    py: Python<'py>,
    #[pyo3(from_py_with = named::x)] x: Bound<'py, PyArray2<f32>>,
    weights: &Bound<'py, PyAny>,
    #[pyo3(from_py_with = named::eps)] eps: f32,
    #[pyo3(from_py_with = named::start)] start: i64,
    #[pyo3(from_py_with = named::stop)] stop: i64,
    #[pyo3(from_py_with = named::num_threads)] num_threads: i64,
) -> PyResult<()> {
    let (start, stop) = (at_least(0, "start", start)?, at_least(0, "stop", stop)?);
    let num_threads = at_least(1, "num_threads", num_threads)?;
    check_order("x", &x)?;
    let mut written = x.try_readwrite().map_err(|error| PyTypeError::new_err(format!("x: {error}")))?;
    let norm = Norm::extract(weights)?;
    let weights = norm.weights(py)?;
    let width = x.shape()[1];
    let rows = written.as_slice_mut()?;
    run_kernel(py, rows.len(), || normalize(rows, width, start..stop, weights, eps, num_threads))
}

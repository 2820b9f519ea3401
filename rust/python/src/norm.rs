//! `rms_norm` for Python: RMSNorm in place in a NumPy array.
#![allow(clippy::doc_markdown, reason = "these are Python docstrings")]

use crate::arguments::at_least;
use crate::error::value_error;
use crate::linear::{Norm, check_order};
use bpe_llama_kernels::rms_norm;
use numpy::{PyArray2, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

/// With fewer elements a call returns before another thread could use the GIL.
const RELEASE_ELEMENTS: usize = 1 << 15;

/// Normalize columns of M rows in place: `x / sqrt(mean(x ** 2) + eps) * weights`, in groups of H columns.
///
/// With as many groups as heads it is RMSNorm of each head. Arithmetic is float32. A row has the same bits on every CPU, for
/// every number of threads and for every batch.
///
/// Args:
///     x: float32 (M, O), C-contiguous; written to.
///     weights: The factor of each feature (H,), float32 or the bits of bfloat16 as uint16.
///     eps: The epsilon of RMSNorm.
///     start: The first column.
///     stop: The column after the last one.
///     num_threads: The most threads to use.
///
/// Raises:
///     TypeError: If an array has another dtype or number of axes, or `x` is not writable.
///     ValueError: If `start` to `stop` are not columns in whole groups, an array is not contiguous, or `num_threads` is
///         below 1.
///
/// Example:
///     >>> import numpy as np
///     >>> from bpe_llama._core import rms_norm
///     >>> x = np.array([[3, 3, 8, 8, 5]], dtype=np.float32)
///     >>> rms_norm(x, np.array([1, 10], dtype=np.float32), 0.0, 0, 4)
///     >>> x
///     array([[ 1., 10.,  1., 10.,  5.]], dtype=float32)
#[pyfunction(name = "rms_norm")]
#[pyo3(signature = (x, weights, eps, start, stop, num_threads=1))]
pub(crate) fn py_rms_norm<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyArray2<f32>>,
    weights: &Bound<'py, PyAny>,
    eps: f32,
    start: i64,
    stop: i64,
    num_threads: i64,
) -> PyResult<()> {
    let (start, stop) = (at_least(0, "start", start)?, at_least(0, "stop", stop)?);
    let num_threads = at_least(1, "num_threads", num_threads)?;
    check_order(x)?;
    let mut written = x.try_readwrite().map_err(|error| PyTypeError::new_err(format!("x: {error}")))?;
    let norm = Norm::extract(weights)?;
    let weights = norm.weights(py)?;
    let width = x.shape()[1];
    let rows = written.as_slice_mut()?;
    let is_short = rows.len() < RELEASE_ELEMENTS;
    let mut call = || rms_norm(rows, width, start..stop, weights, eps, num_threads);
    if is_short { call() } else { py.detach(call) }.map_err(value_error)
}

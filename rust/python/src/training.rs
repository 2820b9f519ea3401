//! Element-wise parts of a layer in training for Python, on NumPy arrays.

use crate::arguments::at_least;
use crate::error::run_kernel;
use crate::linear::check_order;
use crate::named;
use bpe_llama_kernels::{Angles, ElementWise, Loss};
use numpy::ndarray::Dimension;
use numpy::{
    BorrowError, Element, PyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray, PyReadwriteArray,
    PyUntypedArrayMethods,
};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

/// Adds the functions to the module.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(py_rms_norm, module)?)?;
    module.add_function(wrap_pyfunction!(py_rms_norm_backward, module)?)?;
    module.add_function(wrap_pyfunction!(py_swiglu, module)?)?;
    module.add_function(wrap_pyfunction!(py_swiglu_backward, module)?)?;
    module.add_function(wrap_pyfunction!(py_rotate, module)?)?;
    module.add_function(wrap_pyfunction!(py_cross_entropy, module)?)
}

fn read<'py, T: Element, D: Dimension>(
    name: &str,
    array: &Bound<'py, PyArray<T, D>>,
) -> PyResult<PyReadonlyArray<'py, T, D>> {
    check_order(name, array)?;
    array.try_readonly().map_err(|error| PyValueError::new_err(format!("{name}: {error}")))
}

fn write<'py, D: Dimension>(
    name: &str,
    array: &Bound<'py, PyArray<f32, D>>,
) -> PyResult<PyReadwriteArray<'py, f32, D>> {
    check_order(name, array)?;
    array.try_readwrite().map_err(|error| match error {
        BorrowError::AlreadyBorrowed => PyValueError::new_err(format!("{name} shares memory with another argument")),
        error => PyTypeError::new_err(format!("{name}: {error}")),
    })
}

/// Returns an error unless each array has the expected shape.
fn check_shapes<const N: usize>(expected: &[usize], arrays: [(&str, &[usize]); N]) -> PyResult<()> {
    match arrays.iter().find(|(_, shape)| *shape != expected) {
        None => Ok(()),
        Some((name, shape)) => Err(PyValueError::new_err(format!("{name} has shape {shape:?}; expected {expected:?}"))),
    }
}

/// Write the RMSNorm of M rows, `x / sqrt(mean(x ** 2) + eps) * weights`, to `out`.
///
/// Args:
///     x: float32 (M, D), C-contiguous, as all arrays.
///     weights: float32 (D,).
///     eps: The epsilon of the norm.
///     out: float32 (M, D).
///     scales: float32 (M,); `1 / sqrt(mean(x ** 2) + eps)` of each row, for `rms_norm_backward`.
///     num_threads: The most threads to use.
///
/// Raises:
///     TypeError: If an array has another dtype or number of axes, or is not writable.
///     ValueError: If shapes do not fit, an array is not contiguous, an output shares memory,
///         or `num_threads` is below 1.
///
/// Example:
///     >>> import numpy as np
///     >>> from bpe_llama._core import rms_norm
///     >>> x, weights = np.array([[3, 3]], dtype=np.float32), np.array([1, 10], dtype=np.float32)
///     >>> out, scales = np.zeros_like(x), np.zeros(1, dtype=np.float32)
///     >>> rms_norm(x, weights, 0.0, out, scales)
///     >>> out
///     array([[ 1., 10.]], dtype=float32)
#[pyfunction(name = "rms_norm")]
#[pyo3(signature = (x, weights, eps, out, scales, num_threads=1))]
fn py_rms_norm<'py>(
    py: Python<'py>,
    #[pyo3(from_py_with = named::x)] x: Bound<'py, PyArray2<f32>>,
    #[pyo3(from_py_with = named::weights)] weights: Bound<'py, PyArray1<f32>>,
    #[pyo3(from_py_with = named::eps)] eps: f32,
    #[pyo3(from_py_with = named::out)] out: Bound<'py, PyArray2<f32>>,
    #[pyo3(from_py_with = named::scales)] scales: Bound<'py, PyArray1<f32>>,
    #[pyo3(from_py_with = named::num_threads)] num_threads: i64,
) -> PyResult<()> {
    let num_threads = at_least(1, "num_threads", num_threads)?;
    check_shapes(&[x.shape()[0], weights.shape()[0]], [("x", x.shape()), ("out", out.shape())])?;
    check_shapes(&x.shape()[..1], [("scales", scales.shape())])?;
    let (x, weights) = (read("x", &x)?, read("weights", &weights)?);
    let (mut out, mut scales) = (write("out", &out)?, write("scales", &scales)?);
    let (x, weights, out, scales) = (x.as_slice()?, weights.as_slice()?, out.as_slice_mut()?, scales.as_slice_mut()?);
    run_kernel(py, x.len(), || ElementWise::new(num_threads).rms_norm(x, weights, eps, out, scales))
}

/// Write the gradients of `rms_norm` with respect to `x` and to `weights`.
///
/// Args:
///     gradient: That of the output, float32 (M, D), C-contiguous, as all arrays.
///     x: As given to `rms_norm`.
///     weights: As given to `rms_norm`.
///     scales: What `rms_norm` wrote.
///     for_x: float32 (M, D); written to.
///     for_weights: float32 (D,); written to.
///     num_threads: The most threads to use.
///
/// Raises:
///     TypeError: If an array has another dtype or number of axes, or is not writable.
///     ValueError: If shapes do not fit, an array is not contiguous, an output shares memory,
///         or `num_threads` is below 1.
///
/// Example:
///     >>> import numpy as np
///     >>> from bpe_llama._core import rms_norm_backward
///     >>> x, ones = np.array([[2, 2]], dtype=np.float32), np.ones(2, dtype=np.float32)
///     >>> for_x, for_weights = np.zeros_like(x), np.zeros_like(ones)
///     >>> rms_norm_backward(np.ones_like(x), x, ones, np.array([0.5], dtype=np.float32), for_x, for_weights)
///     >>> for_x, for_weights
///     (array([[0., 0.]], dtype=float32), array([1., 1.], dtype=float32))
#[pyfunction(name = "rms_norm_backward")]
#[pyo3(signature = (gradient, x, weights, scales, for_x, for_weights, num_threads=1))]
#[allow(clippy::too_many_arguments, reason = "three inputs, what was kept, and two outputs")]
fn py_rms_norm_backward<'py>(
    py: Python<'py>,
    #[pyo3(from_py_with = named::gradient)] gradient: Bound<'py, PyArray2<f32>>,
    #[pyo3(from_py_with = named::x)] x: Bound<'py, PyArray2<f32>>,
    #[pyo3(from_py_with = named::weights)] weights: Bound<'py, PyArray1<f32>>,
    #[pyo3(from_py_with = named::scales)] scales: Bound<'py, PyArray1<f32>>,
    #[pyo3(from_py_with = named::for_x)] for_x: Bound<'py, PyArray2<f32>>,
    #[pyo3(from_py_with = named::for_weights)] for_weights: Bound<'py, PyArray1<f32>>,
    #[pyo3(from_py_with = named::num_threads)] num_threads: i64,
) -> PyResult<()> {
    let num_threads = at_least(1, "num_threads", num_threads)?;
    let shapes = [("x", x.shape()), ("gradient", gradient.shape()), ("for_x", for_x.shape())];
    check_shapes(&[x.shape()[0], weights.shape()[0]], shapes)?;
    check_shapes(&x.shape()[..1], [("scales", scales.shape())])?;
    check_shapes(weights.shape(), [("for_weights", for_weights.shape())])?;
    let (gradient, x) = (read("gradient", &gradient)?, read("x", &x)?);
    let (weights, scales) = (read("weights", &weights)?, read("scales", &scales)?);
    let (mut for_x, mut for_weights) = (write("for_x", &for_x)?, write("for_weights", &for_weights)?);
    let (gradient, x, weights, scales) = (gradient.as_slice()?, x.as_slice()?, weights.as_slice()?, scales.as_slice()?);
    let (for_x, for_weights) = (for_x.as_slice_mut()?, for_weights.as_slice_mut()?);
    run_kernel(py, x.len(), || {
        ElementWise::new(num_threads).rms_norm_backward(gradient, x, weights, scales, for_x, for_weights)
    })
}

/// Write `gate * sigmoid(gate) * up` to `out`.
///
/// Args:
///     gate: float32 (n,), C-contiguous, as all arrays.
///     up: float32 (n,).
///     out: float32 (n,).
///     num_threads: The most threads to use.
///
/// Raises:
///     TypeError: If an array has another dtype or number of axes, or is not writable.
///     ValueError: If lengths differ, an array is not contiguous, an output shares memory, or `num_threads` is below 1.
///
/// Example:
///     >>> import numpy as np
///     >>> from bpe_llama._core import swiglu
///     >>> gate, up = np.array([0, 100], dtype=np.float32), np.array([1, 2], dtype=np.float32)
///     >>> out = np.zeros_like(gate)
///     >>> swiglu(gate, up, out)
///     >>> out
///     array([  0., 200.], dtype=float32)
#[pyfunction(name = "swiglu")]
#[pyo3(signature = (gate, up, out, num_threads=1))]
fn py_swiglu<'py>(
    py: Python<'py>,
    #[pyo3(from_py_with = named::gate)] gate: Bound<'py, PyArray1<f32>>,
    #[pyo3(from_py_with = named::up)] up: Bound<'py, PyArray1<f32>>,
    #[pyo3(from_py_with = named::out)] out: Bound<'py, PyArray1<f32>>,
    #[pyo3(from_py_with = named::num_threads)] num_threads: i64,
) -> PyResult<()> {
    let num_threads = at_least(1, "num_threads", num_threads)?;
    let (gate, up, mut out) = (read("gate", &gate)?, read("up", &up)?, write("out", &out)?);
    let (gate, up, out) = (gate.as_slice()?, up.as_slice()?, out.as_slice_mut()?);
    run_kernel(py, gate.len(), || ElementWise::new(num_threads).swiglu(gate, up, out))
}

/// Write the gradients of `swiglu` with respect to `gate` and `up`.
///
/// Args:
///     gradient: That of the output, float32 (n,), C-contiguous, as all arrays.
///     gate: As given to `swiglu`.
///     up: As given to `swiglu`.
///     for_gate: float32 (n,); written to.
///     for_up: float32 (n,); written to.
///     num_threads: The most threads to use.
///
/// Raises:
///     TypeError: If an array has another dtype or number of axes, or is not writable.
///     ValueError: If lengths differ, an array is not contiguous, an output shares memory, or `num_threads` is below 1.
///
/// Example:
///     >>> import numpy as np
///     >>> from bpe_llama._core import swiglu_backward
///     >>> gate, up = np.array([0, 100], dtype=np.float32), np.array([1, 2], dtype=np.float32)
///     >>> for_gate, for_up = np.zeros_like(gate), np.zeros_like(up)
///     >>> swiglu_backward(np.ones_like(gate), gate, up, for_gate, for_up)
///     >>> for_gate, for_up
///     (array([0.5, 2. ], dtype=float32), array([  0., 100.], dtype=float32))
#[pyfunction(name = "swiglu_backward")]
#[pyo3(signature = (gradient, gate, up, for_gate, for_up, num_threads=1))]
fn py_swiglu_backward<'py>(
    py: Python<'py>,
    #[pyo3(from_py_with = named::gradient)] gradient: Bound<'py, PyArray1<f32>>,
    #[pyo3(from_py_with = named::gate)] gate: Bound<'py, PyArray1<f32>>,
    #[pyo3(from_py_with = named::up)] up: Bound<'py, PyArray1<f32>>,
    #[pyo3(from_py_with = named::for_gate)] for_gate: Bound<'py, PyArray1<f32>>,
    #[pyo3(from_py_with = named::for_up)] for_up: Bound<'py, PyArray1<f32>>,
    #[pyo3(from_py_with = named::num_threads)] num_threads: i64,
) -> PyResult<()> {
    let num_threads = at_least(1, "num_threads", num_threads)?;
    let (gradient, gate, up) = (read("gradient", &gradient)?, read("gate", &gate)?, read("up", &up)?);
    let (mut for_gate, mut for_up) = (write("for_gate", &for_gate)?, write("for_up", &for_up)?);
    let (gradient, gate, up) = (gradient.as_slice()?, gate.as_slice()?, up.as_slice()?);
    let (for_gate, for_up) = (for_gate.as_slice_mut()?, for_up.as_slice_mut()?);
    run_kernel(py, gate.len(), || ElementWise::new(num_threads).swiglu_backward(gradient, gate, up, for_gate, for_up))
}

/// Write rows of heads, with features `i` and `i + R / 2` of each head rotated (RoPE), to `out`.
///
/// Args:
///     x: float32 (M, N * H), C-contiguous, as all arrays.
///     cos: Cosines of the angles, float32 (P, R / 2), where P divides M: row `m` has those of row `m % P`.
///     sin: Sines of the angles, float32 (P, R / 2).
///     head_dim: H, at least R. Features from R on are copied.
///     back: Whether to rotate back, which is the gradient of the rotation.
///     out: float32 (M, N * H).
///     num_threads: The most threads to use.
///
/// Raises:
///     TypeError: If an array has another dtype or number of axes, or is not writable.
///     ValueError: If shapes do not fit, an array is not contiguous, an output shares memory,
///         or `head_dim` or `num_threads` is below 1.
///
/// Example:
///     >>> import numpy as np
///     >>> from bpe_llama._core import rotate
///     >>> x, by_90_degrees = np.array([[1, 0]], dtype=np.float32), np.array([[0], [1]], dtype=np.float32)
///     >>> out = np.zeros_like(x)
///     >>> rotate(x, *by_90_degrees[:, None], 2, False, out)
///     >>> out
///     array([[0., 1.]], dtype=float32)
#[pyfunction(name = "rotate")]
#[pyo3(signature = (x, cos, sin, head_dim, back, out, num_threads=1))]
#[allow(clippy::too_many_arguments, reason = "a matrix, its angles and its shape")]
fn py_rotate<'py>(
    py: Python<'py>,
    #[pyo3(from_py_with = named::x)] x: Bound<'py, PyArray2<f32>>,
    #[pyo3(from_py_with = named::cos)] cos: Bound<'py, PyArray2<f32>>,
    #[pyo3(from_py_with = named::sin)] sin: Bound<'py, PyArray2<f32>>,
    #[pyo3(from_py_with = named::head_dim)] head_dim: i64,
    #[pyo3(from_py_with = named::back)] back: bool,
    #[pyo3(from_py_with = named::out)] out: Bound<'py, PyArray2<f32>>,
    #[pyo3(from_py_with = named::num_threads)] num_threads: i64,
) -> PyResult<()> {
    let (num_threads, head_dim) = (at_least(1, "num_threads", num_threads)?, at_least(1, "head_dim", head_dim)?);
    check_shapes(x.shape(), [("out", out.shape())])?;
    check_shapes(cos.shape(), [("sin", sin.shape())])?;
    let (heads, pairs) = (x.shape()[1] / head_dim, cos.shape()[1]);
    if !x.shape()[1].is_multiple_of(head_dim) {
        let found = x.shape();
        return Err(PyValueError::new_err(format!(
            "x has shape {found:?}; expected whole heads of head_dim {head_dim}"
        )));
    }
    let (x, cos, sin, mut out) = (read("x", &x)?, read("cos", &cos)?, read("sin", &sin)?, write("out", &out)?);
    let angles = Angles { cos: cos.as_slice()?, sin: sin.as_slice()?, pairs };
    let (x, out) = (x.as_slice()?, out.as_slice_mut()?);
    run_kernel(py, x.len(), || ElementWise::new(num_threads).rotate(x, angles, heads, head_dim, back, out))
}

/// Write the cross-entropy of each row of logits, times a factor, to `losses`.
///
/// Args:
///     logits: float32 (M, V), C-contiguous, as all arrays.
///     labels: The class of each row, int64 (M,).
///     factors: float32 (M,). A row whose factor is 0 has the loss and the gradient 0, whatever its label is.
///     losses: float32 (M,); written to.
///     label_smoothing: The part of the probability that is spread over all classes.
///     z_loss: The weight of the squared logarithm of the softmax's denominator, which is added to a row's loss.
///     gradient: Whether the logits are overwritten by the gradient of the sum of all losses.
///     num_threads: The most threads to use.
///
/// A row with a logit that is NaN or +infinity, or without a finite one, has the loss and the gradient NaN.
///
/// Raises:
///     TypeError: If an array has another dtype or number of axes, or is not writable.
///     ValueError: If shapes do not fit, an array is not contiguous, an output shares memory,
///         a label is no class, or `num_threads` is below 1.
///
/// Example:
///     >>> import numpy as np
///     >>> from bpe_llama._core import cross_entropy
///     >>> logits, losses = np.zeros((1, 2), dtype=np.float32), np.zeros(1, dtype=np.float32)
///     >>> cross_entropy(logits, np.array([1]), np.ones(1, dtype=np.float32), losses, gradient=True)
///     >>> losses, logits
///     (array([0.6931472], dtype=float32), array([[ 0.5, -0.5]], dtype=float32))
#[pyfunction(name = "cross_entropy")]
#[pyo3(signature = (logits, labels, factors, losses, label_smoothing=0.0, z_loss=0.0, gradient=false, num_threads=1))]
#[allow(clippy::too_many_arguments, reason = "a matrix, what is known of its rows, and the kind of loss")]
fn py_cross_entropy<'py>(
    py: Python<'py>,
    #[pyo3(from_py_with = named::logits)] logits: Bound<'py, PyArray2<f32>>,
    #[pyo3(from_py_with = named::labels)] labels: Bound<'py, PyArray1<i64>>,
    #[pyo3(from_py_with = named::factors)] factors: Bound<'py, PyArray1<f32>>,
    #[pyo3(from_py_with = named::losses)] losses: Bound<'py, PyArray1<f32>>,
    #[pyo3(from_py_with = named::label_smoothing)] label_smoothing: f32,
    #[pyo3(from_py_with = named::z_loss)] z_loss: f32,
    #[pyo3(from_py_with = named::gradient)] gradient: bool,
    #[pyo3(from_py_with = named::num_threads)] num_threads: i64,
) -> PyResult<()> {
    let num_threads = at_least(1, "num_threads", num_threads)?;
    let shapes = [("labels", labels.shape()), ("factors", factors.shape()), ("losses", losses.shape())];
    check_shapes(&logits.shape()[..1], shapes)?;
    let (labels, factors) = (read("labels", &labels)?, read("factors", &factors)?);
    let (mut logits, mut losses) = (write("logits", &logits)?, write("losses", &losses)?);
    let (labels, factors) = (labels.as_slice()?, factors.as_slice()?);
    let (logits, losses) = (logits.as_slice_mut()?, losses.as_slice_mut()?);
    let loss = Loss { label_smoothing, z_loss, gradient };
    run_kernel(py, logits.len(), || ElementWise::new(num_threads).cross_entropy(logits, labels, factors, loss, losses))
}

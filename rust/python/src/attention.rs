//! `attend` for Python: attention of new tokens over a KV cache in a NumPy array.

use crate::arguments::at_least;
use crate::error::run_kernel;
use crate::linear::check_order;
use crate::named::{self, shown};
use bpe_llama_kernels::{AttentionShape, KvCache, NewTokens, attend};
use numpy::{BorrowError, Element, PyArray2, PyArray6, PyArrayMethods, PyReadwriteArray6, PyUntypedArrayMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

/// Apply RoPE to M new tokens, append their keys and values to the cache, and write their attention to `out`.
///
/// A token attends to its slot up to its own position. Arithmetic is float32. The output of a token has the same
/// bits on every CPU, for every number of threads and for every batch, with one exception: where `has_avx512_bf16`,
/// more than eight consecutive tokens of a slot in a bfloat16 cache have their queries and attention weights
/// rounded to bfloat16.
///
/// Args:
///     qkv: N queries, K keys and K values of H features each, float32 (M, (N + 2 * K) * H).
///     cos: Cosines of the rotary angles, float32 (M, R / 2).
///     sin: Sines of the rotary angles, float32 (M, R / 2).
///     cache: Keys, then values, (2, layers, B, K, S, H) as float32 or the bits of bfloat16 as uint16; written to.
///     layer: The layer of the cache.
///     positions: The slot and the position of each token, int64 (M, 2). A row with a negative number is skipped.
///     out: The attention output, float32 (M, N * H); written to.
///     window: The sliding window: how many positions a token attends to, its own included. 0 means all.
///     num_threads: The most threads to use.
///     softcap: The bound of scores: each is `softcap * tanh(score / softcap)`. 0 means none.
///     interleaved: Whether feature 2 i of a head is rotated with feature 2 i + 1, and not i with i + R / 2.
///
/// Raises:
///     TypeError: If an array has another dtype or number of axes, or is not writable.
///     ValueError: If shapes do not fit, an array is not contiguous, `layer` or `window` is negative, `num_threads`
///         is below 1, `softcap` is negative or not finite, a position is outside the cache, or another call writes
///         to the cache.
///
/// Example:
///     >>> import numpy as np
///     >>> from bpe_llama._core import attend
///     >>> cache, out = np.zeros((2, 1, 1, 1, 4, 2), dtype=np.float32), np.zeros((1, 2), dtype=np.float32)
///     >>> none = np.zeros((1, 0), dtype=np.float32)
///     >>> attend(np.array([[1, 0, 1, 0, 5, 7]], dtype=np.float32), none, none, cache, 0, np.array([[0, 0]]), out)
///     >>> out
///     array([[5., 7.]], dtype=float32)
#[pyfunction(name = "attend")]
#[pyo3(signature = (qkv, cos, sin, cache, layer, positions, out, window=0, num_threads=1, softcap=0.0, interleaved=false))]
#[allow(clippy::too_many_arguments, reason = "one step of a model needs all of them")]
pub(crate) fn py_attend<'py>(
    py: Python<'py>,
    #[pyo3(from_py_with = named::qkv)] qkv: Bound<'py, PyArray2<f32>>,
    #[pyo3(from_py_with = named::cos)] cos: Bound<'py, PyArray2<f32>>,
    #[pyo3(from_py_with = named::sin)] sin: Bound<'py, PyArray2<f32>>,
    cache: &Bound<'py, PyAny>,
    #[pyo3(from_py_with = named::layer)] layer: i64,
    #[pyo3(from_py_with = named::positions)] positions: Bound<'py, PyArray2<i64>>,
    #[pyo3(from_py_with = named::out)] out: Bound<'py, PyArray2<f32>>,
    #[pyo3(from_py_with = named::window)] window: i64,
    #[pyo3(from_py_with = named::num_threads)] num_threads: i64,
    #[pyo3(from_py_with = named::softcap)] softcap: f32,
    #[pyo3(from_py_with = named::interleaved)] interleaved: bool,
) -> PyResult<()> {
    let (layer, window) = (at_least(0, "layer", layer)?, at_least(0, "window", window)?);
    let num_threads = at_least(1, "num_threads", num_threads)?;
    let mut written = out.try_readwrite().map_err(|error| PyTypeError::new_err(format!("out: {error}")))?;
    check_order("out", &out)?;
    let rows = out.shape()[0];
    for (name, array) in [("qkv", &qkv), ("cos", &cos), ("sin", &sin)] {
        check_order(name, array)?;
        if array.shape()[0] != rows {
            let found = array.shape();
            return Err(PyValueError::new_err(format!("{name} has shape {found:?}; expected {rows} rows, as out has")));
        }
    }
    check_order("positions", &positions)?;
    if positions.shape() != [rows, 2] {
        let found = positions.shape();
        return Err(PyValueError::new_err(format!("positions have shape {found:?}; expected ({rows}, 2)")));
    }
    let positions = positions.try_readonly().map_err(|error| PyValueError::new_err(format!("positions: {error}")))?;
    let pairs = positions.as_slice()?.as_chunks::<2>().0.iter();
    let positions: Vec<Option<(usize, usize)>> =
        pairs.map(|[slot, position]| Some((usize::try_from(*slot).ok()?, usize::try_from(*position).ok()?))).collect();
    let [qkv, cos, sin] = [qkv.try_readonly(), cos.try_readonly(), sin.try_readonly()]
        .map(|array| array.map_err(|error| PyValueError::new_err(error.to_string())));
    let (qkv, cos, sin) = (qkv?, cos?, sin?);
    let tokens = NewTokens { qkv: qkv.as_slice()?, cos: cos.as_slice()?, sin: sin.as_slice()?, positions: &positions };
    let width = out.shape()[1];
    let mut run = |shape: [usize; 6], cache: KvCache<'_>| {
        let [_, _, _, kv_heads, capacity, head_dim] = shape;
        let heads = width / head_dim.max(1);
        let shape = AttentionShape { heads, kv_heads, head_dim, capacity, window, softcap, interleaved };
        let out = written.as_slice_mut()?;
        let attended = positions.iter().flatten().fold(0_usize, |sum, (_, position)| sum.saturating_add(*position));
        let key_elements = attended.saturating_mul(kv_heads * head_dim);
        run_kernel(py, key_elements, || attend(shape, tokens, cache, out, num_threads))
    };
    if let Ok(array) = cache.cast::<PyArray6<f32>>() {
        let mut cache = writable(array)?;
        let (shape, keys, values) = layer_of(&mut cache, layer)?;
        run(shape, KvCache::F32(keys, values))
    } else if let Ok(array) = cache.cast::<PyArray6<u16>>() {
        let mut cache = writable(array)?;
        let (shape, keys, values) = layer_of(&mut cache, layer)?;
        run(shape, KvCache::Bf16(keys, values))
    } else {
        let expected = "expected a float32 or uint16 array (2, layers, B, K, S, H)";
        Err(PyTypeError::new_err(format!("the cache is {}; {expected}", shown(cache))))
    }
}

fn writable<'py, T: Element>(array: &Bound<'py, PyArray6<T>>) -> PyResult<PyReadwriteArray6<'py, T>> {
    check_order("cache", array)?;
    // The caller must not access the same memory through another array during the call.
    array.try_readwrite().map_err(|error| match error {
        BorrowError::AlreadyBorrowed => PyValueError::new_err("cache: another call writes to it now"),
        error => PyTypeError::new_err(format!("cache: {error}")),
    })
}

/// Returns the shape of the cache, and the keys and values of one layer.
fn layer_of<'a, T: Element>(
    cache: &'a mut PyReadwriteArray6<'_, T>,
    layer: usize,
) -> PyResult<([usize; 6], &'a mut [T], &'a mut [T])> {
    let shape: [usize; 6] = cache.shape().try_into()?;
    if shape[0] != 2 || layer >= shape[1] {
        let expected = "expected (2, layers, B, K, S, H), and one of the layers";
        return Err(PyValueError::new_err(format!("layer {layer} of a cache of shape {shape:?}; {expected}")));
    }
    let size: usize = shape[2..].iter().product();
    let (keys, values) = cache.as_slice_mut()?.split_at_mut(shape[1] * size);
    let range = layer * size..(layer + 1) * size;
    Ok((shape, &mut keys[range.clone()], &mut values[range]))
}

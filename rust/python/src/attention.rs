//! `attend` for Python: the attention of new tokens over a cache in a NumPy array.
#![allow(clippy::doc_markdown, reason = "these are Python docstrings")]

use crate::arguments::{at_least, shown};
use crate::error::value_error;
use crate::linear::check_order;
use bpe_llama_kernels::{Shape, Store, Tokens, attend};
use numpy::{BorrowError, Element, PyArray2, PyArray6, PyArrayMethods, PyReadwriteArray6, PyUntypedArrayMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

/// Below this many numbers of keys a call is over before another thread could use the interpreter.
const RELEASE_NUMBERS: usize = 1 << 15;

/// Attend from M new tokens to those before them in the cache, and to themselves.
///
/// Queries and keys are turned by their angles first, and keys and values written to the cache. Arithmetic is float32 in an
/// order that the sizes fix: a token gathers the same bits on every CPU, for every number of threads, alone or beside others.
/// But more than eight tokens that follow one another in a slot of a bfloat16 cache have their queries, and their keys'
/// shares, rounded to bfloat16 where pairs of these are multiplied (`has_bfloat16_pairs`).
///
/// Args:
///     qkv: Queries of N heads, then keys and values of K heads of H numbers, float32 (M, (N + 2 * K) * H).
///     cos: Cosines of the angles, float32 (M, R / 2): of the first R numbers of a head, number i is turned with i + R / 2.
///     sin: Sines.
///     store: The cache, (2, layers, B, K, S, H): keys, then values, float32 or the bits of bfloat16 as uint16. Written to.
///     layer: Whose.
///     places: The slot and the column of each token, int64 (M, 2); rows of negative numbers are left alone. A token looks
///         at the columns of its slot up to its own.
///     out: What each token gathers, float32 (M, N * H). Written to.
///     window: Columns a token looks at, its own included; 0 is all.
///     num_threads: Threads that may take part.
///
/// Raises:
///     TypeError: If an array has another dtype or number of axes, or may not be written to.
///     ValueError: If shapes do not fit, an array is not contiguous, a number is negative, a place is not in the cache, or
///         another call writes to the store.
///
/// Example:
///     >>> import numpy as np
///     >>> from bpe_llama._core import attend
///     >>> store, out = np.zeros((2, 1, 1, 1, 4, 2), dtype=np.float32), np.zeros((1, 2), dtype=np.float32)
///     >>> none = np.zeros((1, 0), dtype=np.float32)
///     >>> attend(np.array([[1, 0, 1, 0, 5, 7]], dtype=np.float32), none, none, store, 0, np.array([[0, 0]]), out)
///     >>> out
///     array([[5., 7.]], dtype=float32)
#[pyfunction(name = "attend")]
#[pyo3(signature = (qkv, cos, sin, store, layer, places, out, window=0, num_threads=1))]
#[allow(clippy::too_many_arguments, reason = "a step of a model needs them all")]
pub(crate) fn py_attend<'py>(
    py: Python<'py>,
    qkv: &Bound<'py, PyArray2<f32>>,
    cos: &Bound<'py, PyArray2<f32>>,
    sin: &Bound<'py, PyArray2<f32>>,
    store: &Bound<'py, PyAny>,
    layer: i64,
    places: &Bound<'py, PyArray2<i64>>,
    out: &Bound<'py, PyArray2<f32>>,
    window: i64,
    num_threads: i64,
) -> PyResult<()> {
    let (layer, window) = (at_least(0, "layer", layer)?, at_least(0, "window", window)?);
    let num_threads = at_least(1, "num_threads", num_threads)?;
    let mut gathered = out.try_readwrite().map_err(|error| PyTypeError::new_err(format!("out: {error}")))?;
    check_order(out)?;
    let rows = out.shape()[0];
    for (name, array) in [("qkv", qkv), ("cos", cos), ("sin", sin)] {
        check_order(array)?;
        if array.shape()[0] != rows {
            let found = array.shape();
            return Err(PyValueError::new_err(format!("{name} has shape {found:?}; expected {rows} rows, as out has")));
        }
    }
    check_order(places)?;
    if places.shape() != [rows, 2] {
        let found = places.shape();
        return Err(PyValueError::new_err(format!("places have shape {found:?}; expected ({rows}, 2)")));
    }
    let wanted = places.try_readonly().map_err(|error| PyValueError::new_err(format!("places: {error}")))?;
    let pairs = wanted.as_slice()?.as_chunks::<2>().0.iter();
    let places: Vec<Option<(usize, usize)>> =
        pairs.map(|[slot, column]| Some((usize::try_from(*slot).ok()?, usize::try_from(*column).ok()?))).collect();
    let [qkv, cos, sin] = [qkv.try_readonly(), cos.try_readonly(), sin.try_readonly()]
        .map(|array| array.map_err(|error| PyValueError::new_err(error.to_string())));
    let (qkv, cos, sin) = (qkv?, cos?, sin?);
    let tokens = Tokens { qkv: qkv.as_slice()?, cos: cos.as_slice()?, sin: sin.as_slice()?, places: &places };
    let width = out.shape()[1];
    let mut run = |shape: [usize; 6], store: Store<'_>| {
        let [_, _, _, kv_heads, capacity, size] = shape;
        let shape = Shape { heads: width / size.max(1), kv_heads, size, capacity, window };
        let out = gathered.as_slice_mut()?;
        let seen = places.iter().flatten().fold(0_usize, |seen, place| seen.saturating_add(place.1));
        let attended = || attend(shape, tokens, store, out, num_threads);
        let is_short = seen.saturating_mul(kv_heads * size) < RELEASE_NUMBERS;
        if is_short { attended() } else { py.detach(attended) }.map_err(value_error)
    };
    if let Ok(array) = store.cast::<PyArray6<f32>>() {
        let mut held = writable(array)?;
        let (shape, keys, values) = of_layer(&mut held, layer)?;
        run(shape, Store::F32(keys, values))
    } else if let Ok(array) = store.cast::<PyArray6<u16>>() {
        let mut held = writable(array)?;
        let (shape, keys, values) = of_layer(&mut held, layer)?;
        run(shape, Store::Bf16(keys, values))
    } else {
        let expected = "expected a float32 or uint16 array (2, layers, B, K, S, H)";
        Err(PyTypeError::new_err(format!("the store is {}; {expected}", shown(store))))
    }
}

fn writable<'py, T: Element>(array: &Bound<'py, PyArray6<T>>) -> PyResult<PyReadwriteArray6<'py, T>> {
    check_order(array)?;
    // That nobody else reads or writes the same slots meanwhile, through another array, is the caller's duty.
    array.try_readwrite().map_err(|error| match error {
        BorrowError::AlreadyBorrowed => PyValueError::new_err("store: another call writes to it now"),
        error => PyTypeError::new_err(format!("store: {error}")),
    })
}

/// Returns the store's shape, and the keys and values of one layer.
fn of_layer<'a, T: Element>(
    held: &'a mut PyReadwriteArray6<'_, T>,
    layer: usize,
) -> PyResult<([usize; 6], &'a mut [T], &'a mut [T])> {
    let shape: [usize; 6] = held.shape().try_into()?;
    if shape[0] != 2 || layer >= shape[1] {
        let expected = "expected (2, layers, B, K, S, H), and one of the layers";
        return Err(PyValueError::new_err(format!("layer {layer} of a store of shape {shape:?}; {expected}")));
    }
    let size: usize = shape[2..].iter().product();
    let (keys, values) = held.as_slice_mut()?.split_at_mut(shape[1] * size);
    let here = layer * size..(layer + 1) * size;
    Ok((shape, &mut keys[here.clone()], &mut values[here]))
}

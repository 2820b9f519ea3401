//! Python arguments to the core's types.

use std::fmt::Display;
use std::num::NonZero;
use std::ops::Deref;

use bpe_llama::SpecialSet;
use numpy::{Element, PyArray1, PyReadonlyArray1};
use pyo3::exceptions::{PyKeyError, PyLookupError, PyMemoryError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyBytes, PyIterator, PyList, PyString};

use crate::error::to_py;
use crate::interrupt::check_at;
use crate::named::{Argument, shown, wrong_type, wrong_value};

/// Returns the items of an argument, as many as memory holds: an iterator can be endless.
///
/// # Errors
/// The first error of an item; `MemoryError` naming the argument; what a signal's handler raises.
pub(crate) fn collect<T>(py: Python<'_>, name: &str, items: impl Iterator<Item = PyResult<T>>) -> PyResult<Vec<T>> {
    let mut all = Vec::new();
    for item in items {
        check_at(py, all.len())?;
        let item = item?;
        if all.len() == all.capacity() {
            reserve(name, &mut all, 1)?;
        }
        all.push(item);
    }
    Ok(all)
}

/// Makes room for `more` items of an argument.
///
/// # Errors
/// `MemoryError` naming the argument.
pub(crate) fn reserve<T>(name: &str, items: &mut Vec<T>, more: usize) -> PyResult<()> {
    items.try_reserve(more).map_err(|_| {
        let count = items.len().saturating_add(more);
        PyMemoryError::new_err(format!("{name} holds {count} items or more; expected as many as memory holds"))
    })
}

/// Returns `count` zeros, the memory for which the argument `name` determines.
///
/// # Errors
/// `MemoryError`, naming the argument.
pub(crate) fn zeros<T: Clone + Default>(name: &str, count: usize) -> PyResult<Vec<T>> {
    reserve(name, &mut Vec::<T>::new(), count)?;
    Ok(vec![T::default(); count]) // by calloc, which writes no page
}

/// A list of what `T` extracts. Unlike for a `Vec`, no memory is reserved for the length that an object claims.
pub(crate) struct List<T>(pub(crate) Vec<T>);

impl<'py, T: FromPyObjectOwned<'py>> FromPyObject<'_, 'py> for List<T> {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let items = value.try_iter()?.map(|item| item?.extract().map_err(Into::into));
        collect(value.py(), "a list", items).map(Self)
    }
}

/// `"all"`, or an iterable of special tokens.
pub(crate) enum Specials {
    All,
    Only(Vec<String>),
}

impl Default for Specials {
    fn default() -> Self {
        Self::Only(Vec::new())
    }
}

impl<'py> Argument<'_, 'py> for Specials {
    fn read(name: &str, value: &Bound<'py, PyAny>) -> PyResult<Self> {
        let expected = "\"all\" or a collection of special tokens";
        if let Ok(text) = value.cast::<PyString>() {
            let is_all = text.to_cow().is_ok_and(|text| text == "all");
            return if is_all { Ok(Self::All) } else { Err(wrong_value(name, expected, value)) };
        }
        let tokens = value.try_iter().map_err(|_| wrong_type(name, expected, value))?;
        let token = |token: PyResult<Bound<'py, PyAny>>| {
            let token = token?;
            token.cast::<PyString>().map_err(|_| wrong_type(name, expected, value))?;
            String::read(name, &token)
        };
        collect(value.py(), name, tokens.map(token)).map(Self::Only)
    }
}

impl Specials {
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Only(names) if names.is_empty())
    }

    /// Calls `work` with the set as the core's type.
    pub(crate) fn view<R>(&self, work: impl FnOnce(SpecialSet<'_>) -> R) -> R {
        match self {
            Self::All => work(SpecialSet::All),
            Self::Only(_) if self.is_empty() => work(SpecialSet::None),
            Self::Only(names) => work(SpecialSet::Only(&names.iter().map(String::as_str).collect())),
        }
    }
}

/// Ids read between two checks of signals and range. No more are reserved in advance: an object can claim any length.
const BLOCK: usize = 1 << 16;

/// Returns the ids of any iterable of integers, including `NumPy` arrays and tensors.
///
/// Reading an iterable other than a list ends with the block that has an id of `bound`, the vocabulary size, or above:
/// decoding fails at that id, and the iterable may be endless.
pub(crate) fn read_ids(value: &Bound<'_, PyAny>, bound: usize) -> PyResult<Vec<u32>> {
    if value.hasattr("tolist")? {
        // Arrays of the usual types are read directly: a list takes ten times the memory. Tensors on the CPU have one.
        let array = value.call_method0("numpy").unwrap_or_else(|_| value.clone());
        let array = array_ids::<u32>(&array)
            .or_else(|| array_ids::<u16>(&array))
            .or_else(|| array_ids::<i64>(&array))
            .or_else(|| array_ids::<i32>(&array));
        if let Some(ids) = array {
            return ids;
        }
    }
    let list = to_list("ids", "an iterable of ints", value)?;
    if value.is_instance_of::<PyString>() {
        return Err(wrong_type("ids", "an iterable of ints", value));
    }
    let mut items = list.try_iter().map_err(|_| wrong_type("ids", "an iterable of ints", value))?;
    let mut ids = Vec::new();
    if let Ok(list) = list.cast_exact::<PyList>() {
        reserve("ids", &mut ids, list.len())?;
        for (index, item) in items.enumerate() {
            check_at(value.py(), index)?;
            ids.push(item_of_ids(&item?)?);
        }
        return Ok(ids);
    }
    ids.reserve(list.len().unwrap_or(0).min(BLOCK));
    loop {
        let start = ids.len();
        if start > 0 {
            reserve("ids", &mut ids, BLOCK)?;
        }
        for item in items.by_ref().take(BLOCK) {
            ids.push(item_of_ids(&item?)?);
        }
        let block = &ids[start..];
        if block.len() < BLOCK || block.iter().any(|&id| id as usize >= bound) {
            return Ok(ids);
        }
        value.py().check_signals()?;
    }
}

/// Returns the list of an array or a tensor; another object as it is.
///
/// # Errors
/// `TypeError` for a tensor that has no list: without numbers (on the device `meta`), sparse or quantized.
pub(crate) fn to_list<'py>(name: &str, expected: &str, value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let Some(tolist) = value.getattr_opt("tolist")? else { return Ok(value.clone()) };
    tolist.call0().map_err(|error| {
        let has_no_list = error.is_instance_of::<PyRuntimeError>(value.py());
        if has_no_list { wrong_type(name, expected, value) } else { error }
    })
}

/// Rows of ids: any iterable of arguments of [`read_ids`], such as a 2-D array or a generator.
pub(crate) struct IdRows<'py>(Bound<'py, PyIterator>);

impl<'py> Argument<'_, 'py> for IdRows<'py> {
    fn read(name: &str, value: &Bound<'py, PyAny>) -> PyResult<Self> {
        let expected = "an iterable of rows of ids";
        if value.is_instance_of::<PyString>() || value.is_instance_of::<PyBytes>() {
            return Err(wrong_type(name, expected, value));
        }
        value.try_iter().map(Self).map_err(|_| wrong_type(name, expected, value))
    }
}

impl<'py> IdRows<'py> {
    /// Returns the results of `work` for all rows. A `TypeError` or `KeyError` names the row.
    pub(crate) fn map<R>(self, mut work: impl FnMut(&Bound<'py, PyAny>) -> PyResult<R>) -> PyResult<Vec<R>> {
        let py = self.0.py();
        let numbered = self.0.enumerate();
        let work = |(i, row): (usize, PyResult<Bound<'py, PyAny>>)| work(&row?).map_err(|error| in_row(py, i, error));
        collect(py, "batch", numbered.map(work))
    }
}

fn in_row(py: Python<'_>, row: usize, error: PyErr) -> PyErr {
    let message = error.value(py).getattr("args").and_then(|args| args.get_item(0)).map(|message| message.to_string());
    let Ok(message) = message else { return error };
    let named = if error.get_type(py).is(py.get_type::<PyTypeError>()) {
        PyTypeError::new_err(format!("row {row}: {message}"))
    } else if error.get_type(py).is(py.get_type::<PyKeyError>()) {
        PyKeyError::new_err(format!("row {row}: {message}"))
    } else {
        return error;
    };
    named.set_cause(py, Some(error));
    named
}

/// Returns a copy as Python's `bytes`.
///
/// # Errors
/// `MemoryError`, where `PyBytes::new` would panic.
pub(crate) fn new_bytes<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    PyBytes::new_with(py, bytes.len(), |copy| {
        copy.copy_from_slice(bytes);
        Ok(())
    })
}

/// Creates the first array of the process, before long work.
///
/// The first array runs Python code, and a Ctrl-C that is pending then makes the `numpy` crate panic.
///
/// # Errors
/// What importing `NumPy` raises; `KeyboardInterrupt` if it is pending.
pub(crate) fn prepare_arrays(py: Python<'_>) -> PyResult<()> {
    static READY: PyOnceLock<()> = PyOnceLock::new();
    let prepare = || {
        py.import("numpy")?;
        py.check_signals()?;
        drop(PyArray1::<u32>::zeros(py, 0, false));
        Ok(())
    };
    READY.get_or_try_init(py, prepare).copied()
}

/// Returns the ids of a one-dimensional `NumPy` array of this type, or `None` for any other object.
fn array_ids<T: Element + Copy + Display + TryInto<u32>>(value: &Bound<'_, PyAny>) -> Option<PyResult<Vec<u32>>> {
    let array = value.extract::<PyReadonlyArray1<'_, T>>().ok()?;
    let mut ids = Vec::new();
    // An array can be one number, repeated without memory for it.
    if let Err(error) = reserve("ids", &mut ids, array.len().unwrap_or(0)) {
        return Some(Err(error));
    }
    for &id in array.as_array() {
        match id.try_into() {
            Ok(id) => ids.push(id),
            Err(_) => return Some(Err(unknown_id(id))),
        }
    }
    Some(Ok(ids))
}

fn unknown_id(id: impl Display) -> PyErr {
    to_py(bpe_llama::Error::NotFound(format!("id {id} is not in this vocabulary")))
}

/// Returns the argument `id`.
pub(crate) fn extract_id(value: &Bound<'_, PyAny>) -> PyResult<u32> {
    id_or_error(value, |value| wrong_type("id", "an int", value))
}

/// Returns one of the argument `ids`.
fn item_of_ids(value: &Bound<'_, PyAny>) -> PyResult<u32> {
    id_or_error(value, |value| {
        PyTypeError::new_err(format!("ids holds {}; expected an iterable of ints", shown(value)))
    })
}

fn id_or_error<'py>(value: &Bound<'py, PyAny>, no_int: impl FnOnce(&Bound<'py, PyAny>) -> PyErr) -> PyResult<u32> {
    value.extract().map_err(|error: PyErr| {
        if error.is_instance_of::<PyTypeError>(value.py()) { no_int(value) } else { unknown_id(shown(value)) }
    })
}

/// What becomes of bytes that are no UTF-8: the name of an error handler of Python's codecs.
pub(crate) struct Errors<'a>(&'a str);

impl Default for Errors<'_> {
    fn default() -> Self {
        Self("replace")
    }
}

impl Deref for Errors<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        self.0
    }
}

impl<'a, 'py> Argument<'a, 'py> for Errors<'a> {
    fn read(name: &str, value: &'a Bound<'py, PyAny>) -> PyResult<Self> {
        let handler = <&str>::read(name, value)?;
        if !["replace", "strict", "ignore"].contains(&handler) {
            let known = value.py().import("codecs")?.call_method1("lookup_error", (value,));
            known.map_err(|error| {
                let py = value.py();
                // `ValueError` for a zero byte.
                if error.is_instance_of::<PyLookupError>(py) || error.is_instance_of::<PyValueError>(py) {
                    return wrong_value(name, "the name of an error handler, such as 'replace' or 'strict'", value);
                }
                error
            })?;
        }
        Ok(Self(handler))
    }
}

/// A positive number of threads.
#[derive(Clone, Copy)]
pub(crate) struct Threads(pub(crate) NonZero<usize>);

impl<'py> Argument<'_, 'py> for Threads {
    fn read(name: &str, value: &Bound<'py, PyAny>) -> PyResult<Self> {
        if value.is_instance_of::<PyBool>() {
            return Err(wrong_type(name, "an int, or None", value));
        }
        match value.extract::<usize>().map(NonZero::new) {
            Ok(Some(threads)) => Ok(Self(threads)),
            Err(error) if error.is_instance_of::<PyTypeError>(value.py()) => {
                Err(wrong_type(name, "an int, or None", value))
            }
            Ok(None) | Err(_) => Err(wrong_value(name, "at least 1, or None", value)),
        }
    }
}

/// Returns the number of threads to use, by default the number of processors.
pub(crate) fn thread_count(num_threads: Option<Threads>) -> usize {
    let threads = num_threads.map(|threads| threads.0);
    threads.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZero::get)
}

/// Returns `number`, which must be at least `least`.
pub(crate) fn at_least(least: usize, name: &str, number: i64) -> PyResult<usize> {
    usize::try_from(number)
        .ok()
        .filter(|number| *number >= least)
        .ok_or_else(|| PyValueError::new_err(format!("{name} is {number}; expected at least {least}")))
}

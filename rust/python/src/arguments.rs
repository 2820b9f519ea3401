//! Python arguments to the core's types.

use std::fmt::Display;
use std::num::NonZero;
use std::ops::Deref;

use bpe_llama::SpecialSet;
use numpy::{Element, PyArray1, PyReadonlyArray1};
use pyo3::exceptions::{PyKeyError, PyTypeError, PyUnicodeEncodeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyIterator, PyList, PyString};

use crate::error::to_py;
use crate::interrupt::check_at;

/// A `str` as UTF-8; copied only if it contains surrogates.
pub(crate) enum Text {
    Backed(PyBackedStr),
    Owned(String),
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Backed(text) => text,
            Self::Owned(text) => text,
        }
    }
}

impl<'py> FromPyObject<'_, 'py> for Text {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let text = value.cast::<PyString>().map_err(|_| type_error("a str", &value))?;
        match PyBackedStr::try_from(text.to_owned()) {
            Ok(text) => Ok(Self::Backed(text)),
            Err(error) if error.is_instance_of::<PyUnicodeEncodeError>(value.py()) => {
                // As in tiktoken: surrogate pairs become their character, lone surrogates U+FFFD.
                let utf16 = text.call_method1("encode", ("utf-16", "surrogatepass"))?;
                Ok(Self::Owned(utf16.call_method1("decode", ("utf-16", "replace"))?.extract()?))
            }
            Err(error) => Err(error),
        }
    }
}

/// Returns the index in a `str` of each character of its [`Text`], in which surrogate pairs are joined, and the length.
pub(crate) fn places_before_joining(text: &Bound<'_, PyAny>) -> PyResult<Vec<usize>> {
    let units: Vec<u8> = text.call_method1("encode", ("utf-32-be", "surrogatepass"))?.extract()?;
    // Of a big-endian unit such as 0x0000D83D, the six highest bits of the third byte tell a surrogate.
    let is_half =
        |at: usize, kind: u8| units.get(4 * at..4 * at + 3).is_some_and(|unit| unit[1] == 0 && unit[2] & 0xFC == kind);
    let (length, mut at) = (units.len() / 4, 0);
    let mut places = Vec::with_capacity(length + 1);
    while at < length {
        places.push(at);
        at += if is_half(at, 0xD8) && is_half(at + 1, 0xDC) { 2 } else { 1 };
    }
    places.push(length);
    Ok(places)
}

pub(crate) fn type_error(expected: &str, got: &Bound<'_, PyAny>) -> PyErr {
    let name = got.get_type().name().map_or_else(|_| "?".to_owned(), |name| name.to_string());
    PyTypeError::new_err(format!("expected {expected}, got {name}"))
}

/// A list of texts: any iterable of `str` except a `str`.
pub(crate) struct Texts(Vec<Text>);

impl Texts {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(Deref::deref)
    }
}

impl<'py> FromPyObject<'_, 'py> for Texts {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if value.is_instance_of::<PyString>() {
            return Err(PyTypeError::new_err("expected an iterable of str, got one str: put it in a list"));
        }
        let texts = value.try_iter()?.enumerate().map(|(index, text)| {
            check_at(value.py(), index)?;
            text?.extract()
        });
        texts.collect::<PyResult<_>>().map(Self)
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

impl<'py> FromPyObject<'_, 'py> for Specials {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(text) = value.cast::<PyString>() {
            return match &*text.to_cow()? {
                "all" => Ok(Self::All),
                other => Err(PyValueError::new_err(format!(
                    "expected \"all\" or a collection of special tokens, got the str {other:?}"
                ))),
            };
        }
        let names = value.try_iter()?.map(|name| name?.extract()).collect::<PyResult<_>>()?;
        Ok(Self::Only(names))
    }
}

impl Specials {
    /// Calls `work` with the set as the core's type.
    pub(crate) fn view<R>(&self, work: impl FnOnce(SpecialSet<'_>) -> R) -> R {
        match self {
            Self::All => work(SpecialSet::All),
            Self::Only(names) if names.is_empty() => work(SpecialSet::None),
            Self::Only(names) => work(SpecialSet::Only(&names.iter().map(String::as_str).collect::<Vec<_>>())),
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
    let list = match value.getattr_opt("tolist")? {
        Some(tolist) => {
            // Arrays of the usual types are read directly: a list takes ten times the memory.
            let array = array_ids::<u32>(value)
                .or_else(|| array_ids::<u16>(value))
                .or_else(|| array_ids::<i64>(value))
                .or_else(|| array_ids::<i32>(value));
            if let Some(ids) = array {
                return ids;
            }
            tolist.call0()?
        }
        None => value.clone(),
    };
    let mut items = list.try_iter().map_err(|_| type_error("an iterable of ids", value))?;
    let mut ids = Vec::new();
    if let Ok(list) = list.cast_exact::<PyList>() {
        ids.reserve_exact(list.len());
        for (index, item) in items.enumerate() {
            check_at(value.py(), index)?;
            ids.push(extract_id(&item?)?);
        }
        return Ok(ids);
    }
    ids.reserve(list.len().unwrap_or(0).min(BLOCK));
    loop {
        let start = ids.len();
        for item in items.by_ref().take(BLOCK) {
            ids.push(extract_id(&item?)?);
        }
        let block = &ids[start..];
        if block.len() < BLOCK || block.iter().any(|&id| id as usize >= bound) {
            return Ok(ids);
        }
        value.py().check_signals()?;
    }
}

/// Rows of ids: any iterable of arguments of [`read_ids`], such as a 2-D array or a generator.
pub(crate) struct IdRows<'py>(Bound<'py, PyIterator>);

impl<'py> FromPyObject<'_, 'py> for IdRows<'py> {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let expected = "an iterable of rows of ids";
        if value.is_instance_of::<PyString>() {
            return Err(type_error(expected, &value));
        }
        value.try_iter().map(Self).map_err(|_| type_error(expected, &value))
    }
}

impl<'py> IdRows<'py> {
    /// Returns the results of `work` for all rows. A `TypeError` or `KeyError` names the row.
    pub(crate) fn map<R>(self, mut work: impl FnMut(&Bound<'py, PyAny>) -> PyResult<R>) -> PyResult<Vec<R>> {
        let numbered = self.0.enumerate();
        let work = |(i, row): (usize, PyResult<Bound<'py, PyAny>>)| {
            let row = row?;
            check_at(row.py(), i)?;
            work(&row).map_err(|error| in_row(row.py(), i, error))
        };
        numbered.map(work).collect()
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
    let id = |&id: &T| id.try_into().map_err(|_| unknown_id(id));
    Some(array.as_array().iter().map(id).collect())
}

fn unknown_id(id: impl Display) -> PyErr {
    to_py(bpe_llama::Error::NotFound(format!("id {id} is not in this vocabulary")))
}

pub(crate) fn extract_id(value: &Bound<'_, PyAny>) -> PyResult<u32> {
    value.extract().map_err(|error: PyErr| {
        if error.is_instance_of::<PyTypeError>(value.py()) {
            return type_error("an id (int)", value);
        }
        unknown_id(value)
    })
}

/// A positive number of threads.
#[derive(Clone, Copy)]
pub(crate) struct Threads(pub(crate) NonZero<usize>);

impl<'py> FromPyObject<'_, 'py> for Threads {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match value.extract::<usize>().map(NonZero::new) {
            Ok(Some(threads)) => Ok(Self(threads)),
            Err(error) if error.is_instance_of::<PyTypeError>(value.py()) => {
                Err(PyTypeError::new_err(format!("num_threads must be an int, or None, got {}", shown(&value))))
            }
            Ok(None) | Err(_) => {
                Err(PyValueError::new_err(format!("num_threads must be at least 1, or None, got {}", shown(&value))))
            }
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

/// Returns the `repr` of an object for an error message, truncated if it is long.
pub(crate) fn shown(value: &Bound<'_, PyAny>) -> String {
    const LONGEST: usize = 80;
    let text = value.repr().map_or_else(|_| "?".to_owned(), |repr| repr.to_string_lossy().into_owned());
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text,
    }
}

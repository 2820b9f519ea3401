//! What Python passes, as the core takes it.

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

/// A `str` as UTF-8, without a copy but where it holds lone surrogates.
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
                // As tiktoken does: pairs of surrogates become their character, lone ones U+FFFD.
                let utf16 = text.call_method1("encode", ("utf-16", "surrogatepass"))?;
                Ok(Self::Owned(utf16.call_method1("decode", ("utf-16", "replace"))?.extract()?))
            }
            Err(error) => Err(error),
        }
    }
}

pub(crate) fn type_error(expected: &str, got: &Bound<'_, PyAny>) -> PyErr {
    let name = got.get_type().name().map_or_else(|_| "?".to_owned(), |name| name.to_string());
    PyTypeError::new_err(format!("expected {expected}, got {name}"))
}

/// A list of texts: any iterable of `str` but a `str` itself.
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
        let texts = value.try_iter()?.enumerate().map(|(number, text)| {
            check_at(value.py(), number)?;
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
    /// Calls `work` with the core's view of the set.
    pub(crate) fn view<R>(&self, work: impl FnOnce(SpecialSet<'_>) -> R) -> R {
        match self {
            Self::All => work(SpecialSet::All),
            Self::Only(names) if names.is_empty() => work(SpecialSet::None),
            Self::Only(names) => work(SpecialSet::Only(&names.iter().map(String::as_str).collect::<Vec<_>>())),
        }
    }
}

/// So many ids are read between two looks at how the reading goes. Room is made for no more before they are seen: an
/// object may say any length of itself.
const BLOCK: usize = 1 << 16;

/// Returns the ids of any iterable of integers, `NumPy` arrays and tensors among them.
///
/// Of any iterable but a list, which is in memory already, reading ends with the block that holds an id not below `bound`,
/// the size of the vocabulary: decoding fails there, and an iterable that never ends need not be held.
pub(crate) fn read_ids(value: &Bound<'_, PyAny>, bound: usize) -> PyResult<Vec<u32>> {
    let list = match value.getattr_opt("tolist")? {
        Some(tolist) => {
            // The arrays that ids come in: as they are, since a list of them takes ten times the memory.
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
        for (number, item) in items.enumerate() {
            check_at(value.py(), number)?;
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

/// Rows of ids: any iterable of what [`read_ids`] takes, such as a 2-D array or tensor, or a generator.
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
    /// Returns what `work` makes of each row; a `TypeError` or `KeyError` of a row says which row it is.
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

/// Makes ready for the first array of the process, once, before long work.
///
/// The first array runs Python code, which ends in a panic of the `numpy` crate where a Ctrl-C is pending.
///
/// # Errors
/// What the import of `NumPy` raises, and `KeyboardInterrupt` where one is pending.
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

/// The ids of a one-dimensional `NumPy` array of this type; `None` for anything else.
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

/// A number of threads, at least 1.
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

/// Returns how many threads to use, as many as there are processors unless said otherwise.
pub(crate) fn thread_count(num_threads: Option<Threads>) -> usize {
    let threads = num_threads.map(|threads| threads.0);
    threads.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZero::get)
}

/// Returns an argument that must be at least this.
pub(crate) fn at_least(least: usize, name: &str, number: i64) -> PyResult<usize> {
    usize::try_from(number)
        .ok()
        .filter(|number| *number >= least)
        .ok_or_else(|| PyValueError::new_err(format!("{name} is {number}; expected at least {least}")))
}

/// Returns an object as an error shows it: its `repr`, the end of a long one left out.
pub(crate) fn shown(value: &Bound<'_, PyAny>) -> String {
    const LONGEST: usize = 80;
    let text = value.repr().map_or_else(|_| "?".to_owned(), |repr| repr.to_string_lossy().into_owned());
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text,
    }
}

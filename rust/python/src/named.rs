//! Extraction of arguments by name: an error says which argument it is, its value, and what was expected.
//!
//! `PyO3` leaves the name out of an error, so a parameter says its own: `#[pyo3(from_py_with = named::bos)] bos: bool`.

use std::path::PathBuf;

use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PySlice, PyString};

/// A type of an argument.
pub(crate) trait Argument<'a, 'py>: Sized {
    /// Returns the value of an argument; an error has its name.
    fn read(name: &str, value: &'a Bound<'py, PyAny>) -> PyResult<Self>;
}

/// Defines for each name of an argument the function that reads it.
macro_rules! names {
    ($($name:ident)*) => {$(
        pub(crate) fn $name<'a, 'py, T: Argument<'a, 'py>>(value: &'a Bound<'py, PyAny>) -> PyResult<T> {
            T::read(stringify!($name), value)
        }
    )*};
}

names! {
    allowed_special batch before bos cache_bytes data disallowed_special dropout eos errors first frequency_penalty max_tokens
    merged min_count min_p n num_threads parts path pattern presence_penalty preset repetition_penalty seed
    skip_special_tokens temperature text texts top_p typical_p
}

/// Returns the value of a key of a dict, which the Python side makes of its arguments; an error has the key.
pub(crate) fn item<'py, T: for<'a> Argument<'a, 'py>>(
    dict: Borrowed<'_, 'py, PyAny>,
    key: &'static str,
) -> PyResult<T> {
    T::read(key, &dict.cast::<PyDict>()?.as_any().get_item(key)?)
}

/// Returns the error for a value of a wrong type.
pub(crate) fn wrong_type(name: &str, expected: &str, value: &Bound<'_, PyAny>) -> PyErr {
    PyTypeError::new_err(format!("{name} must be {expected}, got {}", shown(value)))
}

/// Returns the error for a value out of range.
pub(crate) fn wrong_value(name: &str, expected: &str, value: &Bound<'_, PyAny>) -> PyErr {
    PyValueError::new_err(format!("{name} must be {expected}, got {}", shown(value)))
}

/// Return the `repr` of an object for an error message; of a long one a part, at no more cost.
///
/// Example:
///     >>> from bpe_llama._core import shown
///     >>> shown(5), shown([5] * 1000), shown("x" * 1000)[-8:]
///     ('5', '[5, 5, 5, 5, 5, 5, ...]', "xxx' ...")
#[pyfunction]
pub(crate) fn shown(value: &Bound<'_, PyAny>) -> String {
    const LONGEST: usize = 80;
    let repr = || -> PyResult<String> {
        if (value.is_instance_of::<PyString>() || value.is_instance_of::<PyBytes>()) && value.len()? > LONGEST {
            let start = value.get_item(PySlice::new(value.py(), 0, LONGEST as isize, 1))?;
            return Ok(format!("{} ...", start.repr()?.to_string_lossy()));
        }
        // It shows the first items of a collection, and where an object is if its `repr` fails.
        let repr = value.py().import("reprlib")?.call_method0("Repr")?;
        for limit in ["maxstring", "maxother", "maxlong"] {
            repr.setattr(limit, LONGEST)?;
        }
        Ok(repr.call_method1("repr", (value,))?.cast::<PyString>()?.to_string_lossy().into_owned())
    };
    let text = repr().unwrap_or_else(|_| "?".to_owned());
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl<'a, 'py> Argument<'a, 'py> for bool {
    fn read(name: &str, value: &'a Bound<'py, PyAny>) -> PyResult<Self> {
        value.extract().map_err(|_| wrong_type(name, "True or False", value))
    }
}

impl<'a, 'py> Argument<'a, 'py> for f64 {
    fn read(name: &str, value: &'a Bound<'py, PyAny>) -> PyResult<Self> {
        value.extract().map_err(|_| wrong_type(name, "a number", value))
    }
}

impl<'a, 'py> Argument<'a, 'py> for &'a str {
    fn read(name: &str, value: &'a Bound<'py, PyAny>) -> PyResult<Self> {
        value.cast::<PyString>().map_err(|_| wrong_type(name, "a str", value))?.to_str()
    }
}

impl<'a, 'py> Argument<'a, 'py> for String {
    fn read(name: &str, value: &'a Bound<'py, PyAny>) -> PyResult<Self> {
        <&str>::read(name, value).map(str::to_owned)
    }
}

impl<'a, 'py> Argument<'a, 'py> for &'a [u8] {
    fn read(name: &str, value: &'a Bound<'py, PyAny>) -> PyResult<Self> {
        Ok(value.cast::<PyBytes>().map_err(|_| wrong_type(name, "bytes", value))?.as_bytes())
    }
}

impl<'a, 'py> Argument<'a, 'py> for PathBuf {
    fn read(name: &str, value: &'a Bound<'py, PyAny>) -> PyResult<Self> {
        value.extract().map_err(|_| wrong_type(name, "a str or another path", value))
    }
}

/// Integers that the core counts with, which are at least 0.
macro_rules! counts {
    ($($integer:ty)*) => {$(
        impl<'a, 'py> Argument<'a, 'py> for $integer {
            fn read(name: &str, value: &'a Bound<'py, PyAny>) -> PyResult<Self> {
                value.extract().map_err(|error: PyErr| {
                    if !error.is_instance_of::<PyOverflowError>(value.py()) {
                        return wrong_type(name, "an int", value);
                    }
                    let is_negative = value.lt(0).unwrap_or(false);
                    wrong_value(name, if is_negative { "at least 0" } else { "less than 2**64" }, value)
                })
            }
        }
    )*};
}

counts!(u64 usize);

impl<'a, 'py, T: Argument<'a, 'py>> Argument<'a, 'py> for Option<T> {
    fn read(name: &str, value: &'a Bound<'py, PyAny>) -> PyResult<Self> {
        if value.is_none() { Ok(None) } else { T::read(name, value).map(Some) }
    }
}

impl<'a, 'py, T: for<'item> Argument<'item, 'py>> Argument<'a, 'py> for Vec<T> {
    fn read(name: &str, value: &'a Bound<'py, PyAny>) -> PyResult<Self> {
        let items = value.try_iter().map_err(|_| wrong_type(name, "a list", value))?.enumerate();
        items.map(|(index, item)| T::read(&format!("{name}[{index}]"), &item?)).collect()
    }
}

//! Extraction of arguments by name: an error says which argument it is, its value, and what was expected.
//!
//! `PyO3` leaves the name out of an error, so a parameter says its own: `#[pyo3(from_py_with = named::bos)] bos: bool`.

use std::path::PathBuf;

use numpy::ndarray::Dimension;
use numpy::{Element, PyArray};
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyUnicodeEncodeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PySlice, PyString};

use crate::arguments::collect;

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
    add after allowed_special back batch before bos bos_id cache_bytes config_beside cos data disallowed_special
    dropout eos eos_id eps errors factors first for_gate for_up for_weights for_x frequency_penalty gate gradient
    head_dim interleaved label_smoothing labels layer logits losses max_tokens merged min_count min_p n num_threads out
    pad_id pair parts path pattern positions presence_penalty preset qkv repetition_penalty scales seed sin
    skip_special_tokens softcap start stop temperature text texts top_p typical_p unk_id up weights window x z_loss
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
        if value.is_instance_of::<PyString>() || value.is_instance_of::<PyBytes>() {
            let start = value.get_item(PySlice::new(value.py(), 0, LONGEST as isize, 1))?;
            let more = if value.len()? > LONGEST { " ..." } else { "" };
            return Ok(format!("{}{more}", start.repr()?.to_string_lossy()));
        }
        // It shows the first items of a collection, and where an object is if its `repr` fails.
        let repr = value.py().import("reprlib")?.call_method0("Repr")?;
        for limit in ["maxstring", "maxother", "maxlong"] {
            repr.setattr(limit, LONGEST)?;
        }
        let text = repr.call_method1("repr", (value,))?.cast::<PyString>()?.to_string_lossy().into_owned();
        Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    // Python shows no int of more than 4300 digits.
    let unknown = || value.get_type().name().map_or_else(|_| "?".to_owned(), |name| format!("<{name} object>"));
    repr().unwrap_or_else(|_| unknown())
}

impl<'a, 'py> Argument<'a, 'py> for bool {
    fn read(name: &str, value: &'a Bound<'py, PyAny>) -> PyResult<Self> {
        value.extract().map_err(|_| wrong_type(name, "True or False", value))
    }
}

impl<'a, 'py> Argument<'a, 'py> for f64 {
    fn read(name: &str, value: &'a Bound<'py, PyAny>) -> PyResult<Self> {
        let number = if value.is_instance_of::<PyBool>() { None } else { Some(value.extract()) };
        match number {
            Some(Ok(number)) => Ok(number),
            Some(Err(error)) if PyErr::is_instance_of::<PyOverflowError>(&error, value.py()) => {
                Err(wrong_value(name, "a number less than 2**1024", value))
            }
            _ => Err(wrong_type(name, "a number", value)),
        }
    }
}

impl<'a, 'py> Argument<'a, 'py> for f32 {
    fn read(name: &str, value: &'a Bound<'py, PyAny>) -> PyResult<Self> {
        f64::read(name, value).map(|number| number as f32)
    }
}

impl<'a, 'py> Argument<'a, 'py> for &'a str {
    fn read(name: &str, value: &'a Bound<'py, PyAny>) -> PyResult<Self> {
        let text = value.cast::<PyString>().map_err(|_| wrong_type(name, "a str", value))?;
        text.to_str().map_err(|_| wrong_value(name, "a str without lone surrogates", value))
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
        value.extract().map_err(|error: PyErr| {
            if error.is_instance_of::<PyUnicodeEncodeError>(value.py()) {
                return wrong_value(name, "a path without lone surrogates", value);
            }
            wrong_type(name, "a str or another path", value)
        })
    }
}

/// Integers, with what is said of one that is too small or too large.
macro_rules! integers {
    ($($integer:ty, $least:literal, $bound:literal;)*) => {$(
        impl<'a, 'py> Argument<'a, 'py> for $integer {
            fn read(name: &str, value: &'a Bound<'py, PyAny>) -> PyResult<Self> {
                if value.is_instance_of::<PyBool>() {
                    return Err(wrong_type(name, "an int", value));
                }
                value.extract().map_err(|error: PyErr| {
                    if !error.is_instance_of::<PyOverflowError>(value.py()) {
                        return wrong_type(name, "an int", value);
                    }
                    let is_small = value.lt(0).unwrap_or(false);
                    wrong_value(name, if is_small { $least } else { $bound }, value)
                })
            }
        }
    )*};
}

integers! {
    u32, "at least 0", "less than 2**32";
    u64, "at least 0", "less than 2**64";
    usize, "at least 0", "less than 2**64";
    i64, "at least -2**63", "less than 2**63";
}

impl<'a, 'py, T: Element, D: Dimension> Argument<'a, 'py> for Bound<'py, PyArray<T, D>> {
    fn read(name: &str, value: &'a Bound<'py, PyAny>) -> PyResult<Self> {
        let array = value.cast::<PyArray<T, D>>().map_err(|_| {
            let axes = D::NDIM.map_or_else(String::new, |axes| format!(" with {axes} axes"));
            wrong_type(name, &format!("a NumPy array of {}{axes}", T::get_dtype(value.py())), value)
        })?;
        Ok(array.clone())
    }
}

impl<'a, 'py, T: Argument<'a, 'py>> Argument<'a, 'py> for Option<T> {
    fn read(name: &str, value: &'a Bound<'py, PyAny>) -> PyResult<Self> {
        if value.is_none() { Ok(None) } else { T::read(name, value).map(Some) }
    }
}

impl<'a, 'py, T: for<'item> Argument<'item, 'py>> Argument<'a, 'py> for Vec<T> {
    fn read(name: &str, value: &'a Bound<'py, PyAny>) -> PyResult<Self> {
        let items = value.try_iter().map_err(|_| wrong_type(name, "a list", value))?.enumerate();
        collect(value.py(), name, items.map(|(index, item)| T::read(&format!("{name}[{index}]"), &item?)))
    }
}

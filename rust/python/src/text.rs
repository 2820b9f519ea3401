//! The argument `text`: a `str` as UTF-8, a long one in parts.

use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};

use pyo3::exceptions::{PyMemoryError, PyUnicodeEncodeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyBytes, PyIterator, PyList, PyMapping, PySlice, PyString, PyTuple};

use crate::arguments::{collect, reserve};
use crate::interrupt::check_at;
use crate::named::{Argument, wrong_type};

/// Characters from which on a `str` is read in parts.
const LONG: usize = 1 << 20;

/// Characters that are read at a time, for which the GIL is acquired once.
const PART: usize = 1 << 20;

/// Characters that are converted at a time. Their memory stays in the CPU's cache, and is too little to be given back to
/// the system.
const PIECE: usize = 1 << 13;

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

impl<'py> Argument<'_, 'py> for Text {
    fn read(name: &str, value: &Bound<'py, PyAny>) -> PyResult<Self> {
        Self::of(value, |value| wrong_type(name, "a str", value))
    }
}

impl Text {
    /// Returns the text of a `str`; `no_str` makes the error for another object.
    #[inline]
    pub(crate) fn of<'py>(
        value: &Bound<'py, PyAny>,
        no_str: impl FnOnce(&Bound<'py, PyAny>) -> PyErr,
    ) -> PyResult<Self> {
        let text = value.cast::<PyString>().map_err(|_| no_str(value))?;
        match PyBackedStr::try_from(text.to_owned()) {
            Ok(text) => Ok(Self::Backed(text)),
            Err(error) if error.is_instance_of::<PyUnicodeEncodeError>(value.py()) => {
                let mut joined = String::new();
                joined_characters(text, |_, character| {
                    joined.try_reserve(character.len_utf8()).map_err(|_| too_long(text.len().unwrap_or(0)))?;
                    joined.push(character);
                    Ok(())
                })?;
                Ok(Self::Owned(joined))
            }
            Err(error) => Err(error),
        }
    }
}

/// A `str` as given, and its [`Text`].
pub(crate) struct GivenText<'py> {
    pub(crate) given: Bound<'py, PyAny>,
    pub(crate) text: Text,
}

impl<'py> Argument<'_, 'py> for GivenText<'py> {
    fn read(name: &str, value: &Bound<'py, PyAny>) -> PyResult<Self> {
        Ok(Self { given: value.clone(), text: Text::read(name, value)? })
    }
}

impl GivenText<'_> {
    /// Returns the index in the `str` of each character of the text and the length, if the two differ.
    pub(crate) fn places(&self) -> PyResult<Option<Vec<usize>>> {
        if matches!(self.text, Text::Owned(_)) { places_before_joining(&self.given).map(Some) } else { Ok(None) }
    }
}

/// Calls `visit` with each character of the [`Text`] of a `str` with surrogates, and its index in the `str`.
///
/// As in tiktoken, surrogate pairs become their character, lone surrogates U+FFFD.
///
/// # Errors
/// The first error of `visit`; what a signal's handler raises.
fn joined_characters(text: &Bound<'_, PyString>, mut visit: impl FnMut(usize, char) -> PyResult<()>) -> PyResult<()> {
    let length = text.len()?;
    // SAFETY: `text` is a `str`, which does not change, and `at` is less than its length.
    let read = |at: usize| unsafe { ffi::PyUnicode_ReadChar(text.as_ptr(), at as ffi::Py_ssize_t) };
    let mut at = 0;
    for count in 0.. {
        check_at(text.py(), count)?;
        if at == length {
            break;
        }
        let (start, unit) = (at, read(at));
        at += 1;
        let mut character = char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER);
        if matches!(unit, 0xD800..=0xDBFF) && at < length {
            let low = read(at);
            if matches!(low, 0xDC00..=0xDFFF) {
                character = char::from_u32(0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00)).unwrap_or(character);
                at += 1;
            }
        }
        visit(start, character)?;
    }
    Ok(())
}

/// Returns the index in a `str` of each character of its [`Text`], in which surrogate pairs are joined, and the length.
fn places_before_joining(text: &Bound<'_, PyAny>) -> PyResult<Vec<usize>> {
    let text = text.cast::<PyString>()?;
    let length = text.len()?;
    let mut places = Vec::new();
    reserve("text", &mut places, length + 1)?;
    joined_characters(text, |at, _| {
        places.push(at);
        Ok(())
    })?;
    places.push(length);
    Ok(places)
}

fn too_long(characters: usize) -> PyErr {
    PyMemoryError::new_err(format!("a text of {characters} characters is too long"))
}

/// A list of texts: any iterable of `str` except a `str`.
pub(crate) struct Texts(Vec<Text>);

impl Texts {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(Deref::deref)
    }
}

impl<'py> Argument<'_, 'py> for Texts {
    fn read(name: &str, value: &Bound<'py, PyAny>) -> PyResult<Self> {
        let texts = iter_texts(name, value)?.enumerate();
        let texts =
            texts.map(|(index, text)| Text::of(&text?, |text| wrong_type(&format!("{name}[{index}]"), "a str", text)));
        collect(value.py(), name, texts).map(Self)
    }
}

/// Returns an iterator over an argument that must be an iterable of `str`: no `str`, whose letters would be read, and no
/// mapping or table, whose keys or names of columns would be read.
pub(crate) fn iter_texts<'py>(name: &str, value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyIterator>> {
    if value.is_instance_of::<PyString>() || value.is_instance_of::<PyBytes>() {
        return Err(wrong_type(name, "an iterable of str, such as a list of one", value));
    }
    // The usual ones, of which nothing is asked: that takes a microsecond.
    let is_plain = value.is_exact_instance_of::<PyList>() || value.is_exact_instance_of::<PyTuple>();
    if !is_plain && (value.cast::<PyMapping>().is_ok() || value.hasattr("columns")?) {
        return Err(wrong_type(name, "an iterable of str, such as one column", value));
    }
    value.try_iter().map_err(|_| wrong_type(name, "an iterable of str", value))
}

/// The argument `text` of a function that can read a long one in parts.
///
/// CPython writes the UTF-8 of a `str` that is not ASCII to new memory twice, and keeps one copy as long as the `str`
/// lives. The pages of that memory take a fifth of the time in which a text is encoded first.
pub(crate) enum TextInput<'py> {
    Whole(Text),
    Long(Bound<'py, PyString>),
}

impl<'py> Argument<'_, 'py> for TextInput<'py> {
    #[inline]
    fn read(name: &str, value: &Bound<'py, PyAny>) -> PyResult<Self> {
        match value.cast_exact::<PyString>() {
            Ok(text) if text.len()? >= LONG && is_read_in_parts(text)? => Ok(Self::Long(text.clone())),
            _ => Text::of(value, |value| wrong_type(name, "a str", value)).map(Self::Whole),
        }
    }
}

/// Returns whether a long `str` is not ASCII, and not the one that was last asked about.
///
/// One that is encoded again and again is converted only once, the second time.
#[cold]
fn is_read_in_parts(text: &Bound<'_, PyString>) -> PyResult<bool> {
    /// The address of the last one. Another `str` that comes to lie there is only slower to convert.
    static LAST: AtomicUsize = AtomicUsize::new(0);
    let address = text.as_ptr().addr();
    let is_last = LAST.swap(address, Ordering::Relaxed) == address;
    Ok(!is_last && !text.call_method0("isascii")?.is_truthy()?)
}

/// A `str` of which the characters from `at` on are still to be read.
pub(crate) struct LongText {
    text: Py<PyString>,
    at: usize,
    length: usize,
}

impl LongText {
    pub(crate) fn new(text: &Bound<'_, PyString>) -> PyResult<Self> {
        Ok(Self { text: text.clone().unbind(), at: 0, length: text.len()? })
    }

    /// Returns the number of characters.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Appends the next million characters to `utf8`, and returns whether more follow.
    ///
    /// # Errors
    /// `UnicodeEncodeError` for a surrogate; `MemoryError`.
    pub(crate) fn read(&mut self, py: Python<'_>, utf8: &mut String) -> PyResult<bool> {
        let part_end = (self.at + PART).min(self.length);
        while self.at < part_end {
            let end = (self.at + PIECE).min(part_end);
            let part = self.text.bind(py).get_item(PySlice::new(py, self.at as isize, end as isize, 1))?;
            let part = part.cast::<PyString>()?.to_str()?;
            utf8.try_reserve(part.len()).map_err(|_| too_long(self.length))?;
            utf8.push_str(part);
            self.at = end;
        }
        Ok(self.at < self.length)
    }
}

//! A long `str`, read as UTF-8 in parts.
//!
//! CPython writes the UTF-8 of a `str` that is not ASCII to new memory twice, and keeps one copy as long as the `str`
//! lives. The pages of that memory take a fifth of the time in which a text is encoded first.

use std::sync::atomic::{AtomicUsize, Ordering};

use pyo3::exceptions::PyMemoryError;
use pyo3::prelude::*;
use pyo3::types::{PySlice, PyString};

use crate::arguments::Text;
use crate::named::{Argument, wrong_type};

/// Characters from which on a `str` is read in parts.
const LONG: usize = 1 << 20;

/// Characters that are read at a time, for which the GIL is acquired once.
const PART: usize = 1 << 20;

/// Characters that are converted at a time. Their memory stays in the CPU's cache, and is too little to be given back to
/// the system.
const PIECE: usize = 1 << 13;

/// The argument `text` of a function that can read a long one in parts.
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
            let no_memory = |_| PyMemoryError::new_err(format!("a text of {} characters is too long", self.length));
            utf8.try_reserve(part.len()).map_err(no_memory)?;
            utf8.push_str(part);
            self.at = end;
        }
        Ok(self.at < self.length)
    }
}

//! Ids as Python's ints: making half a million of them takes longer than encoding the text.

use std::sync::OnceLock;

use pyo3::prelude::*;
use pyo3::types::{PyInt, PyList};

/// The int of each id of a vocabulary, made when it is first asked for and then shared by all lists.
pub(crate) struct IdInts(Box<[OnceLock<Py<PyInt>>]>);

impl IdInts {
    pub(crate) fn new(vocab_size: usize) -> Self {
        Self((0..vocab_size).map(|_| OnceLock::new()).collect())
    }

    /// Returns the ids as a list of ints.
    pub(crate) fn list<'py>(&self, py: Python<'py>, ids: &[u32]) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, ids.iter().map(|&id| self.int(py, id)))
    }

    #[inline]
    fn int(&self, py: Python<'_>, id: u32) -> &Py<PyInt> {
        self.0[id as usize].get_or_init(|| match id.into_pyobject(py) {
            Ok(int) => int.unbind(),
            Err(never) => match never {},
        })
    }
}

//! Ids as Python's ints: making half a million of them takes longer than encoding the text.

use pyo3::prelude::*;
use pyo3::types::{PyInt, PyList};

/// So many ids ahead the ints are asked of memory: a count of references is written into each.
const AHEAD: usize = 32;

/// The ints of all ids of a vocabulary, made when a list is first asked for and then shared by all lists.
pub(crate) struct IdInts(Box<[Py<PyInt>]>);

impl IdInts {
    /// Makes an int of each id below `vocab_size`: some 15 ns and 40 bytes each.
    pub(crate) fn new(py: Python<'_>, vocab_size: usize) -> PyResult<Self> {
        let ints = (0..vocab_size as u32).map(|id| Ok(id.into_pyobject(py)?.unbind()));
        Ok(Self(ints.collect::<PyResult<_>>()?))
    }

    /// Returns the ids as a list of ints.
    pub(crate) fn list<'py>(&self, py: Python<'py>, ids: &[u32]) -> PyResult<Bound<'py, PyList>> {
        let ints = ids.iter().enumerate().map(|(i, &id)| {
            if let Some(&ahead) = ids.get(i + AHEAD) {
                prefetch(self.0[ahead as usize].as_ptr());
            }
            &self.0[id as usize]
        });
        PyList::new(py, ints)
    }
}

#[inline]
fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: prefetching reads nothing and cannot fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

//! Ids as Python ints. Creating half a million of them takes longer than encoding the text, so they are shared.

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use bpe_llama_simd::prefetch::prefetch;
use pyo3::ffi::PyObject;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyList};

/// The prefetch distance in ids: a list writes the reference count of each int.
const PREFETCH_DISTANCE: usize = 32;

/// The int object of each id of a vocabulary, created on first use and shared by all lists.
///
/// One pointer an id, null or an owned reference: half the memory of a `OnceLock`, and memory limits long lists.
pub(crate) struct IdInts(Box<[AtomicPtr<PyObject>]>);

impl IdInts {
    pub(crate) fn new(vocab_size: usize) -> Self {
        Self((0..vocab_size).map(|_| AtomicPtr::default()).collect())
    }

    /// Returns the ids as a list of ints.
    pub(crate) fn list<'py>(&self, py: Python<'py>, ids: &[u32]) -> PyResult<Bound<'py, PyList>> {
        let ints = ids.iter().enumerate().map(|(i, &id)| {
            if let Some(&ahead) = ids.get(i + PREFETCH_DISTANCE) {
                prefetch(self.0[ahead as usize].load(Ordering::Relaxed));
            }
            self.int(py, id)
        });
        PyList::new(py, ints)
    }

    #[inline]
    fn int<'py>(&self, py: Python<'py>, id: u32) -> Bound<'py, PyAny> {
        let int = self.0[id as usize].load(Ordering::Acquire);
        let int = if int.is_null() { self.create(py, id) } else { int };
        // SAFETY: the reference that this table owns keeps the object alive; only `drop` releases it.
        unsafe { Bound::from_borrowed_ptr(py, int) }
    }

    /// Creates an int, unless another thread was faster.
    #[cold]
    fn create(&self, py: Python<'_>, id: u32) -> *mut PyObject {
        let new = PyInt::new(py, id);
        match self.0[id as usize].compare_exchange(ptr::null_mut(), new.as_ptr(), Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => new.into_ptr(),
            Err(faster) => faster,
        }
    }
}

impl Drop for IdInts {
    fn drop(&mut self) {
        Python::attach(|py| {
            for int in &mut self.0 {
                // SAFETY: if not null, it is a reference that `create` transferred to this table, and nothing uses it now.
                drop(unsafe { Bound::from_owned_ptr_or_opt(py, *int.get_mut()) });
            }
        });
    }
}

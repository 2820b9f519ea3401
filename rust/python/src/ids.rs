//! Ids as Python's ints: making half a million of them takes longer than encoding the text.

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use pyo3::ffi::PyObject;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyList};

/// So many ids ahead the ints are asked of memory: a count of references is written into each.
const AHEAD: usize = 32;

/// The int of each id of a vocabulary, made when it is first asked for and then shared by all lists.
///
/// A pointer an id, null so far or a reference of ours: half the memory of a `OnceLock`, which is what limits long lists.
pub(crate) struct IdInts(Box<[AtomicPtr<PyObject>]>);

impl IdInts {
    pub(crate) fn new(vocab_size: usize) -> Self {
        Self((0..vocab_size).map(|_| AtomicPtr::default()).collect())
    }

    /// Returns the ids as a list of ints.
    pub(crate) fn list<'py>(&self, py: Python<'py>, ids: &[u32]) -> PyResult<Bound<'py, PyList>> {
        let ints = ids.iter().enumerate().map(|(i, &id)| {
            if let Some(&ahead) = ids.get(i + AHEAD) {
                prefetch(self.0[ahead as usize].load(Ordering::Relaxed));
            }
            self.int(py, id)
        });
        PyList::new(py, ints)
    }

    #[inline]
    fn int<'py>(&self, py: Python<'py>, id: u32) -> Bound<'py, PyAny> {
        let int = self.0[id as usize].load(Ordering::Acquire);
        let int = if int.is_null() { self.make(py, id) } else { int };
        // SAFETY: our own reference keeps the object alive, and it is given up by no one but `drop`.
        unsafe { Bound::from_borrowed_ptr(py, int) }
    }

    /// Makes an int, unless another thread was faster.
    #[cold]
    fn make(&self, py: Python<'_>, id: u32) -> *mut PyObject {
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
                // SAFETY: not null, it is a reference that `make` kept for this table, and no one uses it any more.
                drop(unsafe { Bound::from_owned_ptr_or_opt(py, *int.get_mut()) });
            }
        });
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

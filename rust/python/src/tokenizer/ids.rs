//! Ids as Python ints. Creating half a million of them takes longer than encoding the text, so they are shared.

use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use bpe_llama_simd::{pages, prefetch::prefetch};
use pyo3::ffi::{self, PyObject};
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyList};

/// The prefetch distance in ids: a list writes the reference count of each int.
const PREFETCH_DISTANCE: usize = 32;

/// Ids of a list between two checks of Python's signals: a tenth of a second.
const IDS_PER_CHECK: usize = 1 << 22;

/// The int object of each id of a vocabulary, created on first use and shared by all lists.
///
/// One pointer an id, null or an owned reference: half the memory of a `OnceLock`, and memory limits long lists.
pub(crate) struct IdInts(Box<[AtomicPtr<PyObject>]>);

impl IdInts {
    pub(crate) fn new(vocab_size: usize) -> Self {
        Self((0..vocab_size).map(|_| AtomicPtr::default()).collect())
    }

    /// Returns the ids as a list of ints.
    ///
    /// # Errors
    /// `MemoryError`; what a signal handler raises.
    pub(crate) fn list<'py>(&self, py: Python<'py>, ids: &[u32]) -> PyResult<Bound<'py, PyList>> {
        // SAFETY: a new reference to a list of null pointers. All are set below, before other code sees the list.
        let list = unsafe {
            Bound::from_owned_ptr_or_err(py, ffi::PyList_New(ids.len() as ffi::Py_ssize_t))?.cast_into_unchecked()
        };
        advise_huge_pages(&list, ids.len());
        if ids.len() > IDS_PER_CHECK {
            self.fill_with_checks(&list, ids)?;
        } else {
            self.fill(&list, ids, 0..ids.len());
        }
        Ok(list)
    }

    /// Fills a list with ids, and runs signal handlers meanwhile.
    #[cold]
    fn fill_with_checks(&self, list: &Bound<'_, PyList>, ids: &[u32]) -> PyResult<()> {
        // SAFETY: it is a list. Handlers, which may be Python code, cannot find it until it is whole.
        unsafe { ffi::PyObject_GC_UnTrack(list.as_ptr().cast()) };
        for start in (0..ids.len()).step_by(IDS_PER_CHECK) {
            self.fill(list, ids, start..ids.len().min(start + IDS_PER_CHECK));
            list.py().check_signals()?;
        }
        // SAFETY: it is a list that is not tracked.
        unsafe { ffi::PyObject_GC_Track(list.as_ptr().cast()) };
        Ok(())
    }

    /// Sets these places of a new list.
    #[inline(always)]
    fn fill(&self, list: &Bound<'_, PyList>, ids: &[u32], places: Range<usize>) {
        for i in places {
            if let Some(&ahead) = ids.get(i + PREFETCH_DISTANCE) {
                prefetch(self.0[ahead as usize].load(Ordering::Relaxed));
            }
            let int = self.int(list.py(), ids[i]).into_ptr();
            // SAFETY: the list has this place, and takes over the reference.
            unsafe { ffi::PyList_SetItem(list.as_ptr(), i as ffi::Py_ssize_t, int) };
        }
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

/// Advises huge pages for the pointers of a new list: otherwise the first write to every 512th takes a page fault.
fn advise_huge_pages(list: &Bound<'_, PyList>, length: usize) {
    /// The place of the array's address in CPython's list objects, which have five words. The stable ABI does not promise
    /// it, so the address is never accessed here: at worst the advice is for other memory, which does not change.
    const ARRAY: usize = 3;
    // SAFETY: the memory of a list object has at least five words.
    let address = unsafe { list.as_ptr().cast::<usize>().add(ARRAY).read() };
    pages::advise_huge_range(address, length * size_of::<*mut PyObject>());
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

//! Memory for what a caller or a file sizes: where there is none, the call ends, and not the process.
//!
//! Rust's own vectors abort the process. The functions here unwind instead, with [`Error::OutOfMemory`] as what
//! `std::panic::catch_unwind` returns: an error returned by every list that grows would cost time in the hot loops. No
//! message of a panic is printed. The Python module raises `MemoryError`.

use std::alloc::{Layout, alloc_zeroed};
use std::ptr::{NonNull, slice_from_raw_parts_mut};

use crate::Error;

/// Items of a small list. Its memory is not checked: that would take a tenth of the time of a short text.
const SMALL: usize = 1 << 10;

/// Makes room for `additional` items more, as [`Vec::reserve`] does; unwinds.
#[inline]
pub(crate) fn reserve<T>(items: &mut Vec<T>, additional: usize) {
    if items.capacity() - items.len() < additional && items.try_reserve(additional).is_err() {
        exhausted::<T>(items.len().saturating_add(additional));
    }
}

/// Returns an empty vector with room for `capacity` items; unwinds.
#[inline]
pub(crate) fn with_capacity<T>(capacity: usize) -> Vec<T> {
    if capacity <= SMALL {
        return Vec::with_capacity(capacity);
    }
    checked(capacity)
}

/// As [`with_capacity`], however few the items are.
#[inline(never)]
pub(crate) fn checked<T>(capacity: usize) -> Vec<T> {
    let mut items = Vec::new();
    if items.try_reserve_exact(capacity).is_err() {
        exhausted::<T>(capacity);
    }
    items
}

/// Returns `length` copies of `item`; unwinds.
pub(crate) fn filled<T: Clone>(item: T, length: usize) -> Vec<T> {
    let mut items = checked(length);
    items.resize(length, item);
    items
}

/// Returns zeros, or `None` if there is no memory for them. The system provides the memory where it is written.
pub(crate) fn zeros<const N: usize>(length: usize) -> Option<Vec<[u64; N]>> {
    let layout = Layout::array::<[u64; N]>(length).ok().filter(|layout| layout.size() > 0)?;
    // SAFETY: the layout is not empty.
    let memory = NonNull::new(unsafe { alloc_zeroed(layout) })?;
    let words = slice_from_raw_parts_mut(memory.as_ptr().cast(), length);
    // SAFETY: the global allocator returned the memory for this layout, and zeros are integers.
    Some(unsafe { Box::from_raw(words) }.into_vec())
}

/// Returns what `work` returns, or the error that its memory unwinds with.
pub(crate) fn caught<T>(work: impl FnOnce() -> T + std::panic::UnwindSafe) -> crate::Result<T> {
    std::panic::catch_unwind(work).map_err(|payload| match payload.downcast::<Error>() {
        Ok(error) => *error,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Appends to a text; unwinds.
pub(crate) fn push_str(text: &mut String, part: &str) {
    if text.try_reserve(part.len()).is_err() {
        exhausted::<u8>(text.len() + part.len());
    }
    text.push_str(part);
}

/// Returns a copy of a text; unwinds.
pub(crate) fn copy(text: &str) -> String {
    let mut copy = String::new();
    push_str(&mut copy, text);
    copy
}

#[cold]
pub(crate) fn exhausted<T>(items: usize) -> ! {
    let bytes = items.saturating_mul(size_of::<T>());
    std::panic::resume_unwind(Box::new(Error::OutOfMemory(format!("there is no memory for {bytes} bytes"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_much_memory_unwinds() {
        let too_many = usize::MAX / 32;
        let outcome = std::panic::catch_unwind(|| with_capacity::<u64>(too_many));
        let payload = outcome.expect_err("more than any machine has").downcast::<Error>().expect("an error");
        assert_eq!(payload.to_string(), format!("there is no memory for {} bytes", 8 * too_many));
        let mut some = vec![1_u64];
        reserve(&mut some, 3);
        assert!(some.capacity() >= 4);
        assert!(std::panic::catch_unwind(move || reserve(&mut some, too_many)).is_err());
        assert_eq!((zeros(too_many), zeros::<2>(3)), (None::<Vec<[u64; 1]>>, Some(vec![[0; 2]; 3])));
        let error = caught(|| with_capacity::<u64>(too_many)).expect_err("more than any machine has");
        assert!(matches!(error, Error::OutOfMemory(_)), "{error}");
        assert_eq!((filled(7, 2), copy("a")), (vec![7, 7], "a".to_owned()));
    }
}

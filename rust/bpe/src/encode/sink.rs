//! Receivers of ids: a list, or a count.

use bpe_llama_simd::huge_pages;

use crate::memory::{reserve, with_capacity};

/// A receiver of ids.
pub(crate) trait Sink {
    fn take(&mut self, ids: &[u32]);
}

impl Sink for Vec<u32> {
    #[inline]
    fn take(&mut self, ids: &[u32]) {
        if self.capacity() - self.len() < ids.len() {
            return grow_and_take(self, ids);
        }
        self.extend_from_slice(ids);
    }
}

#[cold]
fn grow_and_take(list: &mut Vec<u32>, ids: &[u32]) {
    reserve(list, ids.len());
    list.extend_from_slice(ids);
}

/// Counts ids.
#[derive(Default)]
pub(crate) struct CountSink(pub(crate) usize);

impl Sink for CountSink {
    #[inline]
    fn take(&mut self, ids: &[u32]) {
        self.0 += ids.len();
    }
}

/// Returns an empty list with room for about as many ids as `bytes` of text yield.
pub(crate) fn reserve_ids(bytes: usize) -> Vec<u32> {
    let mut ids = with_capacity(bytes / 3 + 8);
    huge_pages::advise(ids.spare_capacity_mut());
    ids
}

//! Receivers of ids: a list, or a count.

use bpe_llama_simd::pages;

use crate::memory::{reserve, with_capacity};

/// A receiver of ids.
pub(crate) trait Sink {
    fn take(&mut self, ids: &[u32]);
}

/// New memory of a list is asked for in blocks of this many bytes, which begin at multiples of it: a power of two.
const BLOCK: usize = 1 << 18;

impl Sink for Vec<u32> {
    #[inline]
    fn take(&mut self, ids: &[u32]) {
        if self.capacity() - self.len() < ids.len() {
            return grow_and_take(self, ids);
        }
        let end = self.as_ptr_range().end.addr();
        if (end ^ (end + size_of_val(ids))) >= BLOCK {
            populate_blocks(self, ids.len());
        }
        self.extend_from_slice(ids);
    }
}

#[cold]
fn grow_and_take(list: &mut Vec<u32>, ids: &[u32]) {
    reserve(list, ids.len());
    list.extend_from_slice(ids);
}

/// Asks for the pages of the blocks that `count` more ids reach, but for the block in which the list ends now.
#[cold]
fn populate_blocks(list: &mut Vec<u32>, count: usize) {
    const IDS: usize = BLOCK / size_of::<u32>();
    let spare = list.spare_capacity_mut();
    let first = spare.as_ptr().addr() % BLOCK / size_of::<u32>();
    let begin = IDS - first;
    let end = ((first + count) / IDS + 1) * IDS - first;
    pages::populate(&spare[begin.min(spare.len())..end.min(spare.len())]);
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
    with_capacity(bytes / 3 + 8)
}

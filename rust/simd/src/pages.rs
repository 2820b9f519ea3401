//! Advice to the operating system about pages of memory. It changes no contents, and only Linux gets any.

/// Advises the system to back `memory`, not written to yet, with huge pages: fewer TLB misses in large tables that are
/// read at random.
pub fn advise_huge<T>(memory: &[T]) {
    advise_huge_range(memory.as_ptr().addr(), size_of_val(memory));
}

/// Like [`advise_huge`], for `size` bytes from an address on. Advice on memory that is in use, or on none, does nothing.
pub fn advise_huge_range(address: usize, size: usize) {
    /// Smaller memory may hold no whole huge page.
    const SMALLEST: usize = 4 << 20;
    if size >= SMALLEST {
        system::advise_huge(address, size);
    }
}

/// Asks the system for all pages of `memory` at once: a page fault for each takes about twice as long.
///
/// Nothing is done if the last of them is there, as a walk over memory in use would take time. Linux before 5.14 refuses;
/// then the pages come one by one.
pub fn populate<T>(memory: &[T]) {
    if let Some(last) = memory.last()
        && !system::is_resident(std::ptr::from_ref(last).addr())
    {
        system::populate(memory.as_ptr().addr(), size_of_val(memory));
    }
}

#[cfg(all(target_os = "linux", not(miri)))]
mod system {
    use std::ptr::without_provenance_mut;

    /// The largest default page size.
    const PAGE: usize = 1 << 16;

    pub(super) fn advise_huge(address: usize, size: usize) {
        advise(address, size, libc::MADV_HUGEPAGE);
    }

    pub(super) fn populate(address: usize, size: usize) {
        advise(address, size, libc::MADV_POPULATE_WRITE);
    }

    /// Gives advice that keeps contents on the whole pages of a range.
    fn advise(address: usize, size: usize, advice: libc::c_int) {
        let start = address.wrapping_add(PAGE - 1) / PAGE * PAGE;
        let end = address.wrapping_add(size) / PAGE * PAGE;
        if start < end {
            // SAFETY: the kernel checks the range, and the advice keeps contents. An error changes nothing.
            unsafe { libc::madvise(without_provenance_mut(start), end - start, advice) };
        }
    }

    /// Returns whether the page of an address is in memory.
    pub(super) fn is_resident(address: usize) -> bool {
        let mut page = 0;
        // SAFETY: the answer for one page takes one byte.
        let status = unsafe { libc::mincore(without_provenance_mut(address / PAGE * PAGE), 1, &raw mut page) };
        status == 0 && page & 1 == 1
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
mod system {
    pub(super) fn advise_huge(_address: usize, _size: usize) {}

    pub(super) fn populate(_address: usize, _size: usize) {}

    pub(super) fn is_resident(_address: usize) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::{advise_huge, populate};

    #[test]
    fn contents_stay() {
        let mut memory: Vec<u8> = (0..9 << 20).map(|i| (i % 251) as u8).collect();
        let before = memory.clone();
        for (start, end) in [(0, memory.len()), (1, 1 << 18), (5, 5), (70_001, 8 << 20)] {
            advise_huge(&memory[start..end]);
            populate(&memory[start..end]);
        }
        assert!(memory == before);
        memory.reserve_exact(5 << 20);
        populate(memory.spare_capacity_mut());
        assert!(memory == before);
    }
}

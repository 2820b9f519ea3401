//! Transparent huge pages: fewer TLB misses in large tables that are read at random.

/// Advises Linux to back `memory`, not written to yet, with huge pages; does nothing on other systems.
pub fn advise<T>(memory: &[T]) {
    advise_range(memory.as_ptr().addr(), size_of_val(memory));
}

/// Like [`advise`], for `size` bytes from an address on. Advice on memory that is in use, or on none, changes no content.
pub fn advise_range(address: usize, size: usize) {
    /// Smaller memory may hold no whole huge page.
    #[cfg(target_os = "linux")]
    const SMALLEST: usize = 4 << 20;
    #[cfg(target_os = "linux")]
    if size >= SMALLEST {
        const PAGE: usize = 1 << 16; // the largest default page size of a Linux system
        let start = address.wrapping_add(PAGE - 1) / PAGE * PAGE;
        let length = address.wrapping_add(size).wrapping_sub(start) / PAGE * PAGE;
        // SAFETY: the kernel checks the range, and the advice keeps contents. An error changes nothing.
        unsafe { libc::madvise(std::ptr::without_provenance_mut(start), length, libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (address, size);
}

//! Transparent huge pages: fewer TLB misses in large tables that are read at random.

/// Advises Linux to back `memory`, not written to yet, with huge pages; does nothing on other systems.
pub fn advise<T>(memory: &[T]) {
    /// Smaller memory may hold no whole huge page.
    #[cfg(target_os = "linux")]
    const SMALLEST: usize = 4 << 20;
    #[cfg(target_os = "linux")]
    if size_of_val(memory) >= SMALLEST {
        const PAGE: usize = 1 << 16; // the largest default page size of a Linux system
        let range = memory.as_ptr_range();
        let start = range.start.addr().next_multiple_of(PAGE);
        let length = (range.end.addr() - start) / PAGE * PAGE;
        // SAFETY: the range is whole pages within `memory`, and the advice keeps their contents. An error changes nothing.
        unsafe { libc::madvise(range.start.with_addr(start).cast_mut().cast(), length, libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

//! Larger pages for tables that are read at random, whose every read would otherwise wait for the address of its page.

/// Asks the system for huge pages behind `memory`, which nothing has been written to yet. Only Linux is asked.
pub fn advise<T>(memory: &[T]) {
    /// Less has no whole huge page within it.
    #[cfg(target_os = "linux")]
    const SMALLEST: usize = 4 << 20;
    #[cfg(target_os = "linux")]
    if size_of_val(memory) >= SMALLEST {
        const PAGE: usize = 1 << 16; // the largest that a system has by default
        let range = memory.as_ptr_range();
        let start = range.start.addr().next_multiple_of(PAGE);
        let length = (range.end.addr() - start) / PAGE * PAGE;
        // SAFETY: whole pages within memory that is ours; their contents stay. A refusal changes nothing.
        unsafe { libc::madvise(range.start.with_addr(start).cast_mut().cast(), length, libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

//! The OpenMP threads of `PyTorch`, where it is loaded.
//!
//! Between two of `PyTorch`'s operations its threads spin, and after some milliseconds sleep (`OMP_WAIT_POLICY`). While they
//! spin, threads of another pool find no free CPU. A job between such operations therefore runs on the same threads.

use std::ffi::{c_int, c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// `GOMP_parallel`: calls a function with `data` on so many threads, 0 for the maximum; returns when all have finished.
type Parallel = unsafe extern "C" fn(extern "C" fn(*mut c_void), data: *mut c_void, threads: c_uint, flags: c_uint);

/// `omp_get_max_threads`.
type MaxThreads = unsafe extern "C" fn() -> c_int;

/// The functions of an OpenMP runtime: GCC's, or LLVM's for programs of GCC.
#[derive(Clone, Copy)]
struct Runtime {
    parallel: Parallel,
    max_threads: MaxThreads,
}

struct Call<'a> {
    job: &'a (dyn Fn() + Sync),
    panicked: AtomicBool,
}

extern "C" fn call(data: *mut c_void) {
    // SAFETY: `run` gives a `Call`, which lives until all threads have finished.
    let Call { job, panicked } = unsafe { &*data.cast_const().cast::<Call<'_>>() };
    if catch_unwind(AssertUnwindSafe(job)).is_err() {
        panicked.store(true, Ordering::Relaxed);
    }
}

/// The process that may use the threads of `PyTorch`: a process forked from it has none of them.
static PROCESS: OnceLock<u32> = OnceLock::new();

/// Remembers this process, unless one is remembered already, as the one whose `PyTorch` may have started threads.
///
/// The first kernel that would use these threads does so, too. A program that may fork before that calls this first.
pub fn remember_process() {
    PROCESS.get_or_init(std::process::id);
}

/// Runs `job` on the `threads` threads of `PyTorch`, of which this is one, at the same time; returns when all have finished.
///
/// Returns false, and runs nothing, if `PyTorch` has another number of threads, was not loaded at the first call, has no such
/// OpenMP, or if this process was forked since [`remember_process`].
///
/// # Panics
/// If the job panics, on whichever thread.
pub(crate) fn run(threads: usize, job: &(dyn Fn() + Sync)) -> bool {
    static RUNTIME: OnceLock<Option<Runtime>> = OnceLock::new();
    if *PROCESS.get_or_init(std::process::id) != std::process::id() {
        return false;
    }
    let Some(runtime) = *RUNTIME.get_or_init(Runtime::of_pytorch) else { return false };
    // SAFETY: it takes nothing.
    let max_threads = unsafe { (runtime.max_threads)() };
    if usize::try_from(max_threads) != Ok(threads) {
        return false;
    }
    let shared = Call { job, panicked: AtomicBool::new(false) };
    // SAFETY: `shared` outlives the call.
    unsafe { (runtime.parallel)(call, (&raw const shared).cast_mut().cast(), 0, 0) };
    assert!(!shared.panicked.into_inner(), "a job panicked");
    true
}

impl Runtime {
    /// Returns the runtime that `PyTorch`'s library of operations is linked to.
    #[cfg(all(target_os = "linux", not(miri)))]
    fn of_pytorch() -> Option<Self> {
        // SAFETY: names end with a zero. No library is loaded, so that no code of one runs. The functions have had these types
        // since GCC 4.9.
        unsafe {
            let library = libc::dlopen(c"libtorch_cpu.so".as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD);
            if library.is_null() {
                return None;
            }
            let parallel = libc::dlsym(library, c"GOMP_parallel".as_ptr());
            let max_threads = libc::dlsym(library, c"omp_get_max_threads".as_ptr());
            if parallel.is_null() || max_threads.is_null() {
                return None;
            }
            Some(Self {
                parallel: std::mem::transmute::<*mut c_void, Parallel>(parallel),
                max_threads: std::mem::transmute::<*mut c_void, MaxThreads>(max_threads),
            })
        }
    }

    #[cfg(not(all(target_os = "linux", not(miri))))]
    fn of_pytorch() -> Option<Self> {
        None
    }
}

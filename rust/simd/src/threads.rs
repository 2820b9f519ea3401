//! How many threads one call may use.

use std::num::NonZero;
use std::sync::OnceLock;

/// Threads that are allowed on any machine.
const LEAST_LIMIT: usize = 8;

/// Returns the number of CPUs of this process. It is asked for once, as the query reads files of the system.
pub fn num_cpus() -> usize {
    static NUM_CPUS: OnceLock<usize> = OnceLock::new();
    *NUM_CPUS.get_or_init(|| std::thread::available_parallelism().map_or(1, NonZero::get))
}

/// Returns the number of threads to use where a caller asks for `wanted`: at most one a CPU, eight on small machines.
///
/// More do not make a call faster, and each takes memory.
///
/// ```
/// use bpe_llama_simd::threads::bounded;
///
/// assert_eq!(bounded(3), 3);
/// assert!(bounded(1_000_000) < 1_000_000);
/// ```
pub fn bounded(wanted: usize) -> usize {
    if wanted <= LEAST_LIMIT { wanted } else { wanted.min(num_cpus().max(LEAST_LIMIT)) }
}

//! Rows in parallel, each with memory that outlives the call.

use super::row::Scratch;
use crate::{Error, Result};
use bpe_llama_simd::Backend;
use bpe_llama_simd::ScratchPool;
use std::num::NonZero;
use std::sync::OnceLock;

/// A thread is worth starting for this many logits: its start costs some tens of microseconds.
const LOGITS_A_THREAD: usize = 1 << 18;

/// Scratch between calls, at most one for each thread that ever ran at once. Threads live only as long as a call, so that
/// a forked child inherits none it lacks; their memory lives here.
static IDLE: ScratchPool<Scratch> = ScratchPool::new();

/// Calls `act` for each row with its slot of `out`, the rows shared among threads.
///
/// `num_threads` of `None` takes as many as the rows are worth. The results do not depend on it.
///
/// # Errors
/// The first failing row's, whatever the threads.
pub(crate) fn for_each_row<T: Send>(
    out: &mut [T],
    vocab_size: usize,
    width: usize,
    num_threads: Option<NonZero<usize>>,
    act: impl Fn(usize, &mut [T], &mut Scratch) -> Result<()> + Sync,
) -> Result<()> {
    let rows = out.len() / width.max(1);
    let wanted =
        num_threads.map_or_else(|| processors().min((rows * vocab_size).div_ceil(LOGITS_A_THREAD)), NonZero::get);
    let threads = wanted.clamp(1, rows.max(1));
    let run = |first: usize, part: &mut [T]| -> Result<()> {
        let mut scratch = IDLE.take().unwrap_or_else(|| Box::new(Scratch::new(Backend::best())));
        let result =
            part.chunks_mut(width.max(1)).enumerate().try_for_each(|(i, slot)| act(first + i, slot, &mut scratch));
        IDLE.give_back(scratch);
        result
    };
    if threads == 1 {
        return run(0, out);
    }
    let share = rows.div_ceil(threads);
    std::thread::scope(|scope| {
        let mut parts = out.chunks_mut(share * width).enumerate();
        let first = parts.next();
        let helpers: Vec<_> = parts.map(|(i, part)| scope.spawn(move || run(i * share, part))).collect();
        let mut result = first.map_or(Ok(()), |(_, part)| run(0, part));
        for helper in helpers {
            let theirs = helper
                .join()
                .unwrap_or_else(|_| Err(Error::InvalidArgument("a sampling thread failed; please report this".into())));
            result = result.and(theirs);
        }
        result
    })
}

/// Returns how many threads this process may run at once; asked of the system once, as that reads files.
fn processors() -> usize {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    *PROCESSORS.get_or_init(|| std::thread::available_parallelism().map_or(1, NonZero::get))
}

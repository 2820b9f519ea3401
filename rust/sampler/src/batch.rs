//! The rows of a batch, spread over threads.

use crate::error::{Interrupt, Result};
use crate::scratch::Scratch;
use bpe_llama_simd::threads::{bounded, num_cpus};
use bpe_llama_simd::{Backend, ScratchPool};
use std::num::NonZero;
use std::sync::{Mutex, PoisonError};

/// Starting a thread takes some tens of microseconds, which pays off from this many logits.
const LOGITS_PER_THREAD: usize = 1 << 18;

/// Threads take parts of so many logits: a thread that starts late or has less of a CPU takes fewer.
const LOGITS_PER_PART: usize = 1 << 17;

/// Scratch memory that later calls reuse. Threads end with their call, so a forked child lacks none of them.
static SCRATCH: ScratchPool<Scratch> = ScratchPool::new();

/// Calls `process` for each row with its `width` elements of `out`.
///
/// `num_threads` of `None` means one thread per [`LOGITS_PER_THREAD`] logits, at most one per CPU. The results do not
/// depend on the number of threads. The calling thread checks for an interrupt before each part that it takes.
///
/// # Errors
/// That of the first row that fails, or of the interrupt check.
pub(crate) fn for_each_row<T: Send>(
    out: &mut [T],
    vocab_size: usize,
    width: usize,
    num_threads: Option<NonZero<usize>>,
    interrupt: Interrupt<'_>,
    process: impl Fn(usize, &mut [T], &mut Scratch) -> Result<()> + Sync,
) -> Result<()> {
    let width = width.max(1);
    let rows = out.len() / width;
    let wanted =
        num_threads.map_or_else(|| num_cpus().min((rows * vocab_size).div_ceil(LOGITS_PER_THREAD)), NonZero::get);
    let threads = bounded(wanted).clamp(1, rows.max(1));
    let rows_per_part = (LOGITS_PER_PART / vocab_size.max(1)).min(rows.div_ceil(threads)).max(1);
    let parts = Mutex::new(out.chunks_mut(rows_per_part * width).enumerate());
    let lock = || parts.lock().unwrap_or_else(PoisonError::into_inner);
    let run = |first: usize, part: &mut [T]| -> Result<()> {
        let mut scratch = SCRATCH.take().unwrap_or_else(|| Box::new(Scratch::new(Backend::best())));
        let result = part.chunks_mut(width).enumerate().try_for_each(|(i, out)| process(first + i, out, &mut scratch));
        SCRATCH.give_back(scratch);
        result
    };
    let run_parts = |interrupt: Interrupt<'_>| loop {
        let part = lock().next();
        let Some((i, part)) = part else { return Ok(()) };
        let result = interrupt.check().and_then(|()| run(i * rows_per_part, part));
        if let Err(error) = result {
            lock().by_ref().for_each(drop); // the parts before this one are taken, those after it need no work
            return Err((i, error));
        }
    };
    if threads == 1 {
        return run_parts(interrupt).map_err(|(_, error)| error);
    }
    std::thread::scope(|scope| {
        // Where no thread can be started, this one does all the work.
        let spawn = |_| std::thread::Builder::new().spawn_scoped(scope, || run_parts(Interrupt::NEVER)).ok();
        let workers: Vec<_> = (1..threads).map_while(spawn).collect();
        let mut results = vec![run_parts(interrupt)];
        for worker in workers {
            let failed = |_| Err((0, invalid!("a sampling thread failed; please report this")));
            results.push(worker.join().unwrap_or_else(failed));
        }
        let first = results.into_iter().filter_map(std::result::Result::err).min_by_key(|&(i, _)| i);
        first.map_or(Ok(()), |(_, error)| Err(error))
    })
}

//! Text to word counts, on several threads.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, ScopedJoinHandle, Thread};
use std::time::Duration;

use bpe_llama_simd::threads::bounded;

use super::counter::{Batch, Counter};
use super::counts::{WordCounts, WordMap};
use super::progress::{OnProgress, Progress, Reporter};
use crate::corpus::CorpusReader;
use crate::interrupt::Interrupt;
use crate::pretokenize::Pretokenizer;
use crate::{Error, Result};

/// Time between two interrupt checks of the calling thread while workers count the last batches.
const END_WAIT: Duration = Duration::from_millis(1);

/// Returns the word counts of all batches that `next_batch` returns, counted on `num_threads` threads.
///
/// At most one thread a CPU is used, eight on small machines; fewer where no more can be started. `next_batch` runs on the
/// calling thread.
///
/// # Errors
/// The errors of `next_batch` and `on_progress`; those of [`Counter::new`] and [`Counter::add`].
pub fn count_batches(
    splitter: &Pretokenizer,
    special_tokens: &[String],
    num_threads: usize,
    next_batch: &mut dyn FnMut() -> Result<Option<Batch>>,
    on_progress: OnProgress<'_>,
) -> Result<WordCounts> {
    // Each thread holds a map of the distinct words.
    let num_threads = bounded(num_threads);
    let reporter = Reporter::new(on_progress);
    let mut feed = Feed { next_batch, reporter: &reporter, bytes: 0 };
    if num_threads <= 1 {
        return feed.count(Counter::new(splitter.clone(), special_tokens)?);
    }
    let counters =
        (0..num_threads).map(|_| Counter::new(splitter.clone(), special_tokens)).collect::<Result<Vec<_>>>()?;
    let counted = count_on_threads(counters, &mut feed)?;
    sum(counted, Interrupt::new(&|| reporter.tick(|| counting(feed.bytes))))
}

/// The source of batches, with progress reports.
struct Feed<'a> {
    next_batch: &'a mut dyn FnMut() -> Result<Option<Batch>>,
    reporter: &'a Reporter<'a>,
    bytes: u64,
}

impl Feed<'_> {
    fn next(&mut self) -> Result<Option<Batch>> {
        let batch = (self.next_batch)()?;
        self.bytes += batch.as_ref().map_or(0, Batch::len) as u64;
        if batch.is_some() {
            self.tick()?;
        } else {
            self.reporter.report(counting(self.bytes))?;
        }
        Ok(batch)
    }

    fn tick(&self) -> Result<()> {
        self.reporter.tick(|| counting(self.bytes))
    }

    /// Counts all batches on this thread.
    fn count(&mut self, mut counter: Counter) -> Result<WordCounts> {
        while let Some(batch) = self.next()? {
            let (reporter, bytes) = (self.reporter, self.bytes);
            let tick = || reporter.tick(|| counting(bytes));
            batch.count_into(&mut counter, Interrupt::new(&tick))?;
        }
        Ok(counter.finish())
    }

    /// Sends batches until none is left or a worker fails. A worker that receives a batch wakes this thread.
    fn run(&mut self, sender: &SyncSender<Batch>, failed: &AtomicBool) -> Result<()> {
        while !failed.load(Ordering::Relaxed)
            && let Some(mut batch) = self.next()?
        {
            while let Err(TrySendError::Full(refused)) = sender.try_send(batch) {
                if failed.load(Ordering::Relaxed) {
                    return Ok(()); // joining the worker gives its error
                }
                batch = refused;
                self.tick()?;
                thread::park_timeout(Reporter::INTERVAL);
            }
        }
        Ok(())
    }
}

fn counting(bytes: u64) -> Progress {
    Progress::Counting { bytes, read: None, total: None }
}

/// Counts the batches of `feed` with one thread per counter.
fn count_on_threads(counters: Vec<Counter>, feed: &mut Feed<'_>) -> Result<Vec<WordCounts>> {
    let (sender, receiver) = sync_channel::<Batch>(counters.len());
    let (receiver, feeder) = (Mutex::new(receiver), thread::current());
    let (wanted, counters) = (counters.len(), Mutex::new(counters));
    let take = || counters.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let failed = AtomicBool::new(false);
    thread::scope(|scope| {
        let work = || take().map(|counter| count_received(counter, &receiver, &feeder, &failed)).transpose();
        let spawn = |_| thread::Builder::new().spawn_scoped(scope, work).ok();
        let workers: Vec<_> = (0..wanted).map_while(spawn).collect();
        if workers.is_empty() {
            return take().map(|counter| feed.count(counter)).into_iter().collect();
        }
        let mut fed = feed.run(&sender, &failed);
        drop(sender);
        // Counting the last batches can take long: keep checking for an interrupt.
        while !workers.iter().all(ScopedJoinHandle::is_finished) {
            fed = fed.and_then(|()| feed.tick());
            failed.fetch_or(fed.is_err(), Ordering::Relaxed);
            thread::park_timeout(END_WAIT);
        }
        let mut counted = Vec::new();
        for worker in workers {
            match worker.join() {
                Ok(Ok(counts)) => counted.extend(counts),
                Ok(Err(error)) => fed = fed.and(Err(error)),
                Err(panic) => resume_unwind(panic),
            }
        }
        fed.map(|()| counted)
    })
}

/// Sets the flag if this thread unwinds, so that the feeder and the other workers stop.
struct StopOnUnwind<'a>(&'a AtomicBool);

impl Drop for StopOnUnwind<'_> {
    fn drop(&mut self) {
        self.0.fetch_or(thread::panicking(), Ordering::Relaxed);
    }
}

/// Counts batches until none is left. After a failure of any worker, only empties the channel.
fn count_received(
    mut counter: Counter,
    batches: &Mutex<Receiver<Batch>>,
    feeder: &Thread,
    failed: &AtomicBool,
) -> Result<WordCounts> {
    let _stop = StopOnUnwind(failed);
    let mut outcome = Ok(());
    let stop = || if failed.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) };
    loop {
        let batch = batches.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(batch) = batch else { break };
        feeder.unpark();
        match batch.count_into(&mut counter, Interrupt::new(&stop)) {
            // The worker that failed first returns the error.
            Ok(()) | Err(Error::Interrupted) => {}
            Err(error) => {
                failed.store(true, Ordering::Relaxed);
                outcome = Err(error);
            }
        }
    }
    outcome.map(|()| counter.finish())
}

/// Returns the sum of the threads' counts: shards are added independently, on as many threads.
fn sum(mut counted: Vec<WordCounts>, interrupt: Interrupt<'_>) -> Result<WordCounts> {
    let Some(mut total) = counted.pop() else { unreachable!("there is at least one thread") };
    let mut shards: Vec<(&mut WordMap, Vec<WordMap>)> =
        total.shards.iter_mut().map(|shard| (shard, Vec::new())).collect();
    let others = counted.len();
    for counts in counted {
        for (shard, map) in shards.iter_mut().zip(counts.shards) {
            shard.1.push(map);
        }
    }
    // At least once: the other threads can take all shards.
    interrupt.check()?;
    let (work, stopped) = (Mutex::new(shards), AtomicBool::new(false));
    let add_shards = |interrupt: Interrupt<'_>| {
        loop {
            let shard = work.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some((total, maps)) = shard else { return Ok(()) };
            for map in maps {
                total.merge(&map, interrupt)?;
            }
        }
    };
    thread::scope(|scope| {
        let work = || {
            let stop = || if stopped.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) };
            add_shards(Interrupt::new(&stop))
        };
        let spawn = |_| thread::Builder::new().spawn_scoped(scope, work).ok();
        // Where no thread can be started, this one adds all shards.
        let workers: Vec<_> = (0..others).map_while(spawn).collect();
        let outcome = add_shards(interrupt);
        stopped.store(outcome.is_err(), Ordering::Relaxed);
        let join = |worker: ScopedJoinHandle<'_, _>| worker.join().unwrap_or_else(|panic| resume_unwind(panic));
        workers.into_iter().map(join).fold(outcome, Result::and)
    })?;
    Ok(total)
}

/// Returns the word counts of all documents of a corpus, counted on `num_threads` threads.
///
/// Memory is bounded by the distinct words and a few batches.
///
/// # Errors
/// Those of [`CorpusReader::next_chunk`] and [`count_batches`].
pub fn count_files(corpus: &mut CorpusReader, num_threads: usize, on_progress: OnProgress<'_>) -> Result<WordCounts> {
    let (splitter, special_tokens) = (corpus.splitter().clone(), corpus.special_tokens().to_vec());
    let total = corpus.total_bytes();
    // Shared by the two closures below.
    let read = AtomicU64::new(0);
    let mut next_batch = || -> Result<Option<Batch>> {
        let mut batch = Batch::default();
        while !batch.is_full() {
            let Some(chunk) = corpus.next_chunk()? else { break };
            let path = corpus.path();
            batch.push_from(&chunk.text, || format!("{}, document {}", path.display(), chunk.document));
            if chunk.is_heartbeat() {
                break;
            }
        }
        read.store(corpus.bytes_read(), Ordering::Relaxed);
        Ok((!batch.is_empty()).then_some(batch))
    };
    let mut on_progress = |progress| match progress {
        Progress::Counting { bytes, .. } => {
            on_progress(Progress::Counting { bytes, read: Some(read.load(Ordering::Relaxed)), total: Some(total) })
        }
        other => on_progress(other),
    };
    count_batches(&splitter, &special_tokens, num_threads, &mut next_batch, &mut on_progress)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::CorpusOptions;

    #[test]
    fn empty_documents_fill_a_batch_and_a_long_word_is_refused() {
        let mut batch = Batch::default();
        (0..100_000).for_each(|_| batch.push(""));
        assert!(batch.is_full());
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("corpus.txt");
        std::fs::write(&path, format!("b {}", "a".repeat(17 << 20))).expect("a file");
        for (pattern, place) in
            [(r"\w+|\W", "document 0: a pre-token of 17825792 bytes from byte 2"), ("cl100k", "from byte 1")]
        {
            let splitter = Pretokenizer::new(pattern).expect("a pattern");
            for num_threads in [1, 2] {
                let mut corpus =
                    CorpusReader::new(vec![path.clone()], splitter.clone(), CorpusOptions::default()).expect("a file");
                let error = count_files(&mut corpus, num_threads, &mut |_| Ok(())).expect_err("17 MiB").to_string();
                assert!(error.contains(&format!("corpus.txt, {place}")), "{error}");
            }
        }
    }

    #[test]
    fn every_step_checks_for_an_interrupt() {
        // A slow pattern: one document takes longer than the interval between two progress reports.
        let splitter = Pretokenizer::new(r"(?:(?!\d)\w)+|(?<!x)\d+|\s|.").expect("a regex");
        for num_threads in [1, 2] {
            let (mut batches, mut calls) = (0, 0);
            let mut next_batch = || {
                batches += 1;
                let mut batch = Batch::default();
                batch.push(&"some words and 123 numbers ".repeat(100_000));
                Ok((batches == 1).then_some(batch))
            };
            // With threads, the first call reports that the last batch was sent.
            let mut on_progress = |_| {
                calls += 1;
                if calls < num_threads { Ok(()) } else { Err(Error::Interrupted) }
            };
            let counted = count_batches(&splitter, &[], num_threads, &mut next_batch, &mut on_progress);
            assert!(matches!(counted, Err(Error::Interrupted)), "{num_threads} threads");
            assert_eq!((batches, calls), (num_threads, num_threads));
        }
        let mut counter = Counter::new(splitter, &[]).expect("no special tokens");
        counter.add("some words").expect("a linear pattern");
        let counts = counter.finish();
        let stop = || Err(Error::Interrupted);
        assert!(matches!(sum(vec![counts.clone(), counts], Interrupt::new(&stop)), Err(Error::Interrupted)));
    }
}

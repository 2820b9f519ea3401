//! Text to word counts.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Thread};
use std::time::Duration;

use aho_corasick::{AhoCorasick, MatchKind};

use super::counts::{SHARD_BITS, WordCounts};
use super::progress::{OnProgress, Progress, Reporter};
use super::words::{Key, WordMap};
use crate::documents::Documents;
use crate::interrupt::Interrupt;
use crate::pretokenize::Pretokenizer;
use crate::{Error, Result};

/// Text handed to a thread at a time: small enough to stay in its cache, large enough that handing it over costs nothing.
const BATCH_BYTES: usize = 1 << 18;

/// How long the caller's thread waits for the last batches before it looks again.
const END_WAIT: Duration = Duration::from_millis(1);

/// Words looked up at a time.
const GROUP: usize = 16;

/// Counts words on the calling thread.
#[derive(Debug)]
pub struct Counter {
    splitter: Pretokenizer,
    special_tokens: Option<AhoCorasick>,
    counts: WordCounts,
    /// Scratch: where pieces end.
    ends: Vec<usize>,
}

impl Counter {
    /// Prepares to count the pieces of `splitter`; special tokens in the text are boundaries and not counted.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a special token is empty or given twice.
    pub fn new(splitter: Pretokenizer, special_tokens: &[String]) -> Result<Self> {
        let matcher = special_matcher(special_tokens)?;
        let counts = WordCounts::empty(splitter.pattern(), special_tokens);
        Ok(Self { splitter, special_tokens: matcher, counts, ends: Vec::with_capacity(1024) })
    }

    /// Counts the words of one document.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a custom regex backtracks beyond its bound.
    pub fn add(&mut self, document: &str) -> Result<()> {
        self.add_until(document, Interrupt::NEVER)
    }

    /// As [`Counter::add`], stopped by an error of `interrupt`, which is called about every thousand words.
    fn add_until(&mut self, document: &str, interrupt: Interrupt<'_>) -> Result<()> {
        let Some(matcher) = self.special_tokens.clone() else { return self.add_ordinary(document, interrupt) };
        let mut start = 0;
        for special in matcher.find_iter(document) {
            self.add_ordinary(&document[start..special.start()], interrupt)?;
            start = special.end();
        }
        self.add_ordinary(&document[start..], interrupt)
    }

    fn add_ordinary(&mut self, text: &str, interrupt: Interrupt<'_>) -> Result<()> {
        let bytes = text.as_bytes();
        let mut start = 0;
        loop {
            interrupt.check()?;
            self.ends.clear();
            self.splitter.fill_ends(text, start, &mut self.ends)?;
            if self.ends.is_empty() {
                return Ok(());
            }
            // A group's slots are loaded before any is used: the processor waits for all of them at once.
            for ends in self.ends.chunks(GROUP) {
                let mut group = [(Key::default(), 0); GROUP];
                for (entry, &end) in group.iter_mut().zip(ends) {
                    let key = Key::new(bytes, start, end);
                    *entry = (key, self.counts.shards[key.shard(SHARD_BITS)].peek(&key));
                    start = end;
                }
                for &(key, slot) in &group[..ends.len()] {
                    self.counts.shards[key.shard(SHARD_BITS)].add_from(key, slot);
                }
            }
        }
    }

    /// Returns what was counted.
    pub fn finish(self) -> WordCounts {
        self.counts
    }
}

/// Returns what finds special tokens in text, the longest where several begin, or `None` where there are none.
pub(crate) fn special_matcher(special_tokens: &[String]) -> Result<Option<AhoCorasick>> {
    for (index, token) in special_tokens.iter().enumerate() {
        if token.is_empty() {
            return Err(Error::InvalidArgument(format!("special token {index} is empty")));
        }
        if special_tokens[..index].contains(token) {
            return Err(Error::InvalidArgument(format!("special token {token:?} is given twice")));
        }
    }
    if special_tokens.is_empty() {
        return Ok(None);
    }
    let matcher = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(special_tokens);
    matcher.map(Some).map_err(|error| Error::InvalidArgument(format!("special tokens: {error}")))
}

/// Several short documents, or part of a long one, that one thread counts at a time.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    text: String,
    ends: Vec<usize>,
}

impl Batch {
    /// Adds a document, or a part of one that was cut where pieces end.
    pub fn push(&mut self, document: &str) {
        self.text.push_str(document);
        self.ends.push(self.text.len());
    }

    /// Whether it holds enough to be handed over.
    pub fn is_full(&self) -> bool {
        self.text.len() >= BATCH_BYTES
    }

    /// Whether it holds no document.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of text.
    pub fn len(&self) -> usize {
        self.text.len()
    }

    fn count_into(&self, counter: &mut Counter, interrupt: Interrupt<'_>) -> Result<()> {
        let mut start = 0;
        for &end in &self.ends {
            counter.add_until(&self.text[start..end], interrupt)?;
            start = end;
        }
        Ok(())
    }
}

/// Returns the words' counts in all batches that `next_batch` gives, counted on `num_threads` threads.
///
/// `next_batch` runs on the calling thread.
///
/// # Errors
/// What `next_batch` and `on_progress` return; those of [`Counter::new`] and [`Counter::add`].
pub fn count_batches(
    splitter: &Pretokenizer,
    special_tokens: &[String],
    num_threads: usize,
    next_batch: &mut dyn FnMut() -> Result<Option<Batch>>,
    on_progress: OnProgress<'_>,
) -> Result<WordCounts> {
    let reporter = Reporter::new(on_progress);
    let mut feed = Feed { next_batch, reporter: &reporter, bytes: 0 };
    if num_threads <= 1 {
        let mut counter = Counter::new(splitter.clone(), special_tokens)?;
        while let Some(batch) = feed.next()? {
            let tick = || reporter.tick(|| counting(feed.bytes));
            batch.count_into(&mut counter, Interrupt::new(&tick))?;
        }
        return Ok(counter.finish());
    }
    let counters =
        (0..num_threads).map(|_| Counter::new(splitter.clone(), special_tokens)).collect::<Result<Vec<_>>>()?;
    let counted = count_on_threads(counters, &mut feed)?;
    add_up(counted, Interrupt::new(&|| reporter.tick(|| counting(feed.bytes))))
}

/// Where batches come from, and who hears of them.
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

    /// Hands out batches until none is left or a worker has failed. Workers wake this thread when they take one.
    fn run(&mut self, sender: &SyncSender<Batch>, failed: &AtomicBool) -> Result<()> {
        while !failed.load(Ordering::Relaxed)
            && let Some(mut batch) = self.next()?
        {
            while let Err(TrySendError::Full(refused)) = sender.try_send(batch) {
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

/// Hands batches to one thread a counter.
fn count_on_threads(counters: Vec<Counter>, feed: &mut Feed<'_>) -> Result<Vec<WordCounts>> {
    let (sender, receiver) = sync_channel::<Batch>(counters.len());
    let (receiver, feeder) = (Mutex::new(receiver), thread::current());
    let failed = AtomicBool::new(false);
    thread::scope(|scope| {
        let workers: Vec<_> = counters
            .into_iter()
            .map(|counter| scope.spawn(|| count_received(counter, &receiver, &feeder, &failed)))
            .collect();
        let mut fed = feed.run(&sender, &failed);
        drop(sender);
        // The last batches may be long, so the caller is asked until all are counted.
        while !workers.iter().all(thread::ScopedJoinHandle::is_finished) {
            fed = fed.and_then(|()| feed.tick());
            failed.fetch_or(fed.is_err(), Ordering::Relaxed);
            thread::park_timeout(END_WAIT);
        }
        let mut counted = Vec::new();
        for worker in workers {
            match worker.join() {
                Ok(Ok(counts)) => counted.push(counts),
                Ok(Err(error)) => fed = fed.and(Err(error)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        fed.map(|()| counted)
    })
}

/// What one thread does until no batch is left. When it or another fails, it only empties the channel from there on.
fn count_received(
    mut counter: Counter,
    batches: &Mutex<Receiver<Batch>>,
    feeder: &Thread,
    failed: &AtomicBool,
) -> Result<WordCounts> {
    let mut outcome = Ok(());
    let stop = || if failed.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) };
    loop {
        let batch = batches.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(batch) = batch else { break };
        feeder.unpark();
        match batch.count_into(&mut counter, Interrupt::new(&stop)) {
            // Who stopped the others says why.
            Ok(()) | Err(Error::Interrupted) => {}
            Err(error) => {
                failed.store(true, Ordering::Relaxed);
                outcome = Err(error);
            }
        }
    }
    outcome.map(|()| counter.finish())
}

/// Adds the threads' counts, each shard by itself, on as many threads.
fn add_up(mut counted: Vec<WordCounts>, interrupt: Interrupt<'_>) -> Result<WordCounts> {
    let Some(mut sum) = counted.pop() else { unreachable!("there is at least one thread") };
    let mut shards: Vec<(&mut WordMap, Vec<WordMap>)> =
        sum.shards.iter_mut().map(|shard| (shard, Vec::new())).collect();
    let others = counted.len();
    for counts in counted {
        for (shard, map) in shards.iter_mut().zip(counts.shards) {
            shard.1.push(map);
        }
    }
    let (work, stopped) = (Mutex::new(shards), AtomicBool::new(false));
    let add_shards = |interrupt: Interrupt<'_>| {
        loop {
            let shard = work.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some((sum, maps)) = shard else { return Ok(()) };
            for map in maps {
                sum.merge(&map, interrupt)?;
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..others {
            scope.spawn(|| {
                let stop = || if stopped.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) };
                add_shards(Interrupt::new(&stop))
            });
        }
        let outcome = add_shards(interrupt);
        stopped.store(outcome.is_err(), Ordering::Relaxed);
        outcome
    })?;
    Ok(sum)
}

/// Returns the words' counts in all documents, counted on `num_threads` threads in bounded memory.
///
/// # Errors
/// Those of [`Documents::next_chunk`] and [`count_batches`].
pub fn count_files(documents: &mut Documents, num_threads: usize, on_progress: OnProgress<'_>) -> Result<WordCounts> {
    let (splitter, special_tokens) = (documents.splitter().clone(), documents.special_tokens().to_vec());
    let total = documents.total_bytes();
    // Shared by the two functions below, which take turns.
    let read = AtomicU64::new(0);
    let mut next_batch = || -> Result<Option<Batch>> {
        let mut batch = Batch::default();
        while !batch.is_full() {
            let Some(chunk) = documents.next_chunk()? else { break };
            batch.push(&chunk.text);
            if chunk.is_pause() {
                break;
            }
        }
        read.store(documents.bytes_read(), Ordering::Relaxed);
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

    #[test]
    fn every_step_can_be_stopped() {
        // Slow, so that one document takes longer than the time between two calls.
        let splitter = Pretokenizer::new(r"(?:(?!\d)\w)+|(?<!x)\d+|\s|.").expect("a regex");
        for num_threads in [1, 2] {
            let (mut asked, mut called) = (0, 0);
            let mut next_batch = || {
                asked += 1;
                let mut batch = Batch::default();
                batch.push(&"some words and 123 numbers ".repeat(100_000));
                Ok((asked == 1).then_some(batch))
            };
            // With threads, the first call says that the last batch was handed out.
            let mut on_progress = |_| {
                called += 1;
                if called < num_threads { Ok(()) } else { Err(Error::Interrupted) }
            };
            let counted = count_batches(&splitter, &[], num_threads, &mut next_batch, &mut on_progress);
            assert!(matches!(counted, Err(Error::Interrupted)), "{num_threads} threads");
            assert_eq!((asked, called), (num_threads, num_threads));
        }
        let mut counter = Counter::new(splitter, &[]).expect("no special tokens");
        counter.add("some words").expect("a linear pattern");
        let counts = counter.finish();
        let stop = || Err(Error::Interrupted);
        assert!(matches!(add_up(vec![counts.clone(), counts], Interrupt::new(&stop)), Err(Error::Interrupted)));
    }
}

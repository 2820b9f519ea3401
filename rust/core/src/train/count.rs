//! Text to word counts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use aho_corasick::{AhoCorasick, MatchKind};

use super::counts::{SHARD_BITS, WordCounts};
use super::words::{Key, WordMap};
use super::{OnProgress, Progress, Ticker};
use crate::documents::Documents;
use crate::pretokenize::Pretokenizer;
use crate::{Error, Result};

/// Text handed to a thread at a time: small enough to stay in its cache, large enough that handing it over costs nothing.
const BATCH_BYTES: usize = 1 << 18;

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
        let Some(matcher) = self.special_tokens.clone() else { return self.add_ordinary(document) };
        let mut start = 0;
        for special in matcher.find_iter(document) {
            self.add_ordinary(&document[start..special.start()])?;
            start = special.end();
        }
        self.add_ordinary(&document[start..])
    }

    fn add_ordinary(&mut self, text: &str) -> Result<()> {
        let bytes = text.as_bytes();
        let mut start = 0;
        loop {
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

    fn count_into(&self, counter: &mut Counter) -> Result<()> {
        let mut start = 0;
        for &end in &self.ends {
            counter.add(&self.text[start..end])?;
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
    let mut ticker = Ticker::new(on_progress);
    let mut bytes = 0;
    let mut next = || -> Result<Option<Batch>> {
        let batch = next_batch()?;
        bytes += batch.as_ref().map_or(0, Batch::len) as u64;
        let progress = Progress::Counting { bytes, read: None, total: None };
        if batch.is_some() {
            ticker.tick(|| progress)?;
        } else {
            ticker.report(progress)?;
        }
        Ok(batch)
    };
    if num_threads <= 1 {
        let mut counter = Counter::new(splitter.clone(), special_tokens)?;
        while let Some(batch) = next()? {
            batch.count_into(&mut counter)?;
        }
        return Ok(counter.finish());
    }
    let counters =
        (0..num_threads).map(|_| Counter::new(splitter.clone(), special_tokens)).collect::<Result<Vec<_>>>()?;
    let counted = count_on_threads(counters, &mut next)?;
    Ok(add_up(counted, num_threads))
}

/// Hands batches to one thread a counter.
fn count_on_threads(
    counters: Vec<Counter>,
    next: &mut dyn FnMut() -> Result<Option<Batch>>,
) -> Result<Vec<WordCounts>> {
    let (sender, receiver) = sync_channel::<Batch>(counters.len());
    let receiver = Mutex::new(receiver);
    let failed = AtomicBool::new(false);
    thread::scope(|scope| {
        let workers: Vec<_> =
            counters.into_iter().map(|counter| scope.spawn(|| count_received(counter, &receiver, &failed))).collect();
        let mut fed = Ok(());
        while !failed.load(Ordering::Relaxed) {
            match next() {
                Ok(Some(batch)) => {
                    if sender.send(batch).is_err() {
                        break;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    // The workers only empty the channel from here on.
                    failed.store(true, Ordering::Relaxed);
                    fed = Err(error);
                    break;
                }
            }
        }
        drop(sender);
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

/// What one thread does until no batch is left.
fn count_received(mut counter: Counter, batches: &Mutex<Receiver<Batch>>, failed: &AtomicBool) -> Result<WordCounts> {
    let mut outcome = Ok(());
    loop {
        let batch = batches.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(batch) = batch else { break };
        if !failed.load(Ordering::Relaxed)
            && let Err(error) = batch.count_into(&mut counter)
        {
            failed.store(true, Ordering::Relaxed);
            outcome = Err(error);
        }
    }
    outcome.map(|()| counter.finish())
}

/// Adds the threads' counts, each shard by itself.
fn add_up(mut counted: Vec<WordCounts>, num_threads: usize) -> WordCounts {
    let Some(mut sum) = counted.pop() else { unreachable!("there is at least one thread") };
    let mut shards: Vec<(&mut WordMap, Vec<WordMap>)> =
        sum.shards.iter_mut().map(|shard| (shard, Vec::new())).collect();
    for counts in counted {
        for (shard, map) in shards.iter_mut().zip(counts.shards) {
            shard.1.push(map);
        }
    }
    let work = Mutex::new(shards);
    thread::scope(|scope| {
        for _ in 0..num_threads {
            scope.spawn(|| {
                loop {
                    let shard = work.lock().unwrap_or_else(PoisonError::into_inner).pop();
                    let Some((sum, maps)) = shard else { break };
                    for map in maps {
                        sum.merge(&map);
                    }
                }
            });
        }
    });
    sum
}

/// Returns the words' counts in all documents, counted on `num_threads` threads in bounded memory.
///
/// # Errors
/// Those of [`Documents::next_chunk`] and [`count_batches`].
pub fn count_files(documents: &mut Documents, num_threads: usize, on_progress: OnProgress<'_>) -> Result<WordCounts> {
    let (splitter, special_tokens) = (documents.splitter().clone(), documents.special_tokens().to_vec());
    let total = documents.total_bytes();
    // Shared by the two functions below, which take turns.
    let read = std::cell::Cell::new(0);
    let mut next_batch = || -> Result<Option<Batch>> {
        let mut batch = Batch::default();
        while !batch.is_full() {
            let Some(chunk) = documents.next_chunk()? else { break };
            batch.push(&chunk.text);
        }
        read.set(documents.bytes_read());
        Ok((!batch.is_empty()).then_some(batch))
    };
    let mut on_progress = |progress| match progress {
        Progress::Counting { bytes, .. } => {
            on_progress(Progress::Counting { bytes, read: Some(read.get()), total: Some(total) })
        }
        other => on_progress(other),
    };
    count_batches(&splitter, &special_tokens, num_threads, &mut next_batch, &mut on_progress)
}

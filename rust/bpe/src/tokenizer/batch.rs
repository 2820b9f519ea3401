//! Many texts on many threads.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bpe_llama_simd::threads::bounded;

use super::definition::Tokenizer;
use crate::encode::{EncodeOptions, Sink, reserve_ids};
use crate::interrupt::Interrupt;
use crate::memory::with_capacity;
use crate::{Error, Result};

/// A longer text, in bytes, is split into chunks, so that threads can share it.
const CHUNK: usize = 1 << 18;

/// Bytes of text between two interrupt checks.
const CHECK_BYTES: usize = 1 << 20;

/// Time that the calling thread waits for the others between two interrupt checks.
const WAIT: Duration = Duration::from_millis(50);

/// Leaves no task to the other threads if this one unwinds: their results would wait for this one's.
struct StopOnUnwind<'a>(&'a AtomicUsize, usize);

impl Drop for StopOnUnwind<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(self.1, Ordering::Relaxed);
        }
    }
}

/// Work for one thread: consecutive whole texts, or a chunk of a long one.
struct Task {
    texts: Range<usize>,
    /// The range in bytes, for a chunk of one text.
    bytes: Option<Range<usize>>,
}

impl Tokenizer {
    /// Returns the ids of all texts in one list, and their offsets: row `i` is `ids[offsets[i]..offsets[i + 1]]`.
    ///
    /// The result does not depend on `threads`. At most one thread a CPU is used, eight on small machines.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`], for the first text with an error.
    pub fn encode_batch(
        &self,
        texts: &[&str],
        options: EncodeOptions<'_>,
        threads: usize,
    ) -> Result<(Vec<u32>, Vec<i64>)> {
        let threads = bounded(threads);
        let tasks = self.plan(texts, options, if threads > 1 { CHUNK } else { usize::MAX });
        let threads = threads.min(tasks.len());
        if threads <= 1 {
            let bytes: usize = texts.iter().map(|text| text.len()).sum();
            let mut ids = reserve_ids(bytes);
            let mut offsets = with_capacity(texts.len() + 1);
            offsets.push(0);
            let mut since_check = 0;
            for text in texts {
                since_check += text.len();
                if since_check > CHECK_BYTES {
                    options.interrupt.check()?;
                    since_check = 0;
                }
                self.encode_into(text, options, &mut ids)?;
                offsets.push(ids.len() as i64);
            }
            return Ok((ids, offsets));
        }
        self.encode_on_threads(texts, options, &tasks, threads)
    }

    /// Returns tasks of about equal length: short texts together, long texts in chunks.
    fn plan(&self, texts: &[&str], options: EncodeOptions<'_>, chunk: usize) -> Vec<Task> {
        // Texts with special tokens or normalization stay whole: chunk boundaries are defined for plain text.
        let can_chunk = self.can_chunk(options.allowed);
        let mut tasks = Vec::new();
        let mut push = |texts, bytes| tasks.push(Task { texts, bytes });
        let (mut first, mut bytes) = (0, 0);
        for (i, text) in texts.iter().enumerate() {
            if text.len() > chunk && can_chunk {
                if first < i {
                    push(first..i, None);
                }
                let mut start = 0;
                while start < text.len() {
                    let from = start + chunk;
                    let end = if from < text.len() { self.pretokenizer().chunk_boundary(text, from) } else { None };
                    let end = end.unwrap_or(text.len());
                    push(i..i + 1, Some(start..end));
                    start = end;
                }
                (first, bytes) = (i + 1, 0);
                continue;
            }
            bytes += text.len() + 16;
            if bytes >= chunk / 4 {
                push(first..i + 1, None);
                (first, bytes) = (i + 1, 0);
            }
        }
        if first < texts.len() {
            push(first..texts.len(), None);
        }
        tasks
    }

    fn encode_on_threads(
        &self,
        texts: &[&str],
        options: EncodeOptions<'_>,
        tasks: &[Task],
        threads: usize,
    ) -> Result<(Vec<u32>, Vec<i64>)> {
        let next = AtomicUsize::new(0);
        let is_interrupted = AtomicBool::new(false);
        let joined = Mutex::new(Joined::new(texts));
        let work = |options: EncodeOptions<'_>| {
            let _stop = StopOnUnwind(&next, tasks.len());
            let mut encoded = Encoded::default();
            for iteration in 1.. {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(task) = tasks.get(index) else { break };
                let checked = if iteration % (CHECK_BYTES / CHUNK) == 0 { options.interrupt.check() } else { Ok(()) };
                if let Err(error) = checked.and_then(|()| self.encode_task(texts, options, task, &mut encoded)) {
                    // The remaining tasks are not needed.
                    next.store(tasks.len(), Ordering::Relaxed);
                    is_interrupted.fetch_or(matches!(error, Error::Interrupted), Ordering::Relaxed);
                    return Err((index, error));
                }
                encoded = joined.lock().unwrap_or_else(PoisonError::into_inner).append(index, encoded);
            }
            Ok(())
        };
        // Only the calling thread may run the interrupt check. It does so while it waits, and sets a flag for the others.
        let flag = || if is_interrupted.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) };
        let others = EncodeOptions { interrupt: Interrupt::new(&flag), ..options };
        let work = &work;
        let results: Vec<_> = std::thread::scope(|scope| {
            let (working, all_done) = channel::<()>();
            let spawn = |_| {
                let working = working.clone();
                let work = move || {
                    let _working = working;
                    work(others)
                };
                std::thread::Builder::new().spawn_scoped(scope, work).ok()
            };
            // Where no thread can be started, this one does all the work.
            let handles: Vec<_> = (1..threads).map_while(spawn).collect();
            drop(working);
            let mut first = work(options);
            while first.is_ok() && all_done.recv_timeout(WAIT) == Err(RecvTimeoutError::Timeout) {
                if let Err(error) = options.interrupt.check() {
                    is_interrupted.store(true, Ordering::Relaxed);
                    first = Err((0, error));
                }
            }
            let rest = handles
                .into_iter()
                .map(|handle| handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            std::iter::once(first).chain(rest).collect()
        });
        if let Some((_, error)) =
            results.into_iter().filter_map(std::result::Result::err).min_by_key(|&(index, _)| index)
        {
            return Err(error);
        }
        let Joined { ids, offsets, .. } = joined.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok((ids, offsets))
    }

    /// Writes the ids of a task to `encoded`.
    fn encode_task(
        &self,
        texts: &[&str],
        options: EncodeOptions<'_>,
        task: &Task,
        encoded: &mut Encoded,
    ) -> Result<()> {
        encoded.ids.clear();
        encoded.ends.clear();
        for &text in &texts[task.texts.clone()] {
            let range = task.bytes.clone().unwrap_or(0..text.len());
            let (is_first, is_last) = (range.start == 0, range.end == text.len());
            let options = EncodeOptions {
                bos: options.bos.filter(|_| is_first),
                eos: options.eos.filter(|_| is_last),
                ..options
            };
            self.encode_into(&text[range], options, &mut encoded.ids)?;
            if is_last {
                encoded.ends.push(encoded.ids.len());
            }
        }
        Ok(())
    }
}

/// The ids of one task, and the ends of its texts in them.
#[derive(Default)]
struct Encoded {
    ids: Vec<u32>,
    ends: Vec<usize>,
}

/// The ids of all tasks in order. Tasks are appended as they finish, so that little is in memory twice.
struct Joined {
    ids: Vec<u32>,
    offsets: Vec<i64>,
    /// The index of the task to append next.
    next: usize,
    waiting: BTreeMap<usize, Encoded>,
    /// Buffers to reuse.
    spare: Vec<Encoded>,
}

impl Joined {
    fn new(texts: &[&str]) -> Self {
        let bytes: usize = texts.iter().map(|text| text.len()).sum();
        let mut offsets = with_capacity(texts.len() + 1);
        offsets.push(0);
        Self { ids: reserve_ids(bytes), offsets, next: 0, waiting: BTreeMap::new(), spare: Vec::new() }
    }

    /// Adds the ids of a task and returns a buffer for the next task.
    fn append(&mut self, index: usize, encoded: Encoded) -> Encoded {
        self.waiting.insert(index, encoded);
        while let Some(encoded) = self.waiting.remove(&self.next) {
            let begin = self.ids.len();
            self.ids.take(&encoded.ids);
            self.offsets.extend(encoded.ends.iter().map(|end| (begin + end) as i64));
            self.next += 1;
            self.spare.push(encoded);
        }
        self.spare.pop().unwrap_or_default()
    }
}

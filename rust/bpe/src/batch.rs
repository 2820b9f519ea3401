//! Many texts at once, on many threads.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::encode::room_for_ids;
use crate::encode_options::EncodeOptions;
use crate::interrupt::Interrupt;
use crate::{Error, Result, Tokenizer};

/// A text longer than this many bytes is cut, so that threads can share it.
const SEGMENT: usize = 1 << 18;

/// Bytes of text between two interrupt checks.
const PAUSE_EVERY: usize = 1 << 20;

/// How long the calling thread waits for the others between two interrupt checks.
const WAIT: Duration = Duration::from_millis(50);

/// Work for one thread: a run of whole texts, or a part of a long one.
struct Task {
    texts: Range<usize>,
    /// Bytes of the one text, where it is cut.
    bytes: Option<Range<usize>>,
}

impl Tokenizer {
    /// Returns the ids of all texts in one run, and where each begins: row `i` is `ids[offsets[i]..offsets[i + 1]]`.
    ///
    /// The ids do not depend on `threads`.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`], for the first text that has one.
    pub fn encode_batch(
        &self,
        texts: &[&str],
        options: EncodeOptions<'_>,
        threads: usize,
    ) -> Result<(Vec<u32>, Vec<i64>)> {
        let tasks = self.plan(texts, options, if threads > 1 { SEGMENT } else { usize::MAX });
        let threads = threads.min(tasks.len());
        if threads <= 1 {
            let bytes: usize = texts.iter().map(|text| text.len()).sum();
            let mut ids = room_for_ids(bytes);
            let mut offsets = vec![0];
            let mut since_pause = 0;
            for text in texts {
                since_pause += text.len();
                if since_pause > PAUSE_EVERY {
                    options.interrupt.check()?;
                    since_pause = 0;
                }
                self.encode_into(text, options, &mut ids)?;
                offsets.push(ids.len() as i64);
            }
            return Ok((ids, offsets));
        }
        self.on_threads(texts, options, &tasks, threads)
    }

    /// Puts short texts together and cuts long ones, so that tasks are of about equal length.
    fn plan(&self, texts: &[&str], options: EncodeOptions<'_>, segment: usize) -> Vec<Task> {
        // Where a special or normalized text could be cut is harder to tell: such texts stay whole.
        let may_cut = self.is_cut_safe(options.allowed);
        let mut tasks = Vec::new();
        let mut push = |texts, bytes| tasks.push(Task { texts, bytes });
        let (mut first, mut bytes) = (0, 0);
        for (i, text) in texts.iter().enumerate() {
            if text.len() > segment && may_cut {
                if first < i {
                    push(first..i, None);
                }
                let mut start = 0;
                while start < text.len() {
                    let cut = start + segment;
                    let end = if cut < text.len() { self.pretokenizer().chunk_boundary(text, cut) } else { None };
                    let end = end.unwrap_or(text.len());
                    push(i..i + 1, Some(start..end));
                    start = end;
                }
                (first, bytes) = (i + 1, 0);
                continue;
            }
            bytes += text.len() + 16;
            if bytes >= segment / 4 {
                push(first..i + 1, None);
                (first, bytes) = (i + 1, 0);
            }
        }
        if first < texts.len() {
            push(first..texts.len(), None);
        }
        tasks
    }

    fn on_threads(
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
            let mut encoded = Encoded::default();
            for turn in 1.. {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(task) = tasks.get(number) else { break };
                let interrupt = if turn % (PAUSE_EVERY / SEGMENT) == 0 { options.interrupt.check() } else { Ok(()) };
                if let Err(error) = interrupt.and_then(|()| self.encode_task(texts, options, task, &mut encoded)) {
                    // Nobody needs the rest.
                    next.store(tasks.len(), Ordering::Relaxed);
                    is_interrupted.fetch_or(matches!(error, Error::Interrupted), Ordering::Relaxed);
                    return Err((number, error));
                }
                encoded = joined.lock().unwrap_or_else(PoisonError::into_inner).append(number, encoded);
            }
            Ok(())
        };
        // Only the calling thread may ask. It tells the others, and asks on while it waits for them.
        let told = || if is_interrupted.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) };
        let others = EncodeOptions { interrupt: Interrupt::new(&told), ..options };
        let work = &work;
        let results: Vec<_> = std::thread::scope(|scope| {
            let (at_work, all_done) = channel::<()>();
            let spawn = |_| {
                let at_work = at_work.clone();
                scope.spawn(move || {
                    let _at_work = at_work;
                    work(others)
                })
            };
            let handles: Vec<_> = (1..threads).map(spawn).collect();
            drop(at_work);
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
            results.into_iter().filter_map(std::result::Result::err).min_by_key(|&(number, _)| number)
        {
            return Err(error);
        }
        let Joined { ids, offsets, .. } = joined.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok((ids, offsets))
    }

    /// Leaves the ids of a task in `encoded`.
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

/// The ids of one task, and where texts end in them.
#[derive(Default)]
struct Encoded {
    ids: Vec<u32>,
    ends: Vec<usize>,
}

/// What all threads encoded, put together in order while they work, so that few parts are held twice.
struct Joined {
    ids: Vec<u32>,
    offsets: Vec<i64>,
    /// The number of the task whose ids come next.
    next: usize,
    waiting: BTreeMap<usize, Encoded>,
    /// Memory to use again.
    spare: Vec<Encoded>,
}

impl Joined {
    fn new(texts: &[&str]) -> Self {
        let bytes: usize = texts.iter().map(|text| text.len()).sum();
        let mut offsets = Vec::with_capacity(texts.len() + 1);
        offsets.push(0);
        Self { ids: room_for_ids(bytes), offsets, next: 0, waiting: BTreeMap::new(), spare: Vec::new() }
    }

    /// Takes the ids of a task and returns memory for another's.
    fn append(&mut self, number: usize, encoded: Encoded) -> Encoded {
        self.waiting.insert(number, encoded);
        while let Some(encoded) = self.waiting.remove(&self.next) {
            let begin = self.ids.len();
            self.ids.extend_from_slice(&encoded.ids);
            self.offsets.extend(encoded.ends.iter().map(|end| (begin + end) as i64));
            self.next += 1;
            self.spare.push(encoded);
        }
        self.spare.pop().unwrap_or_default()
    }
}

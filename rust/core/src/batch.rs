//! Many texts at once, on many threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::special::SpecialSet;
use crate::{Result, Tokenizer};

/// A text longer than this many bytes is cut, so that threads can share it.
const SEGMENT: usize = 1 << 18;

/// What a long call asks now and then: whether to go on. An error ends the call.
#[derive(Clone, Copy, Default)]
pub struct Pause<'a>(pub Option<&'a (dyn Fn() -> Result<()> + Sync)>);

impl Pause<'_> {
    pub(crate) fn ask(self) -> Result<()> {
        self.0.map_or(Ok(()), |ask| ask())
    }
}

impl std::fmt::Debug for Pause<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pause({})", self.0.is_some())
    }
}

/// What a text, or every text of a batch, is treated with.
#[derive(Debug, Clone, Copy, Default)]
pub struct EncodeOptions<'a> {
    /// Special tokens that stand for themselves.
    pub allowed: SpecialSet<'a>,
    /// An id put before each text.
    pub bos: Option<u32>,
    /// An id put after each text.
    pub eos: Option<u32>,
    /// Asked every few milliseconds, on the calling thread.
    pub pause: Pause<'a>,
}

/// Work for one thread: a run of whole texts, or a part of a long one.
struct Task {
    texts: std::ops::Range<usize>,
    /// Bytes of the one text, where it is cut.
    bytes: Option<std::ops::Range<usize>>,
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
            let mut ids = Vec::with_capacity(bytes / 4 + texts.len() * 2);
            let mut offsets = vec![0];
            for text in texts {
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
        let (mut first, mut bytes) = (0, 0);
        for (i, text) in texts.iter().enumerate() {
            if text.len() > segment && may_cut {
                if first < i {
                    tasks.push(Task { texts: first..i, bytes: None });
                }
                let mut start = 0;
                while start < text.len() {
                    let cut = start + segment;
                    let end = if cut < text.len() { self.pretokenizer().safe_cut(text, cut) } else { None };
                    let end = end.unwrap_or(text.len());
                    tasks.push(Task { texts: i..i + 1, bytes: Some(start..end) });
                    start = end;
                }
                (first, bytes) = (i + 1, 0);
                continue;
            }
            bytes += text.len() + 16;
            if bytes >= segment / 4 {
                tasks.push(Task { texts: first..i + 1, bytes: None });
                (first, bytes) = (i + 1, 0);
            }
        }
        if first < texts.len() {
            tasks.push(Task { texts: first..texts.len(), bytes: None });
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
        let done: Mutex<Vec<(usize, Result<Encoded>)>> = Mutex::new(Vec::with_capacity(tasks.len()));
        let work = |options: EncodeOptions<'_>| {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(task) = tasks.get(at) else { break };
                let encoded = self.encode_task(texts, options, task);
                if encoded.is_err() {
                    // Nobody needs the rest.
                    next.store(tasks.len(), Ordering::Relaxed);
                }
                done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((at, encoded));
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(|| work(EncodeOptions { pause: Pause::default(), ..options }));
            }
            work(options);
        });
        let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        done.sort_unstable_by_key(|&(at, _)| at);
        let mut parts = Vec::with_capacity(done.len());
        for (_, encoded) in done {
            parts.push(encoded?);
        }
        let mut ids = Vec::with_capacity(parts.iter().map(|part| part.ids.len()).sum());
        let mut offsets = Vec::with_capacity(texts.len() + 1);
        offsets.push(0);
        for part in parts {
            offsets.extend(part.ends.iter().map(|&end| (ids.len() + end) as i64));
            ids.extend_from_slice(&part.ids);
        }
        Ok((ids, offsets))
    }

    fn encode_task(&self, texts: &[&str], options: EncodeOptions<'_>, task: &Task) -> Result<Encoded> {
        let mut encoded = Encoded::default();
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
        Ok(encoded)
    }
}

/// The ids of one task, and where texts end in them.
#[derive(Default)]
struct Encoded {
    ids: Vec<u32>,
    ends: Vec<usize>,
}

//! Text to word counts, on one thread.

use aho_corasick::AhoCorasick;

use super::counts::{Key, SHARD_BITS, WordCounts};
use crate::corpus::special_matcher;
use crate::interrupt::Interrupt;
use crate::pretokenize::{Patience, Pretokenizer};
use crate::{Error, Result, memory};

/// Text that one thread counts at a time: it fits the core's cache and is long enough that the hand-over costs nothing.
const BATCH_BYTES: usize = 1 << 18;

/// The most bytes of a word: training takes 16 bytes of memory for each.
const MAX_WORD: usize = 16 << 20;

/// Words in a group whose hash table slots are loaded before the first is used.
const GROUP: usize = 16;

/// Counts words on the calling thread.
#[derive(Debug)]
pub struct Counter {
    splitter: Pretokenizer,
    special_tokens: Option<AhoCorasick>,
    counts: WordCounts,
    /// Scratch memory: the ends of words.
    ends: Vec<usize>,
}

impl Counter {
    /// Returns a counter of the pre-tokens of `splitter`. Special tokens in the text separate words and are not
    /// counted.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if a special token is empty or given twice.
    pub fn new(splitter: Pretokenizer, special_tokens: &[String]) -> Result<Self> {
        let matcher = special_matcher(special_tokens)?;
        let counts = WordCounts::empty(splitter.pattern(), special_tokens);
        Ok(Self { splitter, special_tokens: matcher, counts, ends: Vec::with_capacity(1024) })
    }

    /// Counts the words of one document.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if a custom regex backtracks beyond its bound, or a word has
    /// more than 16 MiB.
    pub fn add(&mut self, document: &str) -> Result<()> {
        self.add_until(document, Interrupt::NEVER)
    }

    /// Counts like [`Counter::add`], with an interrupt check about every thousand words.
    fn add_until(&mut self, document: &str, interrupt: Interrupt<'_>) -> Result<()> {
        let Some(matcher) = self.special_tokens.clone() else { return self.add_ordinary(document, 0, interrupt) };
        let mut start = 0;
        for special in matcher.find_iter(document) {
            self.add_ordinary(&document[..special.start()], start, interrupt)?;
            start = special.end();
        }
        self.add_ordinary(document, start, interrupt)
    }

    /// Counts the words of `document` from byte `first` on.
    fn add_ordinary(&mut self, document: &str, first: usize, interrupt: Interrupt<'_>) -> Result<()> {
        let text = &document[first..];
        let bytes = text.as_bytes();
        let patience = Patience::new(text, interrupt);
        let mut start = 0;
        loop {
            interrupt.check()?;
            self.ends.clear();
            self.splitter.fill_ends_patiently(text, start, &mut self.ends, &patience)?;
            patience.pause();
            if self.ends.is_empty() {
                return Ok(());
            }
            if text.len() > MAX_WORD {
                self.check_lengths(first, start)?;
            }
            // Cache misses of one group overlap: all slots are loaded before the first is used.
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

    /// Checks the words between `ends`, the first of which begins at `start` of a text that begins at `first`.
    fn check_lengths(&self, first: usize, mut start: usize) -> Result<()> {
        for &end in &self.ends {
            let (length, at) = (end - start, first + start);
            if length > MAX_WORD {
                return Err(invalid!("a pre-token of {length} bytes from byte {at}; expected at most {MAX_WORD}"));
            }
            start = end;
        }
        Ok(())
    }

    /// Returns the counts.
    pub fn finish(self) -> WordCounts {
        self.counts
    }
}

/// Several short documents, or a chunk of a long one, that one thread counts at a time.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    text: String,
    ends: Vec<usize>,
    /// Where the last document comes from, if an error names it.
    place: Option<String>,
}

impl Batch {
    /// Adds a document, or a chunk of one that ends at a chunk boundary.
    pub fn push(&mut self, document: &str) {
        memory::push_str(&mut self.text, document);
        self.ends.push(self.text.len());
    }

    /// Adds a document as [`Batch::push`] does; an error about a long one names its place, `place()`.
    pub(super) fn push_from(&mut self, document: &str, place: impl FnOnce() -> String) {
        self.push(document);
        self.place = (document.len() > MAX_WORD).then(place);
    }

    /// Returns whether the batch is long enough to be counted: 256 KiB, or as much memory for empty documents.
    pub fn is_full(&self) -> bool {
        self.text.len() + self.ends.len() * size_of::<usize>() >= BATCH_BYTES
    }

    /// Returns whether the batch holds no document.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Returns the bytes of text.
    pub fn len(&self) -> usize {
        self.text.len()
    }

    pub(super) fn count_into(&self, counter: &mut Counter, interrupt: Interrupt<'_>) -> Result<()> {
        let mut start = 0;
        for &end in &self.ends {
            counter.add_until(&self.text[start..end], interrupt).map_err(|error| self.at_place(error))?;
            start = end;
        }
        Ok(())
    }

    fn at_place(&self, error: Error) -> Error {
        match (&self.place, error) {
            (Some(place), Error::InvalidArgument(what)) => invalid!("{place}: {what}"),
            (_, error) => error,
        }
    }
}

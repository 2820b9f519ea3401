//! Text to word counts, on one thread.

use aho_corasick::AhoCorasick;

use super::counts::{Key, SHARD_BITS, WordCounts};
use crate::Result;
use crate::corpus::special_matcher;
use crate::interrupt::Interrupt;
use crate::pretokenize::Pretokenizer;

/// Text that one thread counts at a time: it fits the core's cache and is long enough that the hand-over costs nothing.
const BATCH_BYTES: usize = 1 << 18;

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
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if a custom regex backtracks beyond its bound.
    pub fn add(&mut self, document: &str) -> Result<()> {
        self.add_until(document, Interrupt::NEVER)
    }

    /// Counts like [`Counter::add`], with an interrupt check about every thousand words.
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
}

impl Batch {
    /// Adds a document, or a chunk of one that ends at a chunk boundary.
    pub fn push(&mut self, document: &str) {
        self.text.push_str(document);
        self.ends.push(self.text.len());
    }

    /// Returns whether the batch is long enough to be counted: 256 KiB.
    pub fn is_full(&self) -> bool {
        self.text.len() >= BATCH_BYTES
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
            counter.add_until(&self.text[start..end], interrupt)?;
            start = end;
        }
        Ok(())
    }
}

//! How often each word occurs.

use std::cmp::Reverse;

use super::Check;
use super::words::{Key, WordMap};
use crate::{Error, Pause, Result};

/// Each map is cut into `1 << SHARD_BITS` by hash, so that the threads' maps are added up in parallel, without locks.
pub(super) const SHARD_BITS: u32 = 4;

/// Words to sort between two pauses.
const SORTED_AT_ONCE: usize = 1 << 15;

/// How often each word (a piece of the splitting pattern) occurs, with the pattern and special tokens that made the words.
///
/// Counts of one pattern and the same special tokens can be added: the unit that is distributed, saved and resumed.
#[derive(Debug, Clone)]
pub struct WordCounts {
    pattern: String,
    special_tokens: Vec<String>,
    pub(super) shards: Vec<WordMap>,
}

impl WordCounts {
    /// Returns counts of no text.
    pub(super) fn empty(pattern: &str, special_tokens: &[String]) -> Self {
        Self {
            pattern: pattern.to_owned(),
            special_tokens: special_tokens.to_vec(),
            shards: vec![WordMap::default(); 1 << SHARD_BITS],
        }
    }

    /// The regex that cut the text into words.
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// The special tokens that no word crosses.
    pub fn special_tokens(&self) -> &[String] {
        &self.special_tokens
    }

    /// The number of distinct words.
    pub fn len(&self) -> usize {
        self.shards.iter().map(WordMap::len).sum()
    }

    /// Whether there are no words.
    pub fn is_empty(&self) -> bool {
        self.shards.iter().all(|shard| shard.len() == 0)
    }

    /// The number of words, each counted as often as it occurs.
    pub fn total(&self) -> u64 {
        self.shards.iter().fold(0, |total, shard| total.saturating_add(shard.total()))
    }

    /// Calls `visit` with every word and its count, in no particular order.
    ///
    /// # Errors
    /// What `pause` returns, here and wherever one is taken: it is asked now and then.
    pub fn for_each(&self, pause: Pause<'_>, visit: impl FnMut(&[u8], u64)) -> Result<()> {
        self.for_each_until(&mut || pause.ask(), visit)
    }

    /// As [`WordCounts::for_each`], stopped by an error of `check`.
    pub(super) fn for_each_until(&self, check: Check<'_>, mut visit: impl FnMut(&[u8], u64)) -> Result<()> {
        self.shards.iter().try_for_each(|shard| shard.for_each(check, &mut visit))
    }

    /// Returns the `n` most frequent words with their counts; equal counts are ordered by bytes.
    ///
    /// # Errors
    /// What `pause` returns.
    pub fn most_common(&self, n: usize, pause: Pause<'_>) -> Result<Vec<(Vec<u8>, u64)>> {
        let mut words = Vec::with_capacity(self.len());
        self.for_each(pause, |word, count| words.push((Reverse(count), word.to_vec())))?;
        if n < words.len() {
            words.select_nth_unstable(n);
            words.truncate(n);
        }
        sort(&mut words, pause)?;
        Ok(words.into_iter().map(|(Reverse(count), word)| (word, count)).collect())
    }

    /// Adds another text's counts.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the pattern or the special tokens differ; what `pause` returns: part of the counts is added then.
    pub fn merge(&mut self, other: &Self, pause: Pause<'_>) -> Result<()> {
        if self.pattern != other.pattern {
            return Err(Error::InvalidArgument(format!(
                "cannot add counts of different patterns: {:?} and {:?}",
                self.pattern, other.pattern
            )));
        }
        if self.special_tokens != other.special_tokens {
            return Err(Error::InvalidArgument(format!(
                "cannot add counts made with different special tokens: {:?} and {:?}",
                self.special_tokens, other.special_tokens
            )));
        }
        for (mine, theirs) in self.shards.iter_mut().zip(&other.shards) {
            mine.merge(theirs, &mut || pause.ask())?;
        }
        Ok(())
    }

    /// Returns `parts` counts that add up to these, the words dealt out by hash: parts of many counts can be added side by side.
    pub fn split(&self, parts: usize) -> Vec<Self> {
        let parts = parts.clamp(1, self.shards.len());
        let mut split = vec![Self::empty(&self.pattern, &self.special_tokens); parts];
        for (index, shard) in self.shards.iter().enumerate() {
            split[index % parts].shards[index].clone_from(shard);
        }
        split
    }

    /// Returns the counts of the words that occur `min_count` times or more.
    ///
    /// Training on them is training on a text without the others: a pair's count is lower by less than `min_count` for each place that
    /// it has in a distinct word left out. Prune sums, not their parts: a word that is rare in each part may not be in the sum.
    ///
    /// # Errors
    /// What `pause` returns.
    pub fn pruned(&self, min_count: u64, pause: Pause<'_>) -> Result<Self> {
        let mut pruned = Self::empty(&self.pattern, &self.special_tokens);
        for (kept, shard) in pruned.shards.iter_mut().zip(&self.shards) {
            shard.for_each(&mut || pause.ask(), |word, count| {
                if count >= min_count {
                    kept.add(Key::new(word, 0, word.len()), count);
                }
            })?;
        }
        Ok(pruned)
    }

    /// Adds `count` to one word.
    pub(super) fn add(&mut self, word: &[u8], count: u64) {
        let key = Key::new(word, 0, word.len());
        self.shards[key.shard(SHARD_BITS)].add(key, count);
    }

    /// Makes counts of given words.
    pub fn from_words<'a>(pattern: &str, words: impl IntoIterator<Item = (&'a [u8], u64)>) -> Self {
        Self::from_parts(pattern, &[], words)
    }

    pub(super) fn from_parts<'a>(
        pattern: &str,
        special_tokens: &[String],
        words: impl IntoIterator<Item = (&'a [u8], u64)>,
    ) -> Self {
        let mut counts = Self::empty(pattern, special_tokens);
        for (word, count) in words {
            counts.add(word, count);
        }
        counts
    }
}

/// Sorts, in parts of some milliseconds.
pub(super) fn sort<T: Ord>(items: &mut [T], pause: Pause<'_>) -> Result<()> {
    pause.ask()?;
    if items.len() <= SORTED_AT_ONCE {
        items.sort_unstable();
        return Ok(());
    }
    let (smaller, _, larger) = items.select_nth_unstable(items.len() / 2);
    sort(smaller, pause)?;
    sort(larger, pause)
}

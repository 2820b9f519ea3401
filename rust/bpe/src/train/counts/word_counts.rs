//! Word counts with the pattern and the special tokens that produced the words.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::sort::sort;
use super::word_map::{Key, WordMap};
use crate::Result;
use crate::interrupt::Interrupt;

/// Each map is divided by hash into `1 << SHARD_BITS` shards, so that the maps of several threads are added in parallel
/// without locks.
pub(in crate::train) const SHARD_BITS: u32 = 4;

/// How often each word (a pre-token of the pattern) occurs in a text.
///
/// Counts of the same pattern and special tokens can be added, so counting can be distributed, saved and resumed.
///
/// ```
/// use bpe_llama::Interrupt;
/// use bpe_llama::train::WordCounts;
///
/// let counts = WordCounts::from_words("a+", [(&b"low"[..], 3), (b"new", 2)]);
/// assert_eq!(counts.total(), 5);
/// assert_eq!(counts.most_common(1, Interrupt::NEVER)?, [(b"low".to_vec(), 3)]);
/// # Ok::<(), bpe_llama::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct WordCounts {
    pattern: String,
    special_tokens: Vec<String>,
    pub(in crate::train) shards: Vec<WordMap>,
}

impl WordCounts {
    /// Returns counts of no text.
    pub(in crate::train) fn empty(pattern: &str, special_tokens: &[String]) -> Self {
        Self {
            pattern: pattern.to_owned(),
            special_tokens: special_tokens.to_vec(),
            shards: vec![WordMap::default(); 1 << SHARD_BITS],
        }
    }

    /// Returns the pattern that split the text into words.
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// Returns the special tokens, which no word crosses.
    pub fn special_tokens(&self) -> &[String] {
        &self.special_tokens
    }

    /// Returns the number of distinct words.
    pub fn len(&self) -> usize {
        self.shards.iter().map(WordMap::len).sum()
    }

    /// Returns whether there are no words.
    pub fn is_empty(&self) -> bool {
        self.shards.iter().all(|shard| shard.len() == 0)
    }

    /// Returns the sum of all counts.
    pub fn total(&self) -> u64 {
        self.shards.iter().fold(0, |total, shard| total.saturating_add(shard.total()))
    }

    /// Calls `visit` with every word and its count, in no particular order.
    ///
    /// # Errors
    /// The error of the interrupt check.
    pub fn for_each(&self, interrupt: Interrupt<'_>, mut visit: impl FnMut(&[u8], u64)) -> Result<()> {
        self.shards.iter().try_for_each(|shard| shard.for_each(interrupt, &mut visit))
    }

    /// Returns the `n` most frequent words with their counts; equal counts are ordered by bytes.
    ///
    /// # Errors
    /// The error of the interrupt check.
    pub fn most_common(&self, n: usize, interrupt: Interrupt<'_>) -> Result<Vec<(Vec<u8>, u64)>> {
        // A heap of the `n` best words so far, the last of them on top.
        let mut best = BinaryHeap::new();
        self.for_each(interrupt, |word, count| {
            if best.len() < n {
                best.push((Reverse(count), word.to_vec()));
            } else if let Some(mut last) = best.peek_mut()
                && (Reverse(count), word) < (last.0, &last.1[..])
            {
                *last = (Reverse(count), word.to_vec());
            }
        })?;
        let mut words = best.into_vec();
        sort(&mut words, interrupt)?;
        Ok(words.into_iter().map(|(Reverse(count), word)| (word, count)).collect())
    }

    /// Adds the counts of another text.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if the pattern or the special tokens differ; the error of the interrupt check,
    /// after part of the counts is added.
    pub fn merge(&mut self, other: &Self, interrupt: Interrupt<'_>) -> Result<()> {
        if self.pattern != other.pattern {
            return Err(invalid!(
                "cannot add counts of different patterns: {:?} and {:?}",
                self.pattern,
                other.pattern
            ));
        }
        if self.special_tokens != other.special_tokens {
            return Err(invalid!(
                "cannot add counts made with different special tokens: {:?} and {:?}",
                self.special_tokens,
                other.special_tokens
            ));
        }
        for (mine, theirs) in self.shards.iter_mut().zip(&other.shards) {
            mine.merge(theirs, interrupt)?;
        }
        Ok(())
    }

    /// Returns `parts` counts whose sum is these counts, divided by the hash of the word: equal parts of several counts
    /// can be added in parallel.
    pub fn split(&self, parts: usize) -> Vec<Self> {
        let parts = parts.clamp(1, self.shards.len());
        let mut split = vec![Self::empty(&self.pattern, &self.special_tokens); parts];
        for (index, shard) in self.shards.iter().enumerate() {
            split[index % parts].shards[index].clone_from(shard);
        }
        split
    }

    /// Returns the counts of the words that occur at least `min_count` times.
    ///
    /// Training ignores the other words: for each occurrence in a distinct word pruned, the count of a pair falls by
    /// less than `min_count`. Prune a sum, not its parts: a word that is rare in each part can be frequent in the sum.
    ///
    /// # Errors
    /// The error of the interrupt check.
    pub fn pruned(&self, min_count: u64, interrupt: Interrupt<'_>) -> Result<Self> {
        let mut pruned = Self::empty(&self.pattern, &self.special_tokens);
        for (kept, shard) in pruned.shards.iter_mut().zip(&self.shards) {
            shard.for_each(interrupt, |word, count| {
                if count >= min_count {
                    kept.add(Key::new(word, 0, word.len()), count);
                }
            })?;
        }
        Ok(pruned)
    }

    /// Adds `count` to the count of one word.
    pub(super) fn add(&mut self, word: &[u8], count: u64) {
        let key = Key::new(word, 0, word.len());
        self.shards[key.shard(SHARD_BITS)].add(key, count);
    }

    /// Returns the counts of the given words.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_common_words_come_first() {
        let words: Vec<String> = (0..300).map(|number| format!("{}", number * 7919 % 1009)).collect();
        let counts =
            WordCounts::from_words("a+", words.iter().zip((1..).map(|n| n % 17)).map(|(w, n)| (w.as_bytes(), n)));
        let mut all = Vec::new();
        counts.for_each(Interrupt::NEVER, |word, count| all.push((word.to_vec(), count))).expect("not stopped");
        all.sort_by_key(|(word, count)| (Reverse(*count), word.clone()));
        for n in [0, 1, 2, 50, 299, 300, usize::MAX] {
            assert_eq!(counts.most_common(n, Interrupt::NEVER).expect("not stopped"), all[..n.min(all.len())]);
        }
    }
}

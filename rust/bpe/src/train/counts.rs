//! How often each word occurs.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::words::{Key, WordMap};
use crate::interrupt::Interrupt;
use crate::{Error, Result};

/// Each map is cut into `1 << SHARD_BITS` by hash, so that the threads' maps are added up in parallel, without locks.
pub(super) const SHARD_BITS: u32 = 4;

/// Words to sort between two interrupt checks.
const SORTED_AT_ONCE: usize = 1 << 15;

/// Words of which one is taken to part the others by.
const PIVOT_SAMPLE: usize = 64;

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
    /// What `interrupt` returns, here and wherever one is taken: it is asked now and then.
    pub fn for_each(&self, interrupt: Interrupt<'_>, visit: impl FnMut(&[u8], u64)) -> Result<()> {
        self.for_each_until(interrupt, visit)
    }

    /// As [`WordCounts::for_each`], stopped by an error of `interrupt`.
    pub(super) fn for_each_until(&self, interrupt: Interrupt<'_>, mut visit: impl FnMut(&[u8], u64)) -> Result<()> {
        self.shards.iter().try_for_each(|shard| shard.for_each(interrupt, &mut visit))
    }

    /// Returns the `n` most frequent words with their counts; equal counts are ordered by bytes.
    ///
    /// # Errors
    /// What `interrupt` returns.
    pub fn most_common(&self, n: usize, interrupt: Interrupt<'_>) -> Result<Vec<(Vec<u8>, u64)>> {
        // The last of the best so far is on top.
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

    /// Adds another text's counts.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the pattern or the special tokens differ; what `interrupt` returns: part of the counts is added then.
    pub fn merge(&mut self, other: &Self, interrupt: Interrupt<'_>) -> Result<()> {
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
            mine.merge(theirs, interrupt)?;
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
    /// What `interrupt` returns.
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

/// Sorts what differs from one another, by parts, asking `pause` every few milliseconds.
///
/// (`sort_unstable` cannot be stopped, nor can `select_nth_unstable`: a second and more for some millions of words.)
pub(super) fn sort<T: Ord>(mut items: &mut [T], interrupt: Interrupt<'_>) -> Result<()> {
    while items.len() > SORTED_AT_ONCE {
        // The median of some items from everywhere is near that of all.
        let step = items.len() / PIVOT_SAMPLE;
        for index in 0..PIVOT_SAMPLE {
            items.swap(index, index * step);
        }
        items[..PIVOT_SAMPLE].sort_unstable();
        items.swap(0, PIVOT_SAMPLE / 2);
        let mut middle = 0;
        for index in 1..items.len() {
            if index % SORTED_AT_ONCE == 1 {
                interrupt.check()?;
            }
            if items[index] < items[0] {
                middle += 1;
                items.swap(index, middle);
            }
        }
        items.swap(0, middle);
        let (smaller, larger) = items.split_at_mut(middle);
        let larger = &mut larger[1..];
        // The shorter part by recursion: its depth is then the logarithm of the length at most.
        let (shorter, longer) = if smaller.len() < larger.len() { (smaller, larger) } else { (larger, smaller) };
        sort(shorter, interrupt)?;
        items = longer;
    }
    interrupt.check()?;
    items.sort_unstable();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorts_by_parts() {
        let length = 3 * SORTED_AT_ONCE as u32 + 5;
        let multiples = |factor: u32| (0..length).map(|number| number.wrapping_mul(factor)).collect();
        // In order, the other way round, and mixed: odd factors repeat no number.
        let orders: [Vec<u32>; 3] = [multiples(1), (0..length).rev().collect(), multiples(0x9E37_79B9)];
        for mut items in orders {
            let mut expected = items.clone();
            expected.sort_unstable();
            sort(&mut items, Interrupt::NEVER).expect("not stopped");
            assert!(items == expected);
        }
    }

    #[test]
    fn the_most_common_are_the_first_of_all() {
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

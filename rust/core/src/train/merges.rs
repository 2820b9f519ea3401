//! Word counts to merges.
//!
//! Every pair of neighbouring symbols has a list of the places where it was seen. Places are never taken off a list when a merge
//! destroys them, and counts never updated: a pair's count can only fall, so the recorded count is a bound, and the pair with the
//! highest bound is counted again when it comes up. If the count still equals the bound, no other pair can have more: it merges.
//!
//! Lists are kept only for pairs of at least `threshold` occurrences; when the highest bound falls below it, the corpus is squeezed,
//! which also brings what is left close together in memory, and a new round begins with a lower one.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};

use hashbrown::HashTable;

use super::Check;
use super::corpus::Corpus;
use crate::Result;

/// Of how much smaller counts than its highest a round keeps lists.
const ROUND_DEPTH: u64 = 256;

/// Corpora of fewer slots keep all lists from the start.
const SMALL_CORPUS: usize = 1 << 16;

/// A pair and where it was seen, in order of position, some places out of date.
#[derive(Debug)]
struct Candidate {
    left: u32,
    right: u32,
    places: Vec<u32>,
    /// The number of merges done when `places` was last exact.
    checked: u32,
}

/// What the heap orders: highest bound first, then the smaller pair.
type Entry = (u64, Reverse<(u32, u32)>, u32);

/// A pair that the current merge has made: `other` on one side of the new symbol.
#[derive(Debug, Clone, Copy)]
struct NewPair {
    other: u32,
    other_is_left: bool,
    count: u64,
    places: u32,
    candidate: u32,
}

const NONE: u32 = u32::MAX;

/// Merges the most frequent pair again and again.
#[derive(Debug)]
pub(super) struct Merger {
    corpus: Corpus,
    depth: u64,
    /// Bytes in a token, by id.
    lengths: Vec<usize>,
    max_token_length: usize,
    min_frequency: u64,
    /// Pairs that do not merge whatever their count, and so set no threshold.
    refused: HashSet<(u32, u32)>,
    /// Pairs below this count are in no list.
    threshold: u64,
    candidates: Vec<Candidate>,
    heap: BinaryHeap<Entry>,
    /// The number of merges after which an id was last consumed as the right or the left half of another pair.
    last_as_right: Vec<u32>,
    last_as_left: Vec<u32>,
    done: u32,
    /// Scratch of one merge: the new pairs, where to find them by their other symbol, and their places.
    new_pairs: Vec<NewPair>,
    with_left: Vec<u32>,
    with_right: Vec<u32>,
    new_places: Vec<(u32, u32)>,
}

impl Merger {
    /// Prepares to merge `corpus`, in which the symbol `i` stands for `lengths[i]` bytes.
    ///
    /// # Errors
    /// What `check` returns, here and in [`Merger::next_merge`]: the merger is of no use then.
    pub(super) fn new(
        corpus: Corpus,
        lengths: Vec<usize>,
        min_frequency: u64,
        max_token_length: Option<usize>,
        check: Check<'_>,
    ) -> Result<Self> {
        let depth = if corpus.len() < SMALL_CORPUS { u64::MAX } else { ROUND_DEPTH };
        Self::with_depth(corpus, lengths, min_frequency, max_token_length, depth, check)
    }

    /// As [`Merger::new`], keeping lists of pairs down to the highest count divided by `depth` in each round.
    pub(super) fn with_depth(
        corpus: Corpus,
        lengths: Vec<usize>,
        min_frequency: u64,
        max_token_length: Option<usize>,
        depth: u64,
        check: Check<'_>,
    ) -> Result<Self> {
        let symbols = lengths.len();
        let mut merger = Self {
            corpus,
            depth,
            lengths,
            max_token_length: max_token_length.unwrap_or(usize::MAX),
            min_frequency: min_frequency.max(1),
            refused: HashSet::new(),
            threshold: 0,
            candidates: Vec::new(),
            heap: BinaryHeap::new(),
            last_as_right: vec![0; symbols],
            last_as_left: vec![0; symbols],
            done: 0,
            new_pairs: Vec::new(),
            with_left: vec![NONE; symbols],
            with_right: vec![NONE; symbols],
            new_places: Vec::new(),
        };
        merger.begin_round(check)?;
        Ok(merger)
    }

    /// Performs the next merge of those that `may_merge` lets pass; it is not asked again about a pair that it refused.
    ///
    /// Returns the pair, whose merged id is the next free one, or `None` if no pair is left.
    pub(super) fn next_merge(
        &mut self,
        may_merge: impl Fn(u32, u32) -> bool,
        check: Check<'_>,
    ) -> Result<Option<(u32, u32)>> {
        loop {
            let Some((bound, Reverse((left, right)), index)) = self.heap.pop() else {
                if self.threshold <= self.min_frequency {
                    return Ok(None);
                }
                self.corpus.compact(check)?;
                self.begin_round(check)?;
                continue;
            };
            let count = self.recount(index, bound);
            if count == bound && !may_merge(left, right) {
                self.refused.insert((left, right));
                self.candidates[index as usize].places = Vec::new();
            } else if count == bound {
                let places = std::mem::take(&mut self.candidates[index as usize].places);
                self.merge(left, right, places);
                return Ok(Some((left, right)));
            } else if count >= self.threshold {
                self.heap.push((count, Reverse((left, right)), index));
            } else {
                self.candidates[index as usize].places = Vec::new();
            }
        }
    }

    /// Whether the pair may become a token: `tokenizers` lets any two bytes, and longer tokens only below the limit.
    fn is_allowed(&self, left: u32, right: u32) -> bool {
        let length = self.lengths[left as usize] + self.lengths[right as usize];
        (length == 2 || length < self.max_token_length) && !self.refused.contains(&(left, right))
    }

    /// Lists all pairs from a threshold on, and sets that threshold from the highest count.
    fn begin_round(&mut self, check: Check<'_>) -> Result<()> {
        let mut groups = PairGroups::default();
        self.corpus.for_each_pair(check, |_, left, right, count| groups.count(left, right, count))?;
        let mut highest = 0;
        for group in &groups.groups {
            if self.is_allowed(group.left, group.right) {
                highest = highest.max(group.count);
            }
        }
        self.threshold = (highest / self.depth).max(self.min_frequency);
        self.candidates.clear();
        let mut heap = std::mem::take(&mut self.heap).into_vec();
        heap.clear();
        for group in &mut groups.groups {
            if group.count >= self.threshold && self.is_allowed(group.left, group.right) {
                group.candidate = self.candidates.len() as u32;
                heap.push((group.count, Reverse((group.left, group.right)), group.candidate));
                self.candidates.push(Candidate {
                    left: group.left,
                    right: group.right,
                    places: Vec::with_capacity(group.places as usize),
                    checked: self.done,
                });
            }
        }
        self.heap = BinaryHeap::from(heap);
        let candidates = &mut self.candidates;
        self.corpus.for_each_pair(check, |position, left, right, _| {
            if let Some(candidate) = candidates.get_mut(groups.candidate(left, right) as usize) {
                candidate.places.push(position);
            }
        })
    }

    /// Counts a candidate again, and drops its outdated places.
    fn recount(&mut self, index: u32, bound: u64) -> u64 {
        let candidate = &mut self.candidates[index as usize];
        let (left, right) = (candidate.left, candidate.right);
        // A place of (left, right) goes when left merges with what is before it, or right with what is after.
        if self.last_as_right[left as usize] <= candidate.checked
            && self.last_as_left[right as usize] <= candidate.checked
        {
            return bound;
        }
        candidate.checked = self.done;
        let corpus = &self.corpus;
        let (mut count, mut kept) = (0, 0);
        // Which places are alive cannot be predicted, so no branch depends on it.
        for index in 0..candidate.places.len() {
            let place = candidate.places[index];
            let alive = corpus.has_pair(place, left, right);
            candidate.places[kept] = place;
            kept += usize::from(alive);
            count += u64::from(alive) * corpus.count_at(place);
        }
        candidate.places.truncate(kept);
        count
    }

    fn merge(&mut self, left: u32, right: u32, mut places: Vec<u32>) {
        let merged = self.corpus.add_symbol(left, right);
        self.lengths.push(self.lengths[left as usize] + self.lengths[right as usize]);
        self.done += 1;
        self.last_as_left.push(0);
        self.last_as_right.push(0);
        self.with_left.push(NONE);
        self.with_right.push(NONE);
        self.last_as_left[left as usize] = self.done;
        self.last_as_right[right as usize] = self.done;

        if left == right {
            // In a run of one symbol each merge destroys the next place.
            places.retain(|&place| {
                let alive = self.corpus.has_pair(place, left, right);
                if alive {
                    self.corpus.merge_at(place, left, merged);
                }
                alive
            });
        } else {
            for &place in &places {
                self.corpus.merge_at(place, left, merged);
            }
        }
        for &place in &places {
            let count = self.corpus.count_at(place);
            if let Some((position, previous)) = self.corpus.previous(place)
                // Of two new symbols side by side, the left one notes the pair.
                && previous != merged
            {
                self.note(previous, true, position, count);
            }
            if let Some(next) = self.corpus.next(place, merged) {
                self.note(next, false, place, count);
            }
        }
        drop(places);
        self.add_candidates(merged);
    }

    /// Notes that `other` stands beside the new symbol in a word that occurs `count` times.
    #[inline]
    fn note(&mut self, other: u32, other_is_left: bool, place: u32, count: u64) {
        let table = if other_is_left { &mut self.with_left } else { &mut self.with_right };
        let slot = &mut table[other as usize];
        if *slot == NONE {
            *slot = self.new_pairs.len() as u32;
            self.new_pairs.push(NewPair { other, other_is_left, count: 0, places: 0, candidate: NONE });
        }
        let pair = &mut self.new_pairs[*slot as usize];
        pair.count += count;
        pair.places += 1;
        self.new_places.push((*slot, place));
    }

    /// Turns the noted pairs into candidates where they are frequent enough.
    fn add_candidates(&mut self, merged: u32) {
        let mut new_pairs = std::mem::take(&mut self.new_pairs);
        for pair in &mut new_pairs {
            let table = if pair.other_is_left { &mut self.with_left } else { &mut self.with_right };
            table[pair.other as usize] = NONE;
            let (left, right) = if pair.other_is_left { (pair.other, merged) } else { (merged, pair.other) };
            if pair.count >= self.threshold && self.is_allowed(left, right) {
                pair.candidate = self.candidates.len() as u32;
                self.heap.push((pair.count, Reverse((left, right)), pair.candidate));
                let places = Vec::with_capacity(pair.places as usize);
                self.candidates.push(Candidate { left, right, places, checked: self.done });
            }
        }
        for &(pair, place) in &self.new_places {
            if let Some(candidate) = self.candidates.get_mut(new_pairs[pair as usize].candidate as usize) {
                candidate.places.push(place);
            }
        }
        self.new_places.clear();
        new_pairs.clear();
        self.new_pairs = new_pairs;
    }
}

/// A pair's totals over the corpus.
#[derive(Debug, Clone, Copy)]
struct PairGroup {
    left: u32,
    right: u32,
    count: u64,
    places: u32,
    candidate: u32,
}

/// All pairs of the corpus, in order of first appearance.
#[derive(Debug, Default)]
struct PairGroups {
    groups: Vec<PairGroup>,
    /// Indices into `groups`.
    index: HashTable<u32>,
}

impl PairGroups {
    #[inline]
    fn count(&mut self, left: u32, right: u32, count: u64) {
        let groups = &mut self.groups;
        let index = *self
            .index
            .entry(
                hash_of(left, right),
                |&index| (groups[index as usize].left, groups[index as usize].right) == (left, right),
                |&index| hash_of(groups[index as usize].left, groups[index as usize].right),
            )
            .or_insert(groups.len() as u32)
            .get();
        if index as usize == groups.len() {
            groups.push(PairGroup { left, right, count: 0, places: 0, candidate: NONE });
        }
        let group = &mut groups[index as usize];
        group.count += count;
        group.places += 1;
    }

    #[inline]
    fn candidate(&self, left: u32, right: u32) -> u32 {
        let is_pair = |&index: &u32| {
            let group = &self.groups[index as usize];
            (group.left, group.right) == (left, right)
        };
        self.index.find(hash_of(left, right), is_pair).map_or(NONE, |&index| self.groups[index as usize].candidate)
    }
}

/// One multiplication: ids are dense, and no one gains from a slow table here.
#[inline]
fn hash_of(left: u32, right: u32) -> u64 {
    let product = (u64::from(left) << 32 | u64::from(right)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    product ^ (product >> 32)
}

//! Word counts to merges.
//!
//! Every pair of neighbouring symbols has its count, which is always right, and a list of the places where it was seen. A merge
//! takes places from the pairs around it: each new pair has been one of the old ones at exactly its places, so the old one's count
//! falls by the new one's. The lists are left as they are, and looked through when their pair merges. A pair's count can only
//! fall, so the heap is not told either: it holds bounds, and a pair that comes up with less than its bound goes back.
//!
//! Counts and lists are kept only for pairs of at least `threshold` occurrences. When none of them is left, the corpus is squeezed,
//! which also brings what is left close together in memory, and a new round begins with a lower one.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use super::TrainOptions;
use super::corpus::{Corpus, Joint};
use super::neighbours::{Neighbour, Neighbours};
use crate::Result;
use crate::interrupt::Interrupt;

/// Of how much smaller counts than its highest a round keeps lists.
const ROUND_DEPTH: u64 = 256;

/// Corpora of fewer slots keep all lists from the start.
const SMALL_CORPUS: usize = 1 << 16;

/// Places between two looks whether to stop: some milliseconds.
const CHECK_PLACES: usize = 1 << 18;

type Pair = (u32, u32);

/// A pair in one number, in the same order.
fn pack((left, right): Pair) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

fn unpack(pair: u64) -> Pair {
    ((pair >> 32) as u32, pair as u32)
}

/// What is known of a pair.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    count: u64,
    /// Where in `lists` its list is: the number of places, then these in order, some out of date.
    list: usize,
}

/// Merges the most frequent pair again and again.
#[derive(Debug)]
pub(super) struct Merger {
    corpus: Corpus,
    depth: u64,
    /// Bytes in a token, by id.
    lengths: Vec<usize>,
    max_token_length: usize,
    min_frequency: u64,
    /// Merges that will still be asked for: a round begins with about as many pairs at most.
    to_come: usize,
    /// Pairs that do not merge whatever their count, and so set no threshold.
    refused: HashSet<Pair>,
    /// Pairs below this count are no candidates.
    threshold: u64,
    candidates: HashMap<u64, Candidate, FixedState>,
    lists: Vec<u32>,
    /// Bounds of the candidates that had at least `heap_from`, the highest first, then the smaller pair.
    heap: BinaryHeap<(u64, Reverse<u64>)>,
    heap_from: u64,
    /// Scratch of one merge: what stands to the left and to the right of the new symbol.
    on_left: Neighbours,
    on_right: Neighbours,
}

impl Merger {
    /// Prepares to merge `corpus`, in which the symbol `i` stands for `lengths[i]` bytes.
    ///
    /// # Errors
    /// What `interrupt` returns, here and in [`Merger::next_merge`]: the merger is of no use then.
    pub(super) fn new(
        corpus: Corpus,
        lengths: Vec<usize>,
        options: &TrainOptions,
        interrupt: Interrupt<'_>,
    ) -> Result<Self> {
        let depth = if corpus.len() < SMALL_CORPUS { u64::MAX } else { ROUND_DEPTH };
        Self::with_depth(corpus, lengths, options, depth, interrupt)
    }

    /// As [`Merger::new`], keeping lists of pairs down to the highest count divided by `depth` in each round.
    pub(super) fn with_depth(
        corpus: Corpus,
        lengths: Vec<usize>,
        options: &TrainOptions,
        depth: u64,
        interrupt: Interrupt<'_>,
    ) -> Result<Self> {
        let mut merger = Self {
            corpus,
            depth,
            max_token_length: options.max_token_length.unwrap_or(usize::MAX),
            min_frequency: options.min_frequency.max(1),
            to_come: options.merges(),
            refused: HashSet::new(),
            threshold: 0,
            candidates: HashMap::default(),
            lists: Vec::new(),
            heap: BinaryHeap::new(),
            heap_from: u64::MAX,
            on_left: Neighbours::default(),
            on_right: Neighbours::default(),
            lengths,
        };
        merger.on_left.resize(merger.lengths.len());
        merger.on_right.resize(merger.lengths.len());
        merger.begin_round(interrupt)?;
        Ok(merger)
    }

    /// Performs the next merge of those that `may_merge` lets pass; it is not asked again about a pair that it refused.
    ///
    /// Returns the pair, whose merged id is the next free one, or `None` if no pair is left.
    pub(super) fn next_merge(
        &mut self,
        may_merge: impl Fn(u32, u32) -> bool,
        interrupt: Interrupt<'_>,
    ) -> Result<Option<Pair>> {
        loop {
            let Some((bound, Reverse(pair))) = self.heap.pop() else {
                if self.candidates.is_empty() {
                    if self.threshold <= self.min_frequency {
                        return Ok(None);
                    }
                    self.corpus.compact(interrupt)?;
                    self.begin_round(interrupt)?;
                }
                self.fill_heap();
                continue;
            };
            // It may have fallen below the threshold.
            let Some(&Candidate { count, list }) = self.candidates.get(&pair) else { continue };
            if count == bound {
                self.candidates.remove(&pair);
                let pair = unpack(pair);
                if may_merge(pair.0, pair.1) {
                    self.merge(pair, list, interrupt)?;
                    return Ok(Some(pair));
                }
                self.refused.insert(pair);
            } else if count >= self.heap_from {
                self.heap.push((count, Reverse(pair)));
            }
        }
    }

    /// Puts the candidates with the highest counts into the empty heap: a small heap is a fast one.
    fn fill_heap(&mut self) {
        let highest = self.candidates.values().map(|candidate| candidate.count).max().unwrap_or(0);
        self.heap_from = highest.div_ceil(2);
        for (&pair, candidate) in &self.candidates {
            if candidate.count >= self.heap_from {
                self.heap.push((candidate.count, Reverse(pair)));
            }
        }
    }

    /// Lists all pairs from a threshold on, which it sets.
    fn begin_round(&mut self, interrupt: Interrupt<'_>) -> Result<()> {
        let Self { corpus, candidates, lists, lengths, max_token_length, refused, .. } = self;
        lists.clear();
        candidates.clear();
        // So far `list` is the number of places.
        corpus.for_each_pair(interrupt, |place, left, right| {
            let candidate = candidates.entry(pack((left, right))).or_insert(Candidate { count: 0, list: 0 });
            candidate.count += corpus.count_at(place);
            candidate.list += 1;
        })?;
        candidates.retain(|&pair, _| is_allowed(lengths, *max_token_length, refused, unpack(pair)));
        let mut counts: Vec<u64> = candidates.values().map(|candidate| candidate.count).collect();
        self.threshold = (counts.iter().max().unwrap_or(&0) / self.depth).max(self.min_frequency);
        if self.to_come < counts.len() {
            let (_, &mut count, _) = counts.select_nth_unstable_by_key(self.to_come, |&count| Reverse(count));
            self.threshold = self.threshold.max(count);
        }
        let mut end = 0;
        candidates.retain(|_, candidate| {
            let is_kept = candidate.count >= self.threshold;
            if is_kept {
                end += 1 + std::mem::replace(&mut candidate.list, end);
            }
            is_kept
        });
        candidates.shrink_to_fit();
        lists.resize(end, 0);
        lists.shrink_to_fit();
        corpus.for_each_pair(interrupt, |place, left, right| {
            if let Some(&Candidate { list, .. }) = candidates.get(&pack((left, right))) {
                lists[list] += 1;
                let last = list + lists[list] as usize;
                lists[last] = place;
            }
        })
    }

    fn merge(&mut self, (left, right): Pair, list: usize, interrupt: Interrupt<'_>) -> Result<()> {
        let joint = self.corpus.add_symbol(left, right);
        self.lengths.push(self.lengths[left as usize] + self.lengths[right as usize]);
        self.on_left.resize(self.lengths.len());
        self.on_right.resize(self.lengths.len());
        self.to_come = self.to_come.saturating_sub(1);

        let mut lists = std::mem::take(&mut self.lists);
        let length = lists[list] as usize;
        let places = &mut lists[list + 1..][..length];
        let mut kept = 0;
        // Which places are alive cannot be predicted, so no branch depends on it.
        for index in 0..length {
            if index.is_multiple_of(CHECK_PLACES) {
                interrupt.check()?;
            }
            let place = places[index];
            places[kept] = place;
            kept += usize::from(self.corpus.has_pair(place, left, right));
        }
        if left == right {
            // In a run of one symbol each merge destroys the next place.
            for index in 0..std::mem::take(&mut kept) {
                let place = places[index];
                if self.corpus.has_pair(place, left, right) {
                    self.corpus.merge_at(place, joint);
                    places[kept] = place;
                    kept += 1;
                }
            }
        } else {
            for &place in &places[..kept] {
                self.corpus.merge_at(place, joint);
            }
        }
        for places in places[..kept].chunks(CHECK_PLACES) {
            interrupt.check()?;
            self.note_around(places, joint);
        }
        self.lists = lists;
        self.add_candidates((left, right), joint.merged);
        Ok(())
    }

    fn note_around(&mut self, places: &[u32], joint: Joint) {
        for &place in places {
            let count = self.corpus.count_at(place);
            let [previous, next] = self.corpus.around(place, joint);
            // Of two new symbols side by side, the left one notes the pair.
            if let Some((previous, meet)) = previous
                && previous != joint.merged
            {
                self.on_left.note(previous, meet, count);
            }
            if let Some((next, meet)) = next {
                self.on_right.note(next, meet, count);
            }
        }
    }

    /// Takes what the noted pairs hold from the pairs they have been, and makes candidates of those that are frequent enough.
    fn add_candidates(&mut self, (left, right): Pair, merged: u32) {
        let Self { candidates, heap, lengths, max_token_length, refused, threshold, heap_from, .. } = self;
        let mut replace = |old: Pair, new: Pair, neighbour: &mut Neighbour, lists: &mut Vec<u32>| {
            if let Entry::Occupied(mut entry) = candidates.entry(pack(old)) {
                entry.get_mut().count -= neighbour.count;
                if entry.get().count < *threshold {
                    entry.remove();
                }
            }
            if neighbour.count >= *threshold && is_allowed(lengths, *max_token_length, refused, new) {
                candidates.insert(pack(new), list_of(neighbour, lists));
                if neighbour.count >= *heap_from {
                    heap.push((neighbour.count, Reverse(pack(new))));
                }
            }
        };
        self.on_left.drain(&mut self.lists, |previous, lists| {
            replace((previous.symbol, left), (previous.symbol, merged), previous, lists);
        });
        self.on_right.drain(&mut self.lists, |next, lists| {
            let was = if next.symbol == merged { left } else { next.symbol };
            replace((right, was), (merged, next.symbol), next, lists);
        });
    }
}

/// Whether the pair may become a token: `tokenizers` lets any two bytes, and longer tokens only below the limit.
fn is_allowed(lengths: &[usize], max_token_length: usize, refused: &HashSet<Pair>, pair: Pair) -> bool {
    let length = lengths[pair.0 as usize] + lengths[pair.1 as usize];
    (length == 2 || length < max_token_length) && !refused.contains(&pair)
}

/// Makes room for the places of a neighbour at the end of `lists`.
fn list_of(neighbour: &mut Neighbour, lists: &mut Vec<u32>) -> Candidate {
    let list = lists.len();
    lists.push(neighbour.places);
    neighbour.write = lists.len();
    lists.resize(lists.len() + neighbour.places as usize, 0);
    Candidate { count: neighbour.count, list }
}

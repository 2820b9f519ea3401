//! The merge of the most frequent pair, repeated.
//!
//! Each pair of adjacent symbols has an exact count and a list of positions. A merge replaces the pairs around it: at
//! each of its positions, a new pair was an old pair before, so the count of the old pair falls by the count of the new
//! one. Updates are lazy: stale positions remain in the lists and are filtered when the pair merges, and since counts
//! only fall, the heap holds upper bounds: a pair popped with a lower count than its bound is pushed again.
//!
//! Only pairs with a count of at least `threshold` are tracked. When none is left, the symbol array is compacted, which
//! also improves locality, and a new round begins with a lower threshold.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use super::neighbours::{Neighbour, Neighbours};
use super::options::TrainOptions;
use super::symbols::{Merge, SymbolArray};
use crate::Result;
use crate::interrupt::Interrupt;
use crate::memory::reserve;

/// A round tracks pairs down to its highest count divided by this.
const ROUND_DEPTH: u64 = 256;

/// With fewer slots, the first round tracks all pairs.
const SMALL_ARRAY: usize = 1 << 16;

/// Positions between two interrupt checks: some milliseconds.
const CHECK_POSITIONS: usize = 1 << 18;

type Pair = (u32, u32);

/// Returns the pair as one integer with the same order.
fn pack((left, right): Pair) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

fn unpack(pair: u64) -> Pair {
    ((pair >> 32) as u32, pair as u32)
}

/// A tracked pair.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    count: u64,
    /// The index in `lists` of its list: the number of positions, then the positions in order, some stale.
    list: usize,
}

/// Merges the most frequent pair, repeatedly.
#[derive(Debug)]
pub(super) struct Merger {
    symbols: SymbolArray,
    depth: u64,
    /// The bytes of each token.
    lengths: Vec<usize>,
    max_token_length: usize,
    min_frequency: u64,
    /// The remaining merges: a round tracks about as many pairs at most.
    remaining: usize,
    /// Pairs that the caller refused, which do not count for the threshold.
    refused: HashSet<Pair>,
    /// Pairs below this count are not tracked.
    threshold: u64,
    candidates: HashMap<u64, Candidate, FixedState>,
    lists: Vec<u32>,
    /// Upper bounds of the candidates with a count of at least `heap_from`: the highest first, then the smaller pair.
    heap: BinaryHeap<(u64, Reverse<u64>)>,
    heap_from: u64,
    /// Scratch memory of one merge: the neighbours of the new symbol.
    on_left: Neighbours,
    on_right: Neighbours,
}

impl Merger {
    /// Returns the merger of an array in which symbol `i` has `lengths[i]` bytes.
    ///
    /// # Errors
    /// The error of the interrupt check, as in [`Merger::next_merge`]; the merger is unusable then.
    pub(super) fn new(
        symbols: SymbolArray,
        lengths: Vec<usize>,
        options: &TrainOptions,
        interrupt: Interrupt<'_>,
    ) -> Result<Self> {
        let depth = if symbols.len() < SMALL_ARRAY { u64::MAX } else { ROUND_DEPTH };
        Self::with_depth(symbols, lengths, options, depth, interrupt)
    }

    /// Returns the merger of [`Merger::new`] whose rounds track pairs down to the highest count divided by `depth`.
    pub(super) fn with_depth(
        symbols: SymbolArray,
        lengths: Vec<usize>,
        options: &TrainOptions,
        depth: u64,
        interrupt: Interrupt<'_>,
    ) -> Result<Self> {
        let mut merger = Self {
            symbols,
            depth,
            max_token_length: options.max_token_length.unwrap_or(usize::MAX),
            min_frequency: options.min_frequency.max(1),
            remaining: options.merges(),
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

    /// Merges the most frequent pair that `may_merge` accepts, and returns it, or `None` if no pair is left.
    ///
    /// The merged symbol gets the next free id. `may_merge` is called at most once for a pair that it refuses.
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
                    self.symbols.compact(interrupt)?;
                    self.begin_round(interrupt)?;
                }
                self.fill_heap();
                continue;
            };
            // The pair is gone if its count fell below the threshold.
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

    /// Pushes the candidates with the highest counts to the empty heap: a small heap is fast.
    fn fill_heap(&mut self) {
        let highest = self.candidates.values().map(|candidate| candidate.count).max().unwrap_or(0);
        self.heap_from = highest.div_ceil(2);
        for (&pair, candidate) in &self.candidates {
            if candidate.count >= self.heap_from {
                self.heap.push((candidate.count, Reverse(pair)));
            }
        }
    }

    /// Sets the threshold and lists all pairs with at least this count.
    fn begin_round(&mut self, interrupt: Interrupt<'_>) -> Result<()> {
        let Self { symbols, candidates, lists, lengths, max_token_length, refused, .. } = self;
        lists.clear();
        candidates.clear();
        // Until the lists are allocated, `list` is the number of positions.
        symbols.for_each_pair(interrupt, |position, left, right| {
            let candidate = candidates.entry(pack((left, right))).or_insert(Candidate { count: 0, list: 0 });
            candidate.count += symbols.count_at(position);
            candidate.list += 1;
        })?;
        candidates.retain(|&pair, _| is_allowed(lengths, *max_token_length, refused, unpack(pair)));
        let mut counts: Vec<u64> = candidates.values().map(|candidate| candidate.count).collect();
        self.threshold = (counts.iter().max().unwrap_or(&0) / self.depth).max(self.min_frequency);
        if self.remaining < counts.len() {
            let (_, &mut count, _) = counts.select_nth_unstable_by_key(self.remaining, |&count| Reverse(count));
            self.threshold = self.threshold.max(count);
        }
        let mut end = 0;
        candidates.retain(|_, candidate| {
            let is_tracked = candidate.count >= self.threshold;
            if is_tracked {
                end += 1 + std::mem::replace(&mut candidate.list, end);
            }
            is_tracked
        });
        candidates.shrink_to_fit();
        reserve(lists, end);
        lists.resize(end, 0);
        lists.shrink_to_fit();
        symbols.for_each_pair(interrupt, |position, left, right| {
            if let Some(&Candidate { list, .. }) = candidates.get(&pack((left, right))) {
                lists[list] += 1;
                let last = list + lists[list] as usize;
                lists[last] = position;
            }
        })
    }

    fn merge(&mut self, (left, right): Pair, list: usize, interrupt: Interrupt<'_>) -> Result<()> {
        let merge = self.symbols.add_symbol(left, right);
        self.lengths.push(self.lengths[left as usize] + self.lengths[right as usize]);
        self.on_left.resize(self.lengths.len());
        self.on_right.resize(self.lengths.len());
        self.remaining = self.remaining.saturating_sub(1);

        let mut lists = std::mem::take(&mut self.lists);
        let length = lists[list] as usize;
        let positions = &mut lists[list + 1..][..length];
        let mut live = 0;
        // Branchless: whether a position is stale is unpredictable.
        for index in 0..length {
            if index.is_multiple_of(CHECK_POSITIONS) {
                interrupt.check()?;
            }
            let position = positions[index];
            positions[live] = position;
            live += usize::from(self.symbols.has_pair(position, left, right));
        }
        if left == right {
            // In a run of one symbol, each merge makes the next position stale.
            for index in 0..std::mem::take(&mut live) {
                let position = positions[index];
                if self.symbols.has_pair(position, left, right) {
                    self.symbols.merge_at(position, merge);
                    positions[live] = position;
                    live += 1;
                }
            }
        } else {
            for &position in &positions[..live] {
                self.symbols.merge_at(position, merge);
            }
        }
        for positions in positions[..live].chunks(CHECK_POSITIONS) {
            interrupt.check()?;
            self.add_neighbours(positions, merge);
        }
        self.lists = lists;
        self.add_candidates((left, right), merge.merged);
        Ok(())
    }

    /// Adds the neighbours of the symbols merged at these positions.
    fn add_neighbours(&mut self, positions: &[u32], merge: Merge) {
        for &position in positions {
            let count = self.symbols.count_at(position);
            let [previous, next] = self.symbols.around(position, merge);
            // Of two adjacent new symbols, only the left one adds the pair.
            if let Some((previous, at)) = previous
                && previous != merge.merged
            {
                self.on_left.add(previous, at, count);
            }
            if let Some((next, at)) = next {
                self.on_right.add(next, at, count);
            }
        }
    }

    /// Subtracts the counts of the new pairs from the pairs that they replace, and tracks the new pairs above the
    /// threshold.
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
                candidates.insert(pack(new), reserve_list(neighbour, lists));
                if neighbour.count >= *heap_from {
                    heap.push((neighbour.count, Reverse(pack(new))));
                }
            }
        };
        self.on_left.drain(&mut self.lists, |previous, lists| {
            replace((previous.symbol, left), (previous.symbol, merged), previous, lists);
        });
        self.on_right.drain(&mut self.lists, |next, lists| {
            let old = if next.symbol == merged { left } else { next.symbol };
            replace((right, old), (merged, next.symbol), next, lists);
        });
    }
}

/// Returns whether the pair can become a token: as in `tokenizers`, if it has two bytes or is shorter than the limit.
fn is_allowed(lengths: &[usize], max_token_length: usize, refused: &HashSet<Pair>, pair: Pair) -> bool {
    let length = lengths[pair.0 as usize] + lengths[pair.1 as usize];
    (length == 2 || length < max_token_length) && !refused.contains(&pair)
}

/// Reserves a list for the positions of a neighbour at the end of `lists`.
fn reserve_list(neighbour: &mut Neighbour, lists: &mut Vec<u32>) -> Candidate {
    let list = lists.len();
    lists.push(neighbour.positions);
    neighbour.write = lists.len();
    lists.resize(lists.len() + neighbour.positions as usize, 0);
    Candidate { count: neighbour.count, list }
}

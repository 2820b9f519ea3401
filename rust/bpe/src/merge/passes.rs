//! One rank a pass: all pairs of the best rank merge from left to right, then the next best rank.

use super::heap::merge_by_heap;
use crate::Result;
use crate::interrupt::Interrupt;
use crate::vocab::{NO_RANK, Vocab};

/// Runs of few distinct letters need fewer passes; beyond this number the heap is faster.
const MAX_PASSES: usize = 64;

/// The ids and ranks of a piece while it is merged.
#[derive(Debug, Default, Clone)]
pub(super) struct Passes {
    ids: Vec<u32>,
    /// `ranks[i]` is the rank of `ids[i]` and `ids[i + 1]`.
    ranks: Vec<u32>,
}

impl Passes {
    /// Appends the ids of a piece to `out`.
    pub(super) fn merge(&mut self, vocab: &Vocab, piece: &[u8], out: &mut Vec<u32>) -> Result<()> {
        let Self { ids, ranks } = self;
        ids.clear();
        for &byte in piece {
            ids.push(vocab.require_byte(byte)?);
        }
        ranks.clear();
        ranks.extend(ids.windows(2).map(|pair| vocab.rank(pair[0], pair[1])));
        let mut passes = 0;
        while let Some(best) = ranks.iter().copied().min().filter(|&rank| rank != NO_RANK) {
            if passes == MAX_PASSES {
                return merge_by_heap(vocab, piece, Interrupt::NEVER, out); // at most 16 KiB
            }
            merge_rank(vocab, ids, ranks, best);
            passes += 1;
        }
        out.extend_from_slice(ids);
        Ok(())
    }
}

/// Merges the pairs of rank `best`, the lowest rank present, from left to right.
///
/// Stops early if a merge creates a pair of lower rank, which then has to merge first.
fn merge_rank(vocab: &Vocab, ids: &mut Vec<u32>, ranks: &mut Vec<u32>, best: u32) {
    let Some(first) = ranks.iter().position(|&rank| rank == best) else { return };
    let merged = vocab.merged(best);
    // `ids[..write]` are done, `ids[read..]` are not; `ranks` likewise.
    let (mut write, mut read) = (first, first);
    while read < ids.len() {
        if read >= ranks.len() || ranks[read] != best {
            ids[write] = ids[read];
            if read < ranks.len() {
                ranks[write] = ranks[read];
            }
            write += 1;
            read += 1;
            continue;
        }
        ids[write] = merged;
        read += 2;
        let mut lowest = NO_RANK;
        if write > 0 {
            ranks[write - 1] = vocab.rank(ids[write - 1], merged);
            lowest = ranks[write - 1];
        }
        if read < ids.len() {
            ranks[write] = vocab.rank(merged, ids[read]);
            lowest = lowest.min(ranks[write]);
        }
        write += 1;
        if lowest < best {
            ids.copy_within(read.., write);
            let rest = read.min(ranks.len());
            ranks.copy_within(rest.., write);
            write += ids.len() - read;
            break;
        }
    }
    ids.truncate(write);
    ranks.truncate(write.saturating_sub(1));
}

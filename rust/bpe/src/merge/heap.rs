//! All pairs in a heap: the last resort for a piece that cannot be encoded segment by segment.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::Result;
use crate::interrupt::Interrupt;
use crate::memory::{reserve, with_capacity};
use crate::vocab::{NO_ID, NO_RANK, Vocab};

/// Appends the ids of a piece to `out`, with a heap of pairs and a linked list of symbols.
///
/// # Cost
/// `O(n log n)` for any piece.
pub(super) fn merge_by_heap(vocab: &Vocab, piece: &[u8], interrupt: Interrupt<'_>, out: &mut Vec<u32>) -> Result<()> {
    const NONE: usize = usize::MAX;
    struct Symbol {
        id: u32,
        previous: usize,
        next: usize,
    }
    let mut symbols = with_capacity(piece.len());
    for (i, &byte) in piece.iter().enumerate() {
        interrupt.check_at(i)?;
        let next = if i + 1 == piece.len() { NONE } else { i + 1 };
        symbols.push(Symbol { id: vocab.require_byte(byte)?, previous: i.wrapping_sub(1), next });
    }
    let mut heap: BinaryHeap<Reverse<(u32, usize, u32, u32)>> = BinaryHeap::from(with_capacity(piece.len()));
    let push = |heap: &mut BinaryHeap<_>, symbols: &[Symbol], at: usize| {
        if at == NONE || symbols[at].next == NONE {
            return;
        }
        let (left, right) = (symbols[at].id, symbols[symbols[at].next].id);
        let rank = vocab.rank(left, right);
        if rank != NO_RANK {
            heap.push(Reverse((rank, at, left, right)));
        }
    };
    for at in 0..symbols.len() {
        interrupt.check_at(at)?;
        push(&mut heap, &symbols, at);
    }
    let mut merges = 0..;
    while let Some(Reverse((rank, at, left, right))) = heap.pop() {
        interrupt.check_at(merges.next().unwrap_or(0))?;
        // Stale if either symbol has merged since: symbols only grow, so an id cannot return.
        let next = symbols[at].next;
        if symbols[at].id != left || next == NONE || symbols[next].id != right {
            continue;
        }
        symbols[at].id = vocab.merged(rank);
        let after = symbols[next].next;
        symbols[at].next = after;
        if after != NONE {
            symbols[after].previous = at;
        }
        symbols[next].id = NO_ID;
        let previous = symbols[at].previous;
        push(&mut heap, &symbols, previous);
        push(&mut heap, &symbols, at);
    }
    let mut at = if symbols.is_empty() { NONE } else { 0 };
    reserve(out, piece.len());
    while at != NONE {
        out.push(symbols[at].id);
        at = symbols[at].next;
    }
    Ok(())
}

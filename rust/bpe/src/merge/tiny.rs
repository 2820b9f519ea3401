//! Pieces of up to four bytes, such as one character: four ids in registers.

use crate::Result;
use crate::vocab::{NO_RANK, Vocab};

/// Pieces of up to this many bytes are faster to merge than to look up in the cache.
pub(crate) const TINY_BYTES: usize = 4;

/// Appends the ids of at most [`TINY_BYTES`] bytes to `out`.
pub(super) fn merge_tiny(vocab: &Vocab, piece: &[u8], out: &mut Vec<u32>) -> Result<()> {
    let (mut ids, mut ranks) = ([0; TINY_BYTES], [NO_RANK; TINY_BYTES]);
    for (id, &byte) in ids.iter_mut().zip(piece) {
        *id = vocab.require_byte(byte)?;
    }
    for (rank, pair) in ranks.iter_mut().zip(piece.windows(2)) {
        *rank = vocab.byte_rank(pair[0], pair[1]);
    }
    let mut count = piece.len();
    loop {
        let (mut at, mut best) = (0, ranks[0]);
        for (i, &rank) in ranks.iter().enumerate().skip(1) {
            if rank < best {
                (at, best) = (i, rank);
            }
        }
        if best == NO_RANK {
            break;
        }
        ids[at] = vocab.merged(best);
        count -= 1;
        for i in at + 1..count {
            (ids[i], ranks[i]) = (ids[i + 1], ranks[i + 1]);
        }
        ranks[count - 1] = NO_RANK;
        if at + 1 < count {
            ranks[at] = vocab.rank(ids[at], ids[at + 1]);
        }
        if at > 0 {
            ranks[at - 1] = vocab.rank(ids[at - 1], ids[at]);
        }
    }
    // A copy of fixed width calls no function.
    out.extend_from_slice(&ids);
    out.truncate(out.len() - (TINY_BYTES - count));
    Ok(())
}

//! BPE of one piece: bytes to ids, merging the best adjacent pair first.
//!
//! Short pieces are merged in arrays on the stack, a merge at a time. Long ones are encoded stretch by stretch, several
//! windows of each side by side, and joined where the tokens that meet would not have merged. Where no such place is
//! found, wider stretches are tried, merged in passes of one rank each or, where these are many, by a heap of all pairs, and
//! at last the heap takes the whole piece. All ways give the same ids, and the cost is linear in the piece but for that last resort.

mod derive;
mod windows;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::vocab::NO_RANK;
use crate::vocab::Vocab;
use crate::{Error, Result};

/// So few bytes, a character, merge in less time than it takes to remember their ids.
pub(crate) const FEW: usize = 4;

/// The widest window that is tried before the heap takes the whole piece.
const WIDEST: usize = 1 << 14;

/// Runs of few letters need fewer passes; behind as many more, the heap is faster.
const MOST_PASSES: usize = 64;

/// How often in a row a join may fail before the window is widened.
const MAX_RETRIES: usize = 4;

/// The scratch memory of [`Merger::merge`], reused from piece to piece.
#[derive(Debug, Default, Clone)]
pub(crate) struct Merger {
    ids: Vec<u32>,
    /// `ranks[i]` is that of `ids[i]` with `ids[i + 1]`.
    ranks: Vec<u32>,
    joint: Vec<u32>,
    bytes: Vec<u8>,
    /// What was asked last, in a run of one letter again and again: two tokens, and whether they stay apart.
    asked: Option<(u32, u32, bool)>,
}

impl Merger {
    /// Appends the ids of one piece to `out`, merging the lowest-ranked adjacent pair first.
    ///
    /// Where a pair occurs twice the leftmost merges first, so the result is unique. Whether the piece is itself a
    /// token plays no part here.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if some byte of `piece` has no id; `out` is then as it was.
    ///
    /// # Source
    /// Sennrich et al. 2016, arXiv:1508.07909, section 3.2. That two encodings may be joined where the tokens that
    /// meet encode to themselves: A. Neubeck and H. van Antwerpen, "So many tokens, so little time", GitHub 2024.
    pub(crate) fn merge(&mut self, vocab: &Vocab, piece: &[u8], out: &mut Vec<u32>) -> Result<()> {
        if piece.len() <= FEW {
            return merge_few(vocab, piece, out);
        }
        if piece.len() <= windows::WIDTH {
            return windows::merge_beginning(vocab, piece, out).map(drop);
        }
        let begin = out.len();
        let result = self.merge_by_stretches(vocab, piece, out);
        if result.is_err() {
            out.truncate(begin);
        }
        result
    }

    /// Finds the best rank and merges its pairs from left to right, until no pair merges or the heap should take over.
    fn merge_by_passes(&mut self, vocab: &Vocab, piece: &[u8], out: &mut Vec<u32>) -> Result<()> {
        let Self { ids, ranks, .. } = self;
        ids.clear();
        for &byte in piece {
            ids.push(byte_id(vocab, byte)?);
        }
        ranks.clear();
        ranks.extend(ids.windows(2).map(|pair| vocab.rank(pair[0], pair[1])));
        let mut passes = 0;
        while let Some(best) = ranks.iter().copied().min().filter(|&rank| rank != NO_RANK) {
            if passes == MOST_PASSES {
                return merge_by_heap(vocab, piece, out);
            }
            merge_rank(vocab, ids, ranks, best);
            passes += 1;
        }
        out.extend_from_slice(ids);
        Ok(())
    }

    /// Merges stretch after stretch, joined where the tokens that meet encode to themselves.
    fn merge_by_stretches(&mut self, vocab: &Vocab, piece: &[u8], out: &mut Vec<u32>) -> Result<()> {
        let begin = out.len();
        self.asked = None;
        // `out[begin..]` always encodes `piece[..start]`.
        let (mut start, mut furthest, mut retries, mut width) = (0, 0, 0, windows::SPAN);
        // The stretch before: its bytes, those of them that are encoded, and where in `out` their ids are.
        let (mut seen, mut covered, mut known): (&[u8], _, _) = (&[], 0, 0..0);
        while start < piece.len() {
            let rest = &piece[start..];
            let joint = out.len();
            if rest.len() > width && rest[..width] == *seen {
                out.extend_from_within(known.clone());
            } else {
                covered = self.merge_stretch(vocab, rest, width, out)?;
            }
            if joint > begin && !self.stay_apart(vocab, out[joint - 1], out[joint])? {
                // No boundary of the whole after all: step back by a token, a few times, then see further.
                out.truncate(joint);
                start -= out.pop().map_or(0, |id| token_len(vocab, id));
                (seen, retries) = (&[], retries + 1);
                if retries > MAX_RETRIES {
                    (retries, width) = (0, width * 4);
                }
                if width > WIDEST {
                    out.truncate(begin);
                    return merge_by_heap(vocab, piece, out);
                }
                continue;
            }
            (seen, known) = (&rest[..width.min(rest.len())], joint..out.len());
            start += covered;
            if start > furthest {
                (furthest, retries) = (start, 0);
            }
        }
        Ok(())
    }

    /// Appends the ids of a beginning of `rest`, as its first `width` bytes tell them, and returns how many bytes they encode.
    fn merge_stretch(&mut self, vocab: &Vocab, rest: &[u8], width: usize, out: &mut Vec<u32>) -> Result<usize> {
        if width <= windows::SPAN || rest.len() <= windows::WIDTH {
            return windows::merge_beginning(vocab, rest, out);
        }
        let joint = out.len();
        self.merge_by_passes(vocab, &rest[..width.min(rest.len())], out)?;
        if width >= rest.len() {
            return Ok(rest.len());
        }
        // The last quarter may yet merge with what follows: the next stretch encodes it again.
        let (mut covered, mut kept) = (0, joint);
        while kept < out.len() && (kept == joint || covered + token_len(vocab, out[kept]) <= width * 3 / 4) {
            covered += token_len(vocab, out[kept]);
            kept += 1;
        }
        out.truncate(kept);
        Ok(covered)
    }

    /// Returns whether the bytes of two tokens, side by side, encode to just these two.
    fn stay_apart(&mut self, vocab: &Vocab, left: u32, right: u32) -> Result<bool> {
        if let Some((_, _, apart)) = self.asked.filter(|&(a, b, _)| (a, b) == (left, right)) {
            return Ok(apart);
        }
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        bytes.extend_from_slice(vocab.symbol_bytes(left));
        bytes.extend_from_slice(vocab.symbol_bytes(right));
        let mut joint = std::mem::take(&mut self.joint);
        joint.clear();
        let result = if bytes.len() <= windows::WIDTH {
            windows::merge_beginning(vocab, &bytes, &mut joint).map(drop)
        } else {
            self.merge_by_passes(vocab, &bytes, &mut joint)
        };
        let apart = joint[..] == [left, right];
        (self.bytes, self.joint) = (bytes, joint);
        self.asked = Some((left, right, apart));
        result.map(|()| apart)
    }
}

/// Merges at most [`FEW`] bytes.
fn merge_few(vocab: &Vocab, piece: &[u8], out: &mut Vec<u32>) -> Result<()> {
    let (mut ids, mut ranks) = ([0; FEW], [NO_RANK; FEW]);
    for (id, &byte) in ids.iter_mut().zip(piece) {
        *id = byte_id(vocab, byte)?;
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
    out.extend_from_slice(&ids[..count]);
    Ok(())
}

/// Merges the pairs of rank `best`, the lowest there is, from left to right.
///
/// Stops early when a merge makes a pair of a lower rank, which then comes first.
fn merge_rank(vocab: &Vocab, ids: &mut Vec<u32>, ranks: &mut Vec<u32>, best: u32) {
    let Some(first) = ranks.iter().position(|&rank| rank == best) else { return };
    let merged = vocab.merged(best);
    // `ids[..kept]` are done, `ids[next..]` still to be looked at; `ranks` likewise.
    let (mut kept, mut next) = (first, first);
    while next < ids.len() {
        if next >= ranks.len() || ranks[next] != best {
            ids[kept] = ids[next];
            if next < ranks.len() {
                ranks[kept] = ranks[next];
            }
            kept += 1;
            next += 1;
            continue;
        }
        ids[kept] = merged;
        next += 2;
        let mut lowest = NO_RANK;
        if kept > 0 {
            ranks[kept - 1] = vocab.rank(ids[kept - 1], merged);
            lowest = ranks[kept - 1];
        }
        if next < ids.len() {
            ranks[kept] = vocab.rank(merged, ids[next]);
            lowest = lowest.min(ranks[kept]);
        }
        kept += 1;
        if lowest < best {
            ids.copy_within(next.., kept);
            let rest = next.min(ranks.len());
            ranks.copy_within(rest.., kept);
            kept += ids.len() - next;
            break;
        }
    }
    ids.truncate(kept);
    ranks.truncate(kept.saturating_sub(1));
}

fn token_len(vocab: &Vocab, id: u32) -> usize {
    vocab.symbol_bytes(id).len()
}

/// Merges with a heap over all pairs and a linked list of symbols: `O(n log n)` for any piece.
fn merge_by_heap(vocab: &Vocab, piece: &[u8], out: &mut Vec<u32>) -> Result<()> {
    const NONE: usize = usize::MAX;
    struct Symbol {
        id: u32,
        previous: usize,
        next: usize,
    }
    let mut symbols = Vec::with_capacity(piece.len());
    for (i, &byte) in piece.iter().enumerate() {
        let next = if i + 1 == piece.len() { NONE } else { i + 1 };
        symbols.push(Symbol { id: byte_id(vocab, byte)?, previous: i.wrapping_sub(1), next });
    }
    let mut heap: BinaryHeap<Reverse<(u32, usize, u32, u32)>> = BinaryHeap::new();
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
        push(&mut heap, &symbols, at);
    }
    while let Some(Reverse((rank, at, left, right))) = heap.pop() {
        // Stale if either symbol has merged since: ids only grow longer, so they cannot come back.
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
        symbols[next].id = crate::vocab::NO_ID;
        let previous = symbols[at].previous;
        push(&mut heap, &symbols, previous);
        push(&mut heap, &symbols, at);
    }
    let mut at = if symbols.is_empty() { NONE } else { 0 };
    while at != NONE {
        out.push(symbols[at].id);
        at = symbols[at].next;
    }
    Ok(())
}

#[inline]
fn byte_id(vocab: &Vocab, byte: u8) -> Result<u32> {
    vocab.byte_id(byte).ok_or_else(|| {
        Error::InvalidArgument(format!("byte 0x{byte:02X} has no token in this vocabulary: the text cannot be encoded"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, word for word: find the best pair, leftmost first, merge it, start over.
    fn naive(vocab: &Vocab, piece: &[u8]) -> Vec<u32> {
        let mut ids: Vec<u32> = piece.iter().map(|&byte| vocab.byte_id(byte).expect("all bytes are tokens")).collect();
        while let Some((rank, at)) =
            (1..ids.len()).map(|i| (vocab.rank(ids[i - 1], ids[i]), i - 1)).filter(|&(rank, _)| rank != NO_RANK).min()
        {
            ids[at] = vocab.merged(rank);
            ids.remove(at + 1);
        }
        ids
    }

    /// tiktoken's definition: adjacent parts merge when their concatenation is a token, lowest rank first.
    fn naive_by_ranks(vocab: &Vocab, piece: &[u8]) -> Vec<u32> {
        let mut cuts: Vec<usize> = (0..=piece.len()).collect();
        while let Some((_, at)) = (0..cuts.len().saturating_sub(2))
            .filter_map(|i| Some((vocab.bytes_to_id(&piece[cuts[i]..cuts[i + 2]])?, i)))
            .min()
        {
            cuts.remove(at + 1);
        }
        cuts.windows(2).map(|cut| vocab.bytes_to_id(&piece[cut[0]..cut[1]]).expect("parts are tokens")).collect()
    }

    /// A vocabulary of all bytes and of random strings over a small alphabet, some of which no merge reaches.
    fn random_vocab() -> impl Strategy<Value = Vocab> {
        let token = prop::collection::vec(b'a'..=b'd', 2..7);
        let tokens = prop::collection::btree_set(token, 0..60).prop_map(Vec::from_iter).prop_shuffle();
        tokens.prop_map(|tokens| {
            let bytes = (0..=255u8).map(|byte| vec![byte]);
            Vocab::from_ranks(bytes.chain(tokens).zip(0..).collect()).expect("distinct tokens")
        })
    }

    /// Random letters, of one vocabulary's or with some that no token joins, and runs of one letter.
    fn long_piece() -> impl Strategy<Value = Vec<u8>> {
        let run = (b'a'..=b'e', 1..300_usize).prop_map(|(letter, length)| vec![letter; length]);
        let letters = prop_oneof![b'a'..=b'd', b'a'..=b'z'];
        let part = prop_oneof![prop::collection::vec(letters, 0..500), prop::collection::vec(b'a'..=b'b', 0..500), run];
        prop::collection::vec(part, 0..4).prop_map(|parts| parts.concat())
    }

    /// Merges in any order that build tokens of hundreds of bytes, and text of parts of such tokens.
    fn tall_vocab_and_piece() -> impl Strategy<Value = (Vocab, Vec<u8>)> {
        let pairs = prop::collection::vec(any::<[prop::sample::Index; 2]>(), 1..60);
        let tall = pairs.prop_map(|pairs| {
            let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
            let mut merges = Vec::new();
            for pair in pairs {
                // A few letters, and what was built of them last.
                let pool: Vec<usize> = (97..99).chain(tokens.len().max(262) - 6..tokens.len()).collect();
                let [left, right] = pair.map(|index| *index.get(&pool));
                let token = [&tokens[left][..], &tokens[right]].concat();
                if token.len() <= 700 && !tokens.contains(&token) {
                    tokens.push(token);
                    merges.push((left as u32, right as u32));
                }
            }
            (tokens, merges)
        });
        let parts = prop::collection::vec(any::<[prop::sample::Index; 2]>(), 1..100);
        let tall = tall.prop_flat_map(|(tokens, merges)| (Just(tokens), Just(merges).prop_shuffle()));
        (tall, parts).prop_map(|((tokens, merges), parts)| {
            let mut piece = Vec::new();
            for [token, start] in parts {
                let token = token.get(&tokens[97..]);
                piece.extend_from_slice(&token[start.index(token.len())..]);
            }
            (Vocab::from_merges(tokens.into_iter().zip(0..).collect(), merges, false).expect("valid"), piece)
        })
    }

    proptest! {
        #[test]
        fn tall_tokens_join_as_the_heap_merges_them((vocab, piece) in tall_vocab_and_piece()) {
            let (mut by_heap, mut fastest) = (vec![], vec![]);
            merge_by_heap(&vocab, &piece, &mut by_heap).expect("all bytes are tokens");
            Merger::default().merge(&vocab, &piece, &mut fastest).expect("all bytes are tokens");
            prop_assert_eq!(&fastest, &by_heap);
        }

        #[test]
        fn every_way_gives_the_naive_ids(vocab in random_vocab(), piece in long_piece()) {
            let expected = naive_by_ranks(&vocab, &piece);
            prop_assert_eq!(&naive(&vocab, &piece), &expected);
            let mut merger = Merger::default();
            let (mut by_passes, mut by_heap, mut fastest) = (vec![], vec![], vec![]);
            merger.merge_by_passes(&vocab, &piece, &mut by_passes).expect("all bytes are tokens");
            merge_by_heap(&vocab, &piece, &mut by_heap).expect("all bytes are tokens");
            merger.merge(&vocab, &piece, &mut fastest).expect("all bytes are tokens");
            prop_assert_eq!(&by_passes, &expected);
            prop_assert_eq!(&by_heap, &expected);
            prop_assert_eq!(&fastest, &expected);
        }
    }

    #[test]
    fn a_byte_without_a_token_is_named() {
        let vocab = Vocab::from_ranks(vec![(b"a".to_vec(), 0), (b"b".to_vec(), 1)]).expect("valid");
        let mut out = vec![7];
        let error = Merger::default().merge(&vocab, b"abc", &mut out).expect_err("no token for c");
        assert!(error.to_string().contains("0x63"), "{error}");
        assert_eq!(out, [7]);
    }
}

//! The merger against the definition of byte-pair encoding.

use proptest::prelude::*;

use super::heap::merge_by_heap;
use super::passes::Passes;
use super::{GROUP, Merger, WIDTH, merge_group};
use crate::Error;
use crate::interrupt::Interrupt;
use crate::vocab::{NO_RANK, Vocab};

/// The definition: merge the best pair, leftmost first, until there is none.
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
    // Splits of tokens are looked up by length or found by `Splits`.
    (tokens, prop_oneof![Just(0), Just(usize::MAX)]).prop_map(|(tokens, many)| {
        let ranks = (0..=255u8).map(|byte| vec![byte]).chain(tokens).zip(0..).collect();
        Vocab::from_ranks_of_lengths(ranks, many).expect("distinct tokens")
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
            // Two letters, and the last tokens built of them.
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
    fn tall_tokens_merge_as_by_the_heap((vocab, piece) in tall_vocab_and_piece()) {
        let (mut by_heap, mut fastest) = (vec![], vec![]);
        merge_by_heap(&vocab, &piece, Interrupt::NEVER, &mut by_heap).expect("all bytes are tokens");
        Merger::default().merge(&vocab, &piece, Interrupt::NEVER, &mut fastest).expect("all bytes are tokens");
        prop_assert_eq!(&fastest, &by_heap);
    }

    #[test]
    fn every_method_returns_the_naive_ids(vocab in random_vocab(), piece in long_piece()) {
        let expected = naive_by_ranks(&vocab, &piece);
        prop_assert_eq!(&naive(&vocab, &piece), &expected);
        let mut merger = Merger::default();
        let (mut by_passes, mut by_heap, mut fastest) = (vec![], vec![], vec![]);
        Passes::default().merge(&vocab, &piece, &mut by_passes).expect("all bytes are tokens");
        merge_by_heap(&vocab, &piece, Interrupt::NEVER, &mut by_heap).expect("all bytes are tokens");
        merger.merge(&vocab, &piece, Interrupt::NEVER, &mut fastest).expect("all bytes are tokens");
        prop_assert_eq!(&by_passes, &expected);
        prop_assert_eq!(&by_heap, &expected);
        prop_assert_eq!(&fastest, &expected);
    }
}

proptest! {
    #[test]
    fn a_group_has_the_ids_of_its_pieces(
        vocab in random_vocab(),
        piece in long_piece(),
        lengths in prop::collection::vec(prop_oneof![1..=16_usize, 1..=WIDTH], 1..=GROUP),
    ) {
        let mut rest = &piece[..];
        let cut = lengths.into_iter().map(|length| rest.split_off(..length.min(rest.len())).unwrap_or_default());
        let pieces: Vec<&[u8]> = cut.filter(|piece| !piece.is_empty()).collect();
        let (mut ids, mut ends, mut expected) = (vec![], vec![], vec![]);
        merge_group(&vocab, &pieces, &mut ids, &mut ends).expect("all bytes are tokens");
        for (piece, end) in pieces.iter().zip(ends) {
            expected.extend(naive_by_ranks(&vocab, piece));
            prop_assert_eq!(expected.len(), end);
        }
        prop_assert_eq!(ids, expected);
    }
}

#[test]
fn a_byte_without_a_token_is_named() {
    let vocab = Vocab::from_ranks(vec![(b"a".to_vec(), 0), (b"b".to_vec(), 1)]).expect("valid");
    let mut out = vec![7];
    let error = Merger::default().merge(&vocab, b"abc", Interrupt::NEVER, &mut out).expect_err("no token for c");
    assert!(error.to_string().contains("0x63"), "{error}");
    assert_eq!(out, [7]);
}

#[test]
fn a_long_piece_checks_for_an_interrupt() {
    let vocab = Vocab::from_ranks((0..=255).map(|byte| (vec![byte], u32::from(byte))).collect()).expect("bytes");
    let (stop, piece) = (|| Err(Error::Interrupted), vec![b'a'; 1 << 20]);
    let mut out = Vec::new();
    let stopped = Merger::default().merge(&vocab, &piece, Interrupt::new(&stop), &mut out);
    assert!(matches!(stopped, Err(Error::Interrupted)) && out.is_empty());
    assert!(matches!(merge_by_heap(&vocab, &piece, Interrupt::new(&stop), &mut out), Err(Error::Interrupted)));
}

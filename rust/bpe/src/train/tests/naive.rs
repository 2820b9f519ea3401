//! The naive oracle: the definition of training, in the shortest code.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::Interrupt;
use crate::train::{TieOrder, TrainOptions, Trained, WordCounts};
use crate::vocab::{NO_RANK, Vocab};

/// Trains by counting every pair of every word before each merge.
pub(super) fn train(counts: &WordCounts, options: &TrainOptions) -> Trained {
    let (mut tokens, mut merges) = (options.first_tokens(), Vec::new());
    let mut words = Vec::new();
    let visited = counts.for_each(Interrupt::NEVER, |word, count| {
        let ids = word.iter().map(|byte| tokens.iter().position(|token| token == &[*byte]).expect("all bytes") as u32);
        let ids = match &options.base {
            Some(base) => encode(base, word, ids.collect()),
            None => ids.collect(),
        };
        words.push((ids, count));
    });
    visited.expect("not stopped");
    while merges.len() < options.merges() {
        let mut pairs = BTreeMap::new();
        for (ids, count) in &words {
            for pair in ids.windows(2) {
                *pairs.entry((pair[0], pair[1])).or_insert(0u64) += count;
            }
        }
        let joined = |left: u32, right: u32| [&tokens[left as usize][..], &tokens[right as usize]].concat();
        pairs.retain(|&(left, right), count| {
            let token = joined(left, right);
            let is_allowed = token.len() == 2 || options.max_token_length.is_none_or(|limit| token.len() < limit);
            *count >= options.min_frequency && is_allowed && !tokens.contains(&token)
        });
        let order = |id: u32| match options.tie_order {
            TieOrder::ByteValues if id < 256 => u32::from(tokens[id as usize][0]),
            _ => id,
        };
        let rank = |&(&(left, right), &count): &(&(u32, u32), &u64)| (count, Reverse((order(left), order(right))));
        let Some((&(left, right), _)) = pairs.iter().max_by_key(rank) else { break };
        let merged = tokens.len() as u32;
        for (ids, _) in &mut words {
            let mut at = 0;
            while at + 1 < ids.len() {
                if (ids[at], ids[at + 1]) == (left, right) {
                    ids.splice(at..at + 2, [merged]);
                }
                at += 1;
            }
        }
        tokens.push(joined(left, right));
        merges.push((left, right));
    }
    Trained { tokens, merges }
}

/// Encodes a word by merging the leftmost pair of the lowest rank until none is left.
pub(super) fn encode(vocab: &Vocab, word: &[u8], mut ids: Vec<u32>) -> Vec<u32> {
    if let Some(id) = vocab.bytes_to_id(word).filter(|_| vocab.whole_piece_first()) {
        return vec![id];
    }
    let best = |ids: &[u32]| ids.windows(2).zip(0..).map(|(pair, at)| (vocab.rank(pair[0], pair[1]), at)).min();
    while let Some((rank, at)) = best(&ids).filter(|&(rank, _)| rank != NO_RANK) {
        ids.splice(at..at + 2, [vocab.merged(rank)]);
    }
    ids
}

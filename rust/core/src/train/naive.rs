//! The definition, in the shortest code: the oracle of the tests.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::{TieOrder, TrainOptions, Trained, WordCounts};

/// Counts every pair of every word before each merge.
pub(super) fn train(counts: &WordCounts, options: &TrainOptions) -> Trained {
    let Trained { mut tokens, mut merges } = options.base.clone();
    let mut words = Vec::new();
    counts.for_each(|word, count| {
        let ids = word.iter().map(|byte| tokens.iter().position(|token| token == &[*byte]).expect("all bytes") as u32);
        words.push((ids.collect::<Vec<_>>(), count));
    });
    for (merged, &pair) in (256..).zip(&merges) {
        for (ids, _) in &mut words {
            replace(ids, pair, merged);
        }
    }
    while tokens.len() < options.vocab_size - options.special_tokens {
        let mut pairs = BTreeMap::new();
        for (ids, count) in &words {
            for pair in ids.windows(2) {
                *pairs.entry((pair[0], pair[1])).or_insert(0u64) += count;
            }
        }
        pairs.retain(|&(left, right), count| {
            let length = tokens[left as usize].len() + tokens[right as usize].len();
            *count >= options.min_frequency
                && (length == 2 || options.max_token_length.is_none_or(|limit| length < limit))
        });
        let order = |id: u32| match options.tie_order {
            TieOrder::ByteValues if id < 256 => u32::from(tokens[id as usize][0]),
            _ => id,
        };
        let rank = |&(&(left, right), &count): &(&(u32, u32), &u64)| (count, Reverse((order(left), order(right))));
        let Some((&(left, right), _)) = pairs.iter().max_by_key(rank) else { break };
        let merged = tokens.len() as u32;
        for (ids, _) in &mut words {
            replace(ids, (left, right), merged);
        }
        tokens.push([&tokens[left as usize][..], &tokens[right as usize]].concat());
        merges.push((left, right));
    }
    Trained { tokens, merges }
}

fn replace(ids: &mut Vec<u32>, pair: (u32, u32), merged: u32) {
    let mut at = 0;
    while at + 1 < ids.len() {
        if (ids[at], ids[at + 1]) == pair {
            ids[at] = merged;
            ids.remove(at + 1);
        }
        at += 1;
    }
}

//! The splits of tokens into two tokens, where tokens of many lengths make a look-up of each length too slow.

use crate::prefixes::longest_prefixes;
use crate::vocab::Vocab;

/// For each token the longest other one that it begins with, and the longest that it ends with.
pub(super) struct Splits {
    ids: Vec<u32>,
    lengths: Vec<usize>,
    prefixes: Vec<Option<usize>>,
    suffixes: Vec<Option<usize>>,
}

impl Splits {
    /// Returns the splits of the tokens of a vocabulary.
    pub(super) fn new(vocab: &Vocab) -> Self {
        let (tokens, ids): (Vec<&[u8]>, _) = vocab.tokens().unzip();
        let reversed: Vec<Vec<u8>> = tokens.iter().map(|token| token.iter().rev().copied().collect()).collect();
        let suffixes = in_order(&reversed.iter().map(Vec::as_slice).collect::<Vec<_>>());
        Self { ids, lengths: tokens.iter().map(|token| token.len()).collect(), prefixes: in_order(&tokens), suffixes }
    }

    /// Returns the ids of each pair of tokens that makes this token together.
    pub(super) fn of(&self, id: u32) -> Vec<(u32, u32)> {
        let Ok(token) = self.ids.binary_search(&id) else { return Vec::new() };
        let others = |longest: &[Option<usize>]| -> Vec<usize> {
            std::iter::successors(longest[token], |&other| longest[other]).collect()
        };
        let (mut pairs, mut lefts) = (Vec::new(), others(&self.prefixes));
        // The shortest left part goes with the longest right part.
        for right in others(&self.suffixes) {
            let length = self.lengths[token] - self.lengths[right];
            while lefts.pop_if(|left| self.lengths[*left] < length).is_some() {}
            if let Some(&left) = lefts.last().filter(|&&left| self.lengths[left] == length) {
                pairs.push((self.ids[left], self.ids[right]));
            }
        }
        pairs
    }
}

fn in_order(texts: &[&[u8]]) -> Vec<Option<usize>> {
    let mut sorted: Vec<usize> = (0..texts.len()).collect();
    sorted.sort_unstable_by_key(|&index| texts[index]);
    longest_prefixes(texts, &sorted)
}

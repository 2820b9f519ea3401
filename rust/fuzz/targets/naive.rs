//! Byte-pair encoding by its definition, in code too short to be wrong.

use std::collections::HashMap;

/// tiktoken's definition: adjacent parts merge where their concatenation is a token, the lowest rank first.
///
/// `None` if a part that is left is no token.
pub(crate) fn by_ranks(ranks: &HashMap<Vec<u8>, u32>, piece: &[u8]) -> Option<Vec<u32>> {
    if let Some(&id) = ranks.get(piece) {
        return Some(vec![id]);
    }
    let mut cuts: Vec<usize> = (0..=piece.len()).collect();
    let rank = |cuts: &[usize], at: usize| ranks.get(&piece[cuts[at]..cuts[at + 2]]).map(|&rank| (rank, at));
    while let Some((_, at)) = (0..cuts.len().saturating_sub(2)).filter_map(|at| rank(&cuts, at)).min() {
        cuts.remove(at + 1);
    }
    cuts.windows(2).map(|cut| ranks.get(&piece[cut[0]..cut[1]]).copied()).collect()
}

/// The definition of a list of merges: the pair that stands first in the list merges first, the leftmost of its places.
pub(crate) fn by_merges(tokens: &[Vec<u8>], merges: &[(u32, u32)], piece: &[u8]) -> Vec<u32> {
    let id_of = |bytes: &[u8]| tokens.iter().position(|token| token == bytes).expect("a token") as u32;
    let ranks: HashMap<(u32, u32), usize> = merges.iter().copied().zip(0..).collect();
    let mut ids: Vec<u32> = piece.iter().map(|&byte| u32::from(byte)).collect();
    let best = |ids: &[u32]| {
        let pairs = ids.windows(2).enumerate();
        pairs.filter_map(|(at, pair)| Some((*ranks.get(&(pair[0], pair[1]))?, at))).min()
    };
    while let Some((_, at)) = best(&ids) {
        ids[at] = id_of(&[&tokens[ids[at] as usize][..], &tokens[ids[at + 1] as usize]].concat());
        ids.remove(at + 1);
    }
    ids
}

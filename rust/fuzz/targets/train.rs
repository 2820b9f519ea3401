//! Text to merges.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use bpe_llama::train::{Counter, TrainOptions, Trained, byte_order, train};
use bpe_llama::{Pretokenizer, Vocab};

use super::input::{self, Input};

/// The longest text, in bytes of input: the oracle counts every pair again before each merge.
const MAX_TEXT: usize = 300;
const SPECIAL: &str = "<s>";

/// A text and options, both from the input: the merges are the oracle's, and the vocabulary encodes each word.
///
/// The input: the number of merges, the lowest frequency, the longest token, flags (kinds of characters, a special
/// token, a base with half of the merges), the text.
pub(crate) fn trained(input: &[u8]) {
    let mut input = Input(input);
    let (merges, frequency, longest, flags) = (input.byte() % 48, input.byte() % 8, input.byte(), input.byte());
    let text = input::text(input.take(MAX_TEXT), flags & 1 != 0);
    let special_tokens = if flags & 2 != 0 { vec![SPECIAL.to_owned()] } else { vec![] };
    let splitter = Pretokenizer::new("cl100k").expect("a name");
    let mut words: HashMap<&[u8], u64> = HashMap::new();
    let documents: Vec<&str> = if flags & 2 != 0 { text.split(SPECIAL).collect() } else { vec![&text] };
    for piece in documents.into_iter().flat_map(|document| splitter.split(document).expect("a linear pattern")) {
        *words.entry(piece.as_bytes()).or_default() += 1;
    }

    let mut counter = Counter::new(splitter.clone(), &special_tokens).expect("a token");
    counter.add(&text).expect("a linear pattern");
    let counts = counter.finish();
    assert_eq!((counts.len(), counts.total()), (words.len(), words.values().sum()));

    let options = |merges: u8| TrainOptions {
        vocab_size: 256 + usize::from(merges) + special_tokens.len(),
        special_tokens: special_tokens.len(),
        min_frequency: u64::from(frequency),
        max_token_length: (longest & 1 != 0).then_some(usize::from(longest >> 1) % 10),
        ..TrainOptions::default()
    };
    let learn = |options: &TrainOptions| train(&counts, options, &mut |_| Ok(()));
    if counts.is_empty() && learn(&options(merges)).is_err() {
        return; // nothing to learn from
    }
    let whole = learn(&options(merges)).expect("valid options");
    assert_eq!(whole, naive(&words, &options(merges)));
    let vocab = |trained: &Trained| {
        let tokens = trained.tokens.iter().cloned().zip(0..).collect();
        Vocab::from_merges(tokens, trained.merges.clone(), false).expect("a trained vocabulary")
    };
    let loaded = vocab(&whole);
    assert!(whole.tokens.iter().zip(0..).all(|(token, id)| loaded.id_to_bytes(id) == Some(&token[..])));
    // In two steps as in one.
    let first = learn(&options(merges / 2)).expect("valid options");
    if first.merges.len() == usize::from(merges / 2) {
        let further = TrainOptions { base: Some(vocab(&first)), ..options(merges) };
        assert_eq!(learn(&further).expect("valid options").tokens, whole.tokens);
    }
}

/// The definition: the pair with the highest count, ties to the smaller pair, until there are enough merges.
fn naive(words: &HashMap<&[u8], u64>, options: &TrainOptions) -> Trained {
    let mut tokens: Vec<Vec<u8>> = byte_order().map(|byte| vec![byte]).collect();
    let id_of: HashMap<u8, u32> = byte_order().zip(0..).collect();
    let mut words: Vec<(Vec<u32>, u64)> =
        words.iter().map(|(word, &count)| (word.iter().map(|byte| id_of[byte]).collect(), count)).collect();
    let mut merges = Vec::new();
    while merges.len() + 256 + options.special_tokens < options.vocab_size {
        let mut pairs: BTreeMap<(u32, u32), u64> = BTreeMap::new();
        for (ids, count) in &words {
            ids.windows(2).for_each(|pair| *pairs.entry((pair[0], pair[1])).or_default() += count);
        }
        let joined = |(left, right): (u32, u32)| [&tokens[left as usize][..], &tokens[right as usize]].concat();
        let may_merge = |pair: (u32, u32)| {
            let token = joined(pair);
            !tokens.contains(&token)
                && (token.len() == 2 || options.max_token_length.is_none_or(|limit| token.len() < limit))
        };
        let allowed = pairs.into_iter().filter(|&(pair, count)| count >= options.min_frequency && may_merge(pair));
        let Some((pair, _)) = allowed.max_by_key(|&(pair, count)| (count, Reverse(pair))) else { break };
        let (token, merged) = (joined(pair), tokens.len() as u32);
        for (ids, _) in &mut words {
            let mut at = 0;
            while at + 1 < ids.len() {
                if (ids[at], ids[at + 1]) == pair {
                    ids.splice(at..at + 2, [merged]);
                }
                at += 1;
            }
        }
        tokens.push(token);
        merges.push(pair);
    }
    Trained { tokens, merges }
}

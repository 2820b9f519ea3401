//! Training against the naive oracle.

mod files;
mod naive;

use proptest::prelude::*;

use super::merger::Merger;
use super::trainer::symbols_of;
use super::*;
use crate::pretokenize::Pretokenizer;
use crate::vocab::Vocab;
use crate::{Error, Interrupt};

fn counts_of(words: &[(String, u64)]) -> WordCounts {
    let splitter = Pretokenizer::new("cl100k").expect("a known name");
    WordCounts::from_words(splitter.pattern(), words.iter().map(|(word, count)| (word.as_bytes(), *count)))
}

fn options(merges: usize, min_frequency: u64, max_token_length: Option<usize>) -> TrainOptions {
    TrainOptions { vocab_size: 256 + merges, min_frequency, max_token_length, ..TrainOptions::default() }
}

proptest! {
    /// Few letters give ties, repeats and overlaps; large counts give several rounds.
    #[test]
    fn merges_like_the_naive_trainer(
        words in prop::collection::vec(("[ab]{1,12}|[abcd ]{1,9}|a{1,30}|\\PC{1,6}", prop_oneof![1u64..5, 1u64..1000, 1u64..1 << 40]), 1..40),
        merges in 0usize..60,
        min_frequency in prop_oneof![Just(0u64), 1u64..4, 1u64..2000],
        max_token_length in prop::option::of(0usize..8),
        depth in prop_oneof![Just(1u64), Just(2), Just(16), Just(u64::MAX)],
    ) {
        let counts = counts_of(&words);
        let mut options = options(merges, min_frequency, max_token_length);
        options.tie_order = TieOrder::ByteValues;
        let got = train(&counts, &options, &mut |_| Ok(())).expect("valid options");
        prop_assert_eq!(&got, &naive::train(&counts, &options));

        options.tie_order = TieOrder::Ids;
        let expected = naive::train(&counts, &options);
        let got = train(&counts, &options, &mut |_| Ok(())).expect("valid options");
        prop_assert_eq!(&got, &expected);

        let go_on = Interrupt::NEVER;
        let symbols = symbols_of(&counts, &options, go_on).expect("not empty");
        let mut merger =
            Merger::with_depth(symbols, vec![1; 256], &options, depth, go_on).expect("not stopped");
        let next = || merger.next_merge(|_, _| true, go_on).expect("not stopped");
        let rounds: Vec<_> = std::iter::from_fn(next).take(merges).collect();
        prop_assert_eq!(&rounds, &expected.merges);
    }
}

/// Returns the trained vocabulary with the same ids.
fn vocab_of(trained: &Trained) -> Vocab {
    let tokens = trained.tokens.iter().cloned().zip(0..).collect();
    Vocab::from_merges(tokens, trained.merges.clone(), false).expect("valid")
}

proptest! {
    /// With a base of the same text, the merges are those of one training; with a base of another text, those of the
    /// oracle.
    #[test]
    fn continues_from_a_base(
        words in prop::collection::vec(("[ab]{1,12}|[abcd ]{1,40}|a{1,30}|\\PC{1,6}", 1u64..9), 1..30),
        others in prop::collection::vec(("[ab]{1,12}|[abcd ]{1,9}|\\PC{1,6}", 1u64..9), 1..30),
        base_merges in 0usize..20,
        merges in 0usize..20,
        byte_values in any::<bool>(),
    ) {
        let tie_order = if byte_values { TieOrder::ByteValues } else { TieOrder::Ids };
        let learn = |counts: &WordCounts, base: Option<&Trained>, merges| {
            let vocab_size = base.map_or(256, |base| base.tokens.len()) + merges;
            let base = base.map(vocab_of);
            let options = TrainOptions { vocab_size, tie_order, base, ..TrainOptions::default() };
            let trained = train(counts, &options, &mut |_| Ok(())).expect("valid");
            (trained, naive::train(counts, &options))
        };
        let counts = counts_of(&words);
        let (base, _) = learn(&counts, None, base_merges);
        let (in_one_go, _) = learn(&counts, None, base_merges + merges);
        let (further, expected) = learn(&counts, Some(&base), merges);
        prop_assert_eq!(&further, &expected);
        prop_assert_eq!(further.tokens, in_one_go.tokens);
        prop_assert_eq!(further.merges, &in_one_go.merges[base.merges.len()..]);
        let (got, expected) = learn(&counts_of(&others), Some(&base), merges);
        prop_assert_eq!(got, expected);
    }

    /// Bases with unused ids, bytes at any id, and tokens that no merge reaches: the learned merges encode words as the
    /// extended vocabulary does.
    #[test]
    fn continues_from_any_vocabulary(
        more in prop::collection::btree_set("[abc]{2,5}", 0..12).prop_map(|set| set.into_iter().map(String::into_bytes).collect::<Vec<_>>()).prop_shuffle(),
        words in prop::collection::btree_map("[abc]{1,12}", 1u64..9, 1..20),
        gap in 0u32..3,
        ranks in any::<bool>(),
        merges in 1usize..12,
    ) {
        let tokens: Vec<(Vec<u8>, u32)> = (0..=255).map(|byte: u8| vec![byte]).chain(more).zip((0..).step_by(gap as usize + 1)).map(|(token, id)| (token, id ^ gap)).collect();
        let base = if ranks {
            Vocab::from_ranks(tokens).expect("valid")
        } else {
            let ids: std::collections::HashMap<_, _> = tokens.iter().cloned().collect();
            let cuts = tokens.iter().flat_map(|(token, _)| (1..token.len()).map(move |cut| token.split_at(cut)));
            let pairs = cuts.filter_map(|(left, right)| Some((*ids.get(left)?, *ids.get(right)?))).step_by(2).collect();
            Vocab::from_merges(tokens, pairs, gap == 1).expect("valid")
        };
        let words: Vec<_> = words.into_iter().collect();
        let counts = counts_of(&words);
        let options = TrainOptions { vocab_size: base.len() + merges, base: Some(base.clone()), ..TrainOptions::default() };
        let trained = train(&counts, &options, &mut |_| Ok(())).expect("valid");
        prop_assert_eq!(&trained, &naive::train(&counts, &options));
        // With several rounds, in some of which all pairs are tokens already.
        let go_on = Interrupt::NEVER;
        let lengths = || trained.tokens.iter().map(Vec::len).take(base.id_bound() as usize).collect();
        for depth in [1, 2, 16] {
            let symbols = symbols_of(&counts, &options, go_on).expect("not empty");
            let mut merger = Merger::with_depth(symbols, lengths(), &options, depth, go_on).expect("not stopped");
            let mut tokens: Vec<Vec<u8>> = trained.tokens[..base.id_bound() as usize].to_vec();
            for &expected in &trained.merges {
                let join = |left: u32, right: u32| [&tokens[left as usize][..], &tokens[right as usize]].concat();
                let next = merger.next_merge(|left, right| !tokens.contains(&join(left, right)), go_on);
                prop_assert_eq!(next.expect("not stopped"), Some(expected));
                tokens.push(join(expected.0, expected.1));
            }
        }
        let bound = base.id_bound();
        let extended = base.extended(&trained.tokens[bound as usize..], bound, &trained.merges).expect("no token twice");
        for (word, _) in &words {
            let bytes = |vocab: &Vocab| word.bytes().map(|byte| vocab.byte_id(byte).expect("all bytes")).collect();
            let mut ids = naive::encode(&base, word.as_bytes(), bytes(&base));
            for (&(left, right), merged) in trained.merges.iter().zip(bound..) {
                let mut at = 0;
                while at + 1 < ids.len() {
                    if (ids[at], ids[at + 1]) == (left, right) {
                        ids.splice(at..at + 2, [merged]);
                    }
                    at += 1;
                }
            }
            let encoded = naive::encode(&extended, word.as_bytes(), bytes(&extended));
            // A word that is now a token is encoded as this token, unless merges come first.
            if !(extended.whole_piece_first() && encoded.len() == 1) {
                prop_assert_eq!(encoded, ids);
            }
        }
    }
}

#[test]
fn a_base_needs_every_byte() {
    let tokens = |skip: u8| (0..=255).filter(move |&byte| byte != skip).map(|byte| (vec![byte], u32::from(byte)));
    let base = Vocab::from_ranks(tokens(b'b').collect()).expect("valid");
    let mut options = TrainOptions { vocab_size: 300, base: Some(base), ..TrainOptions::default() };
    let error = train(counts_of(&[("ab".to_owned(), 1)]), &options, &mut |_| Ok(())).expect_err("no b");
    assert!(error.to_string().contains("0x62"), "{error}");
    options.tie_order = TieOrder::ByteValues;
    let error = options.check().expect_err("no b");
    assert!(error.to_string().contains("its id 98 is \"\""), "{error}");
}

#[test]
fn errors_count_the_new_merges_only() {
    let base = train(counts_of(&[("abc".to_owned(), 3)]), &options(2, 0, None), &mut |_| Ok(())).expect("valid");
    let error = vocab_of(&base).extended(&[], 258, &[(0, 999)]).expect_err("no id 999").to_string();
    assert!(error.contains("merge 0 names id 999"), "{error}");
}

#[test]
fn every_long_step_checks_for_an_interrupt() {
    let counts = counts_of(&[("abcd".to_owned(), 3)]);
    let (go_on, stop) = (Interrupt::NEVER, Interrupt::new(&|| Err(Error::Interrupted)));
    assert!(matches!(symbols_of(&counts, &TrainOptions::default(), stop), Err(Error::Interrupted)));
    let symbols = symbols_of(&counts, &TrainOptions::default(), go_on).expect("not empty");
    assert!(matches!(Merger::new(symbols, vec![1; 256], &options(10, 0, None), stop), Err(Error::Interrupted)));
    // With depth 1, the first round tracks only the pairs with the highest count.
    let counts = counts_of(&[("ab".to_owned(), 9), ("cd".to_owned(), 1)]);
    let symbols = symbols_of(&counts, &TrainOptions::default(), go_on).expect("not empty");
    let mut merger = Merger::with_depth(symbols, vec![1; 256], &options(10, 0, None), 1, go_on).expect("not stopped");
    assert!(merger.next_merge(|_, _| true, go_on).expect("not stopped").is_some());
    assert!(matches!(merger.next_merge(|_, _| true, stop), Err(Error::Interrupted)));
}

#[test]
fn stops_when_no_pair_is_left() {
    let trained = train(counts_of(&[("ab".to_owned(), 3)]), &options(10, 0, None), &mut |_| Ok(())).expect("valid");
    assert_eq!(trained.merges.len(), 1);
}

#[test]
fn refuses_too_small_a_vocabulary_and_no_text() {
    let counts = counts_of(&[("ab".to_owned(), 3)]);
    let options = TrainOptions { vocab_size: 257, special_tokens: 2, ..TrainOptions::default() };
    let error = train(&counts, &options, &mut |_| Ok(())).expect_err("257 < 256 + 2");
    assert!(error.to_string().contains("at least 258"), "{error}");
    let error = train(counts_of(&[]), &self::options(1, 0, None), &mut |_| Ok(())).expect_err("no words");
    assert!(error.to_string().contains("no text"), "{error}");
}

#[test]
fn a_long_run_of_one_byte_is_linear() {
    let counts = counts_of(&[("a".repeat(1 << 20), 1)]);
    let trained = train(&counts, &options(30, 0, None), &mut |_| Ok(())).expect("valid");
    assert_eq!(trained.merges.len(), 20);
    assert_eq!(trained.tokens.last().map(Vec::len), Some(1 << 20));
}

#[test]
fn counts_do_not_overflow_32_bits() {
    let counts = counts_of(&[("ab".to_owned(), 1 << 33), ("cd".to_owned(), (1 << 33) + 1)]);
    let trained = train(&counts, &options(1, 0, None), &mut |_| Ok(())).expect("valid");
    assert_eq!(trained.tokens[256], b"cd");
}

#[test]
fn counts_beyond_any_text_are_refused() {
    let word = (b"ab".as_slice(), u64::MAX);
    let counts = WordCounts::from_words("a+", [word, word]);
    assert_eq!(counts.most_common(1, Interrupt::NEVER).expect("not stopped"), [(b"ab".to_vec(), u64::MAX)]);
    let error = train(&counts, &options(1, 0, None), &mut |_| Ok(())).expect_err("no text is so long");
    assert!(error.to_string().contains(&(2 * u128::from(u64::MAX)).to_string()), "{error}");
}

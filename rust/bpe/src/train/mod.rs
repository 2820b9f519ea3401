//! Text to a vocabulary: count words ([`WordCounts`]), then merge their most frequent pairs ([`train`]).
//!
//! The merges equal those of `BpeTrainer` in Hugging Face's `tokenizers` for the same documents and options: the pair with the
//! highest count first, ties to the smaller `(left id, right id)`. They depend on nothing else: not on threads, not on the order or
//! the chunking of the text.
//!
//! ```
//! use bpe_llama::pretokenize::Pretokenizer;
//! use bpe_llama::train::{Counter, TrainOptions, train};
//!
//! let mut counter = Counter::new(Pretokenizer::new("cl100k")?, &["<|end|>".to_owned()])?;
//! counter.add("low lower lowest<|end|>low")?;
//! let options = TrainOptions { vocab_size: 260, ..TrainOptions::default() };
//! let trained = train(&counter.finish(), &options, &mut |_| Ok(()))?;
//! assert_eq!(trained.tokens[256..259], [b"lo".to_vec(), b"low".to_vec(), b" low".to_vec()]);
//! # Ok::<(), bpe_llama::Error>(())
//! ```

use std::collections::HashSet;

use crate::interrupt::Interrupt;
use crate::vocab::Vocab;
use crate::{Error, Result};

mod base;
mod corpus;
mod count;
mod counts;
mod counts_file;
mod merges;
#[cfg(test)]
mod naive;
mod neighbours;
mod progress;
mod words;

pub use count::{Batch, Counter, count_batches, count_files};
pub use counts::WordCounts;
pub use progress::{OnProgress, Progress};

pub(crate) use count::special_matcher;

use corpus::{Corpus, MAX_IDS};
use merges::Merger;
use progress::Reporter;

/// Which of two bytes is the smaller where pairs of equal count are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TieOrder {
    /// The one with the smaller id: `tokenizers`' rule.
    #[default]
    Ids,
    /// The one with the smaller value: the rule of trainers whose ids are the byte values, such as `rustbpe`.
    ByteValues,
}

/// What to train.
#[derive(Debug, Clone, Default)]
pub struct TrainOptions {
    /// Ids in all: 256 bytes, merged tokens, special tokens.
    pub vocab_size: usize,
    /// How many ids special tokens will take.
    pub special_tokens: usize,
    /// Pairs seen fewer times than this do not merge; 0 and 1 mean the same.
    pub min_frequency: u64,
    /// Tokens of three bytes and more are shorter than this: `tokenizers`' rule, which always lets two bytes merge.
    pub max_token_length: Option<usize>,
    /// How pairs of equal count are ordered. Ids are the same in both orders but for the merges themselves.
    pub tie_order: TieOrder,
    /// Where to begin instead of the 256 bytes. Words are encoded with it, and its tokens count in `vocab_size`.
    ///
    /// Two tokens that together have the bytes of a token already do not merge. From a vocabulary that was itself trained,
    /// none ever do, and the same text gives what it gives in one go.
    pub base: Option<Vocab>,
}

/// A trained vocabulary, without its special tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trained {
    /// The tokens' bytes by id: the 256 bytes in GPT-2's order, or the base's tokens (empty where it has none); then one a merge.
    pub tokens: Vec<Vec<u8>>,
    /// The merges learned, in order, one for each of the last tokens. Fewer than asked for where the text has no more pairs.
    pub merges: Vec<(u32, u32)>,
}

/// Returns the 256 bytes in GPT-2's order, which is that of `tokenizers`' byte-level alphabet: printable Latin-1 first.
///
/// # Source
/// `bytes_to_unicode` in the GPT-2 release.
pub fn byte_order() -> impl Iterator<Item = u8> {
    let is_printable = |byte: &u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    (0..=255).filter(is_printable).chain((0..=255).filter(move |byte| !is_printable(byte)))
}

/// Returns the vocabulary that byte-pair encoding learns from `counts`.
///
/// # Errors
/// [`Error::InvalidArgument`] if `vocab_size` is too small for the base and special tokens, if the base has no token for a byte of
/// some word, or if `counts` is empty or stands for more than 2^64 bytes of text; whatever `on_progress` returns.
///
/// # Cost
/// Time near the number of places where merges happen, times a small constant; memory 4 to 12 bytes a byte of distinct words.
///
/// # Source
/// Sennrich et al. 2016, arXiv:1508.07909, algorithm 1.
pub fn train(counts: &WordCounts, options: &TrainOptions, on_progress: OnProgress<'_>) -> Result<Trained> {
    options.check()?;
    let reporter = Reporter::new(on_progress);
    let corpus = lay_out(counts, options, Interrupt::new(&|| reporter.tick(|| options.progress(0))))?;
    merge(corpus, options, &reporter)
}

/// As [`train`], but frees the counts before merging begins: the peak of memory is lower.
///
/// # Errors
/// As [`train`].
pub fn train_owned(counts: WordCounts, options: &TrainOptions, on_progress: OnProgress<'_>) -> Result<Trained> {
    options.check()?;
    let reporter = Reporter::new(on_progress);
    let corpus = lay_out(&counts, options, Interrupt::new(&|| reporter.tick(|| options.progress(0))))?;
    drop(counts);
    merge(corpus, options, &reporter)
}

impl TrainOptions {
    fn merges(&self) -> usize {
        self.vocab_size - self.special_tokens - self.base_tokens()
    }

    fn base_tokens(&self) -> usize {
        self.base.as_ref().map_or(256, Vocab::len)
    }

    fn progress(&self, done: usize) -> Progress {
        Progress::Merging { done, total: self.merges() }
    }

    /// Checks what can be checked before any text is read.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `vocab_size` leaves no room for the base and special tokens, or is beyond what ids can count; if ties
    /// are to be by byte values and the base's first ids are not the bytes.
    pub fn check(&self) -> Result<()> {
        self.check_base()?;
        let (base, special) = (self.base_tokens(), self.special_tokens);
        let least = base.saturating_add(special);
        if self.vocab_size < least {
            return Err(Error::InvalidArgument(format!(
                "vocab_size is {}; it must be at least {least}: {base} tokens to begin with and {special} special tokens",
                self.vocab_size,
            )));
        }
        if self.vocab_size > MAX_IDS {
            return Err(Error::InvalidArgument(format!(
                "vocab_size is {}; at most {MAX_IDS} ids exist",
                self.vocab_size
            )));
        }
        Ok(())
    }
}

/// Lays out the words, encoded with the base, in symbols that compare as the tie order says: ids, or byte values.
fn lay_out(counts: &WordCounts, options: &TrainOptions, interrupt: Interrupt<'_>) -> Result<Corpus> {
    if counts.is_empty() {
        return Err(Error::InvalidArgument("there is no text to train on: no words were counted".to_owned()));
    }
    // No pair can then be counted beyond 64 bits. Only a damaged file of counts holds more.
    let mut text_bytes = 0_u128;
    counts.for_each_until(interrupt, |word, count| text_bytes += word.len() as u128 * u128::from(count))?;
    if text_bytes > u128::from(u64::MAX) {
        return Err(Error::InvalidArgument(format!(
            "the words counted make {text_bytes} bytes of text; at most {} can be",
            u64::MAX
        )));
    }
    let mut symbols = std::array::from_fn(|byte| byte as u32);
    if options.tie_order == TieOrder::Ids && options.base.is_none() {
        for (byte, id) in byte_order().zip(0..) {
            symbols[usize::from(byte)] = id;
        }
    }
    let mut corpus = Corpus::new(counts, &symbols, interrupt)?;
    if let Some(base) = &options.base {
        let symbol = |id: u32| match (options.tie_order, base.id_to_bytes(id)) {
            (TieOrder::ByteValues, Some(&[byte])) => u32::from(byte),
            _ => id,
        };
        corpus.encode_words(base, symbol, interrupt)?;
    }
    Ok(corpus)
}

fn merge(corpus: Corpus, options: &TrainOptions, reporter: &Reporter<'_>) -> Result<Trained> {
    let tick = |done| reporter.tick(|| options.progress(done));
    let mut trained = Trained { tokens: options.first_tokens(), merges: Vec::new() };
    let lengths = trained.tokens.iter().map(Vec::len).collect();
    let mut merger = Merger::new(corpus, lengths, options, Interrupt::new(&|| tick(0)))?;
    // Symbols are ids, but for the bytes where ties go by their values.
    let mut ids: Vec<u32> = (0..256).collect();
    if options.tie_order == TieOrder::ByteValues {
        ids.sort_unstable_by_key(|&id| trained.tokens[id as usize][0]);
    }
    let id = |symbol: u32| ids.get(symbol as usize).map_or(symbol, |&id| id);
    // Only a base can have tokens that its merges do not make.
    let mut known: HashSet<Vec<u8>> = HashSet::new();
    if options.base.is_some() {
        known.extend(trained.tokens.iter().cloned());
    }
    while trained.merges.len() < options.merges() {
        let done = trained.merges.len();
        let join = |left, right| [&trained.tokens[id(left) as usize][..], &trained.tokens[id(right) as usize]].concat();
        let may_merge = |left, right| known.is_empty() || !known.contains(&join(left, right));
        let Some((left, right)) = merger.next_merge(may_merge, Interrupt::new(&|| tick(done)))? else { break };
        let token = join(left, right);
        if !known.is_empty() {
            known.insert(token.clone());
        }
        trained.tokens.push(token);
        trained.merges.push((id(left), id(right)));
    }
    reporter.report(options.progress(trained.merges.len()))?;
    Ok(trained)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pretokenize::Pretokenizer;

    fn counts_of(words: &[(String, u64)]) -> WordCounts {
        let splitter = Pretokenizer::new("cl100k").expect("a known name");
        WordCounts::from_words(splitter.pattern(), words.iter().map(|(word, count)| (word.as_bytes(), *count)))
    }

    fn options(merges: usize, min_frequency: u64, max_token_length: Option<usize>) -> TrainOptions {
        TrainOptions { vocab_size: 256 + merges, min_frequency, max_token_length, ..TrainOptions::default() }
    }

    proptest! {
        /// Few letters make ties, repeats and overlaps; large counts make several rounds.
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
            let corpus = lay_out(&counts, &options, go_on).expect("not empty");
            let mut merger =
                Merger::with_depth(corpus, vec![1; 256], &options, depth, go_on).expect("not stopped");
            let next = || merger.next_merge(|_, _| true, go_on).expect("not stopped");
            let rounds: Vec<_> = std::iter::from_fn(next).take(merges).collect();
            prop_assert_eq!(&rounds, &expected.merges);
        }
    }

    /// The vocabulary that was learned, with the ids it was learned with.
    fn vocab_of(trained: &Trained) -> Vocab {
        let tokens = trained.tokens.iter().cloned().zip(0..).collect();
        Vocab::from_merges(tokens, trained.merges.clone(), false).expect("valid")
    }

    proptest! {
        /// From a base of the same text nothing differs from one go; from one of another text the definition holds.
        #[test]
        fn goes_on_from_a_base(
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

        /// Bases with holes, bytes anywhere, and tokens that no merge makes: words become what the extended vocabulary
        /// makes of them.
        #[test]
        fn goes_on_from_any_vocabulary(
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
            // In rounds, each of which may hold nothing but pairs that are tokens already.
            let go_on = Interrupt::NEVER;
            let lengths = || trained.tokens.iter().map(Vec::len).take(base.id_bound() as usize).collect();
            for depth in [1, 2, 16] {
                let corpus = lay_out(&counts, &options, go_on).expect("not empty");
                let mut merger = Merger::with_depth(corpus, lengths(), &options, depth, go_on).expect("not stopped");
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
                // A word that is a token by now is that token, unless the base's merges come first.
                if !(extended.whole_piece_first() && encoded.len() == 1) {
                    prop_assert_eq!(encoded, ids);
                }
            }
        }
    }

    #[test]
    fn what_a_base_must_have() {
        let tokens = |skip: u8| (0..=255).filter(move |&byte| byte != skip).map(|byte| (vec![byte], u32::from(byte)));
        let base = Vocab::from_ranks(tokens(b'b').collect()).expect("valid");
        let mut options = TrainOptions { vocab_size: 300, base: Some(base), ..TrainOptions::default() };
        let error = train(&counts_of(&[("ab".to_owned(), 1)]), &options, &mut |_| Ok(())).expect_err("no b");
        assert!(error.to_string().contains("0x62"), "{error}");
        options.tie_order = TieOrder::ByteValues;
        let error = options.check().expect_err("no b");
        assert!(error.to_string().contains("its id 98 is \"\""), "{error}");
    }

    #[test]
    fn errors_number_the_new_merges_alone() {
        let base = train(&counts_of(&[("abc".to_owned(), 3)]), &options(2, 0, None), &mut |_| Ok(())).expect("valid");
        let error = vocab_of(&base).extended(&[], 258, &[(0, 999)]).expect_err("no id 999").to_string();
        assert!(error.contains("merge 0 names id 999"), "{error}");
    }

    #[test]
    fn every_long_step_can_be_stopped() {
        let counts = counts_of(&[("abcd".to_owned(), 3)]);
        let (go_on, stop) = (Interrupt::NEVER, Interrupt::new(&|| Err(Error::Interrupted)));
        assert!(matches!(lay_out(&counts, &TrainOptions::default(), stop), Err(Error::Interrupted)));
        let corpus = lay_out(&counts, &TrainOptions::default(), go_on).expect("not empty");
        assert!(matches!(Merger::new(corpus, vec![1; 256], &options(10, 0, None), stop), Err(Error::Interrupted)));
        // The second round begins when the pairs of the first, those that occur as often as the most frequent, are merged.
        let counts = counts_of(&[("ab".to_owned(), 9), ("cd".to_owned(), 1)]);
        let corpus = lay_out(&counts, &TrainOptions::default(), go_on).expect("not empty");
        let mut merger =
            Merger::with_depth(corpus, vec![1; 256], &options(10, 0, None), 1, go_on).expect("not stopped");
        assert!(merger.next_merge(|_, _| true, go_on).expect("not stopped").is_some());
        assert!(matches!(merger.next_merge(|_, _| true, stop), Err(Error::Interrupted)));
    }

    #[test]
    fn stops_when_no_pair_is_left() {
        let trained =
            train(&counts_of(&[("ab".to_owned(), 3)]), &options(10, 0, None), &mut |_| Ok(())).expect("valid");
        assert_eq!(trained.merges.len(), 1);
    }

    #[test]
    fn refuses_too_small_a_vocabulary_and_no_text() {
        let counts = counts_of(&[("ab".to_owned(), 3)]);
        let options = TrainOptions { vocab_size: 257, special_tokens: 2, ..TrainOptions::default() };
        let error = train(&counts, &options, &mut |_| Ok(())).expect_err("257 < 256 + 2");
        assert!(error.to_string().contains("at least 258"), "{error}");
        let error = train(&counts_of(&[]), &self::options(1, 0, None), &mut |_| Ok(())).expect_err("no words");
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
}

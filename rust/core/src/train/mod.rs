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

use std::time::{Duration, Instant};

use crate::{Error, Result};

mod base;
mod corpus;
mod count;
mod counts_file;
mod merges;
#[cfg(test)]
mod naive;
mod words;

pub use count::{Batch, Counter, WordCounts, count_batches, count_files};

pub(crate) use count::special_matcher;

use corpus::{Corpus, MAX_IDS};
use merges::Merger;

/// How far the work is: passed to the caller's function about ten times a second, and at the end of each stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// Text is being read and its words counted.
    Counting {
        /// Bytes of text counted so far.
        bytes: u64,
        /// Bytes of input read so far, before decompression, if they come from files.
        read: Option<u64>,
        /// The size of all input files together, if there are any.
        total: Option<u64>,
    },
    /// Pairs are being merged.
    Merging {
        /// Merges done.
        done: usize,
        /// Merges asked for.
        total: usize,
    },
}

/// What the caller hears of the work, and how it stops it: an error returned from it ends the work and is passed on.
pub type OnProgress<'a> = &'a mut dyn FnMut(Progress) -> Result<()>;

/// Called often within long steps; its error ends them.
type Check<'a> = &'a mut dyn FnMut() -> Result<()>;

/// Calls the caller's function at most once in [`Ticker::INTERVAL`].
struct Ticker<'a> {
    on_progress: OnProgress<'a>,
    last: Instant,
}

impl<'a> Ticker<'a> {
    const INTERVAL: Duration = Duration::from_millis(100);

    fn new(on_progress: OnProgress<'a>) -> Self {
        Self { on_progress, last: Instant::now() }
    }

    fn tick(&mut self, progress: impl FnOnce() -> Progress) -> Result<()> {
        if self.last.elapsed() < Self::INTERVAL {
            return Ok(());
        }
        let result = self.report(progress());
        self.last = Instant::now();
        result
    }

    /// Calls it whatever the time: at the end of a stage.
    fn report(&mut self, progress: Progress) -> Result<()> {
        (self.on_progress)(progress)
    }
}

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
    /// Where to begin: its tokens and merges come first and count in `vocab_size`. The 256 bytes, unless it is given.
    pub base: Trained,
}

/// A trained vocabulary, without its special tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trained {
    /// The tokens' bytes in order of id: the 256 bytes (in GPT-2's order unless the base has another), then one token a merge.
    pub tokens: Vec<Vec<u8>>,
    /// The merges in order; the `i`-th makes the token `256 + i`. Fewer than asked for where the text has no more pairs.
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
/// [`Error::InvalidArgument`] if `vocab_size` is too small for the base and special tokens, if the base is no plain list of merges,
/// or if `counts` is empty or stands for more than 2^64 bytes of text; whatever `on_progress` returns.
///
/// # Cost
/// Time near the number of places where merges happen, times a small constant; memory 4 to 12 bytes a byte of distinct words.
///
/// # Source
/// Sennrich et al. 2016, arXiv:1508.07909, algorithm 1.
pub fn train(counts: &WordCounts, options: &TrainOptions, on_progress: OnProgress<'_>) -> Result<Trained> {
    options.check()?;
    let mut ticker = Ticker::new(on_progress);
    let corpus = lay_out(counts, options, &mut || ticker.tick(|| options.progress(0)))?;
    merge(corpus, options, &mut ticker)
}

/// As [`train`], but frees the counts before merging begins: the peak of memory is lower.
///
/// # Errors
/// As [`train`].
pub fn train_owned(counts: WordCounts, options: &TrainOptions, on_progress: OnProgress<'_>) -> Result<Trained> {
    options.check()?;
    let mut ticker = Ticker::new(on_progress);
    let corpus = lay_out(&counts, options, &mut || ticker.tick(|| options.progress(0)))?;
    drop(counts);
    merge(corpus, options, &mut ticker)
}

impl TrainOptions {
    fn merges(&self) -> usize {
        self.vocab_size - self.special_tokens - self.base.tokens.len()
    }

    fn progress(&self, done: usize) -> Progress {
        Progress::Merging { done, total: self.merges() }
    }

    /// Checks what can be checked before any text is read.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `vocab_size` leaves no room for the base and special tokens, or is beyond what ids can count; if the
    /// base is no plain list of merges.
    pub fn check(&self) -> Result<()> {
        self.base.check()?;
        let least = self.base.tokens.len().saturating_add(self.special_tokens);
        if self.vocab_size < least {
            return Err(Error::InvalidArgument(format!(
                "vocab_size is {}; it must be at least {least}: 256 bytes, {} merges of the base and {} special tokens",
                self.vocab_size,
                self.base.merges.len(),
                self.special_tokens
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

/// Lays out the words, in which the base's merges are done, in symbols that compare as the tie order says: ids, or byte values.
fn lay_out(counts: &WordCounts, options: &TrainOptions, check: Check<'_>) -> Result<Corpus> {
    if counts.is_empty() {
        return Err(Error::InvalidArgument("there is no text to train on: no words were counted".to_owned()));
    }
    // No pair can then be counted beyond 64 bits. Only a damaged file of counts holds more.
    let mut text_bytes = 0_u128;
    counts.for_each(|word, count| text_bytes += word.len() as u128 * u128::from(count));
    if text_bytes > u128::from(u64::MAX) {
        return Err(Error::InvalidArgument(format!(
            "the words counted make {text_bytes} bytes of text; at most {} can be",
            u64::MAX
        )));
    }
    let mut symbols = std::array::from_fn(|byte| byte as u32);
    if options.tie_order == TieOrder::Ids {
        symbols = options.base.id_of_byte();
    }
    let mut corpus = Corpus::new(counts, &symbols, check)?;
    if !options.base.merges.is_empty() {
        corpus.merge_words(&options.base.vocab(options.tie_order)?, check)?;
    }
    Ok(corpus)
}

fn merge(corpus: Corpus, options: &TrainOptions, ticker: &mut Ticker<'_>) -> Result<Trained> {
    let mut tick = |done| ticker.tick(|| options.progress(done));
    let mut trained = options.base.clone();
    let lengths = trained.tokens.iter().map(Vec::len).collect();
    let mut merger = Merger::new(corpus, lengths, options.min_frequency, options.max_token_length, &mut || tick(0))?;
    let id_of_byte = trained.id_of_byte();
    let id = |symbol: u32| match (options.tie_order, id_of_byte.get(symbol as usize)) {
        (TieOrder::ByteValues, Some(&id)) => id,
        _ => symbol,
    };
    let mut done = 0;
    while done < options.merges() {
        tick(done)?;
        let Some((left, right)) = merger.next_merge(&mut || tick(done))? else { break };
        let (left, right) = (id(left), id(right));
        trained.tokens.push([&trained.tokens[left as usize][..], &trained.tokens[right as usize]].concat());
        trained.merges.push((left, right));
        done += 1;
    }
    ticker.report(options.progress(done))?;
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

            let go_on: Check<'_> = &mut || Ok(());
            let corpus = lay_out(&counts, &options, go_on).expect("not empty");
            let mut merger =
                Merger::with_depth(corpus, vec![1; 256], min_frequency, max_token_length, depth, go_on).expect("not stopped");
            let next = || merger.next_merge(go_on).expect("not stopped");
            let rounds: Vec<_> = std::iter::from_fn(next).take(merges).collect();
            prop_assert_eq!(&rounds, &expected.merges);
        }
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
            let learn = |counts: &WordCounts, base: &Trained, merges| {
                let vocab_size = base.tokens.len() + merges;
                let options = TrainOptions { vocab_size, tie_order, base: base.clone(), ..TrainOptions::default() };
                let trained = train(counts, &options, &mut |_| Ok(())).expect("valid");
                (trained, naive::train(counts, &options))
            };
            let (counts, bytes) = (counts_of(&words), Trained::default());
            let (base, _) = learn(&counts, &bytes, base_merges);
            let (in_one_go, _) = learn(&counts, &bytes, base_merges + merges);
            prop_assert_eq!(learn(&counts, &base, merges).0, in_one_go);
            let (got, expected) = learn(&counts_of(&others), &base, merges);
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn a_base_must_be_a_plain_list_of_merges() {
        let plain =
            train(&counts_of(&[("abcabc".to_owned(), 3)]), &options(3, 0, None), &mut |_| Ok(())).expect("valid");
        let refused = |change: fn(&mut Trained)| {
            let mut base = plain.clone();
            change(&mut base);
            let options = TrainOptions { vocab_size: 300, base, ..TrainOptions::default() };
            options.check().expect_err("damaged").to_string()
        };
        assert!(refused(|base| base.tokens.swap(0, 256)).contains("before all bytes"));
        assert!(refused(|base| base.merges.truncate(2)).contains("259 tokens and 2 merges"));
        assert!(refused(|base| base.merges.swap(0, 1)).contains("does not make token 256"));
        // With "bc" made first, "ab" + "c" never happens.
        let unreached = refused(|base| {
            let ids = base.id_of_byte();
            base.tokens.truncate(256);
            base.tokens.extend([b"bc".to_vec(), b"ab".to_vec(), b"abc".to_vec()]);
            let [a, b, c] = [b'a', b'b', b'c'].map(|byte| ids[usize::from(byte)]);
            base.merges = vec![(b, c), (a, b), (257, c)];
        });
        assert!(unreached.contains("never make its token \"abc\""), "{unreached}");
    }

    #[test]
    fn every_long_step_can_be_stopped() {
        let counts = counts_of(&[("abcd".to_owned(), 3)]);
        let (go_on, stop): (Check<'_>, Check<'_>) = (&mut || Ok(()), &mut || Err(Error::Interrupted));
        assert!(matches!(lay_out(&counts, &TrainOptions::default(), stop), Err(Error::Interrupted)));
        let corpus = lay_out(&counts, &TrainOptions::default(), go_on).expect("not empty");
        assert!(matches!(Merger::new(corpus, vec![1; 256], 0, None, stop), Err(Error::Interrupted)));
        // The second round begins when the pairs of the first, those that occur as often as the most frequent, are merged.
        let counts = counts_of(&[("ab".to_owned(), 9), ("cd".to_owned(), 1)]);
        let corpus = lay_out(&counts, &TrainOptions::default(), go_on).expect("not empty");
        let mut merger = Merger::with_depth(corpus, vec![1; 256], 0, None, 1, go_on).expect("not stopped");
        assert!(merger.next_merge(stop).expect("not asked").is_some());
        assert!(matches!(merger.next_merge(stop), Err(Error::Interrupted)));
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
        assert_eq!(counts.most_common(1), [(b"ab".to_vec(), u64::MAX)]);
        let error = train(&counts, &options(1, 0, None), &mut |_| Ok(())).expect_err("no text is so long");
        assert!(error.to_string().contains(&(2 * u128::from(u64::MAX)).to_string()), "{error}");
    }
}

//! The training loop: word counts to merges.

use std::borrow::Borrow;
use std::collections::HashSet;

use super::counts::WordCounts;
use super::merger::Merger;
use super::options::{TieOrder, TrainOptions, Trained};
use super::progress::{OnProgress, Reporter};
use super::symbols::SymbolArray;
use crate::Result;
use crate::byte_alphabet::byte_order;
use crate::interrupt::Interrupt;

/// Returns the vocabulary that byte-pair encoding learns from `counts`, which are freed before the merges if they are given
/// by value: that lowers the peak of memory.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if `vocab_size` is too small for the base and special tokens, if the base has no
/// token for a byte of some word, or if `counts` is empty or counts more than 2^64 bytes of text; the errors of
/// `on_progress`.
///
/// # Cost
/// Time is about proportional to the number of pairs merged; memory is 4 to 12 bytes a byte of distinct words.
///
/// # Source
/// Sennrich et al. 2016, arXiv:1508.07909, algorithm 1.
pub fn train(counts: impl Borrow<WordCounts>, options: &TrainOptions, on_progress: OnProgress<'_>) -> Result<Trained> {
    options.check()?;
    let reporter = Reporter::new(on_progress);
    let symbols = symbols_of(counts.borrow(), options, Interrupt::new(&|| reporter.tick(|| options.progress(0))))?;
    drop(counts);
    merge(symbols, options, &reporter)
}

/// Returns the words, encoded with the base, as symbols whose order is the tie order: ids, or byte values for the
/// bytes.
pub(super) fn symbols_of(counts: &WordCounts, options: &TrainOptions, interrupt: Interrupt<'_>) -> Result<SymbolArray> {
    if counts.is_empty() {
        return Err(invalid!("there is no text to train on: no words were counted"));
    }
    // No pair count can then overflow 64 bits. Only a damaged file of counts exceeds the limit.
    let mut text_bytes = 0_u128;
    counts.for_each(interrupt, |word, count| text_bytes += word.len() as u128 * u128::from(count))?;
    if text_bytes > u128::from(u64::MAX) {
        return Err(invalid!("the words counted make {text_bytes} bytes of text; at most {} can be", u64::MAX));
    }
    let mut byte_symbols = std::array::from_fn(|byte| byte as u32);
    if options.tie_order == TieOrder::Ids && options.base.is_none() {
        for (byte, id) in byte_order().zip(0..) {
            byte_symbols[usize::from(byte)] = id;
        }
    }
    let mut symbols = SymbolArray::new(counts, &byte_symbols, interrupt)?;
    if let Some(base) = &options.base {
        let symbol = |id: u32| match (options.tie_order, base.id_to_bytes(id)) {
            (TieOrder::ByteValues, Some(&[byte])) => u32::from(byte),
            _ => id,
        };
        symbols.encode_words(base, symbol, interrupt)?;
    }
    Ok(symbols)
}

fn merge(symbols: SymbolArray, options: &TrainOptions, reporter: &Reporter<'_>) -> Result<Trained> {
    let tick = |done| reporter.tick(|| options.progress(done));
    let mut trained = Trained { tokens: options.first_tokens(), merges: Vec::new() };
    let lengths = trained.tokens.iter().map(Vec::len).collect();
    let mut merger = Merger::new(symbols, lengths, options, Interrupt::new(&|| tick(0)))?;
    // A symbol is an id, except that bytes are their values if ties are ordered by them.
    let mut ids: Vec<u32> = (0..256).collect();
    if options.tie_order == TieOrder::ByteValues {
        ids.sort_unstable_by_key(|&id| trained.tokens[id as usize][0]);
    }
    let id = |symbol: u32| ids.get(symbol as usize).map_or(symbol, |&id| id);
    // Only a base can have tokens that no sequence of its merges produces.
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

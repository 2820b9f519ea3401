//! The loop over blocks: classify 64 bytes, let the grammar compute piece starts, write the ends.
//!
//! A block begins where a piece begins, and a piece depends only on the text after its start, so no state passes from one
//! block to the next. The grammar marks the piece starts that the block alone determines; the next block begins at the last
//! of them. A piece that fills a whole block is left to [`Grammar::piece_end`].

use super::backend::{BLOCK, ByteVector, push_ends};
use super::classes::Classes;
use crate::pretokenize::scan::Grammar;
use crate::pretokenize::unicode::{
    CASELESS, LETTER, LOWER, MARK, NUMBER, SYMBOL, UPPER, WHITESPACE, is_han_or_kana, non_ascii_class_at,
};
use bpe_llama_simd::prefetch::prefetch;

/// The prefetch distance in bytes: the encoder's other memory accesses between blocks defeat the hardware prefetcher.
const PREFETCH_DISTANCE: usize = 32 * BLOCK;

/// A grammar that computes all piece starts of a block at once.
pub(crate) trait BitmaskGrammar: Grammar {
    /// Whether the grammar distinguishes case and marks. If not, the mask `upper` has all of [`Self::LETTERS`].
    const CASED: bool = false;

    /// The character classes that a grammar without case treats as letters.
    const LETTERS: u8 = LETTER;

    /// Whether the grammar uses the masks `symbol` and `han_or_kana`.
    const SYMBOLS: bool = false;

    /// Returns the class bits of the character of two to four bytes that starts at byte `at`, and its length in bytes.
    #[inline(always)]
    fn non_ascii_class_at(text: &[u8], at: usize) -> (u8, usize) {
        non_ascii_class_at(text, at)
    }

    /// Truncates the block before bytes whose pieces the masks do not determine.
    #[inline(always)]
    fn restrict(_block: &mut Classes<'_>) {}

    /// Returns a bit for each piece start that these bytes determine.
    ///
    /// No start may be marked after one that is not. Bit 0 may be set or not.
    fn starts(block: &Classes<'_>) -> u64;
}

/// Appends the ends of the pieces of `text` from `start` on, within the capacity of `ends`.
#[inline(always)]
pub(crate) fn fill_ends<V: ByteVector, G: BitmaskGrammar>(text: &[u8], start: usize, ends: &mut Vec<usize>) {
    let mut at = start;
    while at < text.len() && ends.len() < ends.capacity() {
        let rest = &text[at..];
        prefetch(text.as_ptr().wrapping_add(at + PREFETCH_DISTANCE));
        let mut padded = [0; BLOCK];
        let mut classes = if let Some(bytes) = rest.first_chunk() {
            classify::<V, G>(bytes, BLOCK, rest.len() == BLOCK)
        } else {
            padded[..rest.len()].copy_from_slice(rest);
            classify::<V, G>(&padded, rest.len(), true)
        };
        G::restrict(&mut classes);
        // Bit `i`: a piece ends after byte `i`.
        let mut piece_ends = (G::starts(&classes) & classes.text) >> 1;
        if classes.is_end {
            piece_ends |= 1 << (rest.len() - 1);
        }
        if piece_ends == 0 {
            at = G::piece_end(text, at);
            ends.push(at);
            continue;
        }
        push_ends::<V>(piece_ends, at + 1, ends);
        // From the mask: loading the end just stored takes longer. If `ends` is full, no block follows.
        at += BLOCK - piece_ends.leading_zeros() as usize;
    }
}

/// Classifies the first `length` of `bytes`, except an incomplete character at the end.
#[inline(always)]
fn classify<V: ByteVector, G: BitmaskGrammar>(bytes: &[u8; BLOCK], length: usize, is_end: bool) -> Classes<'_> {
    let ascii = V::ascii(bytes);
    let mut classes = Classes {
        number: ascii.number,
        whitespace: ascii.whitespace,
        newline: ascii.newline,
        space: ascii.space,
        apostrophe: ascii.apostrophe,
        slash: ascii.slash,
        text: u64::MAX >> (BLOCK - length),
        is_end,
        bytes,
        upper: 0,
        lower: 0,
        caseless: 0,
        mark: 0,
        continuation: 0,
        non_ascii: ascii.non_ascii,
        symbol: 0,
        han_or_kana: 0,
    };
    if G::SYMBOLS {
        classes.symbol = ascii.graph & !(ascii.upper | ascii.lower | ascii.number);
    }
    if G::CASED {
        classes.upper = ascii.upper;
        classes.lower = ascii.lower;
    } else {
        classes.upper = ascii.upper | ascii.lower;
    }
    if ascii.non_ascii != 0 {
        classify_non_ascii::<V, G>(bytes, ascii.non_ascii, &mut classes);
    }
    classes
}

/// Classifies the characters of two to four bytes.
#[inline(always)]
fn classify_non_ascii<V: ByteVector, G: BitmaskGrammar>(
    bytes: &[u8; BLOCK],
    non_ascii: u64,
    classes: &mut Classes<'_>,
) {
    let leads = V::leads(bytes);
    classes.continuation = non_ascii & !leads.lead;
    let last = BLOCK - 1 - leads.lead.leading_zeros() as usize;
    if last + utf8_length(bytes[last]) > BLOCK {
        classes.text &= !(u64::MAX << last);
    }
    let lead = leads.lead & classes.text;
    let han_or_kana = leads.han_or_kana & lead;
    let caseless = han_or_kana | leads.hangul & lead;
    classes.caseless = caseless | caseless << 1 | caseless << 2;
    if G::SYMBOLS {
        classes.han_or_kana = han_or_kana | han_or_kana << 1 | han_or_kana << 2;
    }
    let (upper, lower) = (leads.upper & lead, leads.lower & lead);
    classes.upper |= upper | upper << 1;
    if G::CASED {
        classes.lower |= lower | lower << 1;
    } else {
        classes.upper |= lower | lower << 1 | classes.caseless;
        classes.caseless = 0;
    }
    let mut others = lead & !(caseless | upper | lower);
    while others != 0 {
        let at = others.trailing_zeros() as usize;
        others &= others - 1;
        let (class, length) = G::non_ascii_class_at(bytes, at);
        let span = ((1 << length) - 1) << at;
        let add = |mask: &mut u64, is_member: bool| *mask |= if is_member { span } else { 0 };
        if G::CASED {
            add(&mut classes.upper, class & UPPER != 0);
            add(&mut classes.lower, class & LOWER != 0);
            add(&mut classes.caseless, class & CASELESS != 0);
            add(&mut classes.mark, class & MARK != 0);
        } else {
            add(&mut classes.upper, class & G::LETTERS != 0);
        }
        if G::SYMBOLS {
            add(&mut classes.symbol, class & SYMBOL != 0);
            add(&mut classes.han_or_kana, is_han_or_kana(bytes, at, length));
        }
        add(&mut classes.number, class & NUMBER != 0);
        add(&mut classes.whitespace, class & WHITESPACE != 0);
    }
}

#[inline(always)]
fn utf8_length(lead: u8) -> usize {
    // A lead byte of 0xC0 or above has one leading one for each byte of the character.
    lead.leading_ones() as usize
}

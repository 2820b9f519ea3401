//! Sixty-four bytes at a time: the classes of all characters of a block as bit masks, and from them, without branches,
//! where pieces start.
//!
//! A block starts where a piece starts, and a piece depends only on what follows its start, so no state passes from one
//! block to the next. A grammar marks the piece starts it can tell from the block alone; the last of them is where the
//! next block starts. A piece that fills a whole block is left to [`Grammar::piece_end`].
//!
//! In every mask bit `i` stands for byte `i`, and each byte of a character carries its character's class, so that
//! `mask << 1` asks for the class of the character before.

use super::deepseek_v3::is_han_or_kana;
use super::scan::{Grammar, contraction_end};
use super::simd::{Backend, push_ends};
use super::unicode::{CASELESS, LETTER, LOWER, MARK, NUMBER, SPACE, SYMBOL, UPPER, wide_class_at};
use bpe_llama_simd::prefetch::prefetch;

pub(super) const BLOCK: usize = 64;

/// How far ahead text is asked for: between the blocks, the encoder reads from all over its memory, and the processor
/// forgets that text is read in order.
const AHEAD: usize = 32 * BLOCK;

/// A grammar that can find the starts of pieces in a block at once.
pub(super) trait BlockGrammar: Grammar {
    /// Whether the case of letters, and marks, matter. If not, `upper` holds all of [`Self::LETTERS`].
    const CASED: bool = false;

    /// The class bits of what a grammar without case takes for letters.
    const LETTERS: u8 = LETTER;

    /// Whether `symbol` and `han_or_kana` matter.
    const SYMBOLS: bool = false;

    /// Returns the class bits of the character of two to four bytes that starts at byte `at`, and its length in bytes.
    #[inline(always)]
    fn wide_class_at(text: &[u8], at: usize) -> (u8, usize) {
        wide_class_at(text, at)
    }

    /// Shortens the block where its bytes leave open how pieces start.
    #[inline(always)]
    fn restrict(_block: &mut Classes<'_>) {}

    /// Returns a bit for each piece start that is certain from these bytes.
    ///
    /// A start that is not marked must not be followed by one that is. Bit 0 may be set or not.
    fn starts(block: &Classes<'_>) -> u64;
}

/// What each byte of a block is part of. Bits behind `text` are 0.
#[derive(Debug, Clone, Copy)]
pub(super) struct Classes<'text> {
    pub(super) upper: u64,
    pub(super) lower: u64,
    pub(super) caseless: u64,
    pub(super) mark: u64,
    pub(super) number: u64,
    /// `[\p{P}\p{S}]`
    pub(super) symbol: u64,
    /// `[一-龥぀-ゟ゠-ヿ]`
    pub(super) han_or_kana: u64,
    /// `\s`, line breaks among it.
    pub(super) space: u64,
    pub(super) newline: u64,
    /// U+0020.
    pub(super) blank: u64,
    pub(super) apostrophe: u64,
    pub(super) slash: u64,
    /// Bytes of characters beyond ASCII.
    pub(super) wide: u64,
    /// Bytes that are not the first of their character.
    pub(super) continuation: u64,
    /// The bytes of whole characters.
    pub(super) text: u64,
    /// Whether the text ends where `text` does.
    pub(super) is_end: bool,
    /// The bytes themselves.
    pub(super) bytes: &'text [u8; BLOCK],
}

/// What a vector unit tells of 64 bytes, each a bit.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ascii {
    /// `[A-Z]`
    pub(super) upper: u64,
    /// `[a-z]`
    pub(super) lower: u64,
    /// `[0-9]`
    pub(super) number: u64,
    /// `[!-~]`
    pub(super) graph: u64,
    /// `[\t-\r ]`
    pub(super) space: u64,
    /// `[\r\n]`
    pub(super) newline: u64,
    pub(super) blank: u64,
    pub(super) apostrophe: u64,
    pub(super) slash: u64,
    /// Bytes of 0x80 and above.
    pub(super) wide: u64,
}

/// As [`Ascii`], for the first bytes of longer characters.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wide {
    /// Bytes of 0xC0 and above.
    pub(super) lead: u64,
    /// Leads of three-byte characters that are Han or Kana and caseless letters for certain.
    pub(super) han_or_kana: u64,
    /// Leads of three-byte characters that are other caseless letters for certain: Hangul.
    pub(super) hangul: u64,
    /// Leads of two-byte characters that are capitals for certain: Cyrillic.
    pub(super) upper: u64,
    /// As `upper`, lower case.
    pub(super) lower: u64,
}

/// Appends the ends of the pieces of `text` from `start` on, within the capacity of `ends`.
#[inline(always)]
pub(super) fn fill_ends<T: Backend, G: BlockGrammar>(text: &[u8], start: usize, ends: &mut Vec<usize>) {
    let mut at = start;
    while at < text.len() && ends.len() < ends.capacity() {
        let rest = &text[at..];
        prefetch(text.as_ptr().wrapping_add(at + AHEAD));
        let mut padded = [0; BLOCK];
        let mut classes = if let Some(bytes) = rest.first_chunk() {
            classify::<T, G>(bytes, BLOCK, rest.len() == BLOCK)
        } else {
            padded[..rest.len()].copy_from_slice(rest);
            classify::<T, G>(&padded, rest.len(), true)
        };
        G::restrict(&mut classes);
        // Bit i: a piece ends behind byte i.
        let mut piece_ends = (G::starts(&classes) & classes.text) >> 1;
        if classes.is_end {
            piece_ends |= 1 << (rest.len() - 1);
        }
        if piece_ends == 0 {
            at = G::piece_end(text, at);
            ends.push(at);
            continue;
        }
        push_ends::<T>(piece_ends, at + 1, ends);
        // Of the mask: reading back what was just written takes longer. If not all ends found room, no block follows.
        at += BLOCK - piece_ends.leading_zeros() as usize;
    }
}

/// Classifies the first `length` of `bytes`, except a character that only starts there.
#[inline(always)]
fn classify<T: Backend, G: BlockGrammar>(bytes: &[u8; BLOCK], length: usize, is_end: bool) -> Classes<'_> {
    let ascii = T::ascii(bytes);
    let mut classes = Classes {
        number: ascii.number,
        space: ascii.space,
        newline: ascii.newline,
        blank: ascii.blank,
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
        wide: ascii.wide,
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
    if ascii.wide != 0 {
        classify_wide::<T, G>(bytes, ascii.wide, &mut classes);
    }
    classes
}

/// Adds the characters of two to four bytes.
#[inline(always)]
fn classify_wide<T: Backend, G: BlockGrammar>(bytes: &[u8; BLOCK], wide: u64, classes: &mut Classes<'_>) {
    let leads = T::wide(bytes);
    classes.continuation = wide & !leads.lead;
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
        let (class, length) = G::wide_class_at(bytes, at);
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
        add(&mut classes.space, class & SPACE != 0);
    }
}

#[inline(always)]
fn utf8_length(lead: u8) -> usize {
    // Leads of 0xC0 and above have as many leading ones as bytes.
    lead.leading_ones() as usize
}

impl Classes<'_> {
    /// Drops the bytes from `at` on.
    #[cold]
    pub(super) fn cut_before(&mut self, at: u32) {
        let kept = (1 << at) - 1;
        for mask in [
            &mut self.upper,
            &mut self.lower,
            &mut self.caseless,
            &mut self.mark,
            &mut self.number,
            &mut self.symbol,
            &mut self.han_or_kana,
            &mut self.space,
            &mut self.newline,
            &mut self.blank,
            &mut self.apostrophe,
            &mut self.slash,
            &mut self.wide,
            &mut self.text,
        ] {
            *mask &= kept;
        }
        self.is_end = false;
    }

    /// `[\p{L}]`, unless the grammar is cased.
    #[inline(always)]
    pub(super) fn letter(&self) -> u64 {
        self.upper | self.lower | self.caseless
    }

    /// `[^\s\p{L}\p{N}]`, marks among it.
    #[inline(always)]
    pub(super) fn other(&self) -> u64 {
        self.text & !(self.letter() | self.number | self.space)
    }

    /// The first bytes of characters.
    #[inline(always)]
    pub(super) fn first(&self) -> u64 {
        self.text & !self.continuation
    }

    /// All bytes of the characters whose first bytes are given.
    #[inline(always)]
    pub(super) fn whole(&self, first: u64) -> u64 {
        first | run_from(first << 1, self.continuation)
    }

    /// The first bytes of the characters of `class` right before the characters that start at `next`.
    #[inline(always)]
    pub(super) fn before(&self, next: u64, class: u64) -> u64 {
        // A character of white space has at most three bytes.
        let last = (next >> 1) & class;
        let middle = (last & self.continuation) >> 1;
        (last | middle | (middle & self.continuation) >> 1) & self.first()
    }

    /// The starts of white space as of `\s*[\r\n]+|\s+(?!\S)|\s+`, where line breaks right behind `swallowing` belong
    /// to the piece before. `next` are the starts of the characters that leave `\s+(?!\S)` all white space but the last.
    #[inline(always)]
    pub(super) fn space_starts(&self, swallowing: u64, next: u64, keeps_tail: bool) -> u64 {
        let inline = self.space & !self.newline;
        let swallowed = run_from(self.newline & swallowing << 1, self.newline);
        let newline_starts = self.newline & !((self.space | swallowing) << 1);
        let after_text = inline & !(self.space << 1);
        let last = self.before(next, inline);
        // Behind a line break the rest of the white space is a piece, unless another line break follows it.
        let rest = inline & self.newline << 1 & !(swallowed << 1);
        let (sum, is_open) = inline.overflowing_add(rest);
        let behind = sum & !inline;
        let mut rest_starts = rest;
        let ends_open = is_open || behind & !self.text != 0;
        if behind & self.newline != 0 || ends_open {
            rest_starts = self.closed_rests(rest, inline, keeps_tail);
        }
        newline_starts | (self.first() & (after_text | last | (inline & swallowed << 1) | rest_starts))
    }

    /// Those of `rests` whose run of white space no line break follows; one that reaches the end of the block counts
    /// where the text ends too, unless `keeps_tail`.
    #[cold]
    fn closed_rests(&self, rests: u64, inline: u64, keeps_tail: bool) -> u64 {
        let mut closed = 0;
        let mut left = rests;
        while left != 0 {
            let rest = left & left.wrapping_neg();
            left ^= rest;
            let (sum, is_open) = inline.overflowing_add(rest);
            let behind = sum & !inline & !(rest - 1);
            let behind = behind & behind.wrapping_neg();
            let is_closed = if is_open || behind & self.text == 0 {
                self.is_end && !keeps_tail
            } else {
                behind & self.newline == 0
            };
            if is_closed {
                closed |= rest;
            }
        }
        closed
    }

    /// The starts of `\p{N}{1,3}`.
    #[inline(always)]
    pub(super) fn number_triples(&self) -> u64 {
        const THIRDS: u64 = 0x9249_2492_4924_9249;
        let number = self.number;
        let mut starts = number & self.first() & !(number << 1);
        let is_long = number & number << 1 & number << 2 & number << 3 != 0;
        if is_long || number & self.continuation != 0 {
            let mut runs = starts;
            while runs != 0 {
                let at = runs.trailing_zeros();
                let run = run_from(runs & runs.wrapping_neg(), number);
                runs &= runs - 1;
                if run & self.continuation == 0 {
                    starts |= run & THIRDS << at;
                } else {
                    starts |= every_third(run & self.first());
                }
            }
        }
        starts
    }
}

/// Returns `starts` with each contraction at one of `apostrophes` a piece: none starts within it, one starts behind it.
#[inline(always)]
pub(super) fn split_contractions<const ANY_CASE: bool>(block: &Classes<'_>, apostrophes: u64, mut starts: u64) -> u64 {
    let mut left = apostrophes;
    while left != 0 {
        let at = left.trailing_zeros() as usize;
        left &= left - 1;
        let end = contraction_end::<ANY_CASE>(block.bytes, at);
        if end > at {
            let behind = 1_u64.checked_shl(end as u32).unwrap_or(0);
            starts = starts & !(behind.wrapping_sub(2 << at)) | behind;
        } else if !block.is_end && block.text >> at >> 2 == 0 {
            // It may be one yet.
            starts &= (2 << at) - 1;
        }
    }
    starts
}

/// The first, fourth, seventh … of the set bits.
#[cold]
fn every_third(mut bits: u64) -> u64 {
    let mut thirds = 0;
    while bits != 0 {
        thirds |= bits & bits.wrapping_neg();
        for _ in 0..3 {
            bits &= bits.wrapping_sub(1);
        }
    }
    thirds
}

/// The runs of `class` from each bit of `seeds` in it on, which must be the first of its run.
#[inline(always)]
pub(super) fn run_from(seeds: u64, class: u64) -> u64 {
    class & !class.wrapping_add(seeds & class)
}

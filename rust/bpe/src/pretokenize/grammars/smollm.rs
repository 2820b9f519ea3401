//! `smollm`: the pattern of `SmolLM2`, whose tokenizer.json isolates every number and applies GPT-2's pattern to the rest.
//!
//! The two steps are `Digits(individual_digits)` and `ByteLevel(use_regex)`. The second splits each part alone, so a number
//! has the effect of an end of text. [`PATTERN`] is one regex with the same pieces.
//!
//! The numbers of `smollm` are those of Unicode 16, as in llama.cpp and Oniguruma. `Digits` of `tokenizers` also isolates
//! the numbers of Unicode 17: `smollm_digits`, [`DIGITS_PATTERN`].

use crate::pretokenize::bitmask::{BitmaskGrammar, Classes, split_contractions};
use crate::pretokenize::scan::{Grammar, contraction_end, is_other, letters_end, whitespace};
use crate::pretokenize::unicode::{LETTER, NUMBER, WHITESPACE, class_at, non_ascii_class_at};

/// One regex with the pieces of both steps: white space before a number stays whole.
pub(crate) const PATTERN: &str = r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+";

/// [`PATTERN`] with the thirteen numbers that are new in Unicode 17.
pub(crate) const DIGITS_PATTERN: &str = concat!(
    r"[\p{N}",
    "\u{11de0}-\u{11de9}\u{16ff4}-\u{16ff6}",
    r"]|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}",
    "\u{11de0}-\u{11de9}\u{16ff4}-\u{16ff6}",
    r"]+|\s+(?![^\s\p{N}",
    "\u{11de0}-\u{11de9}\u{16ff4}-\u{16ff6}",
    r"])|\s+"
);

/// The grammar of [`PATTERN`], or of [`DIGITS_PATTERN`] if `DIGITS`.
pub(crate) struct SmolLm<const DIGITS: bool>;

impl<const DIGITS: bool> SmolLm<DIGITS> {
    #[inline(always)]
    fn class_at(text: &[u8], at: usize) -> (u8, usize) {
        if text[at] < 0x80 { class_at(text, at) } else { Self::non_ascii_class_at(text, at) }
    }

    /// `[^\s\p{L}\p{N}]*`
    #[inline(always)]
    fn others_end(text: &[u8], mut at: usize) -> usize {
        while at < text.len() {
            let (class, length) = Self::class_at(text, at);
            if !is_other(class) {
                break;
            }
            at += length;
        }
        at
    }
}

/// Returns whether the four bytes at `at` are a number that is new in Unicode 17: U+11DE0 to U+11DE9, U+16FF4 to U+16FF6.
#[inline(always)]
fn is_new_number(text: &[u8], at: usize) -> bool {
    matches!(text[at..], [0xf0, 0x91, 0xb7, 0xa0..=0xa9, ..] | [0xf0, 0x96, 0xbf, 0xb4..=0xb6, ..])
}

impl<const DIGITS: bool> Grammar for SmolLm<DIGITS> {
    #[inline]
    fn piece_end(text: &[u8], at: usize) -> usize {
        let (first, length) = Self::class_at(text, at);
        if first & LETTER != 0 {
            return letters_end(text, at + length);
        }
        if first & NUMBER != 0 {
            return at + length;
        }
        if text[at] == b'\'' {
            let end = contraction_end::<false>(text, at);
            if end > at {
                return end;
            }
        }
        let body = at + usize::from(text[at] == b' ');
        if body < text.len() {
            let (class, length) = Self::class_at(text, body);
            if class & LETTER != 0 {
                return letters_end(text, body + length);
            }
            if is_other(class) {
                return Self::others_end(text, body + length);
            }
        }
        debug_assert!(first & WHITESPACE != 0);
        let run = whitespace(text, at);
        let is_last = run.end == text.len() || Self::class_at(text, run.end).0 & NUMBER != 0;
        run.piece_end(at, is_last)
    }
}

impl<const DIGITS: bool> BitmaskGrammar for SmolLm<DIGITS> {
    #[inline(always)]
    fn non_ascii_class_at(text: &[u8], at: usize) -> (u8, usize) {
        // The tables have no class for characters that are newer than Unicode 16.
        match non_ascii_class_at(text, at) {
            (0, 4) if DIGITS && is_new_number(text, at) => (NUMBER, 4),
            known => known,
        }
    }

    #[inline(always)]
    fn starts(block: &Classes<'_>) -> u64 {
        let (letter, other, first) = (block.letter(), block.other(), block.first());
        let other_starts = first & other & !((other | block.space) << 1);
        let mut starts = first & letter & !((letter | block.space) << 1);
        starts |= first & block.number;
        starts |= other_starts | (first & block.whitespace & !(block.whitespace << 1));
        starts |= block.before(first & !(block.whitespace | block.number), block.whitespace);
        split_contractions::<false>(block, block.apostrophe & other_starts & letter >> 1, starts)
    }
}

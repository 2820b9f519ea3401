//! The character classes of a block as bit masks, and the boundaries that several grammars share.
//!
//! Bit `i` of a mask is byte `i` of the block. Every byte of a character has its character's class, so `mask << 1` gives
//! the class of the preceding character.

use super::backend::BLOCK;
use crate::pretokenize::scan::contraction_end;

/// The bit masks of a block. Bits after `text` are 0.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Classes<'text> {
    pub(crate) upper: u64,
    pub(crate) lower: u64,
    pub(crate) caseless: u64,
    pub(crate) mark: u64,
    pub(crate) number: u64,
    /// `[\p{P}\p{S}]`
    pub(crate) symbol: u64,
    /// `[一-龥぀-ゟ゠-ヿ]`
    pub(crate) han_or_kana: u64,
    /// `\s`, including line breaks.
    pub(crate) whitespace: u64,
    pub(crate) newline: u64,
    /// U+0020.
    pub(crate) space: u64,
    pub(crate) apostrophe: u64,
    pub(crate) slash: u64,
    /// Bytes of non-ASCII characters.
    pub(crate) non_ascii: u64,
    /// Continuation bytes.
    pub(crate) continuation: u64,
    /// The bytes of complete characters.
    pub(crate) text: u64,
    /// Whether the text ends with this block.
    pub(crate) is_end: bool,
    /// The bytes of the block.
    pub(crate) bytes: &'text [u8; BLOCK],
}

impl Classes<'_> {
    /// Removes the bytes from `at` on.
    #[cold]
    pub(crate) fn truncate(&mut self, at: u32) {
        let kept = (1 << at) - 1;
        for mask in [
            &mut self.upper,
            &mut self.lower,
            &mut self.caseless,
            &mut self.mark,
            &mut self.number,
            &mut self.symbol,
            &mut self.han_or_kana,
            &mut self.whitespace,
            &mut self.newline,
            &mut self.space,
            &mut self.apostrophe,
            &mut self.slash,
            &mut self.non_ascii,
            &mut self.text,
        ] {
            *mask &= kept;
        }
        self.is_end = false;
    }

    /// `\p{L}`, or the grammar's own letters if it has no case.
    #[inline(always)]
    pub(crate) fn letter(&self) -> u64 {
        self.upper | self.lower | self.caseless
    }

    /// `[^\s\p{L}\p{N}]`, including marks.
    #[inline(always)]
    pub(crate) fn other(&self) -> u64 {
        self.text & !(self.letter() | self.number | self.whitespace)
    }

    /// The first bytes of characters.
    #[inline(always)]
    pub(crate) fn first(&self) -> u64 {
        self.text & !self.continuation
    }

    /// All bytes of the characters with these first bytes.
    #[inline(always)]
    pub(crate) fn whole(&self, first: u64) -> u64 {
        first | run_from(first << 1, self.continuation)
    }

    /// The first bytes of the characters of `class` immediately before the characters that start at `next`.
    #[inline(always)]
    pub(crate) fn before(&self, next: u64, class: u64) -> u64 {
        // A white space character has at most three bytes.
        let last = (next >> 1) & class;
        let middle = (last & self.continuation) >> 1;
        (last | middle | (middle & self.continuation) >> 1) & self.first()
    }

    /// The piece starts of `\s*[\r\n]+|\s+(?!\S)|\s+`. Line breaks immediately after `absorbing` belong to the piece
    /// before. `next` are the starts of the characters that are `\S` in `\s+(?!\S)`.
    #[inline(always)]
    pub(crate) fn whitespace_starts(&self, absorbing: u64, next: u64, keeps_tail: bool) -> u64 {
        let inline = self.whitespace & !self.newline;
        let absorbed = run_from(self.newline & absorbing << 1, self.newline);
        let newline_starts = self.newline & !((self.whitespace | absorbing) << 1);
        let after_text = inline & !(self.whitespace << 1);
        let last = self.before(next, inline);
        // White space after a line break is a piece of its own, unless another line break follows it.
        let rest = inline & self.newline << 1 & !(absorbed << 1);
        let (sum, is_open) = inline.overflowing_add(rest);
        let after_run = sum & !inline;
        let mut rest_starts = rest;
        let ends_open = is_open || after_run & !self.text != 0;
        if after_run & self.newline != 0 || ends_open {
            rest_starts = self.closed_rests(rest, inline, keeps_tail);
        }
        newline_starts | (self.first() & (after_text | last | (inline & absorbed << 1) | rest_starts))
    }

    /// Selects the `rests` whose run of white space is not followed by a line break. A run that reaches the end of the block
    /// is selected if the text ends there, unless `keeps_tail`.
    #[cold]
    fn closed_rests(&self, rests: u64, inline: u64, keeps_tail: bool) -> u64 {
        let mut closed = 0;
        let mut remaining = rests;
        while remaining != 0 {
            let rest = remaining & remaining.wrapping_neg();
            remaining ^= rest;
            let (sum, is_open) = inline.overflowing_add(rest);
            let after_run = sum & !inline & !(rest - 1);
            let after_run = after_run & after_run.wrapping_neg();
            let is_closed = if is_open || after_run & self.text == 0 {
                self.is_end && !keeps_tail
            } else {
                after_run & self.newline == 0
            };
            if is_closed {
                closed |= rest;
            }
        }
        closed
    }

    /// The piece starts of `\p{N}{1,3}`.
    #[inline(always)]
    pub(crate) fn number_triples(&self) -> u64 {
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

/// Makes each contraction at one of `apostrophes` a piece: removes starts inside it and adds one after it.
#[inline(always)]
pub(crate) fn split_contractions<const ANY_CASE: bool>(block: &Classes<'_>, apostrophes: u64, mut starts: u64) -> u64 {
    let mut remaining = apostrophes;
    while remaining != 0 {
        let at = remaining.trailing_zeros() as usize;
        remaining &= remaining - 1;
        let end = contraction_end::<ANY_CASE>(block.bytes, at);
        if end > at {
            let after = 1_u64.checked_shl(end as u32).unwrap_or(0);
            starts = starts & !(after.wrapping_sub(2 << at)) | after;
        } else if !block.is_end && block.text >> at >> 2 == 0 {
            // The next block may complete a contraction.
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

/// The runs of `class` that begin at a bit of `seeds`, from that bit on. A run has at most one seed, its first bit.
#[inline(always)]
pub(crate) fn run_from(seeds: u64, class: u64) -> u64 {
    class & !class.wrapping_add(seeds & class)
}

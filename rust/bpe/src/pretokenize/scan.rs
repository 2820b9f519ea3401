//! The grammar trait, and the scanners that grammars share.
//!
//! All functions take the bytes of UTF-8 text and offsets at character boundaries.

use super::unicode::{LETTER, NEWLINE, NUMBER, WHITESPACE, class_at, run_end};

/// A pattern as a function from the start of a piece to its end, equal to the pattern's regex.
///
/// One function suffices because a piece depends on the text after its start alone.
pub(super) trait Grammar {
    /// Returns the end of the piece that starts at byte `at` of `text`; `at < text.len()`.
    fn piece_end(text: &[u8], at: usize) -> usize;
}

/// `\p{L}*`
#[inline(always)]
pub(super) fn letters_end(text: &[u8], mut at: usize) -> usize {
    // Runs of 16 ASCII letters first.
    while let Some(some) = text[at..].first_chunk::<16>()
        && some.iter().fold(true, |all, byte| all & byte.is_ascii_alphabetic())
    {
        at += some.len();
    }
    run_end(text, at, |class| class & LETTER != 0)
}

/// `[^\s\p{L}\p{N}]*`
#[inline(always)]
pub(super) fn others_end(text: &[u8], at: usize) -> usize {
    run_end(text, at, is_other)
}

/// `[^\s\p{L}\p{N}]`
#[inline(always)]
pub(super) fn is_other(class: u8) -> bool {
    class & (WHITESPACE | LETTER | NUMBER) == 0
}

/// `[\r\n]*`
#[inline(always)]
pub(super) fn newlines_end(text: &[u8], mut at: usize) -> usize {
    while matches!(text.get(at), Some(b'\r' | b'\n')) {
        at += 1;
    }
    at
}

/// `\p{N}{0,most}`
#[inline(always)]
pub(super) fn numbers_end(text: &[u8], mut at: usize, most: usize) -> usize {
    for _ in 0..most {
        match text.get(at).map(|_| class_at(text, at)) {
            Some((class, length)) if class & NUMBER != 0 => at += length,
            _ => break,
        }
    }
    at
}

/// `(?:'s|'t|'re|'ve|'m|'ll|'d)?`, as written or, with `ANY_CASE`, as `(?i:…)`.
///
/// If case is ignored, `s` also matches U+017F, the long s.
#[inline(always)]
pub(super) fn contraction_end<const ANY_CASE: bool>(text: &[u8], at: usize) -> usize {
    if text.get(at) != Some(&b'\'') {
        return at;
    }
    let fold = |offset: usize| text.get(at + offset).map(|byte| if ANY_CASE { byte | 0x20 } else { *byte });
    match (fold(1), fold(2)) {
        (Some(b's' | b't' | b'm' | b'd'), _) => at + 2,
        (Some(b'l'), Some(b'l')) | (Some(b'r' | b'v'), Some(b'e')) => at + 3,
        _ if ANY_CASE && text[at + 1..].starts_with("ſ".as_bytes()) => at + 3,
        _ => at,
    }
}

/// A run of white space: its end, the start of its last character, and the end of its last line break.
pub(super) struct Whitespace {
    pub(super) end: usize,
    pub(super) last_start: usize,
    pub(super) after_newline: Option<usize>,
}

/// Scans `\s*` from `at` on.
#[inline(always)]
pub(super) fn whitespace(text: &[u8], at: usize) -> Whitespace {
    let mut run = Whitespace { end: at, last_start: at, after_newline: None };
    while run.end < text.len() {
        let (class, length) = class_at(text, run.end);
        if class & WHITESPACE == 0 {
            break;
        }
        run.last_start = run.end;
        run.end += length;
        if class & NEWLINE != 0 {
            run.after_newline = Some(run.end);
        }
    }
    run
}

impl Whitespace {
    /// `\s+(?!\S)|\s+` for a run that starts at `at`; `is_last` if no `\S` follows.
    #[inline(always)]
    pub(super) fn piece_end(&self, at: usize, is_last: bool) -> usize {
        if is_last || self.last_start == at { self.end } else { self.last_start }
    }
}

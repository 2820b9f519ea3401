//! Regexes of a `tokenizer.json`, in Oniguruma: the engine of Hugging Face `tokenizers`.

use std::ffi::c_ulong;
use std::fmt;
use std::sync::Arc;

use onig::{MatchParam, Regex, RegexOptions, Region, SearchOptions, Syntax};

use super::matches::fill_ends;
use crate::Result;
use crate::error::shortened;
use crate::interrupt::Interrupt;

/// The most backtracking steps of one match: Oniguruma's own limit.
const BACKTRACK_LIMIT: u32 = 10_000_000;

/// The most backtracking steps of one search, besides [`STEPS_PER_BYTE`] of the text: a search that tries a long match from
/// each byte takes quadratic time.
const SEARCH_LIMIT: usize = 50_000_000;
const STEPS_PER_BYTE: usize = 16;

/// The most bytes of a pattern: compiling takes quadratic time.
const LONGEST: usize = 1 << 14;

/// A regex in Oniguruma's syntax, which differs from that of Rust's regexes.
///
/// `$` and `^` match at the ends of lines, `{n}+` is a repeated repetition instead of possessive, `(?m)` means `(?s)`, and
/// `\w` excludes the join controls.
#[derive(Clone)]
pub(crate) struct Oniguruma {
    regex: Arc<Regex>,
    pattern: Arc<str>,
}

/// The position of a search through a text.
#[derive(Default)]
pub(crate) struct Cursor {
    from: usize,
    last_end: Option<usize>,
    region: Region,
}

impl Cursor {
    /// Returns the position after a match that ended at `from`.
    pub(crate) fn at(from: usize) -> Self {
        Self { from, last_end: (from > 0).then_some(from), region: Region::new() }
    }
}

impl Oniguruma {
    /// Compiles a regex.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if it is not valid or too long.
    pub(crate) fn new(pattern: &str) -> Result<Self> {
        if pattern.len() > LONGEST {
            return Err(invalid!("a regex has {} bytes; expected at most {LONGEST}", pattern.len()));
        }
        let regex = Regex::with_options(pattern, RegexOptions::REGEX_OPTION_NONE, Syntax::default());
        let regex = regex.map_err(|error| {
            let why = error.description();
            invalid!("pattern {:?} is not a regex that Oniguruma can read: {why}", shortened(pattern))
        })?;
        Ok(Self { regex: Arc::new(regex), pattern: pattern.into() })
    }

    pub(crate) fn pattern(&self) -> &str {
        &self.pattern
    }

    #[expect(clippy::unused_self, reason = "a cursor belongs to a regex")]
    pub(crate) fn cursor(&self) -> Cursor {
        Cursor::default()
    }

    /// Returns the next match. An empty match immediately after a match is skipped.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if a match or the search backtracks beyond its limit.
    pub(crate) fn next_match(&self, text: &str, cursor: &mut Cursor) -> Result<Option<(usize, usize)>> {
        while cursor.from <= text.len() {
            cursor.region.clear();
            let steps = SEARCH_LIMIT + STEPS_PER_BYTE * text.len();
            let (none, region) = (SearchOptions::SEARCH_OPTION_NONE, Some(&mut cursor.region));
            let found = self.regex.search_with_param(text, cursor.from, text.len(), none, region, limits(steps));
            let found = found.map_err(|error| {
                invalid!(
                    "pattern {:?} gave up on the text behind byte {}: {} (at most {BACKTRACK_LIMIT} steps a match, {steps} a \
                     search)",
                    shortened(&self.pattern),
                    cursor.from,
                    error.description()
                )
            })?;
            let Some((start, end)) = found.and_then(|_| cursor.region.pos(0)) else {
                cursor.from = text.len() + 1;
                return Ok(None);
            };
            if start == end && cursor.last_end == Some(end) {
                cursor.from += text[cursor.from..].chars().next().map_or(1, char::len_utf8);
                continue;
            }
            (cursor.from, cursor.last_end) = (end, Some(end));
            return Ok(Some((start, end)));
        }
        Ok(None)
    }

    /// Appends the ends of the next pieces, within the capacity of `ends`.
    pub(crate) fn fill_ends(
        &self,
        text: &str,
        start: usize,
        ends: &mut Vec<usize>,
        interrupt: Interrupt<'_>,
    ) -> Result<()> {
        let mut cursor = Cursor::at(start);
        fill_ends(text, start, ends, interrupt, || {
            Ok(self.next_match(text, &mut cursor)?.unwrap_or((text.len(), text.len())))
        })
    }
}

/// Returns the limits of one search.
fn limits(steps: usize) -> MatchParam {
    let mut param = MatchParam::default();
    param.set_retry_limit_in_match(BACKTRACK_LIMIT);
    let steps = c_ulong::try_from(steps).unwrap_or(c_ulong::MAX);
    // SAFETY: the pointer is valid as long as `param`, and the function sets a field behind it.
    unsafe { onig_sys::onig_set_retry_limit_in_search_of_match_param(param.as_raw(), steps) };
    param
}

impl fmt::Debug for Oniguruma {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Oniguruma").field(&self.pattern).finish()
    }
}

//! Regexes of a `tokenizer.json`, in Oniguruma: the engine of Hugging Face `tokenizers`.

use std::ffi::{c_int, c_ulong, c_void};
use std::fmt;
use std::sync::{Arc, OnceLock};

use onig::{MatchParam, Regex, RegexOptions, Region, SearchOptions, Syntax};
use onig_sys::{ONIG_ABORT, ONIGERR_RETRY_LIMIT_IN_SEARCH_OVER, OnigCalloutArgs};

use super::lookaheads::Lookaheads;
use super::matches::fill_ends;
use super::patience::{LONGEST, Patience, Stopped};
use crate::error::shortened;
use crate::{Error, Result};

/// The most backtracking steps of one match: Oniguruma's own limit.
const BACKTRACK_LIMIT: u32 = 10_000_000;

/// The most backtracking steps of one search, besides [`STEPS_PER_BYTE`] of the text: a search that tries a long match from
/// each byte takes quadratic time.
const SEARCH_LIMIT: usize = 50_000_000;
const STEPS_PER_BYTE: usize = 16;

/// The most backtracking steps of a search that cannot be interrupted, times the bytes ahead of it: a second at most, as each
/// step may read all of them.
const UNWATCHED_LIMIT: usize = 1 << 28;

/// Positions and lookaheads between two checks of a search that is watched.
const CALLS_PER_CHECK: usize = 64;

/// The most bytes of which a regex with a repeated lookahead is searched without interrupt checks: it may take quadratic
/// time without a backtracking step.
const SHORT: usize = 1 << 10;

/// The most entries of Oniguruma's stack for each byte of the text and besides, of 48 bytes each: a lookahead leaves entries
/// until the match ends.
const STACK_PER_BYTE: usize = 16;
const STACK: usize = 1 << 20;

/// Calls [`Watch::call`] where it stands in a regex.
pub(super) const CALLOUT: &str = "(?{watch})";

/// What a callout returns to let the search go on.
const GO_ON: c_int = 0;

const NO_OPTIONS: SearchOptions = SearchOptions::SEARCH_OPTION_NONE;

/// The most bytes of a pattern: compiling takes quadratic time.
const LONGEST_PATTERN: usize = 1 << 14;

/// A regex in Oniguruma's syntax, which differs from that of Rust's regexes.
///
/// `$` and `^` match at the ends of lines, `{n}+` is a repeated repetition instead of possessive, `(?m)` means `(?s)`, and
/// `\w` excludes the join controls.
#[derive(Clone)]
pub(crate) struct Oniguruma {
    regex: Arc<Regex>,
    /// The regex that calls [`Watch::call`] where a match may begin and in lookaheads, once a search needs it; `None` if
    /// Oniguruma cannot read it, as with options that must come first: `(?L)`.
    watched: Arc<OnceLock<Option<Regex>>>,
    repeats_lookahead: bool,
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
        Self { from, last_end: (from > 0).then_some(from), ..Self::default() }
    }
}

impl Oniguruma {
    /// Compiles a regex.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if it is not valid or too long.
    pub(crate) fn new(pattern: &str) -> Result<Self> {
        if pattern.len() > LONGEST_PATTERN {
            return Err(invalid!("a regex has {} bytes; expected at most {LONGEST_PATTERN}", pattern.len()));
        }
        let regex = compiled(pattern).map_err(|error| {
            let why = error.description();
            invalid!("pattern {:?} is not a regex that Oniguruma can read: {why}", shortened(pattern))
        })?;
        let repeats_lookahead = Lookaheads::of(pattern).repeated;
        Ok(Self { regex: Arc::new(regex), watched: Arc::default(), repeats_lookahead, pattern: pattern.into() })
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
    /// [`crate::Error::InvalidArgument`] if a match backtracks, or the searches in the text last, beyond the limit; the error
    /// of the interrupt check.
    pub(crate) fn next_match(
        &self,
        text: &str,
        cursor: &mut Cursor,
        patience: &Patience<'_>,
    ) -> Result<Option<(usize, usize)>> {
        while cursor.from <= text.len() {
            patience.before_match().map_err(|stopped| self.stopped(cursor.from, stopped))?;
            let Some((start, end)) = self.search(text, cursor, patience)? else {
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

    /// Returns the first match that begins at the cursor or after it.
    fn search(&self, text: &str, cursor: &mut Cursor, patience: &Patience<'_>) -> Result<Option<(usize, usize)>> {
        cursor.region.clear();
        let bytes = text.len() - cursor.from;
        if !self.repeats_lookahead || bytes <= SHORT {
            let limits = limits(UNWATCHED_LIMIT / bytes.max(1) + 1, bytes);
            let region = Some(&mut cursor.region);
            match self.regex.search_with_param(text, cursor.from, text.len(), NO_OPTIONS, region, limits) {
                Ok(found) => return Ok(found.and_then(|_| cursor.region.pos(0))),
                Err(error) if error.code() == ONIGERR_RETRY_LIMIT_IN_SEARCH_OVER => (),
                Err(error) => return Err(self.gave_up(cursor.from, error.description())),
            }
        }
        self.search_watched(text, cursor, patience)
    }

    /// Searches as [`Self::search`] does, slower but interruptible.
    fn search_watched(
        &self,
        text: &str,
        cursor: &mut Cursor,
        patience: &Patience<'_>,
    ) -> Result<Option<(usize, usize)>> {
        let watched = self.watched.get_or_init(|| {
            let group = |pattern: &str, end: &str| compiled(&format!("{CALLOUT}(?:{pattern}{end}")).ok();
            // The pattern may end in a comment, which a line break ends.
            let watched = |pattern: &str| group(pattern, ")").or_else(|| group(pattern, "\n)"));
            watched(&Lookaheads::of(&self.pattern).watched).or_else(|| watched(&self.pattern))
        });
        let Some(watched) = watched else {
            return Err(self.gave_up(cursor.from, "too many steps for a regex that cannot be interrupted"));
        };
        let mut watch = Watch { patience, calls: 0, stopped: None };
        let limits = limits(SEARCH_LIMIT + STEPS_PER_BYTE * text.len(), text.len() - cursor.from);
        // SAFETY: the pointer is valid as long as `limits`; the callout is called only during the search below, while `watch`
        // lives and nothing else uses it.
        unsafe {
            onig_sys::onig_set_progress_callout_of_match_param(limits.as_raw(), Some(Watch::call));
            onig_sys::onig_set_callout_user_data_of_match_param(limits.as_raw(), (&raw mut watch).cast());
        }
        let region = Some(&mut cursor.region);
        let found = watched.search_with_param(text, cursor.from, text.len(), NO_OPTIONS, region, limits);
        match found {
            Ok(found) => Ok(found.and_then(|_| cursor.region.pos(0))),
            Err(error) => Err(match watch.stopped {
                Some(stopped) => self.stopped(cursor.from, stopped),
                None => self.gave_up(cursor.from, error.description()),
            }),
        }
    }

    fn stopped(&self, position: usize, stopped: Stopped) -> Error {
        stopped.0.unwrap_or_else(|| self.gave_up(position, "it takes too long"))
    }

    fn gave_up(&self, position: usize, why: &str) -> Error {
        let limits = format!("{BACKTRACK_LIMIT} steps a match, {SEARCH_LIMIT} and {STEPS_PER_BYTE} a byte a search");
        let pattern = shortened(&self.pattern);
        invalid!(
            "pattern {pattern:?} gave up on the text behind byte {position}: {why} (at most {limits}, {LONGEST:?})"
        )
    }

    /// Appends the ends of the next pieces, within the capacity of `ends`.
    pub(crate) fn fill_ends(
        &self,
        text: &str,
        start: usize,
        ends: &mut Vec<usize>,
        patience: &Patience<'_>,
    ) -> Result<()> {
        let mut cursor = Cursor::at(start);
        fill_ends(text, start, ends, || {
            Ok(self.next_match(text, &mut cursor, patience)?.unwrap_or((text.len(), text.len())))
        })
    }
}

/// What ends a search that takes long.
struct Watch<'a> {
    patience: &'a Patience<'a>,
    calls: usize,
    stopped: Option<Stopped>,
}

impl Watch<'_> {
    /// Called by Oniguruma where a match or a lookahead may begin.
    extern "C" fn call(_: *mut OnigCalloutArgs, watch: *mut c_void) -> c_int {
        // SAFETY: `search_watched` passes a `Watch`.
        let watch = unsafe { &mut *watch.cast::<Watch<'_>>() };
        watch.calls += 1;
        if watch.calls % CALLS_PER_CHECK != 1 {
            return GO_ON;
        }
        watch.stopped = watch.patience.check().err();
        if watch.stopped.is_some() { ONIG_ABORT } else { GO_ON }
    }
}

fn compiled(pattern: &str) -> std::result::Result<Regex, onig::Error> {
    Regex::with_options(pattern, RegexOptions::REGEX_OPTION_NONE, Syntax::default())
}

/// Returns the limits of one search in a number of bytes.
fn limits(steps: usize, bytes: usize) -> MatchParam {
    let mut param = MatchParam::default();
    param.set_retry_limit_in_match(BACKTRACK_LIMIT);
    param.set_match_stack_limit(u32::try_from(STACK + STACK_PER_BYTE * bytes).unwrap_or(u32::MAX));
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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;
    use crate::interrupt::Interrupt;

    const PATTERNS: [&str; 19] = [
        "a+b",
        r"\bab?",
        r"(?<=a)b|$",
        r"^b*",
        r"\Aa",
        r"(?=b)",
        r"(?:ab)+\K.",
        r"a.*b",
        r"(é|a)\1",
        "",
        r"b\z",
        r"\s+(?!\S)|\s+",
        r"\Gb|a",
        r"a|b\g<0>",
        r"(?:a(?=a*b|b))+",
        r"(?:a(?!b(?=a)))+|[](?=\]]b",
        r"(?#(?=)(?:a(?=\(?=|b))+",
        "(?x)(?:a(?=b))+ # [(?=\n",
        "(?x)(?:a(?=b))+ # ab",
    ];

    proptest! {
        #[test]
        fn a_watched_search_finds_the_same(pattern in prop::sample::select(&PATTERNS[..]), text in "[abé \n]{0,12}") {
            let regex = Oniguruma::new(pattern).expect("a regex");
            let patience = Patience::new(&text, Interrupt::NEVER);
            for (from, _) in text.char_indices().chain([(text.len(), ' ')]) {
                let mut cursor = Cursor::at(from);
                let found = regex.search(&text, &mut cursor, &patience).expect("a short text");
                let watched = regex.search_watched(&text, &mut cursor, &patience);
                prop_assert_eq!(watched.expect("a short text"), found, "from {}", from);
            }
        }
    }

    fn next_match(pattern: &str, text: &str, interrupt: Interrupt<'_>) -> Result<Option<(usize, usize)>> {
        let regex = Oniguruma::new(pattern).expect("a regex");
        regex.next_match(text, &mut Cursor::default(), &Patience::new(text, interrupt))
    }

    /// Returns the error of a search after its time is over.
    fn late(pattern: &str, text: &str) -> String {
        let regex = Oniguruma::new(pattern).expect("a regex");
        let patience = Patience::new(text, Interrupt::NEVER);
        patience.spend();
        regex.search_watched(text, &mut Cursor::default(), &patience).expect_err("the time is over").to_string()
    }

    #[test]
    fn one_long_match_can_be_stopped() {
        let stop = || Err(Error::Interrupted);
        // Lookaheads that fail, that fail within a match, and that never fail.
        for (pattern, end) in [("(?:a(?=a*c|a))+", ""), ("(?:a(?!a*c))+", ""), ("(?:a(?=.*c))+", "c")] {
            let text = "a".repeat(200_000) + end;
            let start = Instant::now();
            let stopped = next_match(pattern, &text, Interrupt::new(&stop));
            assert!(matches!(stopped, Err(Error::Interrupted)), "{pattern}: {stopped:?}");
            let message = late(pattern, &text);
            assert!(message.contains("it takes too long") && message.contains(pattern), "{message}");
            assert!(start.elapsed() < LONGEST, "{pattern}");
        }
    }

    #[test]
    fn a_match_that_needs_much_memory_is_an_error() {
        let found = next_match("(?:a(?=a*))+", &"a".repeat(20_000), Interrupt::NEVER);
        assert!(found.expect_err("200 million entries").to_string().contains("stack"));
    }

    #[test]
    fn a_long_search_can_be_stopped() {
        let text = "a".repeat(200_000) + "cb";
        let stop = || Err(Error::Interrupted);
        let stopped = next_match("a+b", &text, Interrupt::new(&stop));
        assert!(matches!(stopped, Err(Error::Interrupted)), "{stopped:?}");
        assert!(late("a+b", &text).contains("it takes too long"));
        let whole = next_match("(?L)a+b", &text, Interrupt::NEVER);
        assert!(whole.expect_err("quadratic").to_string().contains("cannot be interrupted"));
    }
}

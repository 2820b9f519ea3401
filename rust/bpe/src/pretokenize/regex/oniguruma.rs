//! Regexes of a `tokenizer.json`, in Oniguruma: the engine of Hugging Face `tokenizers`.

use std::ffi::{c_int, c_ulong, c_void};
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use onig::{MatchParam, Regex, RegexOptions, Region, SearchOptions, Syntax};
use onig_sys::{ONIG_ABORT, ONIGERR_RETRY_LIMIT_IN_SEARCH_OVER, OnigCalloutArgs};

use super::matches::fill_ends;
use crate::error::shortened;
use crate::interrupt::Interrupt;
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

/// The longest time of the interruptible searches in one text, besides [`PATIENCE_PER_BYTE`]. `a+b` on many letters `a` takes
/// quadratic time without a backtracking step.
const PATIENCE: Duration = Duration::from_secs(8);
const PATIENCE_PER_BYTE: Duration = Duration::from_micros(1);

/// Positions between two interrupt checks of such a search.
const CALLS_PER_CHECK: usize = 64;

/// What a callout returns to let the search go on.
const GO_ON: c_int = 0;

const NO_OPTIONS: SearchOptions = SearchOptions::SEARCH_OPTION_NONE;

/// The most bytes of a pattern: compiling takes quadratic time.
const LONGEST: usize = 1 << 14;

/// A regex in Oniguruma's syntax, which differs from that of Rust's regexes.
///
/// `$` and `^` match at the ends of lines, `{n}+` is a repeated repetition instead of possessive, `(?m)` means `(?s)`, and
/// `\w` excludes the join controls.
#[derive(Clone)]
pub(crate) struct Oniguruma {
    regex: Arc<Regex>,
    /// The regex that calls [`Watch::call`] where a match may begin, once a search needs it; `None` if Oniguruma cannot
    /// read it, as with options that must come first: `(?L)`.
    watched: Arc<OnceLock<Option<Regex>>>,
    pattern: Arc<str>,
}

/// The position of a search through a text.
#[derive(Default)]
pub(crate) struct Cursor {
    from: usize,
    last_end: Option<usize>,
    region: Region,
    /// The time that interruptible searches have taken.
    spent: Duration,
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
        if pattern.len() > LONGEST {
            return Err(invalid!("a regex has {} bytes; expected at most {LONGEST}", pattern.len()));
        }
        let regex = compiled(pattern).map_err(|error| {
            let why = error.description();
            invalid!("pattern {:?} is not a regex that Oniguruma can read: {why}", shortened(pattern))
        })?;
        Ok(Self { regex: Arc::new(regex), watched: Arc::default(), pattern: pattern.into() })
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
    /// [`crate::Error::InvalidArgument`] if a match backtracks, or the search lasts, beyond its limit; the error of the
    /// interrupt check.
    pub(crate) fn next_match(
        &self,
        text: &str,
        cursor: &mut Cursor,
        interrupt: Interrupt<'_>,
    ) -> Result<Option<(usize, usize)>> {
        while cursor.from <= text.len() {
            let Some((start, end)) = self.search(text, cursor, interrupt)? else {
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
    fn search(&self, text: &str, cursor: &mut Cursor, interrupt: Interrupt<'_>) -> Result<Option<(usize, usize)>> {
        cursor.region.clear();
        let steps = UNWATCHED_LIMIT / (text.len() - cursor.from).max(1);
        let region = Some(&mut cursor.region);
        let found = self.regex.search_with_param(text, cursor.from, text.len(), NO_OPTIONS, region, limits(steps + 1));
        match found {
            Ok(found) => Ok(found.and_then(|_| cursor.region.pos(0))),
            Err(error) if error.code() == ONIGERR_RETRY_LIMIT_IN_SEARCH_OVER => {
                let bytes = u32::try_from(text.len()).unwrap_or(u32::MAX);
                let patience = PATIENCE + PATIENCE_PER_BYTE * bytes;
                let start = Instant::now();
                let found = self.search_watched(text, cursor, interrupt, start + patience.saturating_sub(cursor.spent));
                cursor.spent += start.elapsed();
                found
            }
            Err(error) => Err(self.gave_up(cursor.from, error.description())),
        }
    }

    /// Searches as [`Self::search`] does, slower but interruptible.
    fn search_watched(
        &self,
        text: &str,
        cursor: &mut Cursor,
        interrupt: Interrupt<'_>,
        deadline: Instant,
    ) -> Result<Option<(usize, usize)>> {
        let watched = self.watched.get_or_init(|| compiled(&format!("(?{{watch}})(?:{})", self.pattern)).ok());
        let Some(watched) = watched else {
            return Err(self.gave_up(cursor.from, "too many steps for a regex that cannot be interrupted"));
        };
        let mut watch = Watch { interrupt, deadline, calls: 0, stopped: None };
        let limits = limits(SEARCH_LIMIT + STEPS_PER_BYTE * text.len());
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
            Err(error) => Err(watch.stopped.unwrap_or_else(|| {
                let late = error.code() == ONIG_ABORT;
                self.gave_up(cursor.from, if late { "it takes too long" } else { error.description() })
            })),
        }
    }

    fn gave_up(&self, position: usize, why: &str) -> Error {
        let limits = format!("{BACKTRACK_LIMIT} steps a match, {SEARCH_LIMIT} and {STEPS_PER_BYTE} a byte a search");
        let pattern = shortened(&self.pattern);
        invalid!(
            "pattern {pattern:?} gave up on the text behind byte {position}: {why} (at most {limits}, {PATIENCE:?})"
        )
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
            Ok(self.next_match(text, &mut cursor, interrupt)?.unwrap_or((text.len(), text.len())))
        })
    }
}

/// What ends a search that takes long.
struct Watch<'a> {
    interrupt: Interrupt<'a>,
    deadline: Instant,
    calls: usize,
    stopped: Option<Error>,
}

impl Watch<'_> {
    /// Called by Oniguruma where a match may begin.
    extern "C" fn call(_: *mut OnigCalloutArgs, watch: *mut c_void) -> c_int {
        // SAFETY: `search_watched` passes a `Watch`.
        let watch = unsafe { &mut *watch.cast::<Watch<'_>>() };
        watch.calls += 1;
        if watch.calls % CALLS_PER_CHECK != 1 {
            return GO_ON;
        }
        watch.stopped = watch.interrupt.check().err();
        if watch.stopped.is_some() || Instant::now() >= watch.deadline { ONIG_ABORT } else { GO_ON }
    }
}

fn compiled(pattern: &str) -> std::result::Result<Regex, onig::Error> {
    Regex::with_options(pattern, RegexOptions::REGEX_OPTION_NONE, Syntax::default())
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PATTERNS: [&str; 14] = [
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
    ];

    proptest! {
        #[test]
        fn a_watched_search_finds_the_same(pattern in prop::sample::select(&PATTERNS[..]), text in "[abé \n]{0,12}") {
            let regex = Oniguruma::new(pattern).expect("a regex");
            let deadline = Instant::now() + PATIENCE;
            for (from, _) in text.char_indices().chain([(text.len(), ' ')]) {
                let mut cursor = Cursor::at(from);
                let found = regex.search(&text, &mut cursor, Interrupt::NEVER).expect("a short text");
                let watched = regex.search_watched(&text, &mut cursor, Interrupt::NEVER, deadline);
                prop_assert_eq!(watched.expect("a short text"), found, "from {}", from);
            }
        }
    }

    #[test]
    fn a_long_search_can_be_stopped() {
        let regex = Oniguruma::new("a+b").expect("a regex");
        let text = "a".repeat(200_000) + "cb";
        let stop = || Err(Error::Interrupted);
        let stopped = regex.next_match(&text, &mut Cursor::default(), Interrupt::new(&stop));
        assert!(matches!(stopped, Err(Error::Interrupted)), "{stopped:?}");
        let late = regex.search_watched(&text, &mut Cursor::default(), Interrupt::NEVER, Instant::now());
        assert!(late.expect_err("the deadline is over").to_string().contains("it takes too long"));
        let whole =
            Oniguruma::new("(?L)a+b").expect("a regex").next_match(&text, &mut Cursor::default(), Interrupt::NEVER);
        assert!(whole.expect_err("quadratic").to_string().contains("cannot be interrupted"));
    }
}

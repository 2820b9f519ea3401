//! A caller's regex, in `fancy-regex`: it supports look-around and bounds backtracking.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use fancy_regex::{Regex, RegexBuilder};

use super::matches::fill_ends;
use super::patience::{LONGEST, Patience, Stopped};
use super::watched_text::WatchedText;
use crate::Result;
use crate::error::shortened;

/// The most backtracking steps of one match. Common patterns need a few dozen; the limit stops exponential ones.
const BACKTRACK_LIMIT: usize = 1_000_000;

/// The matches that are found before they are passed on.
const MATCHES_AHEAD: usize = 256;

/// A regex that splits text the way Hugging Face's `Split(behavior="isolated")` does.
#[derive(Debug, Clone)]
pub(crate) struct FancyRegex {
    regex: Regex,
}

impl FancyRegex {
    pub(crate) fn new(pattern: &str) -> Result<Self> {
        let regex = RegexBuilder::new(pattern)
            .backtrack_limit(BACKTRACK_LIMIT)
            .build()
            .map_err(|error| invalid!("pattern {:?} is not a valid regex: {error}", shortened(pattern)))?;
        Ok(Self { regex })
    }

    /// Appends the ends of the next pieces, within the capacity of `ends`.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if a match backtracks or lasts beyond the limit; what the interrupt check returns.
    pub(crate) fn fill_ends(
        &self,
        text: &str,
        start: usize,
        ends: &mut Vec<usize>,
        patience: &Patience<'_>,
    ) -> Result<()> {
        let mut search_from = start;
        let watched = WatchedText::new(text, patience);
        fill_ends(text, start, ends, || {
            let found = self.stoppable(search_from, patience, || self.regex.find_from_pos(&watched, search_from))?;
            let (match_start, match_end) = found.unwrap_or((text.len(), text.len()));
            search_from = match_end;
            if match_end == match_start {
                // Skip a character, or the search would find the same empty match.
                search_from += text[match_end..].chars().next().map_or(0, char::len_utf8);
            }
            Ok((match_start, match_end))
        })
    }

    /// Calls `each` with the start and end of each match that is not empty.
    ///
    /// # Errors
    /// As [`FancyRegex::fill_ends`].
    pub(crate) fn each_match(
        &self,
        text: &str,
        patience: &Patience<'_>,
        mut each: impl FnMut(usize, usize),
    ) -> Result<()> {
        let watched = WatchedText::new(text, patience);
        let mut matches = self.regex.find_iter(&watched);
        let (mut found, mut last_end) = (Vec::with_capacity(MATCHES_AHEAD), 0);
        loop {
            while found.len() < MATCHES_AHEAD
                && let Some(range) = self.stoppable(last_end, patience, || matches.next().transpose())?
            {
                last_end = range.1;
                found.push(range);
            }
            if found.is_empty() {
                return Ok(());
            }
            patience.pause();
            found.drain(..).filter(|(start, end)| start < end).for_each(|(start, end)| each(start, end));
        }
    }

    /// Returns what `search` finds behind byte `from` of a [`WatchedText`], or why it ended early.
    fn stoppable<T>(
        &self,
        from: usize,
        patience: &Patience<'_>,
        search: impl FnOnce() -> fancy_regex::Result<T>,
    ) -> Result<T> {
        let early = |stopped: Stopped| stopped.0.unwrap_or_else(|| self.gave_up(from, "it takes too long"));
        patience.before_match().map_err(early)?;
        // The engine forgets an unfinished search, whether it ends by an error or unwinds.
        match catch_unwind(AssertUnwindSafe(search)) {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => Err(self.gave_up(from, &error.to_string())),
            Err(payload) => match payload.downcast::<Stopped>() {
                Ok(stopped) => Err(early(*stopped)),
                Err(panic) => resume_unwind(panic),
            },
        }
    }

    fn gave_up(&self, from: usize, why: &str) -> crate::Error {
        invalid!(
            "pattern {:?} gave up on the text behind byte {from}: {why} (at most {BACKTRACK_LIMIT} steps a match, \
             {LONGEST:?})",
            shortened(self.regex.as_str())
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::interrupt::Interrupt;

    /// Each lookahead reads all of the text, and no step fails.
    const QUADRATIC: &str = "(?:a(?=a*c|a))+";

    #[test]
    fn one_match_can_be_stopped() {
        let regex = FancyRegex::new(QUADRATIC).expect("a regex");
        let text = "a".repeat(1_000_000);
        let stop = || Err(crate::Error::Interrupted);
        let start = Instant::now();
        let patience = Patience::new(&text, Interrupt::new(&stop));
        let stopped = regex.fill_ends(&text, 0, &mut Vec::with_capacity(8), &patience);
        assert!(matches!(stopped, Err(crate::Error::Interrupted)), "{stopped:?}");
        let begun = Instant::now();
        let stop = || if begun.elapsed().as_millis() < 100 { Ok(()) } else { Err(crate::Error::Interrupted) };
        let stopped = regex.each_match(&text, &Patience::new(&text, Interrupt::new(&stop)), |_, _| ());
        assert!(matches!(stopped, Err(crate::Error::Interrupted)), "{stopped:?}");
        assert!(start.elapsed().as_secs() < 5);
        let patience = Patience::new("aac", Interrupt::NEVER);
        regex.fill_ends("aac", 0, &mut Vec::with_capacity(8), &patience).expect("the next search is as new");
    }

    #[test]
    fn a_match_of_quadratic_time_is_an_error() {
        let regex = FancyRegex::new(QUADRATIC).expect("a regex");
        let text = "a".repeat(1_000_000);
        let patience = Patience::new(&text, Interrupt::NEVER);
        patience.spend();
        let start = Instant::now();
        let late = regex.fill_ends(&text, 0, &mut Vec::with_capacity(8), &patience);
        assert!(start.elapsed() < LONGEST);
        let message = late.expect_err("quadratic").to_string();
        assert!(message.contains(QUADRATIC) && message.contains("it takes too long (at most"), "{message}");
    }

    #[test]
    fn a_panic_of_the_engine_remains_one() {
        let regex = FancyRegex::new("a").expect("a regex");
        let patience = Patience::new("a", Interrupt::NEVER);
        let bug = || regex.stoppable::<()>(0, &patience, || resume_unwind(Box::new("bug")));
        let outcome = catch_unwind(AssertUnwindSafe(bug));
        assert_eq!(outcome.expect_err("unwinds").downcast_ref(), Some(&"bug"));
    }
}

//! A caller's regex, in `fancy-regex`: it supports look-around and bounds backtracking.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use fancy_regex::{Regex, RegexBuilder};

use super::matches::{MATCHES_PER_CHECK, fill_ends};
use super::watched_text::{PATIENCE, Stopped, WatchedText};
use crate::Result;
use crate::error::shortened;
use crate::interrupt::Interrupt;

/// The most backtracking steps of one match. Common patterns need a few dozen; the limit stops exponential ones.
const BACKTRACK_LIMIT: usize = 1_000_000;

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
        interrupt: Interrupt<'_>,
    ) -> Result<()> {
        let mut search_from = start;
        let watched = WatchedText::new(text, interrupt);
        fill_ends(text, start, ends, interrupt, || {
            let found = self.stoppable(&watched, search_from, || self.regex.find_from_pos(&watched, search_from))?;
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
        interrupt: Interrupt<'_>,
        mut each: impl FnMut(usize, usize),
    ) -> Result<()> {
        let watched = WatchedText::new(text, interrupt);
        let mut matches = self.regex.find_iter(&watched);
        let mut last_end = 0;
        for index in 0.. {
            if index % MATCHES_PER_CHECK == 0 {
                interrupt.check()?;
            }
            let Some((start, end)) = self.stoppable(&watched, last_end, || matches.next().transpose())? else { break };
            last_end = end;
            if end > start {
                each(start, end);
            }
        }
        Ok(())
    }

    /// Returns what `search` finds in the text behind byte `from`, or why it ended early.
    fn stoppable<T>(
        &self,
        text: &WatchedText<'_>,
        from: usize,
        search: impl FnOnce() -> fancy_regex::Result<T>,
    ) -> Result<T> {
        text.begin_match();
        // The engine forgets an unfinished search, whether it ends by an error or unwinds.
        match catch_unwind(AssertUnwindSafe(search)) {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => Err(self.gave_up(from, &error.to_string())),
            Err(payload) => match payload.downcast::<Stopped>() {
                Ok(stopped) => Err(stopped.0.unwrap_or_else(|| self.gave_up(from, "it takes too long"))),
                Err(panic) => resume_unwind(panic),
            },
        }
    }

    fn gave_up(&self, from: usize, why: &str) -> crate::Error {
        invalid!(
            "pattern {:?} gave up on the text behind byte {from}: {why} (at most {BACKTRACK_LIMIT} steps a match, \
             {PATIENCE:?})",
            shortened(self.regex.as_str())
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// Each lookahead reads all of the text, and no step fails.
    const QUADRATIC: &str = "(?:a(?=a*c|a))+";

    #[test]
    fn one_match_can_be_stopped() {
        let regex = FancyRegex::new(QUADRATIC).expect("a regex");
        let text = "a".repeat(1_000_000);
        let stop = || Err(crate::Error::Interrupted);
        let start = Instant::now();
        let stopped = regex.fill_ends(&text, 0, &mut Vec::with_capacity(8), Interrupt::new(&stop));
        assert!(matches!(stopped, Err(crate::Error::Interrupted)), "{stopped:?}");
        let begun = Instant::now();
        let stop = || if begun.elapsed().as_millis() < 100 { Ok(()) } else { Err(crate::Error::Interrupted) };
        let stopped = regex.each_match(&text, Interrupt::new(&stop), |_, _| ());
        assert!(matches!(stopped, Err(crate::Error::Interrupted)), "{stopped:?}");
        assert!(start.elapsed().as_secs() < 5);
        regex.fill_ends("aac", 0, &mut Vec::with_capacity(8), Interrupt::NEVER).expect("the next search is as new");
    }

    #[test]
    fn a_match_of_quadratic_time_is_an_error() {
        let regex = FancyRegex::new(QUADRATIC).expect("a regex");
        let text = "a".repeat(1_000_000);
        let watched = WatchedText::new(&text, Interrupt::NEVER);
        watched.spent.set(PATIENCE);
        let start = Instant::now();
        let late = regex.stoppable(&watched, 0, || regex.regex.find_from_pos(&watched, 0));
        assert!(start.elapsed() < PATIENCE);
        let message = late.expect_err("quadratic").to_string();
        assert!(message.contains(QUADRATIC) && message.contains("it takes too long (at most"), "{message}");
    }

    #[test]
    fn a_panic_of_the_engine_remains_one() {
        let regex = FancyRegex::new("a").expect("a regex");
        let text = WatchedText::new("a", Interrupt::NEVER);
        let outcome =
            catch_unwind(AssertUnwindSafe(|| regex.stoppable::<()>(&text, 0, || resume_unwind(Box::new("bug")))));
        assert_eq!(outcome.expect_err("unwinds").downcast_ref(), Some(&"bug"));
    }
}

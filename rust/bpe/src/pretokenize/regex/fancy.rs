//! A caller's regex, in `fancy-regex`: it supports look-around and bounds backtracking.

use fancy_regex::{Regex, RegexBuilder};

use super::matches::{MATCHES_PER_CHECK, fill_ends};
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
    /// [`crate::Error::InvalidArgument`] if a match backtracks beyond the limit; what the interrupt check returns.
    pub(crate) fn fill_ends(
        &self,
        text: &str,
        start: usize,
        ends: &mut Vec<usize>,
        interrupt: Interrupt<'_>,
    ) -> Result<()> {
        let mut search_from = start;
        fill_ends(text, start, ends, interrupt, || {
            let (match_start, match_end) = self.find(text, search_from)?;
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
        for (index, found) in self.regex.find_iter(text).enumerate() {
            if index % MATCHES_PER_CHECK == 0 {
                interrupt.check()?;
            }
            let found = found.map_err(|error| self.gave_up(0, &error))?;
            if found.end() > found.start() {
                each(found.start(), found.end());
            }
        }
        Ok(())
    }

    /// Returns the next match at or after `from`, or `text.len()` twice if there is none.
    fn find(&self, text: &str, from: usize) -> Result<(usize, usize)> {
        match self.regex.find_from_pos(text, from) {
            Ok(Some(found)) => Ok((found.start(), found.end())),
            Ok(None) => Ok((text.len(), text.len())),
            Err(error) => Err(self.gave_up(from, &error)),
        }
    }

    fn gave_up(&self, from: usize, error: &fancy_regex::Error) -> crate::Error {
        invalid!(
            "pattern {:?} gave up on the text behind byte {from}: {error} (at most {BACKTRACK_LIMIT} steps a match)",
            shortened(self.regex.as_str())
        )
    }
}

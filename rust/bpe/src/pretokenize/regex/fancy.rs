//! Any other regex, through `fancy-regex`, which knows look-around and bounds its backtracking.

use fancy_regex::{Regex, RegexBuilder};

use super::oniguruma::MATCHES_PER_CHECK;
use crate::interrupt::Interrupt;
use crate::{Error, Result};

/// Steps of backtracking that one match may take. Patterns in use need a few dozen; this stops the exponential ones.
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
            .map_err(|error| Error::InvalidArgument(format!("pattern {pattern:?} is not a valid regex: {error}")))?;
        Ok(Self { regex })
    }

    /// Appends the ends of the next pieces, within the capacity of `ends`.
    ///
    /// A match of no characters, as of `(?=[A-Z])`, cuts the text without being a piece.
    pub(crate) fn fill_ends(
        &self,
        text: &str,
        start: usize,
        ends: &mut Vec<usize>,
        interrupt: Interrupt<'_>,
    ) -> Result<()> {
        let mut piece_start = start;
        let mut search_from = start;
        while piece_start < text.len() && ends.len() < ends.capacity() {
            if ends.len() % MATCHES_PER_CHECK == MATCHES_PER_CHECK - 1 {
                interrupt.check()?;
            }
            let (match_start, match_end) = self.find(text, search_from)?;
            if match_start > piece_start {
                ends.push(match_start);
                if ends.len() == ends.capacity() {
                    break;
                }
            }
            piece_start = match_end;
            search_from = match_end;
            if match_end > match_start {
                ends.push(match_end);
            } else {
                // The same match would be found again.
                search_from += text[match_end..].chars().next().map_or(0, char::len_utf8);
            }
        }
        Ok(())
    }

    /// The next match at or behind `from`; an empty one at the end of the text where there is none.
    fn find(&self, text: &str, from: usize) -> Result<(usize, usize)> {
        match self.regex.find_from_pos(text, from) {
            Ok(Some(found)) => Ok((found.start(), found.end())),
            Ok(None) => Ok((text.len(), text.len())),
            Err(error) => Err(Error::InvalidArgument(format!(
                "pattern {:?} gave up on the text behind byte {from}: {error} (at most {BACKTRACK_LIMIT} steps a match)",
                self.regex.as_str()
            ))),
        }
    }
}

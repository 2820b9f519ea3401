//! Any other regex, through `fancy-regex`, which knows look-around and bounds its backtracking.

use fancy_regex::{Regex, RegexBuilder};

use crate::{Error, Result};

/// Steps of backtracking that one match may take. Patterns in use need a few dozen; this stops the exponential ones.
const BACKTRACK_LIMIT: usize = 1_000_000;

/// A regex that splits text the way Hugging Face's `Split(behavior="isolated")` does.
#[derive(Debug, Clone)]
pub(super) struct Custom {
    regex: Regex,
}

impl Custom {
    pub(super) fn new(pattern: &str) -> Result<Self> {
        let regex = RegexBuilder::new(pattern)
            .backtrack_limit(BACKTRACK_LIMIT)
            .build()
            .map_err(|error| Error::InvalidArgument(format!("pattern {pattern:?} is not a valid regex: {error}")))?;
        Ok(Self { regex })
    }

    /// Appends the ends of the next pieces, within the capacity of `ends`.
    pub(super) fn fill_ends(&self, text: &str, start: usize, ends: &mut Vec<usize>) -> Result<()> {
        let mut piece_start = start;
        let mut search_from = start;
        while piece_start < text.len() && ends.len() < ends.capacity() {
            let (match_start, match_end) = self.find(text, search_from)?;
            if match_start == match_end && match_end < text.len() {
                // A piece is never empty: look on behind the next character.
                search_from = match_end + text[match_end..].chars().next().map_or(1, char::len_utf8);
                continue;
            }
            if match_start > piece_start {
                ends.push(match_start);
                if ends.len() == ends.capacity() {
                    break;
                }
            }
            if match_end > match_start {
                ends.push(match_end);
            }
            piece_start = match_end;
            search_from = match_end;
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

//! Text to pieces.

use crate::Result;

/// Splits text into the pieces that byte-pair encoding then treats one by one.
#[derive(Debug, Clone)]
pub struct Pretokenizer {
    regex: fancy_regex::Regex,
    pattern: String,
}

impl Pretokenizer {
    /// Returns the splitter for a pattern's name (`"cl100k"`) or for any other regex.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if `pattern` is neither a known name nor a valid regex.
    pub fn new(pattern: &str) -> Result<Self> {
        let regex = fancy_regex::Regex::new(pattern).map_err(|e| crate::Error::InvalidArgument(format!("pattern {pattern:?}: {e}")))?;
        Ok(Self { regex, pattern: pattern.to_owned() })
    }

    /// The published regex whose pieces this splitter gives.
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// Appends to `ends` the end offsets (in bytes) of the next pieces of `text` from byte `start` on.
    ///
    /// Fills at most the spare capacity of `ends`, never reallocating it; an unchanged `ends` means `start == text.len()`.
    /// `start` must be 0 or an end that this method returned for the same `text`.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if a custom regex backtracks beyond its bound.
    pub fn fill_ends(&self, text: &str, start: usize, ends: &mut Vec<usize>) -> Result<()> {
        let _ = (text, start, ends, &self.regex);
        todo!()
    }
}

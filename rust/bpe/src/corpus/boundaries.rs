//! Where a document can be divided into chunks: never inside a special token.

use std::fmt::Display;

use aho_corasick::AhoCorasick;
use hashbrown::HashSet;

use super::options::CorpusOptions;
use crate::pretokenize::Pretokenizer;
use crate::special::longest_of;
use crate::{Error, Result};

/// Bytes read at a time: they fit a core's cache.
pub(super) const BLOCK_BYTES: usize = 1 << 18;

/// Blocks read between two interrupt checks.
pub(super) const HEARTBEAT_BLOCKS: usize = 64;

/// The most bytes of text from one place where it can be divided to the next.
const MAX_UNDIVIDED: usize = 16 << 20;

/// The most bytes of text that is in memory as a whole: a line of a file, and a document that the pre-tokenizer cannot
/// divide.
pub(super) const MAX_WHOLE: usize = 256 << 20;

/// The options of a reader, with what it needs to divide documents.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) options: CorpusOptions,
    pub(super) splitter: Pretokenizer,
    special_tokens: Option<AhoCorasick>,
    pub(super) longest_special: usize,
    /// Bytes read at a time; a longer document is divided.
    pub(super) block_bytes: usize,
    /// The most bytes of a part: [`MAX_UNDIVIDED`], or [`MAX_WHOLE`] for a pre-tokenizer that has no chunk boundaries.
    pub(super) max_part: usize,
}

impl Rules {
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if the separator is empty, or a special token is empty or given twice.
    pub(super) fn new(options: CorpusOptions, splitter: Pretokenizer) -> Result<Self> {
        if options.separator.as_deref() == Some("") {
            return Err(invalid!("separator is empty; leave it out to keep files whole"));
        }
        Ok(Self {
            special_tokens: special_matcher(&options.special_tokens)?,
            longest_special: options.special_tokens.iter().map(String::len).max().unwrap_or(0),
            block_bytes: BLOCK_BYTES,
            max_part: if splitter.has_chunk_boundaries() { MAX_UNDIVIDED } else { MAX_WHOLE },
            options,
            splitter,
        })
    }

    /// Returns where to end a part of `text`: at a place of at least `from` where it can be divided, or at an earlier one if
    /// the part were longer than [`Rules::max_part`].
    pub(super) fn part_end(&self, text: &str, from: usize) -> Option<usize> {
        let short_enough = |&boundary: &usize| boundary <= self.max_part;
        let boundary = self.chunk_boundary(text, from).filter(short_enough);
        if boundary.is_some() || text.len() <= self.max_part {
            return boundary;
        }
        self.chunk_boundary(text, 1).filter(short_enough)
    }

    /// Returns an offset of at least `from` where `text` can be divided whatever follows it, outside special tokens.
    fn chunk_boundary(&self, text: &str, from: usize) -> Option<usize> {
        // A special token or the separator may begin in the last bytes: the next chunk decides.
        let margin = self.longest_special.max(self.options.separator.as_ref().map_or(0, String::len));
        let mut from = ceil_char(text, from);
        loop {
            let boundary = self.splitter.chunk_boundary(text, from)?;
            if boundary + margin > text.len() {
                return None;
            }
            match self.special_around(text, boundary) {
                None => return Some(boundary),
                Some(end) => from = end + 1,
            }
        }
    }

    /// Returns the error for text at `place` that is longer than [`Rules::max_part`].
    pub(super) fn too_long(&self, place: impl Display) -> Error {
        let max = self.max_part;
        if self.splitter.has_chunk_boundaries() {
            return malformed!(
                "{place}: more than {max} bytes of text without a place to divide it: a space after a word, or for superwords \
                 a line break; expected fewer"
            );
        }
        malformed!(
            "{place}: a document of more than {max} bytes, which this tokenizer's pattern cannot divide; expected a shorter \
             one, or a separator"
        )
    }

    /// Returns the end of the special token that contains or touches `boundary`.
    ///
    /// A chunk must not begin or end at a special token, since adjacent characters can decide whether an added token
    /// matches: it can require white space beside it, or the absence of word characters.
    fn special_around(&self, text: &str, boundary: usize) -> Option<usize> {
        let matcher = self.special_tokens.as_ref()?;
        // Matches do not overlap, so the start of the search matters: begin where no earlier match can reach.
        let start = ceil_char(text, boundary.saturating_sub(8 * self.longest_special));
        let end = ceil_char(text, (boundary + self.longest_special).min(text.len()));
        let mut matches = matcher.find_iter(&text[start..end]);
        matches
            .find(|found| (start + found.start()..=start + found.end()).contains(&boundary))
            .map(|found| start + found.end())
    }
}

/// Returns the first character boundary at or after `at`.
pub(super) fn ceil_char(text: &str, at: usize) -> usize {
    (at..text.len()).find(|&index| text.is_char_boundary(index)).unwrap_or(text.len())
}

/// Returns a matcher of special tokens, or `None` without any. Of several that begin at one place, it finds the
/// longest.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if a special token is empty or given twice.
pub(crate) fn special_matcher(special_tokens: &[String]) -> Result<Option<AhoCorasick>> {
    let mut seen = HashSet::with_capacity(special_tokens.len());
    for (index, token) in special_tokens.iter().enumerate() {
        if token.is_empty() {
            return Err(invalid!("special token {index} is empty"));
        }
        if !seen.insert(token) {
            return Err(invalid!("special token {token:?} is given twice"));
        }
    }
    if special_tokens.is_empty() {
        return Ok(None);
    }
    longest_of(special_tokens).map(Some)
}

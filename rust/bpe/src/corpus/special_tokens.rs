//! Special tokens in text: no pre-token and no chunk crosses them.

use aho_corasick::{AhoCorasick, MatchKind};

use crate::{Error, Result};

/// Returns a matcher of special tokens, or `None` without any. Of several that begin at one place, it finds the
/// longest.
///
/// # Errors
/// [`Error::InvalidArgument`] if a special token is empty or given twice.
pub(crate) fn special_matcher(special_tokens: &[String]) -> Result<Option<AhoCorasick>> {
    for (index, token) in special_tokens.iter().enumerate() {
        if token.is_empty() {
            return Err(Error::InvalidArgument(format!("special token {index} is empty")));
        }
        if special_tokens[..index].contains(token) {
            return Err(Error::InvalidArgument(format!("special token {token:?} is given twice")));
        }
    }
    if special_tokens.is_empty() {
        return Ok(None);
    }
    let matcher = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(special_tokens);
    matcher.map(Some).map_err(|error| Error::InvalidArgument(format!("special tokens: {error}")))
}

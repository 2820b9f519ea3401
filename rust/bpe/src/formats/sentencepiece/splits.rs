//! Pre-tokenizers for SentencePiece vocabularies, for every file format that holds one.

use crate::normalize::METASPACE;
use crate::pretokenize::{SPACED_WORDS_PATTERN, WHOLE};
use crate::{Pretokenizer, Result, SentencePieceTokens};

/// Returns the pre-tokenizer that splits words, with the spaces before them, if no token spans two words and so no
/// merge does; otherwise the pre-tokenizer that does not split.
pub(in crate::formats) fn words_or_whole(merged: &[(Vec<u8>, u32)]) -> Result<Pretokenizer> {
    let spans_words = |(bytes, _): &(Vec<u8>, u32)| bytes.windows(2).any(|pair| pair[0] != b' ' && pair[1] == b' ');
    Pretokenizer::new(if merged.iter().any(spans_words) { WHOLE } else { SPACED_WORDS_PATTERN })
}

/// Refuses a vocabulary in which a space is no token: byte fallback would encode `▁`, not the space.
pub(in crate::formats) fn require_space(pieces: &SentencePieceTokens) -> Result<()> {
    if pieces.merged.iter().chain(&pieces.whole).any(|(bytes, _)| bytes == b" ") {
        return Ok(());
    }
    Err(malformed!("no token is {:?}, which stands for a space: this is not supported", METASPACE.to_string()))
}

/// Returns the pre-tokenizer that isolates these texts, preferring the longest.
pub(in crate::formats) fn isolate(mut texts: Vec<String>) -> Result<Pretokenizer> {
    texts.sort_by(|a, b| b.len().cmp(&a.len()).then(a.cmp(b)));
    let texts: Vec<_> = texts.iter().map(|text| fancy_regex::escape(text)).collect();
    Pretokenizer::new(&format!("(?:{})", texts.join("|")))
}

//! Ids with their ranges in the text.

use super::definition::Tokenizer;
use crate::encode::EncodeOptions;
use crate::interrupt::Interrupt;
use crate::normalize::After;
use crate::pipeline::{Token, whitespace_around};
use crate::special::SpecialSet;
use crate::{Result, memory};

/// For each token, the range of characters that contain its bytes.
pub type Offsets = Vec<(usize, usize)>;

impl Tokenizer {
    /// Returns the tokens of `text` with their ranges in bytes.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub(crate) fn encode_with_spans(
        &self,
        text: &str,
        allowed: SpecialSet<'_>,
        interrupt: Interrupt<'_>,
    ) -> Result<Vec<Token>> {
        if let Some(pipeline) = &self.pipeline {
            return pipeline.encode_with_offsets(text, (&self.added, allowed), interrupt);
        }
        let mut tokens = Vec::new();
        self.added.check(allowed)?;
        self.added.split_raw(text, allowed, interrupt, &mut |segment| {
            let (start, end) = (segment.bytes.start, segment.bytes.end);
            if let Some(id) = segment.added {
                tokens.push(Token { id, start, end, whitespace: whitespace_around(&text[start..end]) });
                return Ok(());
            }
            let after = if start == 0 { After::Nothing } else { After::Special };
            if let Some(model) = self.sentencepiece() {
                let ranges = model.encode_with_ranges(&text.as_bytes()[start..end], after, interrupt)?.into_iter();
                let token = |(id, range): (u32, std::ops::Range<usize>)| Token {
                    id,
                    start: start + range.start,
                    end: start + range.end,
                    whitespace: (0, 0),
                };
                tokens.extend(ranges.map(token));
                return Ok(());
            }
            let normal = self.normalizer.apply_aligned(&text[start..end], start as u32, after, interrupt)?;
            self.added.split_normalized(&normal.text, allowed, interrupt, &mut |segment| {
                let (part, spans) = (&normal.text[segment.bytes.clone()], &normal.spans[segment.bytes]);
                let mut push = |id: u32, from: usize, to: usize, whitespace| {
                    let (start, end) = (spans[from].0 as usize, spans[to - 1].1 as usize);
                    memory::reserve(&mut tokens, 1);
                    tokens.push(Token { id, start, end, whitespace });
                };
                if let Some(id) = segment.added {
                    push(id, 0, part.len(), whitespace_around(part));
                    return Ok(());
                }
                let mut ids = Vec::new();
                self.with_scratch(interrupt, |encoder, scratch| encoder.encode(part, scratch, &mut ids))?;
                let mut at = 0;
                for (index, id) in ids.into_iter().enumerate() {
                    interrupt.check_at(index)?;
                    let bytes = self.vocab.id_to_bytes(id).unwrap_or_default();
                    let is_space = |byte: &&u8| **byte == b' ';
                    let spaces =
                        (bytes.iter().take_while(is_space).count(), bytes.iter().rev().take_while(is_space).count());
                    let end = at + bytes.len();
                    push(id, at, end, spaces);
                    at = end;
                }
                Ok(())
            })
        })?;
        Ok(tokens)
    }

    /// Returns the ids of `text`, and for each the range of characters that contain its bytes.
    ///
    /// Two tokens that share a character both include it. With `trim_offsets` in the tokenizer's file, white space at the
    /// ends of a token is excluded.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_offsets(
        &self,
        text: &str,
        allowed: SpecialSet<'_>,
        interrupt: Interrupt<'_>,
    ) -> Result<(Vec<u32>, Offsets)> {
        self.encode_with_offsets_from(text, 0, allowed, interrupt)
    }

    /// As [`Tokenizer::encode_with_offsets`], for a caller that drops the tokens before `first`: of the first token of a text,
    /// `trim_offsets` may keep the space prefix, and `tokenizers` trims after truncation.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_with_offsets`].
    pub fn encode_with_offsets_from(
        &self,
        text: &str,
        first: usize,
        allowed: SpecialSet<'_>,
        interrupt: Interrupt<'_>,
    ) -> Result<(Vec<u32>, Offsets)> {
        let tokens = self.encode_with_spans(text, allowed, interrupt)?;
        let characters = Characters::of(text, interrupt)?;
        let (mut ids, mut offsets) = (memory::with_capacity(tokens.len()), memory::with_capacity(tokens.len()));
        for (place, token) in tokens.iter().enumerate() {
            interrupt.check_at(place)?;
            let range = match self.sentencepiece() {
                Some(_) => (characters.before(token.start), characters.before(token.end)),
                None => characters.range(token.start, token.end),
            };
            let trimmed = self.template.trims.iter().fold(range, |range, &may_be_prefixed| {
                trim(range, token.whitespace, may_be_prefixed && (place == first || range.0 == 0))
            });
            ids.push(token.id);
            offsets.push(trimmed);
        }
        Ok((ids, offsets))
    }

    /// Returns the longest prefix of `text` that ends at the end of a token and of a character and has at most `max_tokens`
    /// ids.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_with_offsets`].
    pub fn truncate<'t>(
        &self,
        text: &'t str,
        max_tokens: usize,
        allowed: SpecialSet<'_>,
        interrupt: Interrupt<'_>,
    ) -> Result<&'t str> {
        let tokens = self.encode_with_spans(text, allowed, interrupt)?;
        let options = EncodeOptions { allowed, interrupt, ..EncodeOptions::default() };
        if tokens.len() <= max_tokens {
            return Ok(text);
        }
        for token in tokens[..max_tokens].iter().rev() {
            // The prefix may have other pieces and so more ids: then try a shorter one.
            let prefix = text.get(..token.end).unwrap_or_default();
            if self.count(prefix, options)? <= max_tokens {
                return Ok(prefix);
            }
        }
        Ok("")
    }
}

/// For each byte of a text, the index of its character.
enum Characters {
    /// ASCII text of this length: the index is the byte's offset.
    Ascii(usize),
    Indices(Vec<u32>),
}

impl Characters {
    fn of(text: &str, interrupt: Interrupt<'_>) -> Result<Self> {
        if text.is_ascii() {
            return Ok(Self::Ascii(text.len()));
        }
        let mut indices = memory::with_capacity(text.len());
        for (i, c) in text.chars().enumerate() {
            interrupt.check_at(i)?;
            indices.extend(std::iter::repeat_n(i as u32, c.len_utf8()));
        }
        Ok(Self::Indices(indices))
    }

    /// Returns the index of the character that a byte belongs to, or `None` beyond the text.
    fn index(&self, byte: usize) -> Option<usize> {
        match self {
            Self::Ascii(length) => (byte < *length).then_some(byte),
            Self::Indices(indices) => indices.get(byte).map(|&index| index as usize),
        }
    }

    /// Returns the index of the character that begins at `byte`, or the index of characters at the end of the text.
    fn before(&self, byte: usize) -> usize {
        let all = || match self {
            Self::Ascii(length) => *length,
            Self::Indices(indices) => indices.last().map_or(0, |&last| last as usize + 1),
        };
        self.index(byte).unwrap_or_else(all)
    }

    /// Returns the range of characters of a range of bytes, as `tokenizers` does where it extends beyond the text: a range
    /// that begins there remains in bytes, one that ends there has two characters.
    fn range(&self, start: usize, end: usize) -> (usize, usize) {
        let Some(first) = self.index(start) else { return (start, end) };
        let last = || self.index(end.wrapping_sub(1)).unwrap_or(first + 1) + 1;
        (first, self.index(end).unwrap_or_else(last))
    }
}

/// Excludes white space at the ends of a token, except the space prefix of the first token of a text.
///
/// Source: `process_offsets` of Hugging Face `tokenizers`.
fn trim(
    (mut start, mut end): (usize, usize),
    (leading, trailing): (usize, usize),
    is_prefixed: bool,
) -> (usize, usize) {
    if !(is_prefixed && leading == 1) {
        start = (start + leading).min(end);
    }
    if end >= trailing {
        end = (end - trailing).max(start);
    }
    (start, end)
}

//! Where in a text its tokens stand.

use crate::batch::{EncodeOptions, Pause};
use crate::normalize::After;
use crate::pipeline::{Token, spaces_around};
use crate::special::SpecialSet;
use crate::{Result, Tokenizer};

/// For each token, the characters its bytes fall into: the first, and the one after the last.
pub type Offsets = Vec<(usize, usize)>;

impl Tokenizer {
    /// Returns the tokens of `text` with the bytes they stand for.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`]; and if SentencePiece's treatment of spaces changes the text, so that no place in it can
    /// be named.
    pub(crate) fn encode_with_spans(
        &self,
        text: &str,
        allowed: SpecialSet<'_>,
        pause: Pause<'_>,
    ) -> Result<Vec<Token>> {
        if let Some(pipeline) = &self.pipeline {
            return pipeline.encode_with_offsets(text, (&self.added, allowed), pause);
        }
        let mut tokens = Vec::new();
        self.added.check(allowed)?;
        self.added.cut_raw(text, allowed, pause, &mut |part| {
            let (start, end) = (part.bytes.start, part.bytes.end);
            if let Some(id) = part.added {
                tokens.push(Token { id, start, end, spaces: spaces_around(&text[start..end]) });
                return Ok(());
            }
            let after = if start == 0 { After::Nothing } else { After::Special };
            if let Some(model) = self.sentencepiece() {
                let ranges = model.encode_with_ranges(&text.as_bytes()[start..end], after, pause)?.into_iter();
                let token = |(id, range): (u32, std::ops::Range<usize>)| Token {
                    id,
                    start: start + range.start,
                    end: start + range.end,
                    spaces: (0, 0),
                };
                tokens.extend(ranges.map(token));
                return Ok(());
            }
            let normal = self.normalizer.apply_aligned(&text[start..end], start as u32, after, pause)?;
            self.added.cut_normalized(&normal.text, allowed, pause, &mut |part| {
                let (stretch, spans) = (&normal.text[part.bytes.clone()], &normal.spans[part.bytes]);
                let mut push = |id: u32, from: usize, to: usize, spaces| {
                    let (start, end) = (spans[from].0 as usize, spans[to - 1].1 as usize);
                    tokens.push(Token { id, start, end, spaces });
                };
                if let Some(id) = part.added {
                    push(id, 0, stretch.len(), spaces_around(stretch));
                    return Ok(());
                }
                let mut ids = Vec::new();
                self.with_scratch(pause, |encoder, scratch| encoder.encode(stretch, scratch, &mut ids))?;
                let mut at = 0;
                for (turn, id) in ids.into_iter().enumerate() {
                    pause.ask_at(turn)?;
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

    /// Returns the ids of `text`, and for each the range of characters its bytes fall into.
    ///
    /// Tokens that share a character both name it. Where the tokenizer's file says so (`trim_offsets`), white space at
    /// the ends of a token is left out.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`]; and if SentencePiece's treatment of spaces changes the text, so that no place in it can
    /// be named.
    pub fn encode_with_offsets(
        &self,
        text: &str,
        allowed: SpecialSet<'_>,
        pause: Pause<'_>,
    ) -> Result<(Vec<u32>, Offsets)> {
        let tokens = self.encode_with_spans(text, allowed, pause)?;
        let characters = Characters::of(text, pause)?;
        let (mut ids, mut offsets) = (Vec::with_capacity(tokens.len()), Vec::with_capacity(tokens.len()));
        for (place, token) in tokens.iter().enumerate() {
            pause.ask_at(place)?;
            let range = match self.sentencepiece() {
                Some(_) => (characters.before(token.start), characters.before(token.end)),
                None => characters.range(token.start, token.end),
            };
            let trimmed = self.template.trims.iter().fold(range, |range, &may_be_prefixed| {
                trim(range, token.spaces, may_be_prefixed && (place == 0 || range.0 == 0))
            });
            ids.push(token.id);
            offsets.push(trimmed);
        }
        Ok((ids, offsets))
    }

    /// Returns the longest start of `text` that ends where a token and a character end and has at most `max_tokens` ids.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_with_offsets`].
    pub fn truncate<'t>(
        &self,
        text: &'t str,
        max_tokens: usize,
        allowed: SpecialSet<'_>,
        pause: Pause<'_>,
    ) -> Result<&'t str> {
        let tokens = self.encode_with_spans(text, allowed, pause)?;
        let options = EncodeOptions { allowed, pause, ..EncodeOptions::default() };
        if tokens.len() <= max_tokens {
            return Ok(text);
        }
        for token in tokens[..max_tokens].iter().rev() {
            // A shorter text may split otherwise and so have more ids: then a token less is tried.
            let start = text.get(..token.end).unwrap_or_default();
            if self.count(start, options)? <= max_tokens {
                return Ok(start);
            }
        }
        Ok("")
    }
}

/// The number of the character that each byte of a text belongs to.
enum Characters {
    /// A character a byte, so many.
    Ascii(usize),
    Numbers(Vec<u32>),
}

impl Characters {
    fn of(text: &str, pause: Pause<'_>) -> Result<Self> {
        if text.is_ascii() {
            return Ok(Self::Ascii(text.len()));
        }
        let mut numbers = Vec::with_capacity(text.len());
        for (i, c) in text.chars().enumerate() {
            pause.ask_at(i)?;
            numbers.extend(std::iter::repeat_n(i as u32, c.len_utf8()));
        }
        Ok(Self::Numbers(numbers))
    }

    /// Returns the number of the character that a byte belongs to; `None` beyond the text.
    fn number(&self, byte: usize) -> Option<usize> {
        match self {
            Self::Ascii(length) => (byte < *length).then_some(byte),
            Self::Numbers(numbers) => numbers.get(byte).map(|&number| number as usize),
        }
    }

    /// Returns how many characters begin before a byte that begins one, or before the end.
    fn before(&self, byte: usize) -> usize {
        let all = || match self {
            Self::Ascii(length) => *length,
            Self::Numbers(numbers) => numbers.last().map_or(0, |&last| last as usize + 1),
        };
        self.number(byte).unwrap_or_else(all)
    }

    /// Returns the characters of a range of bytes, as `tokenizers` counts them where it leads beyond the text: a range that
    /// begins there stays bytes, one that ends there has two characters.
    fn range(&self, start: usize, end: usize) -> (usize, usize) {
        let Some(first) = self.number(start) else { return (start, end) };
        let last = || self.number(end.wrapping_sub(1)).unwrap_or(first + 1) + 1;
        (first, self.number(end).unwrap_or_else(last))
    }
}

/// Leaves out white space at the ends of a token, but for one space that was put before the first token of a text.
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

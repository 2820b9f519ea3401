//! A text that comes in parts to ids, without all of it in memory.

use super::definition::Tokenizer;
use crate::Result;
use crate::encode::{EncodeOptions, reserve_ids};

/// Bytes of text that are encoded at a time.
const CHUNK: usize = 1 << 20;

/// Bytes at the end of a chunk in which its boundary is sought first: what follows the boundary waits for the next chunk.
const TAIL: usize = 1 << 12;

impl Tokenizer {
    /// Appends the ids of a text that comes in parts to `ids`: those that [`Tokenizer::encode_into`] appends for all of it.
    ///
    /// `next` appends one part to a string, and returns whether more follow; `length` says about how many bytes there are,
    /// so that memory for the ids is reserved at once. About a megabyte of text is in memory at a time; all of it where the
    /// tokenizer normalizes text, may find special tokens in it or has no chunk boundary.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_into`]; what `next` returns.
    ///
    /// ```
    /// use bpe_llama::{EncodeOptions, Pretokenizer, Tokenizer, Vocab};
    ///
    /// let tokens = (0..=255u8).map(|byte| (vec![byte], u32::from(byte))).collect();
    /// let vocab = Vocab::from_merges(tokens, vec![], false)?;
    /// let tokenizer = Tokenizer::new(vocab, Pretokenizer::new("cl100k")?, vec![], false)?;
    /// let (mut parts, mut ids) = (["a", "b"].iter(), Vec::new());
    /// let next = |text: &mut String| {
    ///     text.extend(parts.next().copied());
    ///     Ok(parts.len() > 0)
    /// };
    /// tokenizer.encode_parts(2, next, EncodeOptions::default(), &mut ids)?;
    /// assert_eq!(ids, [97, 98]);
    /// # Ok::<(), bpe_llama::Error>(())
    /// ```
    pub fn encode_parts(
        &self,
        length: usize,
        mut next: impl FnMut(&mut String) -> Result<bool>,
        options: EncodeOptions<'_>,
        ids: &mut Vec<u32>,
    ) -> Result<()> {
        let can_chunk = self.can_chunk(options.allowed);
        let (mut text, mut wanted, mut has_more) = (String::new(), CHUNK, true);
        if ids.capacity() == 0 {
            *ids = reserve_ids(length);
        }
        ids.extend(options.bos);
        let within = EncodeOptions { bos: None, eos: None, ..options };
        while has_more {
            while has_more && (text.len() < wanted || !can_chunk) {
                has_more = next(&mut text)?;
            }
            options.interrupt.check()?;
            let end = if has_more { self.last_boundary(&text) } else { Some(text.len()) };
            let Some(end) = end else {
                wanted = 2 * text.len();
                continue;
            };
            self.encode_into(&text[..end], within, ids)?;
            text.drain(..end);
            wanted = CHUNK;
        }
        ids.extend(options.eos);
        Ok(())
    }

    /// Returns a chunk boundary near the end of a text that goes on, or `None` if there is none in its second half.
    fn last_boundary(&self, text: &str) -> Option<usize> {
        let near = |tail: usize| self.pretokenizer().chunk_boundary(text, text.len().saturating_sub(tail));
        near(TAIL).or_else(|| near(text.len() / 2))
    }
}

#[cfg(test)]
mod tests {
    use super::{CHUNK, TAIL};
    use crate::{AddedToken, EncodeOptions, Pretokenizer, Result, SpecialSet, Tokenizer, Vocab};

    fn tokenizer(pattern: &str) -> Result<Tokenizer> {
        let tokens = (0..=255u8).map(|byte| vec![byte]).chain([b"ab".to_vec(), b" ab".to_vec(), b"ab\n".to_vec()]);
        let tokens = tokens.zip(0..).collect();
        let vocab = Vocab::from_merges(tokens, vec![(97, 98), (32, 256), (256, 10)], false)?;
        Tokenizer::new(vocab, Pretokenizer::new(pattern)?, vec![AddedToken::special("<s>", 300)], false)
    }

    /// The ids of `text`, of which `next` reads `step` bytes at a time, and the most text that was in memory.
    fn in_parts(
        tokenizer: &Tokenizer,
        text: &str,
        step: usize,
        options: EncodeOptions<'_>,
    ) -> Result<(Vec<u32>, usize)> {
        let (mut at, mut most, mut ids) = (0, 0, Vec::new());
        let next = |buffer: &mut String| {
            let end = text.ceil_char_boundary((at + step).min(text.len()));
            buffer.push_str(&text[at..end]);
            at = end;
            most = most.max(buffer.len());
            Ok(at < text.len())
        };
        tokenizer.encode_parts(text.len(), next, options, &mut ids)?;
        Ok((ids, most))
    }

    #[test]
    fn parts_have_the_ids_of_the_whole() -> Result<()> {
        let words = "ab ab, été 中文ab\n\n ab's 12345 <s>\u{1F600} ".repeat(CHUNK / 16);
        let no_boundary = "ab".repeat(2 * CHUNK) + " ab";
        let options = EncodeOptions { bos: Some(1), eos: Some(2), ..EncodeOptions::default() };
        for pattern in ["cl100k", "o200k", "gpt2", "\\w+|\\W+"] {
            let tokenizer = tokenizer(pattern)?;
            for text in ["", "a", &words, &no_boundary] {
                for allowed in [SpecialSet::None, SpecialSet::All] {
                    let options = EncodeOptions { allowed, ..options };
                    let mut whole = Vec::new();
                    tokenizer.encode_into(text, options, &mut whole)?;
                    assert!(in_parts(&tokenizer, text, 70_001, options)?.0 == whole, "{pattern}, {} bytes", text.len());
                }
            }
        }
        Ok(())
    }

    #[test]
    fn a_chunk_is_in_memory_at_a_time() -> Result<()> {
        let text = "ab ab, été 中文ab\n\n".repeat(CHUNK / 4);
        let step = 1 << 16;
        let (_, most) = in_parts(&tokenizer("cl100k")?, &text, step, EncodeOptions::default())?;
        assert!(most < CHUNK + TAIL + step, "{most} bytes");
        Ok(())
    }
}

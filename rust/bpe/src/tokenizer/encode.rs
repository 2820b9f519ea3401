//! Text to ids: special tokens and normalization around the encoding of ordinary text.

use super::definition::Tokenizer;
use crate::encode::{CountSink, EncodeOptions, Encoder, Scratch, Sink, reserve_ids};
use crate::interrupt::Interrupt;
use crate::normalize::{After, Normalizer};
use crate::pipeline::Token;
use crate::special::SpecialSet;
use crate::{Error, Result};

impl Tokenizer {
    /// Returns the ids of `text`, treating special tokens as ordinary text.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a byte has no token, or a custom pattern backtracks beyond its bound.
    ///
    /// # Cost
    /// Linear in the length of `text`.
    pub fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>> {
        self.encode(text, SpecialSet::None)
    }

    /// Returns the ids of `text`, in which `allowed` special tokens become their ids.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_ordinary`], and if `allowed` names a token that is not special.
    pub fn encode(&self, text: &str, allowed: SpecialSet<'_>) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        self.encode_into(text, EncodeOptions { allowed, ..EncodeOptions::default() }, &mut ids)?;
        Ok(ids)
    }

    /// Appends the ids of `text` to `ids`. After an error, `ids` may hold some of them.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`]; what the interrupt check returns.
    pub fn encode_into(&self, text: &str, options: EncodeOptions<'_>, ids: &mut Vec<u32>) -> Result<()> {
        if ids.capacity() == 0 {
            *ids = reserve_ids(text.len());
        }
        ids.extend(options.bos);
        self.encode_to_sink(text, options, ids)?;
        ids.extend(options.eos);
        Ok(())
    }

    /// Returns the ids of a text that follows the text `before`, or a special token if that is `None`.
    ///
    /// They differ from the ids of the text alone if the tokenizer prefixes texts with a space: text after text has no
    /// prefix, but for a trailing space of `before` that was removed because spaces collapse.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_ordinary`]; what the interrupt check returns.
    pub fn encode_following(&self, text: &str, before: Option<&str>, interrupt: Interrupt<'_>) -> Result<Vec<u32>> {
        if self.general_because.is_some()
            && let Some(before) = before.filter(|before| !before.is_empty())
        {
            let whole = [before, text].concat();
            let tokens = self.encode_with_spans(&whole, SpecialSet::None, interrupt)?;
            let is_new = |token: &&Token| token.end > before.len();
            return Ok(tokens.iter().filter(is_new).map(|token| token.id).collect());
        }
        let mut ids = Vec::new();
        let after = before.map_or(After::Special, After::of);
        self.encode_into(text, EncodeOptions { after, interrupt, ..EncodeOptions::default() }, &mut ids)?;
        Ok(ids)
    }

    /// Returns the number of ids that [`Tokenizer::encode_into`] appends, without storing them.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_into`].
    pub fn count(&self, text: &str, options: EncodeOptions<'_>) -> Result<usize> {
        let mut counter = CountSink::default();
        self.encode_to_sink(text, options, &mut counter)?;
        Ok(counter.0 + usize::from(options.bos.is_some()) + usize::from(options.eos.is_some()))
    }

    /// Returns the ids of any bytes.
    ///
    /// The longest prefix that is UTF-8 is encoded as text; its last piece and the remaining bytes are one piece. So text
    /// has the ids of [`Tokenizer::encode_ordinary`], and [`Tokenizer::decode_bytes`] returns the bytes, except `▁`, which
    /// SentencePiece treats as a space, and text that the tokenizer's file normalizes. A SentencePiece model that encodes by
    /// its own rules replaces bytes that are no text by U+FFFD, as SentencePiece does.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_ordinary`]; what the interrupt check returns.
    ///
    /// # Source
    /// `_encode_bytes` in tiktoken's `src/lib.rs`.
    pub fn encode_bytes(&self, bytes: &[u8], interrupt: Interrupt<'_>) -> Result<Vec<u32>> {
        let encode = |text: &str| {
            let mut ids = Vec::new();
            self.encode_into(text, EncodeOptions { interrupt, ..EncodeOptions::default() }, &mut ids)?;
            Ok::<_, Error>(ids)
        };
        let (text, tail) = match std::str::from_utf8(bytes) {
            Ok(text) => return encode(text),
            Err(error) => {
                let (text, tail) = bytes.split_at(error.valid_up_to());
                (std::str::from_utf8(text).unwrap_or_default(), tail)
            }
        };
        if let Some(because) = &self.general_because {
            return Err(invalid!(
                "byte {} is no UTF-8, and this tokenizer encodes only text: its file asks for {because}",
                text.len()
            ));
        }
        if let Some(model) = &self.sentencepiece {
            let mut ids = Vec::new();
            model.encode(bytes, After::Nothing, interrupt, &mut ids)?;
            return Ok(ids);
        }
        if self.spaces().is_some() {
            // A byte that is no text becomes a byte token, so nothing merges across it.
            let mut ids = encode(text)?;
            self.with_scratch(interrupt, |encoder, scratch| encoder.encode_bytes(tail, scratch, &mut ids))?;
            return Ok(ids);
        }
        let mut ids = encode(text)?;
        let mut last = 0;
        self.pretokenizer.each_piece(text, interrupt, |start, _| last = start)?;
        let mut unsettled = self.ids_of_end(&ids, &encode(&text[last..])?, text.len() - last);
        // A piece of white space may include the white space before it once more text follows.
        let is_whitespace =
            |id: u32| self.vocab.id_to_bytes(id).is_some_and(|bytes| bytes.iter().all(|byte| b" \n\t".contains(byte)));
        if unsettled > 0 && is_whitespace(ids[ids.len() - unsettled]) {
            unsettled += ids[..ids.len() - unsettled].iter().rev().take_while(|&&id| is_whitespace(id)).count();
        }
        let mut joined = self.decode_bytes(&ids[ids.len() - unsettled..])?;
        joined.extend_from_slice(tail);
        ids.truncate(ids.len() - unsettled);
        self.with_scratch(interrupt, |encoder, scratch| encoder.encode_bytes(&joined, scratch, &mut ids))?;
        Ok(ids)
    }

    /// Returns how many of the last `ids` belong to the last piece, of `bytes` bytes. Encoded alone, the piece has the ids
    /// `alone`.
    ///
    /// Those may differ from its ids in the text: a normalizer or a look-behind may read what stands before it, and an added
    /// token, which keeps its id whatever follows, may cover it.
    fn ids_of_end(&self, ids: &[u32], alone: &[u32], mut bytes: usize) -> usize {
        if ids.ends_with(alone) {
            return alone.len();
        }
        if ids.last().is_some_and(|&id| self.added_tokens().iter().any(|token| token.id == id)) {
            return 0;
        }
        let is_needed = |&&id: &&u32| {
            let is_needed = bytes > 0;
            bytes = bytes.saturating_sub(self.vocab.id_to_bytes(id).map_or(0, <[u8]>::len));
            is_needed
        };
        ids.iter().rev().take_while(is_needed).count()
    }

    /// Returns the ids of bytes that are one piece: the token they are, if any, else what merging produces.
    ///
    /// With `merged`, merging decides also where the bytes are a token. A token that merging does not reach, as in Llama 3's
    /// vocabulary, makes the difference.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a byte has no token, or the vocabulary is no byte-level one; what the interrupt check
    /// returns.
    pub fn encode_piece(&self, bytes: &[u8], merged: bool, interrupt: Interrupt<'_>) -> Result<Vec<u32>> {
        if self.general_because.is_some() || self.sentencepiece.is_some() || self.spaces().is_some() {
            return Err(invalid!("only byte-level vocabularies encode pieces of bytes"));
        }
        let mut ids = Vec::new();
        self.with_scratch(interrupt, |encoder, scratch| {
            if merged {
                encoder.merge_bytes(bytes, scratch, &mut ids)
            } else {
                encoder.encode_bytes(bytes, scratch, &mut ids)
            }
        })?;
        Ok(ids)
    }

    /// Checks that the text contains no special token of `disallowed`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the first such token and its byte offset; what the interrupt check returns.
    pub fn refuse_special(&self, text: &str, disallowed: SpecialSet<'_>, interrupt: Interrupt<'_>) -> Result<()> {
        self.added.refuse(text, disallowed, interrupt)
    }

    /// Returns whether a text can be split at chunk boundaries and the chunks encoded alone.
    pub(crate) fn can_chunk(&self, allowed: SpecialSet<'_>) -> bool {
        let is_plain = self.normalizer == Normalizer::None && self.general_because.is_none();
        is_plain && self.sentencepiece.is_none() && self.added.matches_none(allowed)
    }

    /// Passes the ids of a text to `sink`.
    #[inline]
    fn encode_to_sink<S: Sink>(&self, text: &str, options: EncodeOptions<'_>, sink: &mut S) -> Result<()> {
        self.with_scratch(options.interrupt, |encoder, scratch| {
            if self.can_chunk(options.allowed) {
                encoder.encode(text, scratch, sink)
            } else {
                self.encode_segments(text, options, encoder, scratch, sink)
            }
        })
    }

    /// Encodes a text that is normalized or may contain added tokens.
    #[inline(never)]
    fn encode_segments<S: Sink>(
        &self,
        text: &str,
        options: EncodeOptions<'_>,
        encoder: Encoder<'_>,
        scratch: &mut Scratch,
        sink: &mut S,
    ) -> Result<()> {
        if let (Some(pipeline), Some(_)) = (&self.pipeline, &self.general_because) {
            let added = (&self.added, options.allowed);
            return pipeline.encode(text, options.after, added, options.interrupt, None, &mut |ids| sink.take(ids));
        }
        self.added.check(options.allowed)?;
        let mut after = options.after;
        self.added.split_raw(text, options.allowed, options.interrupt, &mut |segment| {
            let after = std::mem::replace(&mut after, After::Special);
            if let Some(id) = segment.added {
                sink.take(&[id]);
                return Ok(());
            }
            if let Some(model) = &self.sentencepiece {
                return model.encode(text[segment.bytes].as_bytes(), after, options.interrupt, sink);
            }
            let normal = self.normalizer.apply(&text[segment.bytes], after, options.interrupt)?;
            self.added.split_normalized(&normal, options.allowed, options.interrupt, &mut |segment| {
                if let Some(id) = segment.added {
                    sink.take(&[id]);
                    return Ok(());
                }
                encoder.encode(&normal[segment.bytes], scratch, sink)
            })
        })
    }

    /// Calls `work` with scratch memory that no other thread uses; warm if some is idle.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if there is no memory for it; what `work` returns.
    #[inline]
    pub(crate) fn with_scratch<R>(
        &self,
        interrupt: Interrupt<'_>,
        work: impl FnOnce(Encoder<'_>, &mut Scratch) -> Result<R>,
    ) -> Result<R> {
        let encoder =
            Encoder { interrupt, vocab: &self.vocab, pretokenizer: &self.pretokenizer, boundaries: &self.boundaries };
        let limit = self.cache_limit();
        let idle = self.idle.take().filter(|scratch| scratch.cache_limit() == limit);
        let mut scratch = idle.map_or_else(|| Scratch::boxed(limit), Ok)?;
        let result = work(encoder, &mut scratch);
        self.idle.give_back(scratch);
        result
    }
}

//! Tokens by id, by bytes and by name.

use super::definition::Tokenizer;
use crate::Result;
use crate::byte_alphabet::{byte_of, to_bytes, to_chars};
use crate::normalize::METASPACE;
use crate::special::AddedToken;

impl Tokenizer {
    /// Returns the largest id plus one, special tokens included: the number of rows of an embedding.
    pub fn vocab_size(&self) -> usize {
        let last_added = self.added.tokens().last().map_or(0, |token| token.id as usize + 1);
        // The vocabulary lacks tokens that a decoder erases.
        let of_pipeline = self.pipeline.as_ref().map_or(0, |pipeline| pipeline.id_bound());
        last_added.max(self.vocab.id_bound().max(of_pipeline) as usize)
    }

    /// Returns the number of tokens, added tokens included.
    pub fn token_count(&self) -> usize {
        if let (Some(pipeline), Some(_)) = (&self.pipeline, &self.general_because) {
            let is_new = |token: &&AddedToken| pipeline.token(token.id).is_none();
            return pipeline.tokens().count() + self.added_tokens().iter().filter(is_new).count();
        }
        let is_new = |token: &&AddedToken| self.vocab.id_to_bytes(token.id).is_none();
        let added: std::collections::HashSet<u32> =
            self.added_tokens().iter().filter(is_new).map(|token| token.id).collect();
        self.vocab.len() + added.len()
    }

    /// Returns all tokens but added tokens with their bytes, in id order.
    pub fn tokens(&self) -> Vec<(&[u8], u32)> {
        if self.general_because.is_some() {
            return self.vocab.decode_only_tokens().collect();
        }
        self.vocab.tokens().collect()
    }

    /// Returns the merges, best first, as pairs of ids.
    pub fn merges(&self) -> Vec<(u32, u32)> {
        match (&self.pipeline, &self.general_because) {
            (Some(pipeline), Some(_)) => pipeline.merges(),
            _ => self.vocab.merges().to_vec(),
        }
    }

    /// Returns the bytes of one token, special or not.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`] for an id that no token has.
    #[inline]
    pub fn id_to_bytes(&self, id: u32) -> Result<&[u8]> {
        match self.vocab.id_to_bytes(id) {
            Some(bytes) if !self.added_first => Ok(bytes),
            ordinary => self.added_or_ordinary_bytes(id, ordinary),
        }
    }

    #[cold]
    fn added_or_ordinary_bytes<'a>(&'a self, id: u32, ordinary: Option<&'a [u8]>) -> Result<&'a [u8]> {
        // A token may be decoded to nothing.
        let nothing = || self.pipeline.as_ref()?.token(id).map(|_| &[][..]);
        let bytes = self.added.bytes_of(id).or(ordinary).or_else(nothing);
        bytes.ok_or_else(|| not_found!("id {id} is not in this vocabulary of {} ids", self.vocab_size()))
    }

    /// Returns the id of the token with these bytes, special or not.
    pub fn bytes_to_id(&self, bytes: &[u8]) -> Option<u32> {
        let text = std::str::from_utf8(bytes);
        let added = || Some(self.added.by_content(text.ok()?)?.id);
        if self.general_because.is_some() {
            let by_name = |name: &str| self.pipeline.as_ref()?.token_to_id(name);
            let spelled = || if self.decodes_bytes() { by_name(&to_chars(bytes)) } else { by_name(text.ok()?) };
            let marked = || by_name(&text.ok()?.replace(' ', &METASPACE.to_string()));
            return added().or_else(spelled).or_else(|| by_name(text.ok()?)).or_else(marked);
        }
        let spaced = || self.vocab.bytes_to_id(text.ok()?.replace(METASPACE, " ").as_bytes());
        let marked = || Some(self.added.by_content(&text.ok()?.replace(' ', &METASPACE.to_string()))?.id);
        let found = self.vocab.bytes_to_id(bytes).or_else(added);
        if self.spaces().is_some() { found.or_else(spaced).or_else(marked) } else { found }
    }

    /// Returns the name of a token in a `tokenizer.json`: the text of an added token; otherwise its bytes in GPT-2's byte
    /// alphabet or, in a SentencePiece vocabulary, with `▁` for spaces.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`] for an id that no token has.
    pub fn id_to_token(&self, id: u32) -> Result<String> {
        if let Some(token) = self.added.by_id(id) {
            return Ok(token.content.clone());
        }
        let piece = || self.sentencepiece.as_ref()?.piece(id);
        if let Some(name) = piece().or_else(|| self.pipeline.as_ref()?.token(id)) {
            return Ok(name.to_owned());
        }
        let bytes = self.id_to_bytes(id)?;
        if self.spaces().is_none() {
            return Ok(to_chars(bytes));
        }
        let is_byte = self.vocab.byte_fallback().is_some_and(|ids| ids.contains(&id));
        Ok(if is_byte {
            format!("<0x{:02X}>", bytes[0])
        } else {
            String::from_utf8_lossy(bytes).replace(' ', "\u{2581}")
        })
    }

    /// Returns the id of the token with this name: an added token's text, otherwise the name that
    /// [`Tokenizer::id_to_token`] returns, otherwise the token's bytes.
    pub fn token_to_id(&self, name: &str) -> Option<u32> {
        let added = || Some(self.added.by_content(name)?.id);
        let named = || match (&self.sentencepiece, &self.pipeline) {
            (Some(model), _) => model.id_of_piece(name),
            (None, Some(pipeline)) => pipeline.token_to_id(name),
            _ if self.spaces().is_some() => {
                let byte = byte_of(name).and_then(|byte| Some(self.vocab.byte_fallback()?[usize::from(byte)]));
                byte.or_else(|| self.vocab.bytes_to_id(name.replace(METASPACE, " ").as_bytes()))
            }
            _ => self.vocab.bytes_to_id(&to_bytes(name)?),
        };
        added().or_else(named).or_else(|| self.bytes_to_id(name.as_bytes()))
    }

    /// Returns whether an id belongs to a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.added.by_id(id).is_some_and(|token| token.special)
    }
}

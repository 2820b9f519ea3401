//! A tokenizer with more added tokens.

use hashbrown::HashMap;

use crate::byte_alphabet::to_bytes;
use crate::normalize::METASPACE;
use crate::special::{AddedToken, AddedTokens};
use crate::{Error, Result, Tokenizer};

impl Tokenizer {
    /// Returns this tokenizer with more added tokens; the ids of `tokens` are ignored.
    ///
    /// An existing token, added or ordinary, keeps its id; the others get the ids after the last one, in order. Flags
    /// of an existing added token are replaced.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a token is empty, or if two tokens have the same normal form.
    pub fn with_added_tokens(&self, tokens: Vec<AddedToken>) -> Result<Self> {
        let mut all = self.added_tokens().to_vec();
        let mut indices: HashMap<String, usize> =
            all.iter().enumerate().map(|(index, token)| (token.content.clone(), index)).collect();
        let mut next = self.vocab_size() as u32;
        for mut token in tokens {
            if let Some(&index) = indices.get(&token.content) {
                token.id = all[index].id;
                all[index] = token;
                continue;
            }
            token.id = self.id_of_name(&token.content).unwrap_or_else(|| {
                next += 1;
                next - 1
            });
            indices.insert(token.content.clone(), all.len());
            all.push(token);
        }
        let mut tokenizer = self.clone();
        let is_changed = |token: &AddedToken| token.normalized || token.content.contains(METASPACE);
        if self.spaces().is_some() && all.iter().any(is_changed) {
            if self.pipeline.is_none() {
                return Err(Error::InvalidArgument(
                    "a SentencePiece tokenizer finds added tokens in text as it stands: they can be neither normalized \
                     nor hold \u{2581}"
                        .to_owned(),
                ));
            }
            tokenizer = tokenizer.encoding_by_pipeline("added tokens that are normalized");
        }
        tokenizer.added = match &self.pipeline {
            Some(pipeline) => AddedTokens::new(all, |text| pipeline.normalize(text))?,
            None => AddedTokens::new(all, |text| self.normalizer.normal_form(text))?,
        };
        if self.spaces().is_some() {
            tokenizer.added.decode_by(|name| name.replace(METASPACE, " ").into_bytes());
        } else if let Some(pipeline) = &self.pipeline {
            tokenizer.added.decode_by(|name| pipeline.token_bytes(name));
        } else if self.components.is_some() {
            tokenizer.added.decode_by(|name| to_bytes(name).unwrap_or_else(|| name.as_bytes().to_vec()));
        }
        if self.components.is_some() {
            tokenizer.prefer_added_tokens();
        }
        Ok(tokenizer)
    }

    /// Returns the id of the ordinary token with this name in a `tokenizer.json`, or, without a file, with this text.
    fn id_of_name(&self, name: &str) -> Option<u32> {
        if let Some(pipeline) = &self.pipeline {
            return pipeline.token_to_id(name);
        }
        let bytes = if self.spaces().is_some() { name.replace(METASPACE, " ").into_bytes() } else { to_bytes(name)? };
        let is_same = self.components.is_some() || self.spaces().is_some() || bytes == name.as_bytes();
        self.vocab.bytes_to_id(&bytes).filter(|_| is_same)
    }
}

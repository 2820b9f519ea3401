//! From a `tokenizer.json` to a tokenizer, with the fastest path that gives the ids of `tokenizers`.

use std::sync::Arc;

use hashbrown::HashMap;

use super::parse::{Parsed, parse};
use super::schema::{Merge, Own};
use super::sentencepiece;
use crate::pipeline::{Components, Pipeline};
use crate::special::AddedTokens;
use crate::{Result, Spaces, SpecialIds, Tokenizer, Vocab};

impl Tokenizer {
    /// Returns the tokenizer that a `tokenizer.json` with a BPE model describes.
    ///
    /// Every component that `tokenizers` 0.23 writes for BPE is supported or refused by name. Byte-level BPE and
    /// SentencePiece's BPE with byte fallback have a fast path with the same ids; otherwise
    /// [`Tokenizer::general_because`] names the component without one.
    ///
    /// # Errors
    /// [`crate::Error::Format`] if the file is not JSON, lacks a field, or requires something unsupported, which the
    /// message names.
    pub fn from_huggingface(json: &[u8]) -> Result<Self> {
        parse(json, false, build)
    }

    /// Returns the tokenizer of [`Tokenizer::to_own_json`], whose format extends `tokenizer.json`.
    ///
    /// # Errors
    /// As [`Tokenizer::from_huggingface`].
    pub fn from_own_json(json: &[u8]) -> Result<Self> {
        parse(json, true, build)
    }
}

/// Returns the pipeline of the output of [`Tokenizer::to_own_json`].
pub(crate) fn pipeline_of(json: &[u8]) -> Result<Pipeline> {
    parse(json, true, |parsed| parsed.pipeline())
}

/// Returns the tokenizer of a parsed file; a function, since `Parsed::build` has a fixed lifetime.
fn build(parsed: Parsed<'_>) -> Result<Tokenizer> {
    parsed.build()
}

impl Parsed<'_> {
    fn build(self) -> Result<Tokenizer> {
        let because = match self.byte_level()? {
            Ok(tokenizer) => match self.own {
                Some(own) => return self.finish_own(tokenizer, own),
                None => return self.finish(tokenizer),
            },
            Err(because) => because,
        };
        if let Some(mut tokenizer) = sentencepiece::read(&self)? {
            if let Some(own) = self.own {
                return self.finish_own(tokenizer, own);
            }
            tokenizer.pipeline = Some(Arc::new(self.pipeline()?));
            return self.finish(tokenizer);
        }
        let pipeline = self.pipeline()?;
        let mut added = self.added_tokens(|text| pipeline.normalize(text))?;
        added.decode_by(|name| pipeline.token_bytes(name));
        self.refuse_taken_ids(&added)?;
        let tokens = self.ids.iter().filter(|(token, _)| !token.is_empty());
        let tokens = tokens.map(|(token, &id)| (pipeline.token_bytes(token), id));
        let tokens = tokens.filter(|(bytes, _)| !bytes.is_empty()).collect();
        let vocab = Vocab::from_merges_and_decode_only(Vec::new(), tokens, Vec::new(), false)?;
        let tokenizer = Tokenizer::general(vocab, added, pipeline, because)?;
        self.finish(tokenizer)
    }

    /// Returns the pickled tokenizer: decoding follows `own`, not the components.
    fn finish_own(self, mut tokenizer: Tokenizer, own: Own) -> Result<Tokenizer> {
        tokenizer.pipeline = None;
        if let Some(spaces) = tokenizer.spaces() {
            tokenizer = tokenizer.with_spaces(Spaces { drop_first: own.drops_first_space, ..spaces });
        } else {
            tokenizer.added = self.added_tokens(|text| tokenizer.normalizer.normal_form(text))?;
        }
        if own.as_sentencepiece {
            tokenizer = tokenizer.decoding_as_sentencepiece();
        }
        match self.post_processor {
            Some(post_processor) => tokenizer.with_post_processor(post_processor),
            None => Ok(tokenizer),
        }
    }

    pub(super) fn pipeline(&self) -> Result<Pipeline> {
        let entries = self.entries.iter().map(|(token, id)| (token.as_ref(), *id));
        let merges = self.merges.iter().map(|Merge(left, right)| (left.as_ref(), right.as_ref()));
        Pipeline::new(&self.components, entries, merges, self.options.clone())
    }

    /// Adds the parts that all paths share.
    fn finish(self, mut tokenizer: Tokenizer) -> Result<Tokenizer> {
        tokenizer.prefer_added_tokens();
        let components = Components { model: self.options.clone(), ..self.components };
        tokenizer.components = Some(Arc::new(components));
        if let Some(post_processor) = self.post_processor {
            tokenizer = tokenizer.with_post_processor(post_processor)?;
        }
        let named = |name: &String| {
            let added = self.added.iter().find(|token| token.content == *name).map(|token| token.id);
            added.or_else(|| self.ids.get(name.as_str()).copied())
        };
        let padding = tokenizer.components.as_ref().and_then(|components| components.padding.as_ref());
        let pad = padding.and_then(|padding| named(&padding.pad_token));
        let unk = self.options.unk_token.as_ref().and_then(named);
        let ends = SpecialIds { pad, unk, ..tokenizer.special_ids() };
        tokenizer.with_special_ids(ends)
    }

    pub(super) fn added_tokens(&self, normalize: impl Fn(&str) -> Result<String>) -> Result<AddedTokens> {
        AddedTokens::new(self.added.clone(), normalize)
            .map_err(|error| malformed!("tokenizer.json: added_tokens: {error}"))
    }

    pub(super) fn refuse_taken_ids(&self, added: &AddedTokens) -> Result<()> {
        let names: HashMap<u32, &str> = self.ids.iter().map(|(token, &id)| (id, *token)).collect();
        for token in added.tokens() {
            let is_other = |other: &&&str| **other != token.content && added.by_content(other).is_none();
            if let Some(&other) = names.get(&token.id).filter(is_other) {
                return Err(malformed!(
                    "tokenizer.json: added token {:?} gets id {}, as `tokenizers` counts, which is that of {other:?}",
                    token.content,
                    token.id
                ));
            }
        }
        Ok(())
    }
}

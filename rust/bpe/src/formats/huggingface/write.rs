//! From a tokenizer to a `tokenizer.json` that `tokenizers` loads and that gives the same ids.

use std::collections::HashMap;

use serde_json::json;

use super::byte_level::escape;
use super::schema::{OutEntries, OutFile, OutModel, Own};
use super::sentencepiece;
use crate::byte_alphabet::{to_bytes, to_chars};
use crate::pipeline::components::{Behavior, ByteLevel, Decoder, Normalizer, Pattern, PreTokenizer};
use crate::pipeline::{Components, ModelOptions};
use crate::pretokenize::{WHOLE, to_oniguruma};
use crate::{AddedToken, Error, Pretokenizer, Result, Tokenizer};

/// The tokens and merges of a file.
type FileVocab = (Vec<(String, u32)>, Vec<[String; 2]>);

impl Tokenizer {
    /// Returns the text of a `tokenizer.json` that `tokenizers` loads and that gives the same ids.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a special token has the name of an ordinary token in the file, or if the file
    /// cannot express the vocabulary or its pattern; the message names the reason.
    pub fn to_huggingface(&self) -> Result<String> {
        self.write(false)
    }

    /// Returns the text in an extended format for [`Tokenizer::from_own_json`]: it also expresses any pattern, and the
    /// decoding of a tokenizer that was not read from a `tokenizer.json`.
    ///
    /// # Errors
    /// As [`Tokenizer::to_huggingface`], except for the pattern.
    pub fn to_own_json(&self) -> Result<String> {
        self.write(true)
    }

    /// Returns the added tokens as a `tokenizer.json` lists them.
    ///
    /// # Errors
    /// [`Error::Format`] in no known case.
    pub fn added_tokens_json(&self) -> Result<String> {
        serde_json::to_string(self.added_tokens()).map_err(|error| Error::Format(error.to_string()))
    }

    /// Returns the fields `truncation`, `padding`, `normalizer`, `pre_tokenizer` and `ignore_merges` of the
    /// `tokenizer.json` as JSON, or `None` if this tokenizer was not read from such a file.
    pub fn components_json(&self) -> Option<String> {
        let Components { normalizer, pre_tokenizer, truncation, padding, model, .. } = &**self.components.as_ref()?;
        let parts = json!({
            "truncation": truncation,
            "padding": padding,
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "ignore_merges": model.ignore_merges,
        });
        Some(parts.to_string())
    }

    fn write(&self, is_own: bool) -> Result<String> {
        if self.sentencepiece_model().is_some() {
            return Err(invalid!(
                "this SentencePiece model cannot be saved as tokenizer.json, which cannot express rules for \
                 characters, pieces of equal scores, unused pieces, or unknown text without byte fallback; save it as .model"
            ));
        }
        let shared = self.added_tokens().windows(2).find(|pair| pair[0].id == pair[1].id);
        if let Some([one, other]) = shared.filter(|_| !is_own) {
            return Err(invalid!(
                "special tokens {:?} and {:?} share id {}: tokenizers would find only one of them, so this cannot be saved as \
                 tokenizer.json",
                one.content,
                other.content,
                one.id
            ));
        }
        let components = match &self.components {
            Some(components) => (**components).clone(),
            None => self.describe(is_own)?,
        };
        let (entries, merges) = self.model(is_own)?;
        let merges = merges.iter().map(|[left, right]| [left.as_str(), right.as_str()]).collect();
        let file = OutFile {
            version: "1.0",
            truncation: components.truncation.as_ref(),
            padding: components.padding.as_ref(),
            added_tokens: self.added_tokens(),
            normalizer: components.normalizer.as_ref(),
            pre_tokenizer: components.pre_tokenizer.as_ref(),
            post_processor: self.post_processor.as_deref(),
            decoder: components.decoder.as_ref(),
            model: OutModel { r#type: "BPE", options: components.model.clone(), vocab: OutEntries(&entries), merges },
            own: (is_own && self.components.is_none()).then(|| Own {
                drops_first_space: self.spaces().is_some_and(|spaces| spaces.drop_first),
                as_sentencepiece: self.decodes_as_sentencepiece(),
            }),
        };
        let written = serde_json::to_string(&file).map_err(|error| Error::Format(error.to_string()))?;
        self.check_characters(&entries, &written)?;
        Ok(written)
    }

    /// Refuses a special token of one character that text never becomes here, but does in the tokenizer of the file: a
    /// general model takes every character for its token.
    fn check_characters(&self, entries: &[(String, u32)], written: &str) -> Result<()> {
        if self.spaces().is_none() {
            return Ok(());
        }
        let is_character = |token: &&AddedToken| {
            token.special
                && token.content.chars().nth(1).is_none()
                && entries.iter().any(|(entry, id)| *id == token.id && *entry == token.content)
        };
        match self.added_tokens().iter().find(is_character) {
            Some(token) if Self::from_huggingface(written.as_bytes())?.general_because().is_some() => Err(invalid!(
                "text never becomes its special token {:?}, which a tokenizer.json cannot express for a single character",
                token.content
            )),
            _ => Ok(()),
        }
    }

    /// Returns the components of a tokenizer that was not read from a `tokenizer.json`.
    pub(crate) fn describe(&self, is_own: bool) -> Result<Components> {
        let model = ModelOptions { ignore_merges: self.vocab.whole_piece_first(), ..ModelOptions::default() };
        if let Some(spaces) = self.spaces() {
            let [normalizer, pre_tokenizer, decoder] = sentencepiece::to_json(self, spaces);
            let parsed = |error: serde_json::Error| Error::Format(error.to_string());
            return Ok(Components {
                normalizer: serde_json::from_value(normalizer).map_err(parsed)?,
                pre_tokenizer: serde_json::from_value(pre_tokenizer).map_err(parsed)?,
                decoder: serde_json::from_value(decoder).map_err(parsed)?,
                model: ModelOptions { fuse_unk: true, byte_fallback: true, ..model },
                ..Components::default()
            });
        }
        let byte_level = ByteLevel { add_prefix_space: false, trim_offsets: true, use_regex: false };
        Ok(Components {
            normalizer: self.normalizes().then_some(Normalizer::NFC {}),
            pre_tokenizer: Some(describe_splits(self.pretokenizer(), byte_level, is_own)?),
            decoder: Some(self.describe_decoder(byte_level)),
            model,
            ..Components::default()
        })
    }

    /// Returns the decoder of a byte-level tokenizer.
    ///
    /// `ByteLevel` decodes an added token whose characters are all in GPT-2's alphabet to the bytes of that alphabet:
    /// `ï` to 0xEF. A `Replace` before it respells such tokens in the alphabet.
    fn describe_decoder(&self, byte_level: ByteLevel) -> Decoder {
        let respelled = self.added_tokens().iter().filter_map(|AddedToken { content, id, .. }| {
            let bytes = self.id_to_bytes(*id).ok()?;
            let is_other = to_bytes(content).is_some_and(|taken_for| taken_for != bytes);
            is_other.then(|| Decoder::Replace {
                pattern: Pattern::Regex(format!(r"\A{}\z", escape(content))),
                content: to_chars(bytes),
            })
        });
        let mut decoders: Vec<_> = respelled.collect();
        decoders.push(Decoder::ByteLevel(byte_level));
        if decoders.len() == 1 { decoders.remove(0) } else { Decoder::Sequence { decoders } }
    }

    /// Returns the tokens of the model by id, and its merges.
    ///
    /// Added tokens are among them only if `tokenizers` would otherwise assign other ids, since the model could then
    /// produce them from text: the byte 0xE9 would become the added token `é`.
    fn model(&self, is_own: bool) -> Result<FileVocab> {
        let (mut entries, merges) = match &self.pipeline {
            Some(pipeline) => {
                let name = |id: u32| pipeline.token(id).unwrap_or_default().to_owned();
                let merges = pipeline.merges().into_iter().map(|(left, right)| [name(left), name(right)]).collect();
                (pipeline.tokens().map(|(token, id)| (token.to_owned(), id)).collect(), merges)
            }
            None => self.file_vocab()?,
        };
        let mut ids: HashMap<&str, u32> = HashMap::with_capacity(entries.len());
        for (token, id) in &entries {
            if let Some(other) = ids.insert(token, *id) {
                return Err(invalid!(
                    "token {token:?} has two ids, {other} and {id}: tokenizer.json has one for a token"
                ));
            }
        }
        let mut new = Vec::new();
        for token in self.added_tokens() {
            match ids.get(token.content.as_str()) {
                None => new.push(token),
                Some(&other) if other != token.id && !is_own => {
                    return Err(invalid!(
                        "special token {:?} is spelt as ordinary token {other} in tokenizer.json: it cannot be saved",
                        token.content
                    ));
                }
                Some(_) => {}
            }
        }
        drop(ids);
        // `tokenizers` numbers added tokens after the vocabulary: only those before the longest such run need an entry.
        let is_numbered = |&first: &usize| {
            let next = (entries.len() + first) as u32;
            new[first..].iter().zip(next..).all(|(token, id)| token.id == id)
        };
        let mut firsts = 0..new.len();
        if self.spaces().is_some() {
            firsts.end = firsts.end.min(1); // what ▁ means in a token is read from the vocabulary: all have an entry, or none
        }
        new.truncate(firsts.find(is_numbered).unwrap_or(new.len()));
        if !new.is_empty() {
            if let Some(token) = new.iter().find(|token| self.model_could_give(token)) {
                return Err(invalid!(
                    "added token {:?} has id {}, which `tokenizers` gives it only if it is in model.vocab too, and there \
                     the model would give it for text that is not this token: it cannot be saved as tokenizer.json",
                    token.content,
                    token.id
                ));
            }
            entries.extend(new.into_iter().map(|token| (token.content.clone(), token.id)));
        }
        entries.sort_by_key(|&(_, id)| id);
        Ok((entries, merges))
    }

    /// Returns whether the model could produce an added token in its vocabulary from text in which the token does not
    /// match: from the bytes that its characters encode, or from its text where matching is restricted.
    fn model_could_give(&self, token: &AddedToken) -> bool {
        let components = self.components.as_deref();
        let rewrites = components.map_or(self.normalizes(), |components| components.normalizer.is_some());
        let takes_whole = components.is_some_and(|components| components.model.ignore_merges);
        let spells_other = to_bytes(&token.content).is_some_and(|bytes| bytes != token.content.as_bytes());
        let is_missed = spells_other || token.single_word || (rewrites && !token.normalized);
        is_missed && (token.content.chars().nth(1).is_none() || (takes_whole && !token.special))
    }

    /// Returns the tokens and merges of the vocabulary with the names of a file.
    fn file_vocab(&self) -> Result<FileVocab> {
        let to_name = if self.spaces().is_some() { sentencepiece::name_of } else { to_chars };
        let mut entries: Vec<(String, u32)> = match self.spaces() {
            Some(_) => sentencepiece::names(self.vocab())?,
            None => self.vocab().tokens().map(|(token, id)| (to_chars(token), id)).collect(),
        };
        if self.spaces().is_none() {
            let decode_only = self.vocab().decode_only_tokens();
            entries.extend(decode_only.map(|(token, id)| (String::from_utf8_lossy(token).into_owned(), id)));
        }
        let token_chars = |id: u32| to_name(self.vocab().id_to_bytes(id).unwrap_or_default());
        let merges = self.vocab().merges().iter().map(|&(left, right)| [token_chars(left), token_chars(right)]);
        Ok((entries, merges.collect()))
    }
}

fn describe_splits(pretokenizer: &Pretokenizer, byte_level: ByteLevel, is_own: bool) -> Result<PreTokenizer> {
    let mut steps = Vec::new();
    for step in pretokenizer.steps() {
        let pattern = match step.oniguruma_regex() {
            Some(regex) => Pattern::Regex(regex.to_owned()),
            None if step.pattern() == WHOLE => continue,
            None if step.name().is_some() => Pattern::Regex(step.pattern().to_owned()),
            None if is_own => Pattern::FancyRegex(step.pattern().to_owned()),
            None => Pattern::Regex(to_oniguruma(step)?),
        };
        steps.push(PreTokenizer::Split { pattern, behavior: Behavior::Isolated, invert: false });
    }
    steps.push(PreTokenizer::ByteLevel(byte_level));
    Ok(PreTokenizer::Sequence { pretokenizers: steps })
}

//! The fast path of byte-level BPE: a vocabulary over bytes instead of the pipeline.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use super::parse::Parsed;
use super::schema::Merge;
use crate::byte_alphabet::{CHARS, to_bytes};
use crate::normalize::Normalizer;
use crate::pipeline::components::{self, Behavior, Pattern, PreTokenizer};
use crate::pipeline::unknown_in_merge;
use crate::pretokenize::DIGIT;
use crate::{AddedToken, Error, Pretokenizer, Result, Tokenizer, Vocab};

impl Parsed<'_> {
    /// Returns the tokenizer if the file is byte-level BPE that needs no pipeline, or the component that needs one.
    pub(super) fn byte_level(&self) -> Result<std::result::Result<Tokenizer, String>> {
        let normalizer = match self.components.normalizer.as_ref() {
            None => Normalizer::None,
            Some(normalizer) => {
                let steps = normalizer.steps();
                if let Some(step) = steps.iter().find(|step| !matches!(step, components::Normalizer::NFC {})) {
                    return Ok(Err(format!("the normalizer {}", name_of(step))));
                }
                if steps.is_empty() { Normalizer::None } else { Normalizer::Nfc }
            }
        };
        let Some(pre_tokenizer) = &self.components.pre_tokenizer else {
            return Ok(Err("no pre-tokenizer".to_owned()));
        };
        let pretokenizer = match split_by(pre_tokenizer)? {
            Ok(pretokenizer) => pretokenizer,
            Err(because) => return Ok(Err(because)),
        };
        let options = &self.options;
        for (affix, name) in [
            (&options.continuing_subword_prefix, "model.continuing_subword_prefix"),
            (&options.end_of_word_suffix, "model.end_of_word_suffix"),
        ] {
            if affix.is_some() {
                return Ok(Err(name.to_owned()));
            }
        }
        let has_all = CHARS.iter().all(|c| self.ids.contains_key(c.encode_utf8(&mut [0; 4]) as &str));
        if !has_all && options.unk_token.is_some() {
            return Ok(Err("model.unk_token, with bytes that are no tokens".to_owned()));
        }
        if !has_all && options.byte_fallback {
            return Ok(Err("model.byte_fallback, with bytes that are no tokens".to_owned()));
        }
        self.as_bytes(normalizer, pretokenizer, has_all)
    }

    /// Returns the equivalent tokenizer over bytes, or what has no equivalent.
    fn as_bytes(
        &self,
        normalizer: Normalizer,
        pretokenizer: Pretokenizer,
        has_all_bytes: bool,
    ) -> Result<std::result::Result<Tokenizer, String>> {
        // Added tokens are no ordinary tokens, unless merges result in them.
        let is_named = |token: &&AddedToken| self.ids.get(token.content.as_str()).is_none_or(|id| *id == token.id);
        let added: HashMap<&str, &AddedToken> =
            self.added.iter().filter(is_named).map(|token| (token.content.as_str(), token)).collect();
        let is_foreign = |token: &str| added.contains_key(token) || to_bytes(token).is_none();
        let foreign: HashSet<&str> = self.ids.keys().copied().filter(|token| is_foreign(token)).collect();
        let (mut merged, mut result) = (HashSet::new(), String::new());
        let (mut pairs, mut seen) = (Vec::with_capacity(self.merges.len()), HashSet::with_capacity(self.merges.len()));
        for (rank, Merge(left, right)) in self.merges.iter().enumerate() {
            let id_of = |token: &str| self.ids.get(token).copied().ok_or_else(|| unknown_in_merge(rank, token));
            let pair = (id_of(left)?, id_of(right)?);
            if !seen.insert(pair) {
                return Ok(Err(format!("model.merges that give {left:?} and {right:?} twice")));
            }
            pairs.push(pair);
            result.clear();
            result.extend([left.as_ref(), right]);
            let tokens = [left.as_ref(), right, &result].map(|token| foreign.get(token).copied());
            merged.extend(tokens.into_iter().flatten());
        }
        let (mut tokens, mut decode_only) = (Vec::with_capacity(self.entries.len()), Vec::new());
        let mut used = HashSet::with_capacity(self.entries.len());
        for (token, id) in self.entries {
            // Special tokens can share an id, as in o200k_harmony.
            let is_added = added.get(token.as_ref()).is_some_and(|known| known.id == *id);
            if !used.insert(*id) && !is_added {
                return Err(malformed!("tokenizer.json: id {id} is given to two tokens, {token:?} is one"));
            }
            if token.is_empty() {
                return Ok(Err("an empty token in model.vocab".to_owned()));
            }
            let is_added_only =
                added.get(token.as_ref()).is_some_and(|known| known.special || !self.options.ignore_merges);
            if is_added_only && token.chars().nth(1).is_some() && !merged.contains(token.as_ref()) {
                continue;
            }
            match to_bytes(token) {
                Some(bytes) => tokens.push((bytes, *id)),
                // Text never becomes a token outside the byte alphabet; `tokenizers` decodes it to its own characters.
                None if merged.contains(token.as_ref()) => {
                    return Ok(Err(format!("a merge of {token:?}, which is not of the byte alphabet")));
                }
                None => decode_only.push((token.as_bytes().to_vec(), *id)),
            }
        }
        let mut added = self.added_tokens(|text| normalizer.normal_form(text))?;
        let decoder = self.components.decoder.as_ref();
        let is_bytes =
            decoder.is_some_and(|decoder| matches!(decoder.steps()[..], [components::Decoder::ByteLevel(_)]));
        // A pickled tokenizer decodes without a pipeline, see `finish_own`.
        let needs_none = self.own.is_some() || (is_bytes && has_all_bytes);
        let pipeline = if needs_none { None } else { Some(self.pipeline()?) };
        added.decode_by(|name| match &pipeline {
            Some(pipeline) => pipeline.token_bytes(name),
            None => to_bytes(name).unwrap_or_else(|| name.as_bytes().to_vec()),
        });
        self.refuse_taken_ids(&added)?;
        let mut vocab = Vocab::from_merges_and_decode_only(tokens, decode_only, pairs, self.options.ignore_merges)?;
        if !has_all_bytes && self.own.is_none() {
            vocab = vocab.dropping_unknown();
        }
        let mut tokenizer = Tokenizer::assemble(vocab, pretokenizer, added, normalizer);
        tokenizer.pipeline = pipeline.map(Arc::new);
        Ok(Ok(tokenizer))
    }
}

/// Returns the pre-tokenizer of a byte-level file, or the step without a fast implementation.
fn split_by(pre_tokenizer: &PreTokenizer) -> Result<std::result::Result<Pretokenizer, String>> {
    let steps = pre_tokenizer.steps();
    let in_file = |error: Error| malformed!("tokenizer.json: pre_tokenizer: {error}");
    let Some((PreTokenizer::ByteLevel(byte_level), before)) = steps.split_last() else {
        return Ok(Err("a pre-tokenizer that does not end in ByteLevel".to_owned()));
    };
    if byte_level.add_prefix_space {
        return Ok(Err("the pre-tokenizer ByteLevel with add_prefix_space".to_owned()));
    }
    let mut splitters = Vec::new();
    for step in before {
        // "Isolated" returns matches and the text between them, an inverted "Removed" only matches.
        let splitter = match step {
            PreTokenizer::Split { pattern, behavior: Behavior::Isolated, .. } => match pattern {
                Pattern::Regex(regex) => Pretokenizer::oniguruma(regex),
                Pattern::FancyRegex(regex) => Pretokenizer::new(regex),
                Pattern::String(text) if text.is_empty() => return Ok(Err("a Split by the empty text".to_owned())),
                Pattern::String(text) => Pretokenizer::oniguruma(&escape(text)),
            },
            PreTokenizer::Split { pattern: Pattern::Regex(regex), behavior: Behavior::Removed, invert: true } => {
                match Pretokenizer::oniguruma(regex).map_err(in_file)? {
                    // A named pattern matches all text, so nothing is removed.
                    named if named.name().is_some() => Ok(named),
                    _ => return Ok(Err("a Split that removes text".to_owned())),
                }
            }
            PreTokenizer::Digits { individual_digits: true } => Pretokenizer::oniguruma(DIGIT),
            PreTokenizer::Digits { individual_digits: false } => Pretokenizer::oniguruma(&format!("{DIGIT}+")),
            other => return Ok(Err(format!("the pre-tokenizer {}", name_of(other)))),
        };
        splitters.push(splitter.map_err(in_file)?);
    }
    if byte_level.use_regex {
        splitters.push(Pretokenizer::new("r50k")?);
    }
    if splitters.is_empty() {
        // No step splits: a text is one pre-token.
        splitters.push(Pretokenizer::whole()?);
    }
    Pretokenizer::sequence(splitters).map(Ok)
}

/// Returns the regex that matches this text literally, in Oniguruma and other engines.
pub(super) fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut regex, c| {
        if r"\.+*?()|[]{}^$#&-~".contains(c) {
            regex.push('\\');
        }
        regex.push(c);
        regex
    })
}

/// Returns the type of a component in the file.
fn name_of(component: &impl serde::Serialize) -> String {
    let value = serde_json::to_value(component).unwrap_or_default();
    value["type"].as_str().unwrap_or("of an unknown type").to_owned()
}

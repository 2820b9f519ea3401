//! From a `tokenizer.json` to a tokenizer, by the fastest way that gives the ids of `tokenizers`.

use std::borrow::Cow;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use super::{AddedTokenJson, File, Kind, Merge, Model, Own, spaces};
use crate::byte_alphabet::{CHARS, to_bytes};
use crate::normalize::Normalizer;
use crate::pipeline::components::{self, Behavior, Pattern, PostProcessor, PreTokenizer};
use crate::pipeline::{Components, ModelOptions, Pipeline};
use crate::pretokenize::DIGIT;
use crate::special::AddedTokens;
use crate::{AddedToken, Error, Pretokenizer, Result, Spaces, SpecialIds, Tokenizer, Vocab};

/// A file, parsed.
pub(super) struct Parsed<'a> {
    pub(super) components: Components,
    post_processor: Option<PostProcessor>,
    pub(super) options: ModelOptions,
    pub(super) added: Vec<AddedToken>,
    pub(super) entries: &'a [(Cow<'a, str>, u32)],
    pub(super) merges: &'a [Merge<'a>],
    /// The id of each token of the model.
    pub(super) ids: HashMap<&'a str, u32>,
    /// How it decodes, if it is the pickle of a tokenizer that was not read from such a file.
    own: Option<Own>,
}

impl Tokenizer {
    /// Returns the tokenizer that a `tokenizer.json` with a BPE model describes.
    ///
    /// Every component that `tokenizers` 0.23 writes for BPE is honoured, or refused by name. Files of byte-level BPE and
    /// of SentencePiece's BPE with byte fallback are encoded in a faster way of the same ids where one is known;
    /// [`Tokenizer::general_because`] says why another is not.
    ///
    /// # Errors
    /// [`Error::Format`] if it is not JSON, lacks a part, or asks for what is not supported, naming it.
    pub fn from_huggingface(json: &[u8]) -> Result<Self> {
        parse(json, false, build)
    }

    /// Returns the tokenizer of [`Tokenizer::to_own_json`], which says what no `tokenizer.json` can.
    ///
    /// # Errors
    /// As [`Tokenizer::from_huggingface`].
    pub fn from_own_json(json: &[u8]) -> Result<Self> {
        parse(json, true, build)
    }
}

fn build(parsed: Parsed<'_>) -> Result<Tokenizer> {
    parsed.build()
}

/// Returns the pipeline that spells out what [`Tokenizer::to_own_json`] gives.
///
/// # Errors
/// As [`Tokenizer::from_huggingface`].
pub(crate) fn pipeline_of(json: &[u8]) -> Result<Pipeline> {
    parse(json, true, |parsed| parsed.pipeline())
}

/// Reads a file and hands it over; `is_own` allows what only [`Tokenizer::to_own_json`] writes.
fn parse<R>(json: &[u8], is_own: bool, work: impl FnOnce(Parsed<'_>) -> Result<R>) -> Result<R> {
    let file: File<'_> =
        serde_json::from_slice(json).map_err(|error| Error::Format(format!("not a tokenizer.json: {error}")))?;
    if let Some(version) = file.version.filter(|version| version != "1.0") {
        return Err(Error::Format(format!("tokenizer.json: version is {version:?}; expected \"1.0\"")));
    }
    require_bpe(file.model.get())?;
    let model: Model<'_> = serde_json::from_str(file.model.get())
        .map_err(|error| Error::Format(format!("tokenizer.json: model: {error}")))?;
    if let Some(dropout) = model.dropout.filter(|dropout| !(0.0..=1.0).contains(dropout)) {
        return Err(Error::Format(format!("tokenizer.json: model.dropout is {dropout}; expected 0 to 1")));
    }
    let components = Components {
        normalizer: components::parse("normalizer", file.normalizer)?,
        pre_tokenizer: components::parse("pre_tokenizer", file.pre_tokenizer)?,
        decoder: components::parse("decoder", file.decoder)?,
        truncation: components::parse("truncation", file.truncation)?,
        padding: components::parse("padding", file.padding)?,
        model: ModelOptions::default(),
    };
    let foreign = components.fancy_regex().map(|regex| format!("a pattern is {{\"FancyRegex\": {regex:?}}}"));
    let foreign = foreign.or_else(|| file.own.map(|_| "it has the field \"own\"".to_owned()));
    if let Some(what) = foreign.filter(|_| !is_own) {
        return Err(Error::Format(format!(
            "tokenizer.json: {what}, which only a pickled tokenizer holds; expected what `tokenizers` writes, such as \
             {{\"Regex\": ...}} or {{\"String\": ...}} for a pattern"
        )));
    }
    let post_processor = components::parse("post_processor", file.post_processor)?;
    let affix = |affix: Option<String>| affix.filter(|affix| !affix.is_empty());
    let options = ModelOptions {
        dropout: model.dropout,
        unk_token: model.unk_token,
        continuing_subword_prefix: affix(model.continuing_subword_prefix),
        end_of_word_suffix: affix(model.end_of_word_suffix),
        fuse_unk: model.fuse_unk.unwrap_or(false),
        byte_fallback: model.byte_fallback.unwrap_or(false),
        ignore_merges: model.ignore_merges.unwrap_or(false),
    };
    let entries = model.vocab.0;
    let ids: HashMap<&str, u32> = entries.iter().map(|(token, id)| (token.as_ref(), *id)).collect();
    let added = match file.own {
        Some(_) => file.added_tokens.into_iter().map(AddedToken::from).collect(),
        None => with_ids(file.added_tokens, &ids)?,
    };
    work(Parsed {
        components,
        post_processor,
        options,
        added,
        entries: &entries,
        merges: &model.merges,
        ids,
        own: file.own,
    })
}

/// Refuses other models than BPE, saying what the file is.
fn require_bpe(model: &str) -> Result<()> {
    let kind: Kind<'_> =
        serde_json::from_str(model).map_err(|error| Error::Format(format!("tokenizer.json: model: {error}")))?;
    let what = match kind.r#type.as_deref() {
        Some("BPE") => return Ok(()),
        None if kind.merges.is_some() => return Ok(()),
        None => "it has no type and no merges",
        Some("WordPiece") => "WordPiece, BERT's, which takes the longest token that fits",
        Some("Unigram") => "Unigram, SentencePiece's, which looks for the likeliest tokens (T5, XLM-R, ALBERT)",
        Some("WordLevel") => "WordLevel, in which each word is a token",
        Some(_) => "of an unknown kind",
    };
    let kind = kind.r#type.unwrap_or_default();
    Err(Error::Format(format!(
        "tokenizer.json: model.type is {kind:?}: {what}. Only BPE, byte-pair encoding, is supported; \
         encode with the tokenizers package, or train a vocabulary of your own with Tokenizer.train"
    )))
}

/// Returns the added tokens with the ids that `tokenizers` gives them: a token of the model keeps its id, others are
/// numbered on from the number of tokens.
fn with_ids(added: Vec<AddedTokenJson>, ids: &HashMap<&str, u32>) -> Result<Vec<AddedToken>> {
    let mut next = ids.len() as u32;
    let names: HashMap<u32, &str> = ids.iter().map(|(token, &id)| (id, *token)).collect();
    let mut tokens: Vec<AddedToken> = Vec::with_capacity(added.len());
    let mut places: HashMap<String, usize> = HashMap::new();
    for token in added.into_iter().filter(|token| !token.content.is_empty()) {
        let stated = token.id;
        let mut token = AddedToken::from(token);
        if let Some(&place) = places.get(&token.content) {
            // Given again: what is said last holds, the id stays.
            token.id = tokens[place].id;
            tokens[place] = token;
            continue;
        }
        token.id = match ids.get(token.content.as_str()) {
            Some(&id) if id == stated => id,
            Some(&id) => {
                return Err(Error::Format(format!(
                    "tokenizer.json: added_tokens gives {:?} the id {stated}, model.vocab gives it {id}",
                    token.content
                )));
            }
            None => {
                if let Some(taken) = names.get(&stated).filter(|_| stated != next) {
                    return Err(Error::Format(format!(
                        "tokenizer.json: added_tokens gives {:?} the id {stated}, which is that of {taken:?} in model.vocab",
                        token.content
                    )));
                }
                next += 1;
                next - 1
            }
        };
        places.insert(token.content.clone(), tokens.len());
        tokens.push(token);
    }
    Ok(tokens)
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
        if let Some(mut tokenizer) = spaces::read(&self)? {
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

    /// Returns the tokenizer as it was pickled: no `tokenizer.json` says how it decodes.
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

    fn pipeline(&self) -> Result<Pipeline> {
        let entries = self.entries.iter().map(|(token, id)| (token.as_ref(), *id));
        let merges = self.merges.iter().map(|Merge(left, right)| (left.as_ref(), right.as_ref()));
        Pipeline::new(&self.components, entries, merges, self.options.clone())
    }

    /// Adds what all ways have in common.
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

    fn added_tokens(&self, normalize: impl Fn(&str) -> Result<String>) -> Result<AddedTokens> {
        AddedTokens::new(self.added.clone(), normalize)
            .map_err(|error| Error::Format(format!("tokenizer.json: added_tokens: {error}")))
    }

    fn refuse_taken_ids(&self, added: &AddedTokens) -> Result<()> {
        let names: HashMap<u32, &str> = self.ids.iter().map(|(token, &id)| (id, *token)).collect();
        for token in added.tokens() {
            let is_other = |other: &&&str| **other != token.content && added.by_content(other).is_none();
            if let Some(&other) = names.get(&token.id).filter(is_other) {
                return Err(Error::Format(format!(
                    "tokenizer.json: added token {:?} gets id {}, as `tokenizers` counts, which is that of {other:?}",
                    token.content, token.id
                )));
            }
        }
        Ok(())
    }

    /// Returns the tokenizer if this is byte-level BPE that needs no pipeline; else what it needs one for.
    fn byte_level(&self) -> Result<std::result::Result<Tokenizer, String>> {
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

    /// Returns the tokenizer over bytes that this byte-level file amounts to; else why it has none.
    fn as_bytes(
        &self,
        normalizer: Normalizer,
        pretokenizer: Pretokenizer,
        has_all_bytes: bool,
    ) -> Result<std::result::Result<Tokenizer, String>> {
        // Added tokens stand outside the merges, unless these make them too.
        let is_named = |token: &&AddedToken| self.ids.get(token.content.as_str()).is_none_or(|id| *id == token.id);
        let added: HashMap<&str, &AddedToken> =
            self.added.iter().filter(is_named).map(|token| (token.content.as_str(), token)).collect();
        let is_foreign = |token: &str| added.contains_key(token) || to_bytes(token).is_none();
        let foreign: HashSet<&str> = self.ids.keys().copied().filter(|token| is_foreign(token)).collect();
        let (mut merged, mut result) = (HashSet::new(), String::new());
        let (mut pairs, mut seen) = (Vec::with_capacity(self.merges.len()), HashSet::with_capacity(self.merges.len()));
        for (rank, Merge(left, right)) in self.merges.iter().enumerate() {
            let id_of = |token: &str| {
                self.ids.get(token).copied().ok_or_else(|| {
                    Error::Format(format!(
                        "tokenizer.json: merge {rank} names {token:?}, which is not in the vocabulary"
                    ))
                })
            };
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
            // Two names for one special token, as o200k_harmony has, are saved so.
            let is_added = added.get(token.as_ref()).is_some_and(|known| known.id == *id);
            if !used.insert(*id) && !is_added {
                return Err(Error::Format(format!("tokenizer.json: id {id} is given to two tokens, {token:?} is one")));
            }
            if token.is_empty() {
                return Ok(Err("an empty token in model.vocab".to_owned()));
            }
            let is_apart = added.get(token.as_ref()).is_some_and(|known| known.special || !self.options.ignore_merges);
            if is_apart && token.chars().nth(1).is_some() && !merged.contains(token.as_ref()) {
                continue;
            }
            match to_bytes(token) {
                Some(bytes) => tokens.push((bytes, *id)),
                // A token outside the byte alphabet cannot come from text; `tokenizers` decodes it to its own characters.
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
        // What was pickled decodes by other means, see `finish_own`.
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

/// Returns what splits text as a byte-level pre-tokenizer does; else the step that no splitter is known for.
fn split_by(pre_tokenizer: &PreTokenizer) -> Result<std::result::Result<Pretokenizer, String>> {
    let steps = pre_tokenizer.steps();
    let in_file = |error: Error| Error::Format(format!("tokenizer.json: pre_tokenizer: {error}"));
    let Some((PreTokenizer::ByteLevel(byte_level), before)) = steps.split_last() else {
        return Ok(Err("a pre-tokenizer that does not end in ByteLevel".to_owned()));
    };
    if byte_level.add_prefix_space {
        return Ok(Err("the pre-tokenizer ByteLevel with add_prefix_space".to_owned()));
    }
    let mut splitters = Vec::new();
    for step in before {
        // Matches kept, and what lies between them: "Isolated"; matches kept, nothing between: the other spelling.
        let splitter = match step {
            PreTokenizer::Split { pattern, behavior: Behavior::Isolated, .. } => match pattern {
                Pattern::Regex(regex) => Pretokenizer::oniguruma(regex),
                Pattern::FancyRegex(regex) => Pretokenizer::new(regex),
                Pattern::String(text) if text.is_empty() => return Ok(Err("a Split by the empty text".to_owned())),
                Pattern::String(text) => Pretokenizer::oniguruma(&escape(text)),
            },
            PreTokenizer::Split { pattern: Pattern::Regex(regex), behavior: Behavior::Removed, invert: true } => {
                match Pretokenizer::oniguruma(regex).map_err(in_file)? {
                    // Hand-written splitters leave nothing between their pieces.
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
        // Nothing splits: a text is one piece.
        splitters.push(Pretokenizer::whole()?);
    }
    Pretokenizer::sequence(splitters).map(Ok)
}

/// Returns the regex that matches this text, in a spelling that Oniguruma and others read alike.
pub(super) fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut regex, c| {
        if r"\.+*?()|[]{}^$#&-~".contains(c) {
            regex.push('\\');
        }
        regex.push(c);
        regex
    })
}

/// Returns the type of a component, as the file spells it.
fn name_of(component: &impl serde::Serialize) -> String {
    let value = serde_json::to_value(component).unwrap_or_default();
    value["type"].as_str().unwrap_or("of an unknown type").to_owned()
}

//! A `tokenizer.json`, parsed and checked.

use std::borrow::Cow;

use hashbrown::HashMap;

use super::schema::{File, Kind, Merge, Model, Own};
use crate::error::quoting;
use crate::pipeline::components::{self, PostProcessor};
use crate::pipeline::{Components, ModelOptions};
use crate::{AddedToken, Result};

/// A file, parsed.
pub(super) struct Parsed<'a> {
    pub(super) components: Components,
    pub(super) post_processor: Option<PostProcessor>,
    pub(super) options: ModelOptions,
    pub(super) added: Vec<AddedToken>,
    pub(super) entries: &'a [(Cow<'a, str>, u32)],
    pub(super) merges: &'a [Merge<'a>],
    /// The id of each token of the model.
    pub(super) ids: HashMap<&'a str, u32>,
    /// Only in the pickle of a tokenizer that was not read from a `tokenizer.json`.
    pub(super) own: Option<Own>,
}

/// Parses a file and calls `work` with it; `is_own` allows the extensions of [`Tokenizer::to_own_json`].
///
/// [`Tokenizer::to_own_json`]: crate::Tokenizer::to_own_json
pub(super) fn parse<R>(json: &[u8], is_own: bool, work: impl FnOnce(Parsed<'_>) -> Result<R>) -> Result<R> {
    let file: File<'_> =
        serde_json::from_slice(json).map_err(|error| malformed!("not a tokenizer.json: {}", quoting(&error)))?;
    if let Some(version) = file.version.filter(|version| version != "1.0") {
        return Err(malformed!("tokenizer.json: version is {version:?}; expected \"1.0\""));
    }
    require_bpe(file.model.get())?;
    let model: Model<'_> = serde_json::from_str(file.model.get())
        .map_err(|error| malformed!("tokenizer.json: model: {}", quoting(&error)))?;
    if let Some(dropout) = model.dropout.filter(|dropout| !(0.0..=1.0).contains(dropout)) {
        return Err(malformed!("tokenizer.json: model.dropout is {dropout}; expected 0 to 1"));
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
        return Err(malformed!(
            "tokenizer.json: {what}, which only a pickled tokenizer holds; expected what `tokenizers` writes, such as \
             {{\"Regex\": ...}} or {{\"String\": ...}} for a pattern"
        ));
    }
    let post_processor = components::parse("post_processor", file.post_processor)?;
    let options = ModelOptions {
        dropout: model.dropout,
        unk_token: model.unk_token,
        continuing_subword_prefix: affix("continuing_subword_prefix", model.continuing_subword_prefix)?,
        end_of_word_suffix: affix("end_of_word_suffix", model.end_of_word_suffix)?,
        fuse_unk: model.fuse_unk.unwrap_or(false),
        byte_fallback: model.byte_fallback.unwrap_or(false),
        ignore_merges: model.ignore_merges.unwrap_or(false),
    };
    let entries = model.vocab.0;
    let ids: HashMap<&str, u32> = entries.iter().map(|(token, id)| (token.as_ref(), *id)).collect();
    let added = match file.own {
        Some(_) => file.added_tokens,
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

/// Returns a text that the model puts beside each character, if it is not empty.
///
/// # Errors
/// [`Error::Format`](crate::Error::Format) naming the field, if the text is long: encoding copies it for each character.
fn affix(field: &str, affix: Option<String>) -> Result<Option<String>> {
    const LONGEST: usize = 1024;
    match affix {
        Some(affix) if affix.len() > LONGEST => {
            Err(malformed!("tokenizer.json: model.{field} has {} bytes; expected at most {LONGEST}", affix.len()))
        }
        affix => Ok(affix.filter(|affix| !affix.is_empty())),
    }
}

/// Refuses models other than BPE with a message that explains the model.
fn require_bpe(model: &str) -> Result<()> {
    let kind: Kind<'_> =
        serde_json::from_str(model).map_err(|error| malformed!("tokenizer.json: model: {}", quoting(&error)))?;
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
    Err(malformed!(
        "tokenizer.json: model.type is {kind:?}: {what}. Only BPE, byte-pair encoding, is supported; \
         encode with the tokenizers package, or train a vocabulary of your own with Tokenizer.train"
    ))
}

/// Returns the added tokens with the ids of `tokenizers`: the id of the token in the model's vocabulary, or the next id
/// from the size of this vocabulary on.
fn with_ids(added: Vec<AddedToken>, ids: &HashMap<&str, u32>) -> Result<Vec<AddedToken>> {
    let mut next = ids.len() as u32;
    let names: HashMap<u32, &str> = ids.iter().map(|(token, &id)| (id, *token)).collect();
    let mut tokens: Vec<AddedToken> = Vec::with_capacity(added.len());
    let mut indices: HashMap<String, usize> = HashMap::new();
    for mut token in added.into_iter().filter(|token| !token.content.is_empty()) {
        let stated = token.id;
        if let Some(&index) = indices.get(&token.content) {
            // A repeated token: the last flags apply, the id remains.
            token.id = tokens[index].id;
            tokens[index] = token;
            continue;
        }
        token.id = match ids.get(token.content.as_str()) {
            Some(&id) if id == stated => id,
            Some(&id) => {
                return Err(malformed!(
                    "tokenizer.json: added_tokens gives {:?} the id {stated}, model.vocab gives it {id}",
                    token.content
                ));
            }
            None => {
                if let Some(taken) = names.get(&stated).filter(|_| stated != next) {
                    return Err(malformed!(
                        "tokenizer.json: added_tokens gives {:?} the id {stated}, which is that of {taken:?} in model.vocab",
                        token.content
                    ));
                }
                next += 1;
                next - 1
            }
        };
        indices.insert(token.content.clone(), tokens.len());
        tokens.push(token);
    }
    Ok(tokens)
}

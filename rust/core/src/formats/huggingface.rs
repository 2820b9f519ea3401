//! `tokenizer.json`, the file of Hugging Face's `tokenizers`.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use super::byte_alphabet::{to_bytes, to_chars};
use super::spaces;
use crate::{AddedToken, Error, Pretokenizer, Result, Tokenizer, Vocab};

#[derive(Deserialize)]
struct File<'a> {
    #[serde(default)]
    added_tokens: Vec<AddedTokenJson>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
    #[serde(borrow)]
    model: Model<'a>,
}

#[derive(Deserialize)]
struct Model<'a> {
    r#type: Option<Cow<'a, str>>,
    dropout: Option<f64>,
    #[serde(default)]
    continuing_subword_prefix: Option<Cow<'a, str>>,
    #[serde(default)]
    end_of_word_suffix: Option<Cow<'a, str>>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    #[serde(borrow)]
    vocab: Entries<'a>,
    #[serde(borrow)]
    merges: Vec<Merge<'a>>,
}

#[derive(Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the five flags of the file format")]
struct AddedTokenJson {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

/// The vocabulary as the file has it: token and id, in file order.
struct Entries<'a>(Vec<(Cow<'a, str>, u32)>);

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tokens and ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some((Text(token), id)) = map.next_entry::<Text<'de>, u32>()? {
                    entries.push((token, id));
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

/// A string, borrowed from the file where it holds no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// One merge: `"a b"` in older files, `["a", "b"]` in newer ones.
pub(super) struct Merge<'a>(pub(super) Cow<'a, str>, pub(super) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Merge<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct MergeVisitor;
        impl<'de> Visitor<'de> for MergeVisitor {
            type Value = Merge<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge: two tokens in an array, or in a string with a space between")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> std::result::Result<Self::Value, E> {
                let (left, right) = split_merge(text)?;
                Ok(Merge(Cow::Borrowed(left), Cow::Borrowed(right)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<Self::Value, E> {
                let (left, right) = split_merge(text)?;
                Ok(Merge(Cow::Owned(left.to_owned()), Cow::Owned(right.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Self::Value, A::Error> {
                let mut next =
                    || seq.next_element::<Text<'de>>()?.ok_or_else(|| de::Error::invalid_length(1, &"2 tokens"));
                let (Text(left), Text(right)) = (next()?, next()?);
                if seq.next_element::<de::IgnoredAny>()?.is_some() {
                    return Err(de::Error::invalid_length(3, &"2 tokens"));
                }
                Ok(Merge(left, right))
            }
        }
        fn split_merge<E: de::Error>(text: &str) -> std::result::Result<(&str, &str), E> {
            let parts = text.split_once(' ').filter(|(_, right)| !right.contains(' '));
            parts.ok_or_else(|| E::custom(format!("merge {text:?} is not two tokens with a space between")))
        }
        deserializer.deserialize_any(MergeVisitor)
    }
}

impl Tokenizer {
    /// Returns the tokenizer that a `tokenizer.json` describes.
    ///
    /// Byte-level BPE is read: vocabulary, merges in their order, `ignore_merges`, added tokens with their flags, the
    /// pre-tokenizers `ByteLevel`, `Split`, `Digits` and sequences of them, the normalizer `NFC`. So is SentencePiece's
    /// BPE with byte fallback, in both layouts that are in use: spaces become `▁` by `Prepend` and `Replace`, or by
    /// `Metaspace`.
    ///
    /// # Errors
    /// [`Error::Format`] if it is not JSON, lacks a part, or asks for what is not supported, naming it.
    pub fn from_huggingface(json: &[u8]) -> Result<Self> {
        let file: File<'_> =
            serde_json::from_slice(json).map_err(|error| Error::Format(format!("not a tokenizer.json: {error}")))?;
        let model = file.model;
        if let Some(kind) = model.r#type.filter(|kind| kind != "BPE") {
            return Err(unsupported("model.type", &kind, "BPE"));
        }
        if model.dropout.is_some_and(|dropout| dropout > 0.0) {
            return Err(unsupported("model.dropout", &model.dropout, "none"));
        }
        for (name, affix) in [
            ("model.continuing_subword_prefix", model.continuing_subword_prefix),
            ("model.end_of_word_suffix", model.end_of_word_suffix),
        ] {
            if let Some(affix) = affix.filter(|affix| !affix.is_empty()) {
                return Err(unsupported(name, &affix, "none"));
            }
        }
        let added: Vec<AddedToken> = file.added_tokens.into_iter().map(Into::into).collect();
        let tokenizer = if model.byte_fallback {
            let layout = (file.normalizer.as_ref(), file.pre_tokenizer.as_ref(), file.decoder.as_ref());
            spaces::read(layout, &model.vocab.0, &model.merges, added, model.ignore_merges)?
        } else {
            if file.decoder.as_ref().is_some_and(|decoder| !holds_type(decoder, "ByteLevel")) {
                return Err(unsupported("decoder", &file.decoder, "ByteLevel"));
            }
            let nfc = normalizes(file.normalizer.as_ref())?;
            let pretokenizer = pretokenizer_of(file.pre_tokenizer.as_ref())?;
            let vocab = vocab_of(&model.vocab.0, &model.merges, &added, model.ignore_merges)?;
            Self::new(vocab, pretokenizer, added, nfc)?
        };
        let (bos, eos) = template_ends(file.post_processor.as_ref(), &tokenizer);
        let (bos, eos) = (bos.or(tokenizer.bos_id()), eos.or(tokenizer.eos_id()));
        tokenizer.with_bos_eos(bos, eos)
    }

    /// Returns the text of a `tokenizer.json` that `tokenizers` loads and that gives the same ids.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a special token is spelt as an ordinary token is in the file.
    pub fn to_huggingface(&self) -> Result<String> {
        let to_name = if self.spaces().is_some() { spaces::name_of } else { to_chars };
        let mut entries: Vec<(String, u32)> = if self.spaces().is_some() {
            spaces::names(self.vocab())?
        } else {
            let spelt = self.vocab().tokens().map(|(token, id)| (to_chars(token), id));
            let silent = self.vocab().silent_tokens();
            spelt.chain(silent.map(|(token, id)| (String::from_utf8_lossy(token).into_owned(), id))).collect()
        };
        let ids: hashbrown::HashMap<&str, u32> = entries.iter().map(|(token, id)| (token.as_str(), *id)).collect();
        let mut missing = Vec::new();
        for AddedToken { content, id, .. } in self.added_tokens() {
            match ids.get(content.as_str()) {
                None => missing.push((content.clone(), *id)),
                Some(other) if other != id => {
                    return Err(Error::InvalidArgument(format!(
                        "special token {content:?} is spelt as ordinary token {other} in tokenizer.json: it cannot be saved"
                    )));
                }
                Some(_) => {}
            }
        }
        drop(ids);
        entries.extend(missing);
        entries.sort_by_key(|&(_, id)| id);
        let token_chars = |id: u32| to_name(self.vocab().id_to_bytes(id).unwrap_or_default());
        let merges: Vec<[String; 2]> =
            self.vocab().merges().iter().map(|&(left, right)| [token_chars(left), token_chars(right)]).collect();
        let added: Vec<AddedTokenJson> = self.added_tokens().iter().cloned().map(Into::into).collect();
        let [normalizer, pre_tokenizer, decoder] = match self.spaces() {
            Some(spaces) => spaces::to_json(self, spaces),
            None => [
                if self.normalizes() { json!({"type": "NFC"}) } else { Value::Null },
                pretokenizer_json(self.pretokenizer()),
                byte_level(),
            ],
        };
        let file = OutFile {
            version: "1.0",
            truncation: (),
            padding: (),
            added_tokens: added,
            normalizer,
            pre_tokenizer,
            post_processor: (),
            decoder,
            model: OutModel {
                r#type: "BPE",
                dropout: (),
                unk_token: (),
                continuing_subword_prefix: (),
                end_of_word_suffix: (),
                fuse_unk: self.spaces().is_some(),
                byte_fallback: self.spaces().is_some(),
                ignore_merges: self.vocab().whole_piece_first(),
                vocab: OutEntries(&entries),
                merges,
            },
        };
        serde_json::to_string(&file).map_err(|error| Error::Format(error.to_string()))
    }
}

/// The file as it is written: the same keys in the same order as `tokenizers` writes them.
#[derive(Serialize)]
struct OutFile<'a> {
    version: &'static str,
    truncation: (),
    padding: (),
    added_tokens: Vec<AddedTokenJson>,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: (),
    decoder: Value,
    model: OutModel<'a>,
}

#[derive(Serialize)]
struct OutModel<'a> {
    r#type: &'static str,
    dropout: (),
    unk_token: (),
    continuing_subword_prefix: (),
    end_of_word_suffix: (),
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: OutEntries<'a>,
    merges: Vec<[String; 2]>,
}

struct OutEntries<'a>(&'a [(String, u32)]);

impl Serialize for OutEntries<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (token, id) in self.0 {
            map.serialize_entry(token, id)?;
        }
        map.end()
    }
}

impl From<AddedTokenJson> for AddedToken {
    fn from(token: AddedTokenJson) -> Self {
        let AddedTokenJson { id, content, single_word, lstrip, rstrip, normalized, special } = token;
        Self { content, id, special, single_word, lstrip, rstrip, normalized }
    }
}

impl From<AddedToken> for AddedTokenJson {
    fn from(token: AddedToken) -> Self {
        let AddedToken { content, id, special, single_word, lstrip, rstrip, normalized } = token;
        Self { id, content, single_word, lstrip, rstrip, normalized, special }
    }
}

pub(super) fn unsupported(what: &str, got: &impl fmt::Debug, expected: &str) -> Error {
    Error::Format(format!("tokenizer.json: {what} is {got:?}, which is not supported; expected {expected}"))
}

fn vocab_of(
    entries: &[(Cow<'_, str>, u32)],
    merges: &[Merge<'_>],
    added: &[AddedToken],
    ignore_merges: bool,
) -> Result<Vocab> {
    let added: hashbrown::HashMap<&str, u32> = added.iter().map(|token| (token.content.as_str(), token.id)).collect();
    let mut ids = hashbrown::HashMap::with_capacity(entries.len());
    let (mut tokens, mut silent) = (Vec::with_capacity(entries.len()), Vec::new());
    let is_added = |token: &str| added.contains_key(token);
    let made = merges.iter().map(|Merge(left, right)| format!("{left}{right}"));
    let merged: hashbrown::HashSet<String> = made.filter(|token| is_added(token)).collect();
    // Bytes that no text holds: where such a token is an added one, its character is meant.
    let is_no_text = |token: &str| matches!(to_bytes(token).as_deref(), Some([0xC0 | 0xC1 | 0xF5..]));
    for (token, id) in entries {
        let is_apart = (token.chars().count() > 1 && !merged.contains(token.as_ref())) || is_no_text(token);
        if added.get(token.as_ref()) == Some(id) && is_apart {
            continue;
        }
        ids.insert(token.as_ref(), *id);
        // A token outside the byte alphabet cannot come from text; `tokenizers` decodes it to its own characters.
        match to_bytes(token) {
            Some(bytes) => tokens.push((bytes, *id)),
            None => silent.push((token.as_bytes().to_vec(), *id)),
        }
    }
    let mut pairs = Vec::with_capacity(merges.len());
    for (rank, Merge(left, right)) in merges.iter().enumerate() {
        let id_of = |token: &str| {
            ids.get(token).copied().ok_or_else(|| {
                Error::Format(format!("tokenizer.json: merge {rank} names {token:?}, which is not in the vocabulary"))
            })
        };
        pairs.push((id_of(left)?, id_of(right)?));
    }
    Vocab::from_merges_and_silent(tokens, silent, pairs, ignore_merges)
}

/// Returns whether text is brought to normal form C.
fn normalizes(normalizer: Option<&Value>) -> Result<bool> {
    let Some(normalizer) = normalizer else { return Ok(false) };
    match type_of(normalizer) {
        "NFC" => Ok(true),
        "Sequence" => {
            let steps = normalizer["normalizers"].as_array().map_or(&[][..], Vec::as_slice);
            steps.iter().try_fold(false, |nfc, step| Ok(nfc | normalizes(Some(step))?))
        }
        other => Err(unsupported("normalizer.type", &other, "NFC or none")),
    }
}

/// Returns the splitter that one pre-tokenizer, or a sequence of them, amounts to.
fn pretokenizer_of(value: Option<&Value>) -> Result<Pretokenizer> {
    let mut steps = Vec::new();
    if let Some(value) = value {
        collect_steps(value, &mut steps)?;
    }
    if steps.is_empty() {
        // Nothing splits: a text is one piece.
        return Pretokenizer::new(r"(?s:.+)");
    }
    Pretokenizer::sequence(steps.iter().map(|pattern| Pretokenizer::new(pattern)).collect::<Result<_>>()?)
}

/// Appends the patterns whose matches, one step after another, are split off.
fn collect_steps(value: &Value, steps: &mut Vec<String>) -> Result<()> {
    match type_of(value) {
        "Sequence" => {
            for step in value["pretokenizers"].as_array().map_or(&[][..], Vec::as_slice) {
                collect_steps(step, steps)?;
            }
        }
        "ByteLevel" => {
            if value["add_prefix_space"] == true {
                return Err(unsupported("pre_tokenizer.add_prefix_space", &true, "false"));
            }
            if value["use_regex"] != false {
                steps.push("r50k".to_owned());
            }
        }
        "Digits" if value["individual_digits"] == true => steps.push(r"\p{N}".to_owned()),
        "Digits" => steps.push(r"\p{N}+".to_owned()),
        "Split" => {
            let (behavior, invert) = (value["behavior"].as_str().unwrap_or_default(), value["invert"] == true);
            // Matches kept, text between them kept too: "Isolated"; matches kept, nothing between: the other spelling.
            if !matches!((behavior, invert), ("Isolated", _) | ("Removed", true)) {
                return Err(unsupported("pre_tokenizer.behavior", &behavior, "Isolated"));
            }
            match (value["pattern"]["Regex"].as_str(), value["pattern"]["String"].as_str()) {
                (Some(pattern), _) => steps.push(pattern.to_owned()),
                (None, Some(text)) => steps.push(fancy_regex::escape(text).into_owned()),
                (None, None) => return Err(unsupported("pre_tokenizer.pattern", &value["pattern"], "a Regex")),
            }
        }
        other => return Err(unsupported("pre_tokenizer.type", &other, "ByteLevel, Split, Digits or Sequence")),
    }
    Ok(())
}

fn byte_level() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false})
}

fn pretokenizer_json(pretokenizer: &Pretokenizer) -> Value {
    let split = |step: &Pretokenizer| json!({"type": "Split", "pattern": {"Regex": step.pattern()}, "behavior": "Isolated", "invert": false});
    let mut steps: Vec<Value> = pretokenizer.steps().iter().map(split).collect();
    steps.push(byte_level());
    json!({"type": "Sequence", "pretokenizers": steps})
}

/// Returns the special tokens that a template puts before and after one text.
fn template_ends(value: Option<&Value>, tokenizer: &Tokenizer) -> (Option<u32>, Option<u32>) {
    let Some(value) = value else { return (None, None) };
    if type_of(value) == "Sequence" {
        let steps = value["processors"].as_array().map_or(&[][..], Vec::as_slice);
        let ends = steps.iter().map(|step| template_ends(Some(step), tokenizer));
        return ends.fold((None, None), |all, ends| (all.0.or(ends.0), all.1.or(ends.1)));
    }
    let template = value["single"].as_array().map_or(&[][..], Vec::as_slice);
    let special = |item: Option<&Value>| {
        let content = item?["SpecialToken"]["id"].as_str()?;
        tokenizer.bytes_to_id(content.as_bytes())
    };
    (special(template.first()), special(template.last().filter(|_| template.len() > 1)))
}

pub(super) fn type_of(value: &Value) -> &str {
    value["type"].as_str().unwrap_or_default()
}

/// Returns whether `value`, or a step of it, has this type.
fn holds_type(value: &Value, kind: &str) -> bool {
    type_of(value) == kind
        || ["decoders", "pretokenizers"]
            .iter()
            .filter_map(|key| value[key].as_array())
            .flatten()
            .any(|step| holds_type(step, kind))
}

//! `tokenizer.json`, the file of Hugging Face's `tokenizers`: [`read`] and [`write`].
//!
//! Its components are those of [`crate::pipeline`]. Two kinds of files are encoded in a faster way that gives the same
//! ids: [`read`] says when a file is byte-level BPE that [`crate::vocab`] holds, [`spaces`] when it is SentencePiece's.

mod read;
pub(super) mod spaces;
mod write;

pub(crate) use self::read::pipeline_of;

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::AddedToken;

/// The file; unknown fields are refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File<'a> {
    #[serde(default, borrow)]
    version: Option<Cow<'a, str>>,
    truncation: Option<Value>,
    padding: Option<Value>,
    #[serde(default)]
    added_tokens: Vec<AddedTokenJson>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
    #[serde(borrow)]
    model: &'a RawValue,
    /// Never in a file of others, only in what a tokenizer is pickled as that was not read from a `tokenizer.json`.
    own: Option<Own>,
}

/// How a tokenizer decodes, where that is not for the decoder of a `tokenizer.json` to say.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Own {
    /// [`crate::Spaces::drop_first`].
    drops_first_space: bool,
    /// Whether bytes that are no UTF-8, and spaces that come first, are decoded as SentencePiece does.
    as_sentencepiece: bool,
}

/// What kind of model a file holds.
#[derive(Deserialize)]
struct Kind<'a> {
    #[serde(default, borrow)]
    r#type: Option<Cow<'a, str>>,
    merges: Option<de::IgnoredAny>,
}

/// The model of a BPE file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Model<'a> {
    #[serde(default, rename = "type", borrow)]
    _type: Option<Cow<'a, str>>,
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    fuse_unk: Option<bool>,
    byte_fallback: Option<bool>,
    ignore_merges: Option<bool>,
    #[serde(borrow)]
    vocab: Entries<'a>,
    #[serde(borrow)]
    merges: Vec<Merge<'a>>,
}

#[derive(Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
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
struct Merge<'a>(Cow<'a, str>, Cow<'a, str>);

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

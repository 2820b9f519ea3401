//! The fields of a `tokenizer.json`. Unknown fields are refused.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::AddedToken;
use crate::pipeline::ModelOptions;
use crate::pipeline::components::{Decoder, Normalizer, Padding, PostProcessor, PreTokenizer, Truncation};

/// The file; unknown fields are refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File<'a> {
    #[serde(default, borrow)]
    pub(super) version: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) truncation: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) padding: Option<&'a RawValue>,
    #[serde(default)]
    pub(super) added_tokens: Vec<AddedToken>,
    #[serde(borrow)]
    pub(super) normalizer: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) pre_tokenizer: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) post_processor: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) decoder: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) model: &'a RawValue,
    /// Only in the pickle of a tokenizer that was not read from a `tokenizer.json`.
    pub(super) own: Option<Own>,
}

/// Decoding options that the decoder of a `tokenizer.json` cannot express.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Own {
    /// [`crate::Spaces::drop_first`].
    pub(super) drops_first_space: bool,
    /// Whether invalid UTF-8 and leading spaces are decoded as by SentencePiece.
    pub(super) as_sentencepiece: bool,
}

/// The type of the model.
#[derive(Deserialize)]
pub(super) struct Kind<'a> {
    #[serde(default, borrow)]
    pub(super) r#type: Option<Cow<'a, str>>,
    pub(super) merges: Option<de::IgnoredAny>,
}

/// The model of a BPE file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Model<'a> {
    #[serde(default, rename = "type", borrow)]
    _type: Option<Cow<'a, str>>,
    pub(super) dropout: Option<f32>,
    pub(super) unk_token: Option<String>,
    pub(super) continuing_subword_prefix: Option<String>,
    pub(super) end_of_word_suffix: Option<String>,
    pub(super) fuse_unk: Option<bool>,
    pub(super) byte_fallback: Option<bool>,
    pub(super) ignore_merges: Option<bool>,
    #[serde(borrow)]
    pub(super) vocab: Entries<'a>,
    #[serde(borrow, deserialize_with = "without_header")]
    pub(super) merges: Vec<Merge<'a>>,
}

/// The tokens and ids of the vocabulary, in file order.
pub(super) struct Entries<'a>(pub(super) Vec<(Cow<'a, str>, u32)>);

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

/// A string, borrowed from the file if it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// One merge: `"a b"` in older files, `["a", "b"]` in newer ones.
pub(super) struct Merge<'a>(pub(super) Cow<'a, str>, pub(super) Cow<'a, str>);

/// An item of `merges`: a merge, or the first line of a merges.txt, which `tokenizers` skips.
struct MergeLine<'a>(Option<Merge<'a>>);

/// Returns the merges among the items of `merges`.
fn without_header<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<Merge<'a>>, D::Error> {
    let lines = Vec::<MergeLine<'a>>::deserialize(deserializer)?;
    Ok(lines.into_iter().filter_map(|MergeLine(merge)| merge).collect())
}

impl<'de: 'a, 'a> Deserialize<'de> for MergeLine<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct MergeVisitor;
        impl<'de> Visitor<'de> for MergeVisitor {
            type Value = MergeLine<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge: two tokens in an array, or in a string with a space between")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> std::result::Result<Self::Value, E> {
                let merge = split_merge(text)?.map(|(left, right)| Merge(Cow::Borrowed(left), Cow::Borrowed(right)));
                Ok(MergeLine(merge))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<Self::Value, E> {
                let merge = split_merge(text)?;
                Ok(MergeLine(merge.map(|(left, right)| Merge(left.to_owned().into(), right.to_owned().into()))))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Self::Value, A::Error> {
                let mut next =
                    || seq.next_element::<Text<'de>>()?.ok_or_else(|| de::Error::invalid_length(1, &"2 tokens"));
                let (Text(left), Text(right)) = (next()?, next()?);
                if seq.next_element::<de::IgnoredAny>()?.is_some() {
                    return Err(de::Error::invalid_length(3, &"2 tokens"));
                }
                Ok(MergeLine(Some(Merge(left, right))))
            }
        }
        fn split_merge<E: de::Error>(text: &str) -> std::result::Result<Option<(&str, &str)>, E> {
            if text.starts_with("#version") {
                return Ok(None);
            }
            let parts = text.split_once(' ').filter(|(_, right)| !right.contains(' '));
            parts.map(Some).ok_or_else(|| E::custom(format!("merge {text:?} is not two tokens with a space between")))
        }
        deserializer.deserialize_any(MergeVisitor)
    }
}

/// The file to write, with the keys of `tokenizers` in its order.
#[derive(Serialize)]
pub(super) struct OutFile<'a> {
    pub(super) version: &'static str,
    pub(super) truncation: Option<&'a Truncation>,
    pub(super) padding: Option<&'a Padding>,
    pub(super) added_tokens: &'a [AddedToken],
    pub(super) normalizer: Option<&'a Normalizer>,
    pub(super) pre_tokenizer: Option<&'a PreTokenizer>,
    pub(super) post_processor: Option<&'a PostProcessor>,
    pub(super) decoder: Option<&'a Decoder>,
    pub(super) model: OutModel<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) own: Option<Own>,
}

#[derive(Serialize)]
pub(super) struct OutModel<'a> {
    pub(super) r#type: &'static str,
    #[serde(flatten)]
    pub(super) options: ModelOptions,
    pub(super) vocab: OutEntries<'a>,
    pub(super) merges: Vec<[&'a str; 2]>,
}

pub(super) struct OutEntries<'a>(pub(super) &'a [(String, u32)]);

impl Serialize for OutEntries<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (token, id) in self.0 {
            map.serialize_entry(token, id)?;
        }
        map.end()
    }
}

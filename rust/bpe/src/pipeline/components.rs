//! The components of a `tokenizer.json`. Unknown components and unknown fields are refused.
//!
//! Source: the serialization of Hugging Face `tokenizers` 0.23.

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::bounds::{check_length, check_steps};
use super::model::ModelOptions;
use crate::Result;
use crate::error::{quoting, shortened};

/// Normalizes text; offsets remain those of the original text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
#[allow(clippy::upper_case_acronyms, reason = "the names of Unicode's normal forms")]
pub(crate) enum Normalizer {
    NFC {},
    NFD {},
    NFKC {},
    NFKD {},
    Lowercase {},
    Nmt {},
    StripAccents {},
    ByteLevel {},
    Strip {
        strip_left: bool,
        strip_right: bool,
    },
    Replace {
        pattern: Pattern,
        content: String,
    },
    Prepend {
        #[serde(deserialize_with = "not_empty")]
        prepend: String,
    },
    Precompiled {
        /// SentencePiece's compiled rules for characters, in base64.
        precompiled_charsmap: String,
    },
    #[serde(rename = "BertNormalizer")]
    Bert {
        clean_text: bool,
        handle_chinese_chars: bool,
        strip_accents: Option<bool>,
        lowercase: bool,
    },
    Sequence {
        normalizers: Vec<Normalizer>,
    },
}

/// The pattern of a `Split` or a `Replace`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Pattern {
    /// Literal text.
    String(String),
    /// A regex of Oniguruma.
    Regex(String),
    /// A regex of `fancy-regex`: only in a pickled tokenizer.
    FancyRegex(String),
}

/// What happens to the matches of a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) enum Behavior {
    Removed,
    #[default]
    Isolated,
    MergedWithPrevious,
    MergedWithNext,
    Contiguous,
}

/// When `Metaspace` prepends its replacement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PrependScheme {
    First,
    Never,
    Always,
}

/// Splits text into pre-tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub(crate) enum PreTokenizer {
    #[serde(rename = "BertPreTokenizer")]
    Bert {},
    ByteLevel(ByteLevel),
    CharDelimiterSplit {
        delimiter: char,
    },
    Digits {
        individual_digits: bool,
    },
    FixedLength {
        #[serde(default = "five")]
        length: usize,
    },
    Metaspace(Metaspace),
    Punctuation {
        #[serde(default)]
        behavior: Behavior,
    },
    Split {
        pattern: Pattern,
        behavior: Behavior,
        invert: bool,
    },
    UnicodeScripts {},
    Whitespace {},
    WhitespaceSplit {},
    Sequence {
        pretokenizers: Vec<PreTokenizer>,
    },
}

fn five() -> usize {
    5
}

fn yes() -> bool {
    true
}

/// The component `ByteLevel`: as a pre-tokenizer, a post-processor and a decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ByteLevel {
    pub(crate) add_prefix_space: bool,
    pub(crate) trim_offsets: bool,
    #[serde(default = "yes")]
    pub(crate) use_regex: bool,
}

/// The component `Metaspace`: as a pre-tokenizer and a decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "MetaspaceFields")]
pub(crate) struct Metaspace {
    pub(crate) replacement: char,
    pub(crate) prepend_scheme: PrependScheme,
    pub(crate) split: bool,
}

/// The fields of `Metaspace` in older and newer files.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MetaspaceFields {
    replacement: char,
    add_prefix_space: Option<bool>,
    prepend_scheme: Option<PrependScheme>,
    split: Option<bool>,
    /// In older files: the replacement again.
    #[serde(rename = "str_rep")]
    _str_rep: Option<String>,
}

impl TryFrom<MetaspaceFields> for Metaspace {
    type Error = String;

    fn try_from(fields: MetaspaceFields) -> std::result::Result<Self, String> {
        let scheme = fields.prepend_scheme.unwrap_or(PrependScheme::Always);
        if fields.add_prefix_space == Some(false) && scheme != PrependScheme::Never {
            return Err(format!("add_prefix_space is false, but prepend_scheme is {scheme:?}; expected Never"));
        }
        Ok(Self { replacement: fields.replacement, prepend_scheme: scheme, split: fields.split.unwrap_or(true) })
    }
}

/// Adds special tokens to one text or a pair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub(crate) enum PostProcessor {
    BertProcessing {
        sep: (String, u32),
        cls: (String, u32),
    },
    RobertaProcessing {
        sep: (String, u32),
        cls: (String, u32),
        trim_offsets: bool,
        add_prefix_space: bool,
    },
    ByteLevel(ByteLevel),
    TemplateProcessing {
        single: Vec<TemplateItem>,
        pair: Vec<TemplateItem>,
        special_tokens: std::collections::BTreeMap<String, TemplateToken>,
    },
    Sequence {
        processors: Vec<PostProcessor>,
    },
}

/// An item of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum TemplateItem {
    #[serde(rename = "Sequence")]
    Text {
        id: TemplateText,
        type_id: u32,
    },
    SpecialToken {
        id: String,
        type_id: u32,
    },
}

/// The first or the second text of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum TemplateText {
    A,
    B,
}

/// The tokens of a name in a template: usually one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TemplateToken {
    pub(crate) id: String,
    pub(crate) ids: Vec<u32>,
    pub(crate) tokens: Vec<String>,
}

/// Decodes tokens to text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub(crate) enum Decoder {
    #[serde(rename = "BPEDecoder")]
    Bpe {
        suffix: String,
    },
    ByteFallback {},
    ByteLevel(ByteLevel),
    Fuse {},
    Metaspace(Metaspace),
    Replace {
        pattern: Pattern,
        content: String,
    },
    Strip {
        content: char,
        start: usize,
        stop: usize,
    },
    WordPiece {
        prefix: String,
        cleanup: bool,
    },
    Sequence {
        decoders: Vec<Decoder>,
    },
}

/// How texts are truncated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Truncation {
    #[serde(default)]
    pub(crate) direction: Direction,
    pub(crate) max_length: usize,
    pub(crate) strategy: TruncationStrategy,
    pub(crate) stride: usize,
}

/// The side on which texts are truncated or padded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) enum Direction {
    Left,
    #[default]
    Right,
}

/// Which text of a pair is truncated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum TruncationStrategy {
    LongestFirst,
    OnlyFirst,
    OnlySecond,
}

/// How texts are padded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Padding {
    pub(crate) strategy: PaddingStrategy,
    pub(crate) direction: Direction,
    pub(crate) pad_to_multiple_of: Option<usize>,
    pub(crate) pad_id: u32,
    pub(crate) pad_type_id: u32,
    pub(crate) pad_token: String,
}

/// The length to which texts are padded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PaddingStrategy {
    BatchLongest,
    Fixed(usize),
}

/// The components of a `tokenizer.json`, except for the post-processor.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Components {
    pub(crate) normalizer: Option<Normalizer>,
    pub(crate) pre_tokenizer: Option<PreTokenizer>,
    pub(crate) decoder: Option<Decoder>,
    pub(crate) truncation: Option<Truncation>,
    pub(crate) padding: Option<Padding>,
    pub(crate) model: ModelOptions,
}

/// Returns the component in a field of the file, or `None` for null.
///
/// # Errors
/// [`Error::Format`] naming the field if it holds an unknown component or an unknown field, or too many steps or bytes.
pub(crate) fn parse<T: DeserializeOwned>(field: &str, json: Option<&RawValue>) -> Result<Option<T>> {
    let Some(json) = json else { return Ok(None) };
    check_length(field, json.get().len())?;
    let value: Value =
        serde_json::from_str(json.get()).map_err(|error| malformed!("tokenizer.json: {field}: {}", quoting(&error)))?;
    let shown = shortened(&value.to_string());
    if !has_named_fields(&value) {
        return Err(malformed!("tokenizer.json: {field} is {shown}; expected an object wherever a component stands"));
    }
    check_steps(field, nested_steps(&value))?;
    serde_json::from_value(value)
        .map(Some)
        .map_err(|error| malformed!("tokenizer.json: {field} is {shown}: {}; this is not supported", quoting(&error)))
}

/// Returns whether a component and those of its sequence are objects: serde reads a list, too, as the fields in their
/// order, where `tokenizers` refuses it or reads another component.
fn has_named_fields(component: &Value) -> bool {
    component.is_object() && listed_steps(component).all(has_named_fields)
}

/// Returns the number of steps in a component. Sequences count, too: even an empty one takes time.
fn nested_steps(component: &Value) -> usize {
    listed_steps(component).map(|step| 1 + nested_steps(step)).sum()
}

/// Returns the components that a sequence lists; none of another component.
fn listed_steps(component: &Value) -> impl Iterator<Item = &Value> {
    let lists = ["normalizers", "pretokenizers", "processors", "decoders"];
    lists.into_iter().filter_map(|list| component[list].as_array()).flatten()
}

/// Refuses an empty text to prepend: `tokenizers` 0.23 panics, or drops a part of the text.
fn not_empty<'de, D: Deserializer<'de>>(value: D) -> std::result::Result<String, D::Error> {
    let text = String::deserialize(value)?;
    if text.is_empty() { Err(D::Error::custom("prepend is empty; expected text")) } else { Ok(text) }
}

impl Components {
    /// Returns the first regex for `fancy-regex`.
    pub(crate) fn fancy_regex(&self) -> Option<&str> {
        let normalizers = self.normalizer.iter().flat_map(Normalizer::steps).filter_map(|step| match step {
            Normalizer::Replace { pattern, .. } => Some(pattern),
            _ => None,
        });
        let pre_tokenizers = self.pre_tokenizer.iter().flat_map(PreTokenizer::steps).filter_map(|step| match step {
            PreTokenizer::Split { pattern, .. } => Some(pattern),
            _ => None,
        });
        let decoders = self.decoder.iter().flat_map(Decoder::steps).filter_map(|step| match step {
            Decoder::Replace { pattern, .. } => Some(pattern),
            _ => None,
        });
        let mut patterns = normalizers.chain(pre_tokenizers).chain(decoders);
        patterns.find_map(|pattern| if let Pattern::FancyRegex(regex) = pattern { Some(regex.as_str()) } else { None })
    }
}

macro_rules! steps {
    ($component:ident, $sequence:ident) => {
        impl $component {
            /// Returns the steps in order, with nested sequences flattened.
            pub(crate) fn steps(&self) -> Vec<&Self> {
                match self {
                    Self::Sequence { $sequence } => $sequence.iter().flat_map(Self::steps).collect(),
                    step => vec![step],
                }
            }
        }
    };
}

steps!(Normalizer, normalizers);
steps!(PreTokenizer, pretokenizers);
steps!(PostProcessor, processors);
steps!(Decoder, decoders);

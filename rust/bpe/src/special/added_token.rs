//! One added token, and sets of special tokens.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

/// A token that is matched as a whole before pre-tokenization. The flags are those of `tokenizer.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "the five flags of the file format")]
pub struct AddedToken {
    /// The id.
    pub id: u32,
    /// The text that it matches.
    pub content: String,
    /// Whether it matches only if no word character is adjacent.
    #[serde(default)]
    pub single_word: bool,
    /// Whether it includes the white space to its left.
    #[serde(default)]
    pub lstrip: bool,
    /// Whether it includes the white space to its right.
    #[serde(default)]
    pub rstrip: bool,
    /// Whether its normal form is matched in normalized text.
    #[serde(default)]
    pub normalized: bool,
    /// Whether it controls the model, so that text produces it only if the caller allows it.
    #[serde(default)]
    pub special: bool,
}

impl AddedToken {
    /// Returns a special token with all other flags off.
    pub fn special(content: impl Into<String>, id: u32) -> Self {
        let content = content.into();
        Self { content, id, special: true, single_word: false, lstrip: false, rstrip: false, normalized: false }
    }
}

/// A set of special tokens.
#[derive(Debug, Clone, Copy, Default)]
pub enum SpecialSet<'a> {
    /// No special token.
    #[default]
    None,
    /// Every special token.
    All,
    /// The special tokens with these names.
    Only(&'a HashSet<&'a str>),
}

impl SpecialSet<'_> {
    pub(super) fn contains(&self, content: &str) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Only(names) => names.contains(content),
        }
    }

    pub(super) fn is_none(&self) -> bool {
        match self {
            Self::None => true,
            Self::All => false,
            Self::Only(names) => names.is_empty(),
        }
    }
}

//! The ids of tokens with a special role.

use crate::special::AddedTokens;

/// The usual names of the token that begins a text, in order of preference.
const BOS_NAMES: &[&str] = &["<|begin_of_text|>", "<s>", "<bos>", "<|bos|>", "<|startoftext|>"];
/// The usual names of the token that ends a text, in order of preference.
const EOS_NAMES: &[&str] = &["<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>", "<|eos|>"];

/// The ids of the tokens with a special role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpecialIds {
    /// The beginning of a text.
    pub bos: Option<u32>,
    /// The end of a text.
    pub eos: Option<u32>,
    /// Padding of short rows.
    pub pad: Option<u32>,
    /// What unknown text is encoded as.
    pub unk: Option<u32>,
}

impl SpecialIds {
    /// Returns the ids of the added tokens with a usual name.
    pub(super) fn by_name(added: &AddedTokens) -> Self {
        let named = |names: &[&str]| names.iter().find_map(|name| Some(added.by_content(name)?.id));
        Self { bos: named(BOS_NAMES), eos: named(EOS_NAMES), pad: None, unk: None }
    }
}

//! Tokens with a special role: the beginning and end of a text, padding, unknown text; and the post-processor's template.

use std::sync::Arc;

use super::Tokenizer;
use crate::pipeline::components::{PostProcessor, TemplateText};
use crate::pipeline::{Item, Template};
use crate::special::AddedTokens;
use crate::{Error, Result};

/// The usual names of the token that begins a text, in order of preference.
const BOS_NAMES: &[&str] = &["<|begin_of_text|>", "<s>", "<bos>", "<|startoftext|>"];
/// The usual names of the token that ends a text, in order of preference.
const EOS_NAMES: &[&str] = &["<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>"];

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

impl Tokenizer {
    /// Returns the ids with a special role.
    pub fn special_ids(&self) -> SpecialIds {
        self.special_ids
    }

    /// Returns the id that begins a text, if there is one.
    pub fn bos_id(&self) -> Option<u32> {
        self.special_ids.bos
    }

    /// Returns the id that ends a text, if there is one.
    pub fn eos_id(&self) -> Option<u32> {
        self.special_ids.eos
    }

    /// Returns the tokenizer with these ids as the beginning and the end of a text.
    ///
    /// The default is special tokens with a usual name, such as `<|begin_of_text|>` or `</s>`.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an id that no token has.
    pub fn with_bos_eos(self, bos: Option<u32>, eos: Option<u32>) -> Result<Self> {
        let special_ids = SpecialIds { bos, eos, ..self.special_ids };
        self.with_special_ids(special_ids)
    }

    /// Returns the tokenizer with these special ids.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an id that no token has.
    pub fn with_special_ids(mut self, ids: SpecialIds) -> Result<Self> {
        for id in [ids.bos, ids.eos, ids.pad, ids.unk].into_iter().flatten() {
            self.id_to_bytes(id)?;
        }
        self.special_ids = ids;
        Ok(self)
    }

    /// Returns the tokenizer with this post-processor. The tokens that it adds around a text become `bos` and `eos`.
    ///
    /// # Errors
    /// [`Error::Format`] if it is not supported, or names an id that no token has.
    pub(crate) fn with_post_processor(mut self, post_processor: PostProcessor) -> Result<Self> {
        let template = Template::compile(&post_processor)?;
        for id in template.special_ids() {
            self.id_to_bytes(id).map_err(|_| {
                Error::Format(format!("tokenizer.json: post_processor names id {id}, which no token has"))
            })?;
        }
        if let Some((before, after)) = template.around() {
            self.special_ids.bos = before.first().copied().or(self.special_ids.bos);
            self.special_ids.eos = after.last().copied().or(self.special_ids.eos);
        }
        self.template = template;
        self.post_processor = Some(Arc::new(post_processor));
        Ok(self)
    }

    /// Returns the post-processor's template for one text or for a pair: special tokens by id, texts as `"A"` and `"B"`, each
    /// with its type id, which is `None` if texts have the default type ids 0 and 1.
    pub fn template_items(&self, pair: bool) -> Vec<(Option<u32>, Option<&'static str>, Option<u32>)> {
        let items = if pair { &self.template.pair } else { &self.template.single };
        let item = |item: &Item| match *item {
            Item::Special(id, type_id) => (Some(id), None, Some(type_id)),
            Item::Text(TemplateText::A, type_id) => (None, Some("A"), type_id),
            Item::Text(TemplateText::B, type_id) => (None, Some("B"), type_id),
        };
        items.iter().map(item).collect()
    }
}

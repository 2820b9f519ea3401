//! The special ids of a tokenizer, and the template of its post-processor.

use std::sync::Arc;

use super::definition::Tokenizer;
use super::special_ids::SpecialIds;
use crate::pipeline::components::{PostProcessor, TemplateItem, TemplateText, TemplateToken};
use crate::pipeline::{Item, Template};
use crate::{Error, Result};

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

    /// Returns the tokenizer with these special ids.
    ///
    /// By default BOS and EOS are special tokens with a usual name, such as `<|begin_of_text|>` or `</s>`.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`] for an id that no token has.
    pub fn with_special_ids(mut self, ids: SpecialIds) -> Result<Self> {
        for id in [ids.bos, ids.eos, ids.pad, ids.unk].into_iter().flatten() {
            self.id_to_bytes(id)?;
        }
        self.special_ids = ids;
        Ok(self)
    }

    /// Returns the tokenizer with a post-processor that adds the token `before` each text and the token `after` it; with
    /// neither, it has none.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`] for an id without a token.
    pub fn with_template(mut self, before: Option<u32>, after: Option<u32>) -> Result<Self> {
        if (before, after) == (None, None) {
            (self.template, self.post_processor) = Default::default();
            return Ok(self);
        }
        let name = |id: u32| {
            let text = String::from_utf8_lossy(self.id_to_bytes(id)?);
            // Two tokens may have one text, of bytes that are no text or of an added token and another.
            let is_shared = before.into_iter().chain(after).any(|other| {
                other != id && self.id_to_bytes(other).is_ok_and(|bytes| String::from_utf8_lossy(bytes) == text)
            });
            Ok::<_, Error>(if is_shared { format!("{text} {id}") } else { text.into_owned() })
        };
        let around = |text, type_id| {
            let special = |id| Ok(TemplateItem::SpecialToken { id: name(id)?, type_id });
            let text = Ok(TemplateItem::Text { id: text, type_id });
            before.map(special).into_iter().chain([text]).chain(after.map(special)).collect::<Result<Vec<_>>>()
        };
        let single = around(TemplateText::A, 0)?;
        let pair = [single.clone(), around(TemplateText::B, 1)?].concat();
        let token = |id| {
            let name = name(id)?;
            Ok((name.clone(), TemplateToken { id: name.clone(), ids: vec![id], tokens: vec![name] }))
        };
        let special_tokens = before.into_iter().chain(after).map(token).collect::<Result<_>>()?;
        self.with_post_processor(PostProcessor::TemplateProcessing { single, pair, special_tokens })
    }

    /// Returns the tokenizer with this post-processor. The tokens that it adds around a text become `bos` and `eos`.
    ///
    /// # Errors
    /// [`crate::Error::Format`] if it is not supported, or names an id that no token has.
    pub(crate) fn with_post_processor(mut self, post_processor: PostProcessor) -> Result<Self> {
        let template = Template::compile(&post_processor)?;
        for id in template.special_ids() {
            self.id_to_bytes(id)
                .map_err(|_| malformed!("tokenizer.json: post_processor names id {id}, which no token has"))?;
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

//! Post-processors, compiled to a template, and offsets that exclude white space.

use super::bounds::check_items;
use super::components::{ByteLevel, PostProcessor, TemplateItem, TemplateText};
use crate::{Error, Result};

/// The special tokens around one text or a pair.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Template {
    pub(crate) single: Vec<Item>,
    pub(crate) pair: Vec<Item>,
    /// One item for each step that excludes white space from offsets: whether a space can have been added to the first
    /// token.
    pub(crate) trims: Vec<bool>,
}

/// An item of a template, with its type id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Item {
    /// The first or the second text; `None` keeps its type id, 0 or 1.
    Text(TemplateText, Option<u32>),
    /// A special token, which is omitted without `add_special_tokens`.
    Special(u32, u32),
}

impl Default for Template {
    /// Returns the template without special tokens.
    fn default() -> Self {
        let [a, b] = [TemplateText::A, TemplateText::B].map(|text| Item::Text(text, None));
        Self { single: vec![a], pair: vec![a, b], trims: Vec::new() }
    }
}

impl Template {
    /// Returns the template of a post-processor.
    ///
    /// # Errors
    /// [`Error::Format`] for a sequence of several templates, a template with an undefined token, and too many items.
    pub(crate) fn compile(processor: &PostProcessor) -> Result<Self> {
        let keep = |text| Item::Text(text, None);
        let mut template = Self::default();
        let mut is_set = false;
        for step in processor.steps() {
            if is_set && !matches!(step, PostProcessor::ByteLevel(_)) {
                return Err(malformed!(
                    "tokenizer.json: post_processor is a Sequence of several templates, which is not supported; \
                     expected at most one of TemplateProcessing, BertProcessing and RobertaProcessing"
                ));
            }
            match step {
                PostProcessor::ByteLevel(ByteLevel { trim_offsets, add_prefix_space, .. }) => {
                    template.trims.extend(trim_offsets.then_some(*add_prefix_space));
                    continue;
                }
                PostProcessor::BertProcessing { sep, cls } => {
                    let (cls, sep) = (cls.1, sep.1);
                    template.single = vec![Item::Special(cls, 0), keep(TemplateText::A), Item::Special(sep, 0)];
                    template.pair.clone_from(&template.single);
                    template.pair.extend([keep(TemplateText::B), Item::Special(sep, 1)]);
                }
                PostProcessor::RobertaProcessing { sep, cls, trim_offsets, add_prefix_space } => {
                    let (cls, sep) = (Item::Special(cls.1, 0), Item::Special(sep.1, 0));
                    template.single = vec![cls, Item::Text(TemplateText::A, Some(0)), sep];
                    template.pair.clone_from(&template.single);
                    template.pair.extend([sep, Item::Text(TemplateText::B, Some(0)), sep]);
                    template.trims.extend(trim_offsets.then_some(*add_prefix_space));
                }
                PostProcessor::TemplateProcessing { single, pair, special_tokens } => {
                    let items = |items: &[TemplateItem], field: &str| {
                        let mut compiled = Vec::new();
                        for item in items {
                            check_items(&format!("post_processor.{field}"), compiled.len() + 1)?;
                            match item {
                                TemplateItem::Text { id, type_id } => compiled.push(Item::Text(*id, Some(*type_id))),
                                TemplateItem::SpecialToken { id, type_id } => {
                                    let token = special_tokens.get(id).ok_or_else(|| {
                                        malformed!(
                                            "tokenizer.json: post_processor.{field} names {id:?}, \
                                             which special_tokens does not define"
                                        )
                                    })?;
                                    check_items(&format!("post_processor.{field}"), compiled.len() + token.ids.len())?;
                                    compiled.extend(token.ids.iter().map(|&id| Item::Special(id, *type_id)));
                                }
                            }
                        }
                        Ok::<_, Error>(compiled)
                    };
                    template.single = items(single, "single")?;
                    template.pair = items(pair, "pair")?;
                    if template.single.iter().any(|item| matches!(item, Item::Text(TemplateText::B, _))) {
                        return Err(malformed!(
                            "tokenizer.json: post_processor.single holds the second text; expected the first, A"
                        ));
                    }
                }
                PostProcessor::Sequence { .. } => unreachable!("steps flattens sequences"),
            }
            is_set = true;
        }
        Ok(template)
    }

    /// Returns the ids before and after one text, if the template only adds ids.
    pub(crate) fn around(&self) -> Option<(Vec<u32>, Vec<u32>)> {
        let place = self.single.iter().position(|item| matches!(item, Item::Text(..)))?;
        let ids = |items: &[Item]| -> Option<Vec<u32>> {
            items.iter().map(|item| if let Item::Special(id, _) = item { Some(*id) } else { None }).collect()
        };
        Some((ids(&self.single[..place])?, ids(&self.single[place + 1..])?))
    }

    /// Returns the ids of all special tokens.
    pub(crate) fn special_ids(&self) -> impl Iterator<Item = u32> {
        let items = self.single.iter().chain(&self.pair);
        items.filter_map(|item| if let Item::Special(id, _) = item { Some(*id) } else { None })
    }
}

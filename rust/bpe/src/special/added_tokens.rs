//! The added tokens of a tokenizer: look-ups, and splitting of text.

use hashbrown::HashMap;

use super::added_token::{AddedToken, SpecialSet};
use super::matcher::{Matcher, Segment, first_of_texts};
use crate::Result;
use crate::interrupt::Interrupt;
use crate::vocab::check_id;

/// The added tokens of one tokenizer.
#[derive(Debug, Clone, Default)]
pub(crate) struct AddedTokens {
    /// In id order. Several tokens can share an id, which is decoded to the first of them.
    tokens: Vec<AddedToken>,
    by_id: HashMap<u32, usize>,
    by_content: HashMap<String, usize>,
    /// Each token's content, or its normal form if that is matched.
    names: Vec<String>,
    /// The bytes that each token is decoded to.
    bytes: Vec<Vec<u8>>,
    /// Matches text before normalization.
    raw: Option<Matcher>,
    /// Matches normalized text.
    normalized: Option<Matcher>,
    /// Matches the contents of all tokens; `None` where `raw` matches every special token.
    contents: Option<Matcher>,
    /// Whether a token is not special, and so needs no permission.
    has_ordinary: bool,
}

impl AddedTokens {
    /// Returns these tokens. `normalize` returns the normal form of a token that is matched in normalized text.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if a token is empty or given twice, or an id is out of range; what `normalize`
    /// returns.
    pub(crate) fn new(mut tokens: Vec<AddedToken>, normalize: impl Fn(&str) -> Result<String>) -> Result<Self> {
        tokens.sort_by_key(|token| token.id);
        let mut added = Self::default();
        for (i, token) in tokens.iter().enumerate() {
            let (content, id) = (&token.content, token.id);
            if content.is_empty() {
                return Err(invalid!("special token {id} is the empty string"));
            }
            check_id(format_args!("special token {content:?}"), id)?;
            if added.by_content.insert(content.clone(), i).is_some() {
                return Err(invalid!("special token {content:?} is given twice"));
            }
            added.by_id.entry(id).or_insert(i);
        }
        let mut patterns: [Vec<(String, usize)>; 2] = Default::default();
        for (i, token) in tokens.iter().enumerate() {
            let pattern = if token.normalized { normalize(&token.content)? } else { token.content.clone() };
            added.names.push(pattern.clone());
            patterns[usize::from(token.normalized)].push((pattern, i));
        }
        let [raw, normalized] = patterns;
        if normalized.iter().any(|&(_, i)| tokens[i].special) {
            let contents: Vec<_> = tokens.iter().zip(0..).map(|(token, i)| (token.content.clone(), i)).collect();
            added.contents = Matcher::new(&contents, &tokens)?;
        }
        added.has_ordinary = tokens.iter().any(|token| !token.special);
        added.raw = Matcher::new(&raw, &tokens)?;
        added.normalized = Matcher::new(&normalized, &tokens)?;
        added.bytes = tokens.iter().map(|token| token.content.clone().into_bytes()).collect();
        added.tokens = tokens;
        Ok(added)
    }

    /// Decodes tokens to what `decode` returns for their names from now on; matching does not change.
    pub(crate) fn decode_by(&mut self, decode: impl Fn(&str) -> Vec<u8>) {
        self.bytes = self.names.iter().map(|name| decode(name)).collect();
    }

    /// Returns the name of an added token for decoding: its content, or its normal form if that is matched.
    pub(crate) fn name_of(&self, id: u32) -> Option<&str> {
        self.by_id.get(&id).map(|&i| self.names[i].as_str())
    }

    /// Returns whether decoding omits a token if it skips special tokens.
    ///
    /// As in `tokenizers`, the name decides: a special token whose normal form differs from its content is not omitted.
    pub(crate) fn is_skipped(&self, id: u32) -> bool {
        self.name_of(id).and_then(|name| self.by_content(name)).is_some_and(|token| token.special)
    }

    /// Returns whether no added token can match if these special tokens are allowed.
    pub(crate) fn matches_none(&self, allowed: SpecialSet<'_>) -> bool {
        (allowed.is_none() && !self.has_ordinary) || self.tokens.is_empty()
    }

    /// Returns the tokens in id order.
    pub(crate) fn tokens(&self) -> &[AddedToken] {
        &self.tokens
    }

    pub(crate) fn by_id(&self, id: u32) -> Option<&AddedToken> {
        self.by_id.get(&id).map(|&i| &self.tokens[i])
    }

    /// Returns the bytes that an added token is decoded to.
    pub(crate) fn bytes_of(&self, id: u32) -> Option<&[u8]> {
        self.by_id.get(&id).map(|&i| self.bytes[i].as_slice())
    }

    pub(crate) fn by_content(&self, content: &str) -> Option<&AddedToken> {
        self.by_content.get(content).map(|&i| &self.tokens[i])
    }

    /// Checks that the text contains no special token of `set`, and no name of it that is no special token.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] with the first such token and its byte offset; what the interrupt check
    /// returns.
    pub(crate) fn refuse(&self, text: &str, set: SpecialSet<'_>, interrupt: Interrupt<'_>) -> Result<()> {
        if set.is_none() {
            return Ok(());
        }
        let is_refused = |token: &AddedToken| token.special && set.contains(&token.content);
        let first = match self.contents.as_ref().or(self.raw.as_ref()) {
            Some(matcher) => matcher.first_of(text, &self.tokens, is_refused, interrupt)?,
            None => None,
        };
        if let Some((at, content)) = first {
            return Err(invalid!(
                "the text holds the disallowed special token {content:?} at byte {at}; \
                 pass it in allowed_special to encode it as a special token, or leave it out of disallowed_special \
                 to encode it as ordinary text"
            ));
        }
        // A name that is no special token here is refused like one: it may be another model's.
        let SpecialSet::Only(names) = set else { return Ok(()) };
        let others: Vec<&str> =
            names.iter().copied().filter(|name| !self.by_content(name).is_some_and(|token| token.special)).collect();
        match first_of_texts(&others, text, interrupt)? {
            Some((at, name)) => Err(invalid!(
                "the text holds {name:?} at byte {at}, which is in disallowed_special; \
                 leave it out there to encode it as ordinary text"
            )),
            None => Ok(()),
        }
    }

    /// Checks that `allowed` names added tokens only.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] with another name.
    pub(crate) fn check(&self, allowed: SpecialSet<'_>) -> Result<()> {
        let SpecialSet::Only(names) = allowed else { return Ok(()) };
        match names.iter().filter(|name| !self.by_content.contains_key(**name)).min() {
            Some(name) => Err(invalid!("allowed_special names {name:?}, which is no special token of this tokenizer")),
            None => Ok(()),
        }
    }

    /// Splits text before normalization into ordinary segments and added tokens, and calls `each` for them in order.
    pub(crate) fn split_raw(
        &self,
        text: &str,
        allowed: SpecialSet<'_>,
        interrupt: Interrupt<'_>,
        each: &mut dyn FnMut(Segment) -> Result<()>,
    ) -> Result<()> {
        self.split(self.raw.as_ref(), text, allowed, interrupt, each)
    }

    /// Splits a normalized segment in the same way.
    pub(crate) fn split_normalized(
        &self,
        text: &str,
        allowed: SpecialSet<'_>,
        interrupt: Interrupt<'_>,
        each: &mut dyn FnMut(Segment) -> Result<()>,
    ) -> Result<()> {
        self.split(self.normalized.as_ref(), text, allowed, interrupt, each)
    }

    fn split(
        &self,
        matcher: Option<&Matcher>,
        text: &str,
        allowed: SpecialSet<'_>,
        interrupt: Interrupt<'_>,
        each: &mut dyn FnMut(Segment) -> Result<()>,
    ) -> Result<()> {
        match matcher {
            Some(matcher) if !matcher.matches_none(allowed) => {
                matcher.split(text, &self.tokens, allowed, interrupt, each)
            }
            _ if text.is_empty() => Ok(()),
            _ => each(Segment { bytes: 0..text.len(), added: None }),
        }
    }
}

//! Tokens that stand outside BPE: matched in text as they are, or, if special, only when the caller allows it.

use aho_corasick::{AhoCorasick, MatchKind};
use hashbrown::HashMap;

use crate::normalize::SPACE;
use crate::pairs::ID_BOUND;
use crate::{Error, Result};

/// A token that is matched as a whole before the text is split. The flags are those of `tokenizer.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "the five flags of the file format")]
pub struct AddedToken {
    /// The text it stands for.
    pub content: String,
    /// Its id.
    pub id: u32,
    /// Whether it controls the model, so that text must not produce it unless the caller allows it.
    pub special: bool,
    /// Whether it is matched only where no word character touches it.
    pub single_word: bool,
    /// Whether it swallows white space to its left.
    pub lstrip: bool,
    /// Whether it swallows white space to its right.
    pub rstrip: bool,
    /// Whether it is looked for after normalization.
    pub normalized: bool,
}

impl AddedToken {
    /// Returns a special token with all other flags off.
    pub fn special(content: impl Into<String>, id: u32) -> Self {
        let content = content.into();
        Self { content, id, special: true, single_word: false, lstrip: false, rstrip: false, normalized: false }
    }
}

/// Which special tokens a call means.
#[derive(Debug, Clone, Copy, Default)]
pub enum SpecialSet<'a> {
    /// None of them.
    #[default]
    None,
    /// Every one.
    All,
    /// Those named.
    Only(&'a [&'a str]),
}

impl SpecialSet<'_> {
    fn contains(&self, content: &str) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Only(names) => names.contains(&content),
        }
    }

    fn is_none(&self) -> bool {
        matches!(self, Self::None | Self::Only([]))
    }
}

/// The added tokens of one tokenizer.
#[derive(Debug, Clone, Default)]
pub(crate) struct AddedTokens {
    tokens: Vec<AddedToken>,
    by_id: HashMap<u32, usize>,
    by_content: HashMap<String, usize>,
    /// What each token is decoded to.
    bytes: Vec<Vec<u8>>,
    /// Matchers prepared for the two common calls, no special token and all of them; `None` where there is none to find.
    without_special: Option<Matcher>,
    with_special: Option<Matcher>,
}

impl AddedTokens {
    /// # Errors
    /// [`Error::InvalidArgument`] if a token is empty, two share their text or their id, or an id is out of range.
    pub(crate) fn new(mut tokens: Vec<AddedToken>) -> Result<Self> {
        tokens.sort_by_key(|token| token.id);
        let mut added = Self::default();
        for (i, token) in tokens.iter().enumerate() {
            let (content, id) = (&token.content, token.id);
            if content.is_empty() {
                return Err(Error::InvalidArgument(format!("special token {id} is the empty string")));
            }
            if id >= ID_BOUND {
                return Err(Error::InvalidArgument(format!(
                    "special token {content:?} has id {id}: expected ids below {ID_BOUND}"
                )));
            }
            if added.by_content.insert(content.clone(), i).is_some() {
                return Err(Error::InvalidArgument(format!("special token {content:?} is given twice")));
            }
            if let Some(other) = added.by_id.insert(id, i) {
                let other = &tokens[other].content;
                return Err(Error::InvalidArgument(format!("special tokens {other:?} and {content:?} share id {id}")));
            }
        }
        added.without_special = Matcher::new(tokens.iter().filter(|token| !token.special));
        added.with_special = Matcher::new(tokens.iter());
        added.bytes = tokens.iter().map(|token| token.content.clone().into_bytes()).collect();
        added.tokens = tokens;
        Ok(added)
    }

    /// Makes `▁` a space in what the tokens are decoded to; they are still looked for in text as they are.
    ///
    /// # Source
    /// The decoders of Hugging Face `tokenizers` take added tokens for tokens like others.
    pub(crate) fn decode_to_spaces(&mut self) {
        self.bytes = self.tokens.iter().map(|token| token.content.replace(SPACE, " ").into_bytes()).collect();
    }

    /// Returns whether no added token is ever matched when these special ones are allowed.
    pub(crate) fn finds_none(&self, allowed: SpecialSet<'_>) -> bool {
        if allowed.is_none() { self.without_special.is_none() } else { self.with_special.is_none() }
    }

    /// In id order.
    pub(crate) fn tokens(&self) -> &[AddedToken] {
        &self.tokens
    }

    pub(crate) fn by_id(&self, id: u32) -> Option<&AddedToken> {
        self.by_id.get(&id).map(|&i| &self.tokens[i])
    }

    /// Returns what the token of an id is decoded to.
    pub(crate) fn bytes_of(&self, id: u32) -> Option<&[u8]> {
        self.by_id.get(&id).map(|&i| self.bytes[i].as_slice())
    }

    pub(crate) fn by_content(&self, content: &str) -> Option<&AddedToken> {
        self.by_content.get(content).map(|&i| &self.tokens[i])
    }

    /// # Errors
    /// [`Error::InvalidArgument`] if the text holds a special token of `set`, naming it and the byte where it starts.
    pub(crate) fn refuse(&self, text: &str, set: SpecialSet<'_>) -> Result<()> {
        if set.is_none() {
            return Ok(());
        }
        let found = self.tokens.iter().filter(|token| token.special && set.contains(&token.content));
        let first = found.filter_map(|token| Some((text.find(&token.content)?, &token.content))).min();
        first.map_or(Ok(()), |(at, content)| {
            Err(Error::InvalidArgument(format!(
                "the text holds the disallowed special token {content:?} at byte {at}; \
                 pass it in allowed_special to encode it as a special token, or leave it out of disallowed_special \
                 to encode it as ordinary text"
            )))
        })
    }

    /// Cuts `text` into ordinary parts and added tokens, calling back for each in order.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `allowed` names what is no special token; and what `ordinary` returns.
    pub(crate) fn cut<'t>(
        &self,
        text: &'t str,
        allowed: SpecialSet<'_>,
        each: &mut dyn FnMut(Part<'t>) -> Result<()>,
    ) -> Result<()> {
        let chosen;
        let matcher = match allowed {
            SpecialSet::All => &self.with_special,
            _ if allowed.is_none() => &self.without_special,
            SpecialSet::None => &self.without_special,
            SpecialSet::Only(names) => {
                if let Some(name) = names.iter().find(|name| !self.by_content.contains_key(**name)) {
                    return Err(Error::InvalidArgument(format!(
                        "allowed_special names {name:?}, which is no special token of this tokenizer"
                    )));
                }
                let tokens = self.tokens.iter().filter(|token| !token.special || allowed.contains(&token.content));
                chosen = Matcher::new(tokens);
                &chosen
            }
        };
        match matcher {
            None => each(Part::Ordinary(text)),
            Some(matcher) => matcher.cut(text, each),
        }
    }
}

/// A part of a text.
pub(crate) enum Part<'t> {
    Ordinary(&'t str),
    /// An added token's id and the text it was matched on, white space it swallowed included.
    Added(u32, &'t str),
}

/// Leftmost, then longest, match of a set of added tokens.
#[derive(Debug, Clone)]
struct Matcher {
    automaton: AhoCorasick,
    tokens: Vec<AddedToken>,
}

impl Matcher {
    fn new<'a>(tokens: impl Iterator<Item = &'a AddedToken>) -> Option<Self> {
        let tokens: Vec<_> = tokens.cloned().collect();
        if tokens.is_empty() {
            return None;
        }
        let contents = tokens.iter().map(|token| &token.content);
        let automaton = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(contents).ok()?;
        Some(Self { automaton, tokens })
    }

    fn cut<'t>(&self, text: &'t str, each: &mut dyn FnMut(Part<'t>) -> Result<()>) -> Result<()> {
        let mut done = 0;
        for found in self.automaton.find_iter(text) {
            let token = &self.tokens[found.pattern().as_usize()];
            let (mut start, mut end) = (found.start(), found.end());
            // White space swallowed by the token before may reach into this one.
            if start < done || (token.single_word && touches_word(text, start, end)) {
                continue;
            }
            if token.lstrip {
                start = done + text[done..start].trim_end().len();
            }
            if token.rstrip {
                end = text.len() - text[end..].trim_start().len();
            }
            if start > done {
                each(Part::Ordinary(&text[done..start]))?;
            }
            each(Part::Added(token.id, &text[start..end]))?;
            done = end;
        }
        if done < text.len() { each(Part::Ordinary(&text[done..])) } else { Ok(()) }
    }
}

fn touches_word(text: &str, start: usize, end: usize) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    text[..start].chars().next_back().is_some_and(is_word) || text[end..].chars().next().is_some_and(is_word)
}

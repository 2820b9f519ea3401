//! Tokens that stand outside BPE: matched in text as they are, or, if special, only when the caller allows it.
//!
//! Text is searched twice: as it stands for the tokens that are not normalized, and what lies between them once more
//! when it is normalized. A special token that is not allowed is found and passed over.
//!
//! Source: `added_vocabulary.rs` of Hugging Face `tokenizers` defines both passes, and what the flags mean.

use std::ops::Range;
use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, Input, Match, MatchKind};
use fancy_regex::Regex;
use hashbrown::HashMap;

use crate::interrupt::Interrupt;
use crate::vocab::ID_BOUND;
use crate::{Error, Result};

/// Bytes that are searched for added tokens between two interrupt checks.
const WINDOW: usize = 1 << 18;

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
    /// Whether it is looked for, in its own normal form, once the text is normalized.
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
    /// In id order. Several may share an id; the first of them is what the id is decoded to.
    tokens: Vec<AddedToken>,
    by_id: HashMap<u32, usize>,
    by_content: HashMap<String, usize>,
    /// Each token's content, in its normal form if it is looked for by that.
    names: Vec<String>,
    /// What each token is decoded to.
    bytes: Vec<Vec<u8>>,
    /// Looked for in the text as it stands.
    raw: Option<Matcher>,
    /// Looked for in normalized text.
    normalized: Option<Matcher>,
    /// Whether one of them is found without being allowed.
    has_ordinary: bool,
}

impl AddedTokens {
    /// Returns these tokens; `normalize` gives the text by which a token that is normalized is looked for.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a token is empty or given twice, or an id is out of range; what `normalize` returns.
    pub(crate) fn new(mut tokens: Vec<AddedToken>, normalize: impl Fn(&str) -> Result<String>) -> Result<Self> {
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
            added.by_id.entry(id).or_insert(i);
        }
        let mut patterns: [Vec<(String, usize)>; 2] = Default::default();
        for (i, token) in tokens.iter().enumerate() {
            let pattern = if token.normalized { normalize(&token.content)? } else { token.content.clone() };
            added.names.push(pattern.clone());
            patterns[usize::from(token.normalized)].push((pattern, i));
        }
        let [raw, normalized] = patterns;
        added.has_ordinary = tokens.iter().any(|token| !token.special);
        added.raw = Matcher::new(raw, &tokens)?;
        added.normalized = Matcher::new(normalized, &tokens)?;
        added.bytes = tokens.iter().map(|token| token.content.clone().into_bytes()).collect();
        added.tokens = tokens;
        Ok(added)
    }

    /// Changes what the tokens are decoded to, given their names; they are still looked for in text as they are.
    pub(crate) fn decode_by(&mut self, decode: impl Fn(&str) -> Vec<u8>) {
        self.bytes = self.names.iter().map(|name| decode(name)).collect();
    }

    /// Returns what the token of an id is called where tokens are decoded: its content, or the normal form of that.
    pub(crate) fn name_of(&self, id: u32) -> Option<&str> {
        self.by_id.get(&id).map(|&i| self.names[i].as_str())
    }

    /// Returns whether decoding leaves a token out where special tokens are not wanted.
    ///
    /// As in `tokenizers`, the name decides: a special token with a normal form that is not its content stays.
    pub(crate) fn is_left_out(&self, id: u32) -> bool {
        self.name_of(id).and_then(|name| self.by_content(name)).is_some_and(|token| token.special)
    }

    /// Returns whether no added token is ever matched when these special ones are allowed.
    pub(crate) fn finds_none(&self, allowed: SpecialSet<'_>) -> bool {
        (allowed.is_none() && !self.has_ordinary) || self.tokens.is_empty()
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
    /// [`Error::InvalidArgument`] if the text holds a special token of `set`, naming it and the byte where it starts; what
    /// the interrupt returns.
    pub(crate) fn refuse(&self, text: &str, set: SpecialSet<'_>, interrupt: Interrupt<'_>) -> Result<()> {
        if set.is_none() {
            return Ok(());
        }
        let mut first = None;
        for token in self.tokens.iter().filter(|token| token.special && set.contains(&token.content)) {
            interrupt.check()?;
            let found = text.find(&token.content).map(|at| (at, &token.content));
            first = first.into_iter().chain(found).min();
        }
        first.map_or(Ok(()), |(at, content)| {
            Err(Error::InvalidArgument(format!(
                "the text holds the disallowed special token {content:?} at byte {at}; \
                 pass it in allowed_special to encode it as a special token, or leave it out of disallowed_special \
                 to encode it as ordinary text"
            )))
        })
    }

    /// # Errors
    /// [`Error::InvalidArgument`] if `allowed` names what is no added token.
    pub(crate) fn check(&self, allowed: SpecialSet<'_>) -> Result<()> {
        let SpecialSet::Only(names) = allowed else { return Ok(()) };
        match names.iter().find(|name| !self.by_content.contains_key(**name)) {
            Some(name) => Err(Error::InvalidArgument(format!(
                "allowed_special names {name:?}, which is no special token of this tokenizer"
            ))),
            None => Ok(()),
        }
    }

    /// Cuts a text that is not yet normalized into ordinary parts and added tokens, calling back for each in order.
    ///
    /// # Errors
    /// What `each` and the interrupt check return.
    pub(crate) fn split_raw(
        &self,
        text: &str,
        allowed: SpecialSet<'_>,
        interrupt: Interrupt<'_>,
        each: &mut dyn FnMut(Part) -> Result<()>,
    ) -> Result<()> {
        self.cut(self.raw.as_ref(), text, allowed, interrupt, each)
    }

    /// The same for an ordinary part that is normalized.
    pub(crate) fn split_normalized(
        &self,
        text: &str,
        allowed: SpecialSet<'_>,
        interrupt: Interrupt<'_>,
        each: &mut dyn FnMut(Part) -> Result<()>,
    ) -> Result<()> {
        self.cut(self.normalized.as_ref(), text, allowed, interrupt, each)
    }

    fn cut(
        &self,
        matcher: Option<&Matcher>,
        text: &str,
        allowed: SpecialSet<'_>,
        interrupt: Interrupt<'_>,
        each: &mut dyn FnMut(Part) -> Result<()>,
    ) -> Result<()> {
        match matcher {
            Some(matcher) if !matcher.finds_none(allowed) => matcher.cut(text, &self.tokens, allowed, interrupt, each),
            _ if text.is_empty() => Ok(()),
            _ => each(Part { bytes: 0..text.len(), added: None }),
        }
    }
}

/// A part of a text.
#[derive(Debug)]
pub(crate) struct Part {
    /// Where it stands. White space that an added token swallowed is included; such tokens may overlap.
    pub(crate) bytes: Range<usize>,
    /// The id, if it is an added token.
    pub(crate) added: Option<u32>,
}

/// Leftmost, then longest, match of a set of added tokens.
#[derive(Debug, Clone)]
struct Matcher {
    automaton: AhoCorasick,
    /// The bytes of the longest pattern.
    longest: usize,
    /// The place of each pattern's token in the list of all.
    tokens: Vec<usize>,
    has_ordinary: bool,
}

impl Matcher {
    fn new(patterns: Vec<(String, usize)>, tokens: &[AddedToken]) -> Result<Option<Self>> {
        if let Some((_, i)) = patterns.iter().find(|(pattern, _)| pattern.is_empty()) {
            let content = &tokens[*i].content;
            return Err(Error::InvalidArgument(format!("added token {content:?} is the empty text when normalized")));
        }
        let mut sorted: Vec<_> = patterns.iter().collect();
        sorted.sort_unstable();
        if let Some(same) = sorted.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            let [one, other] = [same[0].1, same[1].1].map(|i| &tokens[i].content);
            return Err(Error::InvalidArgument(format!("added tokens {one:?} and {other:?} are one when normalized")));
        }
        if patterns.is_empty() {
            return Ok(None);
        }
        let builder =
            AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(patterns.iter().map(|p| &p.0));
        let automaton = builder.map_err(|error| Error::InvalidArgument(format!("too many added tokens: {error}")))?;
        let has_ordinary = patterns.iter().any(|&(_, i)| !tokens[i].special);
        let longest = patterns.iter().map(|(pattern, _)| pattern.len()).max().unwrap_or_default();
        Ok(Some(Self { automaton, longest, tokens: patterns.into_iter().map(|(_, i)| i).collect(), has_ordinary }))
    }

    fn finds_none(&self, allowed: SpecialSet<'_>) -> bool {
        allowed.is_none() && !self.has_ordinary
    }

    fn cut(
        &self,
        text: &str,
        tokens: &[AddedToken],
        allowed: SpecialSet<'_>,
        interrupt: Interrupt<'_>,
        each: &mut dyn FnMut(Part) -> Result<()>,
    ) -> Result<()> {
        let (mut done, mut from) = (0, 0);
        for turn in 0.. {
            interrupt.check_at(turn)?;
            let Some(found) = self.find(text, from, interrupt)? else { break };
            from = found.end();
            let token = &tokens[self.tokens[found.pattern().as_usize()]];
            let (mut start, mut end) = (found.start(), found.end());
            let is_passed_over = token.special && !allowed.contains(&token.content);
            if is_passed_over || (token.single_word && touches_word(text, start, end)?) {
                continue;
            }
            if token.lstrip {
                start = done + text[done..start.max(done)].trim_end().len();
            }
            if token.rstrip {
                end = text.len() - text[end..].trim_start().len();
            }
            if start > done {
                each(Part { bytes: done..start, added: None })?;
            }
            // Nothing is left where the token before swallowed this one, which is white space then.
            if start < end {
                each(Part { bytes: start..end, added: Some(token.id) })?;
            }
            done = end;
        }
        if done == text.len() { Ok(()) } else { each(Part { bytes: done..text.len(), added: None }) }
    }

    /// Returns the first match behind `from`: the leftmost, and of those the longest.
    fn find(&self, text: &str, mut from: usize, interrupt: Interrupt<'_>) -> Result<Option<Match>> {
        while from < text.len() {
            // A match that begins within the window has room for the longest pattern.
            let window = from..from + WINDOW;
            let input = Input::new(text).range(from..text.len().min(window.end + self.longest));
            if let Some(found) = self.automaton.find(input).filter(|found| window.contains(&found.start())) {
                return Ok(Some(found));
            }
            interrupt.check()?;
            from = window.end;
        }
        Ok(None)
    }
}

/// Returns whether a word character (`\w` of Rust's regexes) stands right before or after a range.
fn touches_word(text: &str, start: usize, end: usize) -> Result<bool> {
    static WORD: LazyLock<std::result::Result<Regex, fancy_regex::Error>> = LazyLock::new(|| Regex::new(r"\w"));
    let refuse = |error: &fancy_regex::Error| Error::InvalidArgument(error.to_string());
    let word = WORD.as_ref().map_err(refuse)?;
    for c in text[..start].chars().next_back().into_iter().chain(text[end..].chars().next()) {
        if word.is_match(c.encode_utf8(&mut [0; 4])).map_err(|error| refuse(&error))? {
            return Ok(true);
        }
    }
    Ok(false)
}

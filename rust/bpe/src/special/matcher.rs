//! Matching of added tokens in text.

use std::cmp::Reverse;
use std::iter;
use std::ops::Range;
use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, AhoCorasickKind, Input, Match, MatchKind};
use fancy_regex::Regex;

use super::added_token::{AddedToken, SpecialSet};
use crate::interrupt::Interrupt;
use crate::prefixes::longest_prefixes;
use crate::{Error, Result};

/// Bytes that are searched for added tokens between two interrupt checks.
const WINDOW: usize = 1 << 18;

/// The most bytes of a text in which [`first_of_texts`] searches each text alone: an automaton takes longer to build.
const SHORT: usize = 1 << 11;

/// The longest pattern of which a DFA is built: for a periodic pattern its construction takes quadratic time.
const MAX_DFA_PATTERN: usize = 1 << 10;

/// More patterns than these come after one that no text holds, of bytes that are not UTF-8: where nearly all states end a
/// pattern, the construction takes time quadratic in their number, divided by the states before the first such one.
const MANY_PATTERNS: usize = 1 << 12;
const PADDING: usize = 1 << 12;

/// A segment of a text: an added token or ordinary text.
#[derive(Debug)]
pub(crate) struct Segment {
    /// Its range, with the white space that an added token includes. Such tokens can overlap.
    pub(crate) bytes: Range<usize>,
    /// The id of an added token.
    pub(crate) added: Option<u32>,
}

/// Finds the leftmost match of a set of added tokens, and the longest of those.
#[derive(Debug, Clone)]
pub(super) struct Matcher {
    automaton: AhoCorasick,
    /// The length of the longest pattern in bytes.
    longest: usize,
    /// The number of patterns before those of tokens.
    first: usize,
    /// The index of each pattern's token in the list of all.
    tokens: Vec<usize>,
    /// For each pattern the longest other one that it begins with.
    prefixes: Vec<Option<usize>>,
    has_ordinary: bool,
}

impl Matcher {
    pub(super) fn new(patterns: &[(String, usize)], tokens: &[AddedToken]) -> Result<Option<Self>> {
        if let Some((_, i)) = patterns.iter().find(|(pattern, _)| pattern.is_empty()) {
            let content = &tokens[*i].content;
            return Err(invalid!("added token {content:?} is the empty text when normalized"));
        }
        let mut sorted: Vec<usize> = (0..patterns.len()).collect();
        sorted.sort_unstable_by_key(|&pattern| &patterns[pattern]);
        if let Some(same) = sorted.windows(2).find(|pair| patterns[pair[0]].0 == patterns[pair[1]].0) {
            let [one, other] = [same[0], same[1]].map(|pattern| &tokens[patterns[pattern].1].content);
            return Err(invalid!("added tokens {one:?} and {other:?} are one when normalized"));
        }
        if patterns.is_empty() {
            return Ok(None);
        }
        let texts: Vec<&[u8]> = patterns.iter().map(|(pattern, _)| pattern.as_bytes()).collect();
        let automaton = longest_of(&texts)?;
        let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        let has_ordinary = patterns.iter().any(|&(_, i)| !tokens[i].special);
        let prefixes = longest_prefixes(&texts, &sorted);
        let tokens = patterns.iter().map(|&(_, i)| i).collect();
        Ok(Some(Self { automaton, longest, first: padding(texts.len()), tokens, prefixes, has_ordinary }))
    }

    pub(super) fn matches_none(&self, allowed: SpecialSet<'_>) -> bool {
        allowed.is_none() && !self.has_ordinary
    }

    pub(super) fn split(
        &self,
        text: &str,
        tokens: &[AddedToken],
        allowed: SpecialSet<'_>,
        interrupt: Interrupt<'_>,
        each: &mut dyn FnMut(Segment) -> Result<()>,
    ) -> Result<()> {
        let (mut done, mut from, mut refused_until) = (0, 0, 0);
        for iteration in 0.. {
            interrupt.check_at(iteration)?;
            let Some(found) = self.find(text, from, interrupt)? else { break };
            from = found.end();
            let token = &tokens[self.tokens[self.pattern_of(&found)]];
            let (mut start, mut end) = (found.start(), found.end());
            let is_inside = start < refused_until;
            let is_refused = if token.special { !allowed.contains(&token.content) } else { is_inside };
            if is_refused && !is_inside {
                refused_until = end;
            }
            if is_refused && !allowed.is_none() {
                // As in tiktoken, a special token that is allowed may begin inside it. As in `tokenizers`, no other may.
                from = start + text[start..].chars().next().map_or(1, char::len_utf8);
            }
            if is_refused || (token.single_word && touches_word(text, start, end)?) {
                continue;
            }
            if token.lstrip {
                start = done + text[done..start.max(done)].trim_end().len();
            }
            if token.rstrip {
                // White space that the token before includes is not read again.
                end = text.len() - text[end.max(done)..].trim_start().len();
            }
            if start > done {
                each(Segment { bytes: done..start, added: None })?;
            }
            // Empty if the token before includes this one, which is white space then.
            if start < end {
                each(Segment { bytes: start..end, added: Some(token.id) })?;
            }
            done = end;
        }
        if done == text.len() { Ok(()) } else { each(Segment { bytes: done..text.len(), added: None }) }
    }

    /// Returns the byte offset and the content of the first token in the text that `is_wanted` accepts; of several at one
    /// offset, the one that sorts first. The flags of tokens are ignored. The patterns must be the contents.
    pub(super) fn first_of<'a>(
        &self,
        text: &str,
        tokens: &'a [AddedToken],
        is_wanted: impl Fn(&AddedToken) -> bool,
        interrupt: Interrupt<'_>,
    ) -> Result<Option<(usize, &'a str)>> {
        let mut from = 0;
        for iteration in 0.. {
            interrupt.check_at(iteration)?;
            let Some(found) = self.find(text, from, interrupt)? else { break };
            let at = found.start();
            // The match is the longest token here; a shorter one may be wanted, and the next may begin inside it.
            let here = iter::successors(Some(self.pattern_of(&found)), |&pattern| self.prefixes[pattern]);
            if let Some(token) =
                here.map(|pattern| &tokens[self.tokens[pattern]]).filter(|token| is_wanted(token)).last()
            {
                return Ok(Some((at, &token.content)));
            }
            from = at + text[at..].chars().next().map_or(1, char::len_utf8);
        }
        Ok(None)
    }

    /// Returns the index of the pattern that matches.
    fn pattern_of(&self, found: &Match) -> usize {
        found.pattern().as_usize() - self.first
    }

    /// Returns the first match from `from` on.
    fn find(&self, text: &str, from: usize, interrupt: Interrupt<'_>) -> Result<Option<Match>> {
        find_in_windows(&self.automaton, self.longest, text, from, interrupt)
    }
}

/// Returns the byte offset and the content of the leftmost and longest of the texts in `text`.
pub(super) fn first_of_texts<'a>(
    texts: &[&'a str],
    text: &str,
    interrupt: Interrupt<'_>,
) -> Result<Option<(usize, &'a str)>> {
    let Some(longest) = texts.iter().map(|text| text.len()).max() else { return Ok(None) };
    if text.len() <= SHORT {
        let found = texts.iter().filter_map(|&each| text.find(each).map(|at| (at, each)));
        return Ok(found.min_by_key(|&(at, each)| (at, Reverse(each.len()))));
    }
    let automaton = longest_of(texts)?;
    let found = find_in_windows(&automaton, longest, text, 0, interrupt)?;
    Ok(found.map(|found| (found.start(), texts[found.pattern().as_usize() - padding(texts.len())])))
}

fn find_in_windows(
    automaton: &AhoCorasick,
    longest: usize,
    text: &str,
    mut from: usize,
    interrupt: Interrupt<'_>,
) -> Result<Option<Match>> {
    while from < text.len() {
        // The search range has room for the longest pattern that begins within the window.
        let window = from..from + WINDOW.max(longest);
        let input = Input::new(text).range(from..text.len().min(window.end + longest));
        if let Some(found) = automaton.find(input).filter(|found| window.contains(&found.start())) {
            return Ok(Some(found));
        }
        interrupt.check()?;
        from = window.end;
    }
    Ok(None)
}

/// Returns the number of patterns that [`longest_of`] puts before its texts.
fn padding(texts: usize) -> usize {
    usize::from(texts > MANY_PATTERNS)
}

/// Returns the automaton that finds the leftmost text, and at one place the longest.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if they are too many.
pub(crate) fn longest_of(texts: &[impl AsRef<[u8]>]) -> Result<AhoCorasick> {
    // It begins as the first text does, since the search looks for first bytes if they are few.
    let in_no_text = |text: &[u8]| [text.get(..1).unwrap_or_default(), &[0xFF; PADDING]].concat();
    let padding: Vec<Vec<u8>> = texts.iter().map(|text| in_no_text(text.as_ref())).take(padding(texts.len())).collect();
    let is_long = texts.iter().any(|text| text.as_ref().len() > MAX_DFA_PATTERN);
    AhoCorasick::builder()
        .match_kind(MatchKind::LeftmostLongest)
        .kind(is_long.then_some(AhoCorasickKind::ContiguousNFA))
        .build(padding.iter().map(Vec::as_slice).chain(texts.iter().map(AsRef::as_ref)))
        .map_err(|error| invalid!("too many special tokens: {error}"))
}

/// Returns whether a word character (`\w` of Rust's regexes) is adjacent to a range.
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::super::AddedTokens;
    use super::*;

    #[test]
    fn a_long_periodic_token_and_one_inside_it() {
        // A DFA of it takes minutes.
        let (inner, outer) = ("ab".to_owned(), "ab".repeat(50_000));
        let tokens = vec![AddedToken::special(&inner, 1), AddedToken::special(&outer, 2)];
        let added = AddedTokens::new(tokens, |content| Ok(content.to_owned())).expect("valid tokens");
        let text = format!("{outer}x{inner}");
        let mut found = Vec::new();
        let mut each = |segment: Segment| {
            found.push((segment.bytes, segment.added));
            Ok(())
        };
        added.split_raw(&text, SpecialSet::All, Interrupt::NEVER, &mut each).expect("no interrupt");
        assert_eq!(found, [(0..100_000, Some(2)), (100_000..100_001, None), (100_001..100_003, Some(1))]);
    }

    #[test]
    fn white_space_after_a_token_is_read_once() {
        // Each such token includes the white space to its right, as in `tokenizers`.
        let length = 100_000;
        let text = " ".repeat(length);
        let tokens = vec![AddedToken { rstrip: true, ..AddedToken::special(" ", 1) }];
        let added = AddedTokens::new(tokens, |content| Ok(content.to_owned())).expect("valid tokens");
        let mut found = Vec::new();
        let mut each = |segment: Segment| {
            found.push(segment.bytes);
            Ok(())
        };
        added.split_raw(&text, SpecialSet::All, Interrupt::NEVER, &mut each).expect("no interrupt");
        assert!(found.into_iter().eq((0..length).map(|start| start..length)));
    }

    proptest! {
        /// The first refused token is the one that a search for each token alone finds.
        #[test]
        fn refused_tokens(
            contents in prop::collection::hash_set("[ab<é]{1,4}", 1..7),
            flags in prop::collection::vec(any::<(bool, bool, bool)>(), 7),
            others in prop::collection::vec("[ab<é]{1,4}", 0..3),
            text in "[abc<é]{0,30}",
        ) {
            let tokens: Vec<_> = contents.iter().zip(0..).map(|(content, id)| AddedToken {
                special: flags[id as usize].0, normalized: flags[id as usize].1, ..AddedToken::special(content, id)
            }).collect();
            let names: HashSet<&str> =
                contents.iter().zip(&flags).filter(|(_, flags)| flags.2).map(|(content, _)| content).chain(&others)
                    .map(String::as_str).collect();
            for set in [SpecialSet::All, SpecialSet::Only(&names)] {
                let refused = tokens.iter().filter(|token| token.special && set.contains(&token.content));
                let expected = refused.filter_map(|token| Some((text.find(&token.content)?, &token.content))).min();
                let added = AddedTokens::new(tokens.clone(), |content| Ok(content.to_uppercase())).expect("valid tokens");
                let is_special = |name: &str| tokens.iter().any(|token| token.special && token.content == name);
                let other = names.iter().filter(|name| matches!(set, SpecialSet::Only(_)) && !is_special(name));
                let other = other.filter_map(|name| Some((text.find(name)?, Reverse(name.len()), name))).min();
                let start = expected
                    .map(|(at, content)| format!("the text holds the disallowed special token {content:?} at byte {at};"))
                    .or(other.map(|(at, _, name)| format!("the text holds {name:?} at byte {at}, which is in ")));
                match (added.refuse(&text, set, Interrupt::NEVER), start) {
                    (Ok(()), None) => {}
                    (Err(error), Some(start)) => {
                        prop_assert!(error.to_string().starts_with(&start), "{error}: expected {start}");
                    }
                    (found, start) => prop_assert!(false, "{found:?}: expected {start:?}"),
                }
            }
        }
    }
}

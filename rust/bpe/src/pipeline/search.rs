//! The matches of a component's pattern, and the pieces that they split a text into.

use std::ops::Range;
use std::sync::Arc;

use memchr::memmem;

use super::components::{Behavior, Pattern};
use crate::Result;
use crate::interrupt::Interrupt;
use crate::pretokenize::{Oniguruma, Patience};

/// A pattern to search.
#[derive(Debug, Clone)]
pub(super) enum Search {
    Literal(Arc<memmem::Finder<'static>>),
    Regex(Oniguruma),
    /// Every character for which the function is true.
    Characters(fn(char) -> bool),
    Character(char),
}

impl Search {
    /// Returns the search of a pattern.
    ///
    /// # Errors
    /// [`crate::Error::Format`] naming an invalid regex, or a regex for `fancy-regex`, which only a `Split` can have.
    pub(super) fn of(pattern: &Pattern) -> Result<Self> {
        match pattern {
            Pattern::String(text) => Self::literal(text),
            Pattern::Regex(regex) => Self::regex(regex),
            Pattern::FancyRegex(regex) => Err(malformed!("{regex:?} is a FancyRegex, which can only split")),
        }
    }

    /// Returns the search of a regex.
    ///
    /// # Errors
    /// [`crate::Error::Format`] naming a regex that Oniguruma cannot parse.
    pub(super) fn regex(pattern: &str) -> Result<Self> {
        Oniguruma::new(pattern).map(Self::Regex).map_err(|error| malformed!("tokenizer.json: {error}"))
    }

    /// Returns the search of a literal text; an empty text matches between all characters.
    pub(super) fn literal(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Self::regex("");
        }
        Ok(Self::Literal(Arc::new(memmem::Finder::new(text).into_owned())))
    }

    /// Calls `each` with every match, from left to right. An empty text has no match.
    ///
    /// # Errors
    /// The error of the interrupt check; [`crate::Error::InvalidArgument`] if a match of a regex backtracks beyond its
    /// bound.
    pub(super) fn find_all(
        &self,
        text: &str,
        interrupt: Interrupt<'_>,
        mut each: impl FnMut(usize, usize),
    ) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        match self {
            Self::Literal(finder) => {
                let length = finder.needle().len();
                for (index, start) in finder.find_iter(text.as_bytes()).enumerate() {
                    interrupt.check_at(index)?;
                    each(start, start + length);
                }
            }
            Self::Regex(regex) => {
                let (mut cursor, patience) = (regex.cursor(), Patience::new(text, interrupt));
                while let Some((start, end)) = regex.next_match(text, &mut cursor, &patience)? {
                    each(start, end);
                }
            }
            Self::Characters(wanted) => {
                for (index, (at, c)) in text.char_indices().enumerate() {
                    interrupt.check_at(index)?;
                    if wanted(c) {
                        each(at, at + c.len_utf8());
                    }
                }
            }
            Self::Character(wanted) => {
                let length = wanted.len_utf8();
                for (index, (at, _)) in text.match_indices(*wanted).enumerate() {
                    interrupt.check_at(index)?;
                    each(at, at + length);
                }
            }
        }
        Ok(())
    }

    /// Appends the pieces into which matches split a text at offset `base`, without empty ones.
    pub(super) fn split(
        &self,
        text: &str,
        base: usize,
        (behavior, invert): (Behavior, bool),
        interrupt: Interrupt<'_>,
        pieces: &mut Vec<Range<usize>>,
    ) -> Result<()> {
        let mut parts: Vec<(Range<usize>, bool)> = Vec::new();
        let mut done = 0;
        self.find_all(text, interrupt, |start, end| {
            if start > done {
                parts.push((done..start, invert));
            }
            parts.push((start..end, !invert));
            done = end;
        })?;
        if done < text.len() {
            parts.push((done..text.len(), invert));
        }
        let mut push = |range: Range<usize>| {
            if !range.is_empty() {
                pieces.push(base + range.start..base + range.end);
            }
        };
        match behavior {
            Behavior::Isolated => parts.into_iter().for_each(|(range, _)| push(range)),
            Behavior::Removed => parts.into_iter().filter(|(_, is_match)| !is_match).for_each(|(range, _)| push(range)),
            // Adjacent matches become one piece, as does the text between matches.
            Behavior::Contiguous => merge(parts, |is_match, before| is_match == before).into_iter().for_each(push),
            Behavior::MergedWithPrevious => {
                merge(parts, |is_match, before| is_match && !before).into_iter().for_each(push);
            }
            Behavior::MergedWithNext => {
                parts.reverse();
                let merged = merge(parts, |is_match, before| is_match && !before);
                merged.into_iter().rev().for_each(push);
            }
        }
        Ok(())
    }
}

/// Joins each part to the part before if `joins` accepts whether each of the two is a match.
fn merge(parts: Vec<(Range<usize>, bool)>, joins: impl Fn(bool, bool) -> bool) -> Vec<Range<usize>> {
    let mut merged: Vec<Range<usize>> = Vec::with_capacity(parts.len());
    let mut before = false;
    for (range, is_match) in parts {
        match merged.last_mut() {
            Some(last) if joins(is_match, before) => {
                *last = last.start.min(range.start)..last.end.max(range.end);
            }
            _ => merged.push(range),
        }
        before = is_match;
    }
    merged
}

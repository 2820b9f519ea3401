//! What a component looks for in text, and how its matches cut the text.

use std::ops::Range;
use std::sync::Arc;

use memchr::memmem;

use super::components::{Behavior, Pattern};
use crate::interrupt::Interrupt;
use crate::pretokenize::{MATCHES_PER_CHECK, Oniguruma};
use crate::{Error, Result};

/// What is looked for.
#[derive(Debug, Clone)]
pub(super) enum Search {
    Literal(Arc<memmem::Finder<'static>>),
    Regex(Oniguruma),
    /// Each character that this is true of.
    Characters(fn(char) -> bool),
    Character(char),
}

impl Search {
    /// # Errors
    /// [`Error::Format`] naming a regex that cannot be read; we write none here for `fancy-regex`.
    pub(super) fn of(pattern: &Pattern) -> Result<Self> {
        match pattern {
            Pattern::String(text) => Self::literal(text),
            Pattern::Regex(regex) => Self::regex(regex),
            Pattern::FancyRegex(regex) => {
                Err(Error::Format(format!("{regex:?} is a FancyRegex, which can only split")))
            }
        }
    }

    /// # Errors
    /// [`Error::Format`] naming a regex that Oniguruma cannot read.
    pub(super) fn regex(pattern: &str) -> Result<Self> {
        Oniguruma::new(pattern).map(Self::Regex).map_err(|error| Error::Format(format!("tokenizer.json: {error}")))
    }

    /// Text as it stands; the empty one is found between all characters.
    pub(super) fn literal(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Self::regex("");
        }
        Ok(Self::Literal(Arc::new(memmem::Finder::new(text).into_owned())))
    }

    /// Calls back with every match, from left to right. There is none in the empty text.
    ///
    /// # Errors
    /// What the interrupt check returns; [`Error::InvalidArgument`] if a match of a regex backtracks beyond its bound.
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
                for (turn, start) in finder.find_iter(text.as_bytes()).enumerate() {
                    interrupt.check_at(turn)?;
                    each(start, start + length);
                }
            }
            Self::Regex(regex) => {
                let mut cursor = regex.cursor();
                let mut turn = 0;
                while let Some((start, end)) = regex.next_match(text, &mut cursor)? {
                    each(start, end);
                    turn += 1;
                    if turn % MATCHES_PER_CHECK == 0 {
                        interrupt.check()?;
                    }
                }
            }
            Self::Characters(wanted) => {
                for (turn, (at, c)) in text.char_indices().enumerate() {
                    interrupt.check_at(turn)?;
                    if wanted(c) {
                        each(at, at + c.len_utf8());
                    }
                }
            }
            Self::Character(wanted) => {
                let length = wanted.len_utf8();
                for (turn, (at, _)) in text.match_indices(*wanted).enumerate() {
                    interrupt.check_at(turn)?;
                    each(at, at + length);
                }
            }
        }
        Ok(())
    }

    /// Appends the pieces into which matches cut a text that stands at `base`; empty ones are left out.
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
            // Neighbours of one kind become one piece.
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

/// Joins each part to the one before where `joins` says so of whether it is a match and whether the one before was.
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

//! Pre-tokenizers, compiled and applied.

use std::ops::Range;
use std::sync::LazyLock;

use fancy_regex::Regex;
use unicode_categories::UnicodeCategories;

use super::bounds::Growth;
use super::components::{Behavior, Pattern, PreTokenizer, PrependScheme};
use super::scripts;
use super::search::Search;
use crate::byte_alphabet::CHARS;
use crate::interrupt::Interrupt;
use crate::normalize::aligned::{Span, unaligned};
use crate::pretokenize::{DIGIT, Pretokenizer};
use crate::{Error, Result};

/// A normalized text and its pieces.
#[derive(Debug, Default)]
pub(super) struct PreTokenized {
    pub(super) text: String,
    /// For each byte of `text`, the range of the original that it comes from.
    pub(super) spans: Vec<Span>,
    pub(super) pieces: Vec<Piece>,
    /// Whether normalization inserted text before the first character of a segment: it comes from no byte.
    pub(super) has_unaligned_start: bool,
}

/// A range of [`PreTokenized::text`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) start: usize,
    pub(super) end: usize,
    /// The id of an added token, which no pre-tokenizer splits.
    pub(super) added: Option<u32>,
}

/// The compiled steps of a pre-tokenizer.
#[derive(Debug)]
pub(super) struct PreTokenizers(Vec<Step>);

#[derive(Debug)]
enum Step {
    Split(Search, Behavior, bool),
    /// A named pattern, or a regex of `fancy-regex`.
    Named(Pretokenizer),
    PrefixSpace,
    ByteAlphabet,
    /// Spaces become this character, which is also prepended by the scheme.
    Metaspace(char, PrependScheme),
    FixedLength(usize),
    UnicodeScripts,
    Words,
}

impl PreTokenizers {
    /// Returns the steps of a pre-tokenizer.
    ///
    /// # Errors
    /// [`Error::Format`] naming an invalid component.
    pub(super) fn compile(pre_tokenizer: Option<&PreTokenizer>) -> Result<Self> {
        let given = pre_tokenizer.map(PreTokenizer::steps).unwrap_or_default();
        let mut steps = Vec::new();
        for step in given {
            compile(step, &mut steps)?;
        }
        Ok(Self(steps))
    }

    /// Applies all steps.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if they make too much of the text; the errors of a step.
    pub(super) fn apply(&self, text: &mut PreTokenized, interrupt: Interrupt<'_>) -> Result<()> {
        let growth = Growth::new("pre_tokenizer", text.text.len());
        self.0.iter().try_for_each(|step| {
            interrupt.check()?;
            step.apply(text, interrupt)?;
            growth.check(text.text.len())
        })
    }
}

fn compile(step: &PreTokenizer, steps: &mut Vec<Step>) -> Result<()> {
    let split = |search, behavior| Step::Split(search, behavior, false);
    match step {
        PreTokenizer::Bert {} => {
            steps.push(split(Search::Characters(char::is_whitespace), Behavior::Removed));
            steps.push(split(Search::Characters(is_punctuation), Behavior::Isolated));
        }
        PreTokenizer::ByteLevel(byte_level) => {
            if byte_level.add_prefix_space {
                steps.push(Step::PrefixSpace);
            }
            if byte_level.use_regex {
                steps.push(Step::Named(Pretokenizer::new("r50k")?));
            }
            steps.push(Step::ByteAlphabet);
        }
        PreTokenizer::CharDelimiterSplit { delimiter } => {
            steps.push(split(Search::Character(*delimiter), Behavior::Removed));
        }
        PreTokenizer::Digits { individual_digits } => {
            let behavior = if *individual_digits { Behavior::Isolated } else { Behavior::Contiguous };
            // Not `char::is_numeric`: its Unicode version is that of the compiler.
            steps.push(split(Search::regex(DIGIT)?, behavior));
        }
        PreTokenizer::FixedLength { length: 0 } => {
            return Err(malformed!("tokenizer.json: pre_tokenizer.length is 0; a FixedLength expects at least 1"));
        }
        PreTokenizer::FixedLength { length } => steps.push(Step::FixedLength(*length)),
        PreTokenizer::Metaspace(metaspace) => {
            steps.push(Step::Metaspace(metaspace.replacement, metaspace.prepend_scheme));
            if metaspace.split {
                steps.push(split(Search::Character(metaspace.replacement), Behavior::MergedWithNext));
            }
        }
        PreTokenizer::Punctuation { behavior } => steps.push(split(Search::Characters(is_punctuation), *behavior)),
        PreTokenizer::Split { pattern, behavior, invert } => {
            let search = match pattern {
                Pattern::String(text) => Search::literal(text)?,
                Pattern::Regex(regex) => {
                    let named =
                        Pretokenizer::oniguruma(regex).map_err(|error| malformed!("tokenizer.json: {error}"))?;
                    // A named pattern matches all text, so its pieces are its matches.
                    if named.name().is_some() && *behavior == Behavior::Isolated {
                        steps.push(Step::Named(named));
                        return Ok(());
                    }
                    Search::regex(regex)?
                }
                Pattern::FancyRegex(regex) => {
                    steps.push(Step::Named(Pretokenizer::new(regex)?));
                    return Ok(());
                }
            };
            steps.push(Step::Split(search, *behavior, *invert));
        }
        PreTokenizer::UnicodeScripts {} => steps.push(Step::UnicodeScripts),
        PreTokenizer::Whitespace {} => steps.push(Step::Words),
        PreTokenizer::WhitespaceSplit {} => {
            steps.push(split(Search::Characters(char::is_whitespace), Behavior::Removed));
        }
        PreTokenizer::Sequence { .. } => unreachable!("steps flattens sequences"),
    }
    Ok(())
}

impl Step {
    fn apply(&self, text: &mut PreTokenized, interrupt: Interrupt<'_>) -> Result<()> {
        match self {
            Self::Split(search, behavior, invert) => text.split(interrupt, |piece, base, pieces| {
                search.split(piece, base, (*behavior, *invert), interrupt, pieces)
            }),
            Self::Named(pretokenizer) => text.split(interrupt, |piece, base, pieces| {
                pretokenizer.each_piece(piece, interrupt, |start, end| pieces.push(base + start..base + end))
            }),
            Self::Words => text.split(interrupt, |piece, base, pieces| {
                static WORDS: LazyLock<std::result::Result<Regex, fancy_regex::Error>> =
                    LazyLock::new(|| Regex::new(r"\w+|[^\w\s]+"));
                let words = WORDS.as_ref().map_err(|error| Error::InvalidArgument(error.to_string()))?;
                for (index, found) in words.find_iter(piece).enumerate() {
                    interrupt.check_at(index)?;
                    let found = found.map_err(|error| Error::InvalidArgument(error.to_string()))?;
                    pieces.push(base + found.start()..base + found.end());
                }
                Ok(())
            }),
            Self::FixedLength(length) => text.split(interrupt, |piece, base, pieces| {
                let mut start = 0;
                for (index, (end, _)) in piece.char_indices().chain([(piece.len(), '\0')]).enumerate() {
                    interrupt.check_at(index)?;
                    if end > start && (index % length == 0 || end == piece.len()) {
                        pieces.push(base + start..base + end);
                        start = end;
                    }
                }
                Ok(())
            }),
            Self::UnicodeScripts => text.split(interrupt, |piece, base, pieces| {
                let starts = scripts::starts(piece, interrupt)?;
                pieces.extend(starts.windows(2).map(|pair| base + pair[0]..base + pair[1]));
                Ok(())
            }),
            Self::PrefixSpace => text.rewrite(interrupt, |piece, spans, new| {
                if !piece.starts_with(' ') {
                    new.push(' ', spans[0]);
                }
                new.extend(piece, spans);
                Ok(())
            }),
            // `tokenizers` fails or duplicates the inserted text.
            Self::ByteAlphabet if text.has_unaligned_start => Err(unaligned()),
            Self::ByteAlphabet => text.rewrite(interrupt, |piece, spans, new| {
                for (index, (byte, &span)) in piece.bytes().zip(spans).enumerate() {
                    interrupt.check_at(index)?;
                    new.push(CHARS[usize::from(byte)], span);
                }
                Ok(())
            }),
            &Self::Metaspace(replacement, scheme) => text.rewrite(interrupt, |piece, spans, new| {
                let begins = piece.starts_with([' ', replacement]);
                let is_wanted = match scheme {
                    PrependScheme::Always => true,
                    PrependScheme::First => spans[0].0 == 0,
                    PrependScheme::Never => false,
                };
                if is_wanted && !begins {
                    new.push(replacement, spans[0]);
                }
                for (index, (at, c)) in piece.char_indices().enumerate() {
                    interrupt.check_at(index)?;
                    new.push(if c == ' ' { replacement } else { c }, spans[at]);
                }
                Ok(())
            }),
        }
    }
}

impl PreTokenized {
    /// Splits each piece into the ranges that `split` appends, given the piece and its offset.
    fn split(
        &mut self,
        interrupt: Interrupt<'_>,
        mut split: impl FnMut(&str, usize, &mut Vec<Range<usize>>) -> Result<()>,
    ) -> Result<()> {
        let mut pieces = Vec::with_capacity(self.pieces.len() * 2);
        let mut parts = Vec::new();
        for (index, piece) in self.pieces.iter().enumerate() {
            interrupt.check_at(index)?;
            if piece.added.is_some() {
                pieces.push(*piece);
                continue;
            }
            parts.clear();
            split(&self.text[piece.start..piece.end], piece.start, &mut parts)?;
            pieces.extend(parts.iter().map(|part| Piece { start: part.start, end: part.end, added: None }));
        }
        self.pieces = pieces;
        Ok(())
    }

    /// Rewrites each piece with `write`, given its text and spans.
    fn rewrite(
        &mut self,
        interrupt: Interrupt<'_>,
        write: impl Fn(&str, &[Span], &mut PreTokenized) -> Result<()>,
    ) -> Result<()> {
        let mut new = Self {
            text: String::with_capacity(self.text.len() * 2),
            spans: Vec::with_capacity(self.text.len() * 2),
            pieces: Vec::with_capacity(self.pieces.len()),
            has_unaligned_start: self.has_unaligned_start,
        };
        for (index, piece) in self.pieces.iter().enumerate() {
            interrupt.check_at(index)?;
            let start = new.text.len();
            let (text, spans) = (&self.text[piece.start..piece.end], &self.spans[piece.start..piece.end]);
            if piece.added.is_some() {
                new.extend(text, spans);
            } else {
                write(text, spans, &mut new)?;
            }
            new.pieces.push(Piece { start, end: new.text.len(), added: piece.added });
        }
        *self = new;
        Ok(())
    }

    fn push(&mut self, character: char, span: Span) {
        self.text.push(character);
        self.spans.resize(self.text.len(), span);
    }

    pub(super) fn extend(&mut self, text: &str, spans: &[Span]) {
        self.text.push_str(text);
        self.spans.extend_from_slice(spans);
    }
}

fn is_punctuation(c: char) -> bool {
    c.is_ascii_punctuation() || UnicodeCategories::is_punctuation(c)
}

//! Normalizers, compiled and applied.

use std::cmp::Ordering;

use unicode_categories::UnicodeCategories;
use unicode_normalization_alignments::UnicodeNormalization;
use unicode_normalization_alignments::char::is_combining_mark;
use unicode_segmentation::UnicodeSegmentation;

use super::aligned::Aligned;
use super::charsmap::Charsmap;
use super::components::{Normalizer, Pattern};
use super::search::Search;
use crate::Result;
use crate::byte_alphabet::CHARS;

/// The steps of a normalizer, ready to run.
#[derive(Debug)]
pub(super) struct Normalizers(Vec<Step>);

#[derive(Debug)]
enum Step {
    Nfc,
    Nfd,
    Nfkc,
    Nfkd,
    Lowercase,
    Nmt,
    StripAccents,
    ByteLevel,
    Strip { left: bool, right: bool },
    Replace(Search, String),
    Prepend(String),
    Precompiled(Charsmap),
    Bert { clean_text: bool, handle_chinese_chars: bool, strip_accents: bool, lowercase: bool },
}

impl Normalizers {
    /// # Errors
    /// [`crate::Error::Format`] for a broken regex or table, naming it.
    pub(super) fn compile(normalizer: Option<&Normalizer>) -> Result<Self> {
        let steps = normalizer.map(Normalizer::steps).unwrap_or_default();
        steps.into_iter().map(Step::compile).collect::<Result<_>>().map(Self)
    }

    pub(super) fn apply(&self, text: &mut Aligned) -> Result<()> {
        self.0.iter().try_for_each(|step| step.apply(text))
    }

    /// Returns the normal form of a text alone.
    pub(super) fn normalize(&self, text: &str) -> Result<String> {
        let mut aligned = Aligned::new(text, 0);
        self.apply(&mut aligned)?;
        Ok(aligned.text)
    }
}

impl Step {
    fn compile(step: &Normalizer) -> Result<Self> {
        Ok(match step {
            Normalizer::NFC {} => Self::Nfc,
            Normalizer::NFD {} => Self::Nfd,
            Normalizer::NFKC {} => Self::Nfkc,
            Normalizer::NFKD {} => Self::Nfkd,
            Normalizer::Lowercase {} => Self::Lowercase,
            Normalizer::Nmt {} => Self::Nmt,
            Normalizer::StripAccents {} => Self::StripAccents,
            Normalizer::ByteLevel {} => Self::ByteLevel,
            &Normalizer::Strip { strip_left: left, strip_right: right } => Self::Strip { left, right },
            Normalizer::Replace { pattern, content } => {
                let search = match pattern {
                    Pattern::String(text) => Search::literal(text)?,
                    Pattern::Regex(regex) | Pattern::FancyRegex(regex) => Search::regex(regex)?,
                };
                Self::Replace(search, content.clone())
            }
            Normalizer::Prepend { prepend } => Self::Prepend(prepend.clone()),
            Normalizer::Precompiled { precompiled_charsmap } => {
                Self::Precompiled(Charsmap::from_base64(precompiled_charsmap)?)
            }
            &Normalizer::Bert { clean_text, handle_chinese_chars, strip_accents, lowercase } => Self::Bert {
                clean_text,
                handle_chinese_chars,
                strip_accents: strip_accents.unwrap_or(lowercase),
                lowercase,
            },
            Normalizer::Sequence { .. } => unreachable!("steps lays sequences flat"),
        })
    }

    fn apply(&self, text: &mut Aligned) -> Result<()> {
        match self {
            Self::Nfc => rewrite(text, |old| old.nfc().collect()),
            Self::Nfd => rewrite(text, |old| old.nfd().collect()),
            Self::Nfkc => rewrite(text, |old| old.nfkc().collect()),
            Self::Nfkd => rewrite(text, |old| old.nfkd().collect()),
            Self::Lowercase => lowercase(text),
            Self::Nmt => nmt(text),
            Self::StripAccents => text.filter(|c| !is_combining_mark(c)),
            Self::ByteLevel => to_byte_alphabet(text),
            &Self::Strip { left, right } => text.strip(left, right),
            Self::Replace(search, content) => {
                let mut found = Vec::new();
                search.find_all(&text.text, |start, end| found.push((start, end)))?;
                text.replace(&found, content);
                Ok(())
            }
            Self::Prepend(prefix) => {
                text.prepend(prefix);
                Ok(())
            }
            Self::Precompiled(charsmap) => precompiled(text, charsmap),
            &Self::Bert { clean_text, handle_chinese_chars, strip_accents, lowercase: lower } => {
                if clean_text {
                    text.filter(|c| !(c == '\0' || c == '\u{fffd}' || is_control(c)))?;
                    text.map(|c| if c.is_whitespace() { ' ' } else { c })?;
                }
                if handle_chinese_chars {
                    space_around_ideographs(text)?;
                }
                if strip_accents {
                    rewrite(text, |old| old.nfd().collect())?;
                    text.filter(|c| !c.is_mark_nonspacing())?;
                }
                if lower { lowercase(text) } else { Ok(()) }
            }
        }
    }
}

/// Replaces text by what `change` makes of it; ASCII is known to stay as it is.
fn rewrite(text: &mut Aligned, change: impl Fn(&str) -> Vec<(char, isize)>) -> Result<()> {
    if text.text.is_ascii() {
        return Ok(());
    }
    let changes = change(&text.text);
    text.transform(0, changes.into_iter())
}

fn lowercase(text: &mut Aligned) -> Result<()> {
    let lower = |c: char| c.to_lowercase().enumerate().map(|(i, c)| (c, isize::from(i > 0)));
    let changes: Vec<_> = text.text.chars().flat_map(lower).collect();
    text.transform(0, changes.into_iter())
}

/// Writes each byte as its character of GPT-2's printable alphabet.
fn to_byte_alphabet(text: &mut Aligned) -> Result<()> {
    let bytes = |(at, c): (usize, char)| {
        let bytes = &text.text.as_bytes()[at..at + c.len_utf8()];
        bytes.iter().enumerate().map(|(i, &byte)| (CHARS[usize::from(byte)], isize::from(i > 0)))
    };
    let changes: Vec<_> = text.text.char_indices().flat_map(bytes).collect();
    text.transform(0, changes.into_iter())
}

/// The rules of SentencePiece's `nmt_nfkc` that are not Unicode's.
fn nmt(text: &mut Aligned) -> Result<()> {
    text.filter(|c| {
        let dropped = matches!(c, '\u{1}'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}' | '\u{8f}' | '\u{9f}');
        !dropped
    })?;
    text.map(|c| match c {
        '\t'
        | '\n'
        | '\u{c}'
        | '\r'
        | '\u{1680}'
        | '\u{200b}'..='\u{200f}'
        | '\u{2028}'
        | '\u{2029}'
        | '\u{2581}'
        | '\u{feff}'
        | '\u{fffd}' => ' ',
        other => other,
    })
}

fn is_control(c: char) -> bool {
    !matches!(c, '\t' | '\n' | '\r') && c.is_other()
}

fn space_around_ideographs(text: &mut Aligned) -> Result<()> {
    // The blocks that BERT's own tokenizer names; its last range but two starts one block late, and so does this.
    let is_ideograph = |c| {
        matches!(c, '\u{4e00}'..='\u{9fff}' | '\u{3400}'..='\u{4dbf}' | '\u{20000}'..='\u{2a6df}'
            | '\u{2a700}'..='\u{2b73f}' | '\u{2b740}'..='\u{2b81f}' | '\u{2b920}'..='\u{2ceaf}'
            | '\u{f900}'..='\u{faff}' | '\u{2f800}'..='\u{2fa1f}')
    };
    if !text.text.chars().any(is_ideograph) {
        return Ok(());
    }
    let mut changes = Vec::with_capacity(text.text.len());
    for c in text.text.chars() {
        if is_ideograph(c) {
            changes.extend([(' ', 0), (c, 1), (' ', 1)]);
        } else {
            changes.push((c, 0));
        }
    }
    text.transform(0, changes.into_iter())
}

/// Applies SentencePiece's table to grapheme clusters of less than six bytes and to the characters of the others.
fn precompiled(text: &mut Aligned, charsmap: &Charsmap) -> Result<()> {
    let mut changes: Vec<(char, isize)> = Vec::with_capacity(text.text.len());
    let mut changed = false;
    for cluster in text.text.graphemes(true) {
        if cluster.len() < 6
            && let Some(new) = charsmap.first(cluster)
        {
            changed = true;
            substitute(&mut changes, cluster, new);
            continue;
        }
        for (at, c) in cluster.char_indices() {
            let part = &cluster[at..at + c.len_utf8()];
            if let Some(new) = charsmap.first(part) {
                changed = true;
                substitute(&mut changes, part, new);
            } else {
                changes.push((c, 0));
            }
        }
    }
    if changed { text.transform(0, changes.into_iter()) } else { Ok(()) }
}

/// Appends the change of one part of a text to another; the lengths are settled at its end.
fn substitute(changes: &mut Vec<(char, isize)>, old: &str, new: &str) {
    let (old, count) = (old.chars().count(), new.chars().count());
    changes.extend(new.chars().map(|c| (c, 0)));
    match count.cmp(&old) {
        Ordering::Greater => changes.iter_mut().rev().take(count - old).for_each(|(_, change)| *change = 1),
        Ordering::Less => {
            if let Some((_, change)) = changes.last_mut() {
                *change -= (old - count) as isize;
            }
        }
        Ordering::Equal => {}
    }
}

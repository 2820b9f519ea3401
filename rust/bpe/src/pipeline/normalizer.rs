//! Normalizers.

use std::cmp::Ordering;

use unicode_categories::UnicodeCategories;
use unicode_normalization_alignments::UnicodeNormalization;
use unicode_normalization_alignments::char::is_combining_mark;
use unicode_segmentation::UnicodeSegmentation;

use super::bounds::Growth;
use super::components::Normalizer;
use super::search::Search;
use crate::Result;
use crate::byte_alphabet::CHARS;
use crate::interrupt::Interrupt;
use crate::normalize::{Aligned, CharsMap};

/// The compiled steps of a normalizer.
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
    Precompiled(CharsMap),
    Bert { clean_text: bool, handle_chinese_chars: bool, strip_accents: bool, lowercase: bool },
}

impl Normalizers {
    /// Returns the steps of a normalizer.
    ///
    /// # Errors
    /// [`crate::Error::Format`] naming an invalid regex or table.
    pub(super) fn compile(normalizer: Option<&Normalizer>) -> Result<Self> {
        let steps = normalizer.map(Normalizer::steps).unwrap_or_default();
        steps.into_iter().map(Step::compile).collect::<Result<_>>().map(Self)
    }

    /// Applies all steps.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if they make too much of the text; the errors of a step.
    pub(super) fn apply(&self, text: &mut Aligned, interrupt: Interrupt<'_>) -> Result<()> {
        let growth = Growth::new("normalizer", text.text.len());
        self.0.iter().try_for_each(|step| {
            step.apply(text, growth, interrupt)?;
            growth.check(text.text.len())
        })
    }

    /// Returns the normal form of a text, without alignment.
    pub(super) fn normalize(&self, text: &str) -> Result<String> {
        let mut aligned = Aligned::new(text, 0, Interrupt::NEVER)?;
        self.apply(&mut aligned, Interrupt::NEVER)?;
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
            Normalizer::Replace { pattern, content } => Self::Replace(Search::of(pattern)?, content.clone()),
            Normalizer::Prepend { prepend } => Self::Prepend(prepend.clone()),
            Normalizer::Precompiled { precompiled_charsmap } => {
                Self::Precompiled(CharsMap::from_base64(precompiled_charsmap)?)
            }
            &Normalizer::Bert { clean_text, handle_chinese_chars, strip_accents, lowercase } => Self::Bert {
                clean_text,
                handle_chinese_chars,
                strip_accents: strip_accents.unwrap_or(lowercase),
                lowercase,
            },
            Normalizer::Sequence { .. } => unreachable!("steps flattens sequences"),
        })
    }

    fn apply(&self, text: &mut Aligned, growth: Growth, interrupt: Interrupt<'_>) -> Result<()> {
        match self {
            // ASCII is in all four normal forms.
            Self::Nfc | Self::Nfd | Self::Nfkc | Self::Nfkd if text.text.is_ascii() => {}
            Self::Nfc => *text = text.transform(0, text.text.nfc(), interrupt)?,
            Self::Nfd => *text = text.transform(0, text.text.nfd(), interrupt)?,
            Self::Nfkc => *text = text.transform(0, text.text.nfkc(), interrupt)?,
            Self::Nfkd => *text = text.transform(0, text.text.nfkd(), interrupt)?,
            Self::Lowercase => lowercase(text, interrupt)?,
            Self::Nmt => nmt(text, interrupt)?,
            Self::StripAccents => text.filter(|c| !is_combining_mark(c), interrupt)?,
            Self::ByteLevel => to_byte_alphabet(text, interrupt)?,
            &Self::Strip { left, right } => text.strip(left, right, interrupt)?,
            Self::Replace(search, content) => {
                let mut found = Vec::new();
                search.find_all(&text.text, interrupt, |start, end| found.push((start, end)))?;
                let kept = text.text.len() - found.iter().map(|(start, end)| end - start).sum::<usize>();
                growth.check(kept.saturating_add(found.len().saturating_mul(content.len())))?;
                text.replace(&found, content, interrupt)?;
            }
            Self::Prepend(prefix) => text.prepend(prefix),
            Self::Precompiled(charsmap) => precompiled(text, charsmap, growth, interrupt)?,
            &Self::Bert { clean_text, handle_chinese_chars, strip_accents, lowercase: lower } => {
                if clean_text {
                    text.filter(|c| !(c == '\0' || c == '\u{fffd}' || is_control(c)), interrupt)?;
                    text.map(|c| if c.is_whitespace() { ' ' } else { c }, interrupt)?;
                }
                if handle_chinese_chars {
                    space_around_ideographs(text, interrupt)?;
                }
                if strip_accents {
                    Self::Nfd.apply(text, growth, interrupt)?;
                    text.filter(|c| !c.is_mark_nonspacing(), interrupt)?;
                }
                if lower {
                    lowercase(text, interrupt)?;
                }
            }
        }
        Ok(())
    }
}

fn lowercase(text: &mut Aligned, interrupt: Interrupt<'_>) -> Result<()> {
    let lower = |c: char| c.to_lowercase().enumerate().map(|(i, c)| (c, isize::from(i > 0)));
    *text = text.transform(0, text.text.chars().flat_map(lower), interrupt)?;
    Ok(())
}

/// Replaces each byte by its character in GPT-2's byte alphabet.
fn to_byte_alphabet(text: &mut Aligned, interrupt: Interrupt<'_>) -> Result<()> {
    let bytes = |(at, c): (usize, char)| {
        let bytes = &text.text.as_bytes()[at..at + c.len_utf8()];
        bytes.iter().enumerate().map(|(i, &byte)| (CHARS[usize::from(byte)], isize::from(i > 0)))
    };
    *text = text.transform(0, text.text.char_indices().flat_map(bytes), interrupt)?;
    Ok(())
}

/// Applies the rules of SentencePiece's `nmt_nfkc` that are not NFKC.
fn nmt(text: &mut Aligned, interrupt: Interrupt<'_>) -> Result<()> {
    let is_kept = |c| !matches!(c, '\u{1}'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}' | '\u{8f}' | '\u{9f}');
    text.filter(is_kept, interrupt)?;
    let to_space = |c| match c {
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
    };
    text.map(to_space, interrupt)
}

fn is_control(c: char) -> bool {
    !matches!(c, '\t' | '\n' | '\r') && c.is_other()
}

fn space_around_ideographs(text: &mut Aligned, interrupt: Interrupt<'_>) -> Result<()> {
    // The blocks of BERT's tokenizer, whose third-to-last range starts one block late.
    let is_ideograph = |c| {
        matches!(c, '\u{4e00}'..='\u{9fff}' | '\u{3400}'..='\u{4dbf}' | '\u{20000}'..='\u{2a6df}'
            | '\u{2a700}'..='\u{2b73f}' | '\u{2b740}'..='\u{2b81f}' | '\u{2b920}'..='\u{2ceaf}'
            | '\u{f900}'..='\u{faff}' | '\u{2f800}'..='\u{2fa1f}')
    };
    if !text.text.chars().any(is_ideograph) {
        return Ok(());
    }
    let spaced = |c| {
        let changes =
            if is_ideograph(c) { [Some((' ', 0)), Some((c, 1)), Some((' ', 1))] } else { [Some((c, 0)), None, None] };
        changes.into_iter().flatten()
    };
    *text = text.transform(0, text.text.chars().flat_map(spaced), interrupt)?;
    Ok(())
}

/// Applies SentencePiece's rules to grapheme clusters of less than six bytes, and to the characters of longer ones.
fn precompiled(text: &mut Aligned, charsmap: &CharsMap, growth: Growth, interrupt: Interrupt<'_>) -> Result<()> {
    let mut changes: Vec<(char, isize)> = Vec::with_capacity(text.text.len());
    let mut changed = false;
    for (index, cluster) in text.text.graphemes(true).enumerate() {
        interrupt.check_at(index)?;
        growth.check(changes.len())?;
        if cluster.len() < 6
            && let Some(new) = charsmap.shortest_match(cluster)
        {
            changed = true;
            substitute(&mut changes, cluster, new);
            continue;
        }
        for (at, c) in cluster.char_indices() {
            let part = &cluster[at..at + c.len_utf8()];
            if let Some(new) = charsmap.shortest_match(part) {
                changed = true;
                substitute(&mut changes, part, new);
            } else {
                changes.push((c, 0));
            }
        }
    }
    if changed {
        *text = text.transform(0, changes.into_iter(), interrupt)?;
    }
    Ok(())
}

/// Appends the replacement of a part of a text; the last characters absorb a difference in length.
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

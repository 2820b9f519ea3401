//! What is done to a text before it is split: Unicode's normal form C, or SentencePiece's way with spaces.

use std::borrow::Cow;

use unicode_normalization::{IsNormalized, is_nfc_quick};
use unicode_normalization_alignments::UnicodeNormalization;

use crate::interrupt::Interrupt;
use crate::pipeline::Aligned;
use crate::{Error, Result};

/// What SentencePiece writes for a space: U+2581.
pub(crate) const SPACE: char = '\u{2581}';

/// What is done to ordinary text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Normalizer {
    None,
    Nfc,
    Spaces(Spaces),
}

/// How SentencePiece treats the spaces of a text.
///
/// It writes `▁` (U+2581) for each, so that the two are one. Here the space stays, in texts and in tokens, and it is `▁`
/// that is replaced: the same tokens match, and most text need not be rewritten.
///
/// ```
/// use bpe_llama::{After, SpacePrefix, Spaces};
///
/// let llama = Spaces { prefix: SpacePrefix::Always, collapse: false, drop_first: true };
/// assert_eq!(llama.normalize("a▁b ", After::Nothing), " a b ");
/// assert_eq!(llama.normalize("", After::Nothing), "");
/// let collapsing = Spaces { collapse: true, ..llama };
/// assert_eq!(collapsing.normalize("a  b ", After::Nothing) + &*collapsing.normalize("c", After::Space), " a b c");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spaces {
    /// Whether a space is put before each stretch of ordinary text.
    pub prefix: SpacePrefix,
    /// Whether spaces at both ends are removed and several in a row become one.
    pub collapse: bool,
    /// Whether decoding leaves out a space that comes first.
    pub drop_first: bool,
}

/// When a space is put before a stretch of ordinary text: the whole text, or what lies between special tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpacePrefix {
    /// Never.
    Never,
    /// Always, unless it is empty.
    Always,
    /// Where it does not begin with a space.
    UnlessSpace,
    /// Where it begins the whole text, and not with a space.
    FirstUnlessSpace,
}

/// What a stretch of ordinary text comes after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum After {
    /// It begins the whole text.
    #[default]
    Nothing,
    /// A special token.
    Special,
    /// More text: no space is put between.
    Text,
    /// More text that ends in a space. Where spaces collapse it was left out there, and comes before what follows.
    Space,
}

impl After {
    /// Returns what a stretch of ordinary text comes after if this is all the text before it.
    pub fn of(text: &str) -> Self {
        match text.chars().next_back() {
            None => Self::Nothing,
            Some(' ' | SPACE) => Self::Space,
            Some(_) => Self::Text,
        }
    }
}

impl Normalizer {
    /// Returns the normal form of a stretch of ordinary text.
    ///
    /// # Errors
    /// What the interrupt check returns.
    pub(crate) fn apply<'t>(self, text: &'t str, after: After, interrupt: Interrupt<'_>) -> Result<Cow<'t, str>> {
        match self {
            Self::Nfc if is_nfc_quick(text.chars()) != IsNormalized::Yes => {
                let mut normal = String::with_capacity(text.len());
                for (turn, (c, _)) in text.nfc().enumerate() {
                    interrupt.check_at(turn)?;
                    normal.push(c);
                }
                Ok(Cow::Owned(normal))
            }
            Self::None | Self::Nfc => Ok(Cow::Borrowed(text)),
            Self::Spaces(spaces) => Ok(spaces.normalize(text, after)),
        }
    }

    /// Returns the normal form of an added token.
    pub(crate) fn normal_form(self, text: &str) -> Result<String> {
        self.apply(text, After::Nothing, Interrupt::NEVER).map(Cow::into_owned)
    }

    /// Returns the normal form with, for each byte, the range of the original text that it stands for.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if SentencePiece's treatment of spaces changes more than the beginning; what the interrupt check
    /// returns.
    pub(crate) fn apply_aligned(
        self,
        text: &str,
        start: u32,
        after: After,
        interrupt: Interrupt<'_>,
    ) -> Result<Aligned> {
        let mut aligned = Aligned::new(text, start, interrupt)?;
        match self {
            Self::None => {}
            Self::Nfc => {
                if is_nfc_quick(text.chars()) != IsNormalized::Yes {
                    aligned = aligned.transform(0, text.nfc(), interrupt)?;
                }
            }
            Self::Spaces(spaces) => {
                let normal = spaces.normalize(text, after);
                match normal.strip_suffix(text) {
                    Some("") => {}
                    Some(prefix @ " ") => aligned.prepend(prefix),
                    _ => {
                        return Err(Error::InvalidArgument(
                            "offsets need text whose spaces are as this tokenizer normalizes them, and without \u{2581}"
                                .to_owned(),
                        ));
                    }
                }
            }
        }
        Ok(aligned)
    }
}

impl Spaces {
    /// Returns `text`, which comes after something, with its spaces treated so.
    ///
    /// # Source
    /// `src/normalizer.cc` of SentencePiece; `Metaspace` of Hugging Face `tokenizers`.
    pub fn normalize(self, text: &str, after: After) -> Cow<'_, str> {
        let begins_with_space = text.starts_with([' ', SPACE]);
        let is_prefixed = !text.is_empty()
            && match (after, self.prefix) {
                (After::Text, _) => self.collapse && text.starts_with(' '),
                (After::Space, _) => self.collapse,
                (_, SpacePrefix::Never) => false,
                (_, SpacePrefix::Always) => true,
                (_, SpacePrefix::UnlessSpace) => !begins_with_space,
                (_, SpacePrefix::FirstUnlessSpace) => after == After::Nothing && !begins_with_space,
            };
        if !is_prefixed && !self.collapse && !text.contains(SPACE) {
            return Cow::Borrowed(text);
        }
        let mut normal = String::with_capacity(text.len() + 1);
        if is_prefixed {
            normal.push(' ');
        }
        if self.collapse {
            for (i, word) in text.split(' ').filter(|word| !word.is_empty()).enumerate() {
                if i > 0 {
                    normal.push(' ');
                }
                normal.push_str(word);
            }
        } else {
            normal.push_str(text);
        }
        if normal.contains(SPACE) {
            normal = normal.replace(SPACE, " ");
        }
        if self.collapse {
            // After the replacement: SentencePiece takes `▁` for a space at the end of a text, though not within it.
            normal.truncate(normal.trim_end_matches(' ').len());
        }
        Cow::Owned(normal)
    }
}

//! The normalizers of the fast path.

use std::borrow::Cow;

use unicode_normalization::{IsNormalized, is_nfc_quick};
use unicode_normalization_alignments::UnicodeNormalization;

use super::aligned::Aligned;
use super::whitespace::{After, Spaces};
use crate::interrupt::Interrupt;
use crate::{Error, Result};

/// A normalizer of ordinary text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Normalizer {
    None,
    Nfc,
    Spaces(Spaces),
}

impl Normalizer {
    /// Returns the normal form of a segment of ordinary text.
    pub(crate) fn apply<'t>(self, text: &'t str, after: After, interrupt: Interrupt<'_>) -> Result<Cow<'t, str>> {
        match self {
            Self::Nfc if is_nfc_quick(text.chars()) != IsNormalized::Yes => {
                let mut normal = String::with_capacity(text.len());
                for (index, (c, _)) in text.nfc().enumerate() {
                    interrupt.check_at(index)?;
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

    /// Returns the normal form with the range of the original text for each byte.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if SentencePiece's treatment of white space changes more than the first character;
    /// the error of the interrupt check.
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

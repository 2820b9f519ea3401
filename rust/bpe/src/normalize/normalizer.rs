//! The normalizers of the fast path.

use std::borrow::Cow;

use unicode_normalization::{IsNormalized, is_nfc_quick};
use unicode_normalization_alignments::UnicodeNormalization;

use super::aligned::Aligned;
use super::whitespace::{After, Spaces};
use crate::Result;
use crate::interrupt::Interrupt;

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
    /// The error of the interrupt check.
    pub(crate) fn apply_aligned(
        self,
        text: &str,
        start: u32,
        after: After,
        interrupt: Interrupt<'_>,
    ) -> Result<Aligned> {
        match self {
            Self::Spaces(spaces) => spaces.normalize_aligned(text, start, after, interrupt),
            Self::Nfc if is_nfc_quick(text.chars()) != IsNormalized::Yes => {
                Aligned::new(text, start, interrupt)?.transform(0, text.nfc(), interrupt)
            }
            Self::None | Self::Nfc => Aligned::new(text, start, interrupt),
        }
    }
}

//! SentencePiece's treatment of white space: U+0020, written as U+2581.

use std::borrow::Cow;

use super::aligned::Aligned;
use crate::Result;
use crate::interrupt::Interrupt;

/// The character that SentencePiece writes for a space: U+2581. `tokenizers` calls it the metaspace.
pub(crate) const METASPACE: char = '\u{2581}';

/// How SentencePiece treats the spaces of a text.
///
/// SentencePiece replaces each space by `▁` (U+2581), so the two are equivalent. Here `▁` is replaced by a space
/// instead, in texts and in tokens: the same tokens match, and most texts remain unchanged.
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
    /// When a space is prepended to a segment of ordinary text.
    pub prefix: SpacePrefix,
    /// Whether spaces at both ends are removed and runs of spaces collapse to one.
    pub collapse: bool,
    /// Whether decoding drops a leading space.
    pub drop_first: bool,
}

/// When a space is prepended to a segment of ordinary text: the whole text, or the text between special tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpacePrefix {
    /// Never.
    Never,
    /// To every segment that is not empty.
    Always,
    /// To every segment that does not begin with a space.
    UnlessSpace,
    /// To the segment at the start of the text, if it does not begin with a space.
    FirstUnlessSpace,
}

/// What precedes a segment of ordinary text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum After {
    /// The start of the text.
    #[default]
    Nothing,
    /// A special token.
    Special,
    /// Text: no space is prepended.
    Text,
    /// Text that ends in a space. If spaces collapse, the space was dropped there and is prepended here.
    Space,
}

impl After {
    /// Returns what precedes a segment if this is all the text before it.
    pub fn of(text: &str) -> Self {
        match text.chars().next_back() {
            None => Self::Nothing,
            Some(' ' | METASPACE) => Self::Space,
            Some(_) => Self::Text,
        }
    }
}

impl Spaces {
    /// Returns whether a space is prepended to `text`, a segment of ordinary text.
    fn is_prefixed(self, text: &str, after: After) -> bool {
        let begins_with_space = text.starts_with([' ', METASPACE]);
        !text.is_empty()
            && match (after, self.prefix) {
                (After::Text, _) => self.collapse && text.starts_with(' '),
                (After::Space, _) => self.collapse,
                (_, SpacePrefix::Never) => false,
                (_, SpacePrefix::Always) => true,
                (_, SpacePrefix::UnlessSpace) => !begins_with_space,
                (_, SpacePrefix::FirstUnlessSpace) => after == After::Nothing && !begins_with_space,
            }
    }

    /// Returns the normal form of `text`, a segment of ordinary text.
    ///
    /// # Source
    /// `src/normalizer.cc` of SentencePiece; `Metaspace` of Hugging Face `tokenizers`.
    pub fn normalize(self, text: &str, after: After) -> Cow<'_, str> {
        let is_prefixed = self.is_prefixed(text, after);
        if !is_prefixed && !self.collapse && !text.contains(METASPACE) {
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
        if normal.contains(METASPACE) {
            normal = normal.replace(METASPACE, " ");
        }
        if self.collapse {
            // After the replacement: at the end of a text, SentencePiece also removes `▁`.
            normal.truncate(normal.trim_end_matches(' ').len());
        }
        Cow::Owned(normal)
    }

    /// Returns the normal form of a segment that begins at byte `start` of the original, with the original range of each
    /// byte. A run of spaces that collapses is one range; the prefix has that of the first character.
    ///
    /// # Errors
    /// The error of the interrupt check.
    pub(crate) fn normalize_aligned(
        self,
        text: &str,
        start: u32,
        after: After,
        interrupt: Interrupt<'_>,
    ) -> Result<Aligned> {
        let collapses = |&(_, c): &(usize, char)| self.collapse && c == ' ';
        let mut characters = text.char_indices().peekable();
        while characters.next_if(collapses).is_some() {}
        let mut aligned = Aligned::new("", start, interrupt)?;
        while let Some((place, character)) = characters.next() {
            interrupt.check_at(place)?;
            while character == ' ' && characters.next_if(collapses).is_some() {}
            let end = characters.peek().map_or(text.len(), |&(next, _)| next);
            let span = (start + place as u32, start + end as u32);
            aligned.push(if character == METASPACE { ' ' } else { character }, span);
        }
        if self.collapse {
            aligned.truncate(aligned.text.trim_end_matches(' ').len());
        }
        if self.is_prefixed(text, after) {
            aligned.prepend(" ");
        }
        Ok(aligned)
    }
}

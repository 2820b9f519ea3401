//! Options that all encoding calls share.

use crate::interrupt::Interrupt;
use crate::normalize::After;
use crate::special::SpecialSet;

/// Options for one text, or for every text of a batch.
#[derive(Debug, Clone, Copy, Default)]
pub struct EncodeOptions<'a> {
    /// Special tokens that text may produce.
    pub allowed: SpecialSet<'a>,
    /// An id put before each text.
    pub bos: Option<u32>,
    /// An id put after each text.
    pub eos: Option<u32>,
    /// What precedes each text; it decides whether SentencePiece's space prefix is added.
    pub after: After,
    /// Checked every few milliseconds on the calling thread.
    pub interrupt: Interrupt<'a>,
}

impl EncodeOptions<'_> {
    /// Returns the options for a part of a text.
    pub(crate) fn without_ends(self) -> Self {
        Self { bos: None, eos: None, after: After::default(), ..self }
    }
}

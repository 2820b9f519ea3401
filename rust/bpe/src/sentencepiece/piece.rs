//! The pieces of a SentencePiece vocabulary, as its file lists them.

use crate::Result;
use crate::byte_alphabet::byte_of;

/// An entry of a SentencePiece vocabulary; its id is its index.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// The text, with `▁` for a space.
    pub text: String,
    /// The piece with the highest score merges first.
    pub score: f32,
    /// The type of the piece.
    pub kind: PieceKind,
}

/// The type of a piece, with the values of `tokenizer.model` and of GGUF's `token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PieceKind {
    /// An ordinary token.
    Normal = 1,
    /// The token for text that no other piece covers.
    Unknown = 2,
    /// A control token, which text never contains.
    Control = 3,
    /// A token that matches wherever its text occurs, before merging.
    UserDefined = 4,
    /// A token that text never becomes.
    Unused = 5,
    /// One byte.
    Byte = 6,
}

impl Piece {
    /// Returns the byte of a byte piece, or the error for piece `id` if its text is no byte.
    pub(crate) fn byte(&self, id: u32) -> Result<u8> {
        let text = &self.text;
        let expected = "expected such as \"<0x0A>\"";
        byte_of(text).ok_or_else(|| malformed!("piece {id} is a byte piece, but its text is {text:?}; {expected}"))
    }
}

impl PieceKind {
    /// Returns the kind with this value.
    ///
    /// # Errors
    /// [`crate::Error::Format`] if it is not 1 to 6.
    pub fn from_number(number: u64) -> Result<Self> {
        Ok(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return Err(malformed!("a piece is of type {number}; expected 1 to 6")),
        })
    }
}

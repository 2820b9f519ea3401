//! Vocabularies in files: reading and writing other people's formats.

mod gguf;
mod huggingface;
mod protobuf;
mod sentencepiece;
mod tiktoken;

pub(crate) use self::huggingface::pipeline_of;
pub use self::sentencepiece::{Piece, PieceKind};

use std::path::Path;

use crate::{Error, Result};

/// Reads a whole file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })
}

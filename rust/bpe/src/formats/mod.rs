//! File formats of other tokenizer libraries: `tokenizer.json`, `tokenizer.model`, `.tiktoken`, and the vocabularies of
//! GGUF files.

mod gguf;
mod huggingface;
mod protobuf;
mod sentencepiece;
mod tiktoken;

pub(crate) use self::huggingface::pipeline_of;
pub use crate::sentencepiece::{Piece, PieceKind};

//! Normalization of text before pre-tokenization.
//!
//! | file | |
//! |---|---|
//! | `normalizer.rs` | the normalizers of the fast path: none, NFC, SentencePiece's white space |
//! | `whitespace.rs` | SentencePiece's treatment of white space |
//! | `aligned.rs` | text that records which bytes of the original each of its bytes comes from |
//! | `charsmap.rs` | SentencePiece's `precompiled_charsmap`: compiled rules for characters |
//!
//! The normalizers of a `tokenizer.json` are in [`crate::pipeline`], those of a `tokenizer.model` in
//! [`crate::sentencepiece`].

pub(crate) mod aligned;
mod charsmap;
mod normalizer;
mod whitespace;

pub(crate) use self::aligned::Aligned;
pub(crate) use self::charsmap::CharsMap;
pub(crate) use self::normalizer::Normalizer;
pub(crate) use self::whitespace::METASPACE;
pub use self::whitespace::{After, SpacePrefix, Spaces};

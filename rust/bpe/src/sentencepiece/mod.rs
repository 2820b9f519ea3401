//! SentencePiece's BPE models with any options: the reference for every faster path.
//!
//! | step | file |
//! |---|---|
//! | the model: text to ids | `model.rs` |
//! | rules for characters, white space | `normalizer.rs` |
//! | user-defined symbols | `prefix_trie.rs`; by llama.cpp's rules, `fragments.rs` |
//! | pieces by id and by text | `piece.rs`, `pieces.rs` |
//! | merges | `bpe.rs` |
//! | ids to text | `decode.rs` |
//!
//! A vocabulary that byte-level merges express exactly is encoded by the faster `vocab/sentencepiece.rs` instead:
//! `formats/sentencepiece/` decides.

mod bpe;
mod decode;
mod fragments;
mod model;
mod normalizer;
mod piece;
mod pieces;
mod prefix_trie;

pub(crate) use self::decode::Decoding;
pub(crate) use self::model::{Options, Rules, SentencePieceModel};
pub(crate) use self::normalizer::Normalizer;
pub use self::piece::{Piece, PieceKind};

//! Byte-level BPE: training, encoding and decoding.
//!
//! Text goes through these modules in order: [`pretokenize`] cuts it into pieces, `encode` turns pieces into ids with
//! the help of a cache and of `merge`, which runs byte-pair encoding over a [`Vocab`]; `decode` is the way back.
//! [`Tokenizer`] puts them together.

mod add_tokens;
mod atomic_write;
mod byte_alphabet;
mod cache;
pub mod corpus;
mod decode;
mod dropout;
mod encode;
mod error;
pub mod formats;
mod inline_key;
mod interrupt;
mod merge;
mod normalize;
mod pipeline;
pub mod pretokenize;
mod sentencepiece;
mod special;
mod tokenizer;
pub mod train;
mod utf8;
mod vocab;

pub use atomic_write::write_atomically;
pub use decode::{DecodeStream, Utf8Stream};
pub use encode::EncodeOptions;
pub use error::{Error, Result};
pub use interrupt::Interrupt;
pub use normalize::{After, SpacePrefix, Spaces};
pub use pretokenize::Pretokenizer;
pub use special::{AddedToken, SpecialSet};
pub use tokenizer::{Offsets, SpecialIds, TokenFile, Tokenizer};
pub use vocab::{SentencePieceTokens, Vocab};

//! Byte-level BPE: training, encoding and decoding.
//!
//! Text goes through these modules in order: [`pretokenize`] cuts it into pieces, `encode` turns pieces into ids with
//! the help of a cache and of `merge`, which runs byte-pair encoding over a [`Vocab`]; `decode` is the way back.
//! [`Tokenizer`] puts them together.

mod atomic_write;
mod batch;
mod byte_alphabet;
mod cache;
mod decode;
pub mod documents;
mod encode;
mod encode_options;
mod error;
pub mod formats;
mod grow;
mod inline_key;
mod interrupt;
mod merge;
mod normalize;
mod offsets;
mod pipeline;
pub mod pretokenize;
mod sentencepiece;
mod simd_search;
mod special;
mod token_file;
mod tokenizer;
pub mod train;
mod unmergeable;
mod utf8;
mod vocab;

pub use atomic_write::write_atomically;
pub use decode::{DecodeStream, Utf8Stream};
pub use encode_options::EncodeOptions;
pub use error::{Error, Result};
pub use interrupt::Interrupt;
pub use normalize::{After, SpacePrefix, Spaces};
pub use offsets::Offsets;
pub use pretokenize::Pretokenizer;
pub use special::{AddedToken, SpecialSet};
pub use token_file::TokenFile;
pub use tokenizer::{SpecialIds, Tokenizer};
pub use vocab::{SentencePieceTokens, Vocab};

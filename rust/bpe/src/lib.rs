//! Byte-level BPE: training, encoding and decoding.
//!
//! Text goes through these modules in order: [`pretokenize`] cuts it into pieces, `encode` turns pieces into ids with
//! the help of a cache and of `merge`, which runs byte-pair encoding over a [`Vocab`]; `decode` is the way back.
//! [`Tokenizer`] puts them together.

mod batch;
mod boundaries;
mod byte_alphabet;
mod cache;
mod decode;
pub mod documents;
mod encode;
mod error;
pub mod formats;
mod grow;
mod merge;
mod normalize;
mod offsets;
mod pairs;
mod pipeline;
pub mod pretokenize;
mod search;
mod sentencepiece;
mod special;
mod token_file;
mod tokenizer;
pub mod train;
mod vocab;

pub use batch::{EncodeOptions, Pause};
pub use decode::{DecodeStream, Utf8Stream};
pub use error::{Error, Result};
pub use normalize::{After, SpacePrefix, Spaces};
pub use offsets::Offsets;
pub use pretokenize::Pretokenizer;
pub use special::{AddedToken, SpecialSet};
pub use token_file::TokenFile;
pub use tokenizer::{Ends, Tokenizer};
pub use vocab::{Pieces, Vocab};

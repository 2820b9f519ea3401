//! Byte-level BPE tokenization: training, encoding and decoding.
//!
//! Ids, merges and offsets equal those of the tool that defines a file: tiktoken, Hugging Face `tokenizers`, SentencePiece or
//! llama.cpp. Cost is linear in the text.
//!
//! ```
//! use bpe_llama::train::{Counter, TrainOptions, train};
//! use bpe_llama::{AddedToken, Pretokenizer, SpecialSet, Tokenizer, Vocab};
//!
//! // Train: 256 bytes, three merges and one special token.
//! let mut counter = Counter::new(Pretokenizer::new("cl100k")?, &[])?;
//! counter.add("low lower lowest low")?;
//! let options = TrainOptions { vocab_size: 260, special_tokens: 1, ..TrainOptions::default() };
//! let trained = train(counter.finish(), &options, &mut |_| Ok(()))?;
//!
//! let tokens = trained.tokens.into_iter().zip(0..).collect();
//! let vocab = Vocab::from_merges(tokens, trained.merges, false)?;
//! let end = AddedToken::special("<|end|>", 259);
//! let tokenizer = Tokenizer::new(vocab, Pretokenizer::new("cl100k")?, vec![end], false)?;
//!
//! let ids = tokenizer.encode("lower<|end|>", SpecialSet::All)?;
//! assert_eq!(ids, [257, 68, 81, 259]); // "low", "e", "r", "<|end|>"
//! assert_eq!(tokenizer.decode_bytes(&ids)?, b"lower<|end|>");
//! # Ok::<(), bpe_llama::Error>(())
//! ```
//!
//! # From text to ids and back
//! `Tokenizer.encode` in Python and its inverse, in the order of the calls:
//!
//! | file | step |
//! |---|---|
//! | `rust/python/src/tokenizer/encode.rs` | convert arguments, release the GIL |
//! | `tokenizer/encode.rs` | match special tokens, normalize |
//! | `encode/mod.rs` | for each piece: ids from the cache or by byte-pair encoding |
//! | `pretokenize/pretokenizer.rs` | choose the splitter of the pattern |
//! | `pretokenize/bitmask/splitter.rs` | split text into pieces, 64 bytes at a time |
//! | `pretokenize/grammars/cl100k.rs` | the grammar of one pattern |
//! | `cache/mod.rs` | piece to ids |
//! | `merge/mod.rs` | byte-pair encode a piece |
//! | `vocab/vocabulary.rs` | token table and merge table |
//! | `rust/python/src/tokenizer/ids.rs` | ids to Python ints |
//! | `rust/python/src/tokenizer/decode.rs` | convert arguments |
//! | `decode/mod.rs` | ids to bytes and text |
//!
//! # Design
//! - **One merge a token.** No merge crosses the ends of a token before it is complete, so a token forms in any text as it
//!   forms from its own bytes. A ranked token list (`.tiktoken`) is therefore equal to a merge list (`merge/derive.rs`).
//! - **Concatenation.** Two encodings can be concatenated if re-encoding the two tokens at the seam returns the same two
//!   tokens. Long pieces are encoded segment by segment in linear time (`merge/mod.rs`).
//! - **Unmergeable boundaries.** If no token spans two adjacent characters, a piece can be split between them
//!   (`encode/unmergeable.rs`), so that the cache also serves scripts without spaces.
//! - **A bounded cache a thread.** The look-ups of 1,024 pieces are prefetched together (`cache/mod.rs`).
//! - **SentencePiece is byte-level BPE whose first merges join the bytes of characters** (`vocab/sentencepiece.rs`). A model
//!   that this cannot express runs SentencePiece's own algorithm (`sentencepiece/`).
//! - **A `tokenizer.json` has a fast path and a general path.** The general path runs the file's components in order
//!   (`pipeline/`); the fast path is the one above (`formats/huggingface/`).
//! - **Training** counts pieces, then merges the most frequent pair (`train/`); ties have one order, so the result does not
//!   depend on threads or chunks.
//!
//! Every fast routine has a naive oracle and a property test that compares them.
//!
//! # Sources
//! - Byte-pair encoding: Sennrich et al. 2016, arXiv:1508.07909. Byte level: Radford et al. 2019 (GPT-2).
//! - Ranks, patterns and special tokens: tiktoken. Pipelines, added tokens, training order: Hugging Face `tokenizers`.
//! - Concatenation of encodings: A. Neubeck and H. van Antwerpen, "So many tokens, so little time", GitHub 2024 (the crate
//!   `bpe` of rust-gems).
//! - SentencePiece: Kudo and Richardson 2018, arXiv:1808.06226. BPE-dropout: Provilkov et al. 2020, arXiv:1910.13267.
//! - Superwords: Liu et al. 2025 (`SuperBPE`), arXiv:2503.13423.

#[macro_use]
mod error;

mod add_tokens;
mod byte_alphabet;
mod cache;
pub mod corpus;
mod decode;
mod dropout;
mod encode;
mod files;
pub mod formats;
mod inline_key;
mod interrupt;
mod memory;
mod merge;
mod normalize;
mod pipeline;
mod prefixes;
pub mod pretokenize;
mod sentencepiece;
mod special;
mod tokenizer;
pub mod train;
mod utf8;
mod vocab;

pub use decode::{DecodeStream, Utf8Stream};
pub use encode::EncodeOptions;
pub use error::{Error, Result};
pub use interrupt::Interrupt;
pub use normalize::{After, SpacePrefix, Spaces};
pub use pretokenize::Pretokenizer;
pub use special::{AddedToken, SpecialSet};
pub use tokenizer::{DocumentEncoder, EncodedDocuments, Offsets, SpecialIds, Tokenizer};
pub use vocab::{SentencePieceTokens, Vocab};

/// Tests the example of the crate's page on crates.io.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

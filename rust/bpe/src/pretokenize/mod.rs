//! Pre-tokenization: text to pre-tokens, called pieces here. It is the first step of encoding and of training.
//!
//! Byte-pair encoding never merges across a piece boundary, so a vocabulary is only valid with the pattern that split its
//! training text. Published patterns are known by name and have a grammar each, written in Rust; any other regex runs in
//! `fancy-regex` or, from a `tokenizer.json`, in Oniguruma. Tests hold every grammar to its regex.
//!
//! ```
//! use bpe_llama::pretokenize::Pretokenizer;
//!
//! let cl100k = Pretokenizer::new("cl100k")?;
//! assert_eq!(cl100k.split("It's 12345 o'clock.")?, ["It", "'s", " ", "123", "45", " o", "'clock", "."]);
//!
//! let words = Pretokenizer::new(r"\w+")?;
//! assert_eq!(words.split("a, b")?, ["a", ", ", "b"]); // text between matches is a piece, too
//! # Ok::<(), bpe_llama::Error>(())
//! ```
//!
//! # How a grammar splits
//! A piece depends only on the text from its start on, so a grammar is a function from the start of a piece to its end
//! (`scan.rs`), with one look-up of a character class (`unicode.rs`) a character. The fast path is the bitmask splitter
//! (`bitmask/`): it turns 64 bytes into bit masks of their classes, and the masks into piece boundaries without a branch a
//! piece. Each file in `grammars/` has both, and tests hold them equal.

mod bitmask;
mod chunk_boundary;
mod grammars;
mod named;
mod pretokenizer;
mod regex;
mod scan;
#[cfg(test)]
mod tests;
mod to_oniguruma;
mod unicode;

pub(crate) use self::grammars::spaced_words::PATTERN as SPACED_WORDS_PATTERN;
pub use self::grammars::superwords::PATTERN as SUPERWORD_PATTERN;
pub(crate) use self::named::{DIGIT, WHOLE};
pub use self::pretokenizer::Pretokenizer;
pub(crate) use self::regex::{Oniguruma, Patience};
pub(crate) use self::to_oniguruma::to_oniguruma;
pub use self::unicode::UNICODE_VERSION;

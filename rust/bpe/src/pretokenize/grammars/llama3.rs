//! `llama3`: the pattern of Llama 3, and of tokenizer.json files converted from `cl100k`.
//!
//! It differs from [`super::cl100k`] only in white space at the end of a text, where a line break still ends a piece.

use super::cl100k::Family;

/// As published with Llama 3.
pub(crate) const PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Other spellings with the same pieces: tiktoken's `cl100k` before 0.8.
pub(crate) const VARIANTS: &[&str] = &[
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

pub(crate) type Llama3 = Family<3, false>;

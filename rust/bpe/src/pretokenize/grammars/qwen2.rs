//! `qwen2`: the pattern of Qwen, Qwen2, Qwen2.5 and Qwen3: Llama 3's, but every number is a piece of its own.

use super::cl100k::Family;

/// As published with Qwen.
pub(crate) const PATTERN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

pub(crate) type Qwen2 = Family<1, false>;

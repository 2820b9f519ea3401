//! One file a pattern: its published regex, and the grammar that yields the same pieces.

pub(crate) mod cl100k;
pub(crate) mod deepseek_v3;
pub(crate) mod llama3;
pub(crate) mod o200k;
pub(crate) mod qwen2;
pub(crate) mod r50k;
pub(crate) mod smollm;
pub(crate) mod spaced_words;
pub(crate) mod superwords;

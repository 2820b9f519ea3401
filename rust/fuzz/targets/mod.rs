//! What must hold for any input, a function a target: an error is fine, a panic or a wrong result is not.
//!
//! `make fuzz-all` gives them what cargo-fuzz thinks up; `rust/bpe/tests/fuzz.rs` replays what is kept under `tests/fuzz/`.
#![allow(dead_code, unused_imports, reason = "a test that includes them uses some")]

mod corpus_reader;
mod encode;
mod formats;
mod input;
mod naive;
mod pretokenize;
mod train;

pub(crate) use corpus_reader::corpus_reader;
pub(crate) use encode::{decode, encode};
pub(crate) use formats::{counts_file, gguf_vocabulary, sentencepiece_model, tiktoken_file, tokenizer_json};
pub(crate) use pretokenize::{NAMES, check_splitters, matches, pattern, pretokenize};
pub(crate) use train::trained;

type Target = fn(&[u8]);

/// Every target by its name.
pub(crate) const TARGETS: [(&str, Target); 11] = [
    ("encode", encode),
    ("decode", decode),
    ("tiktoken_file", tiktoken_file),
    ("tokenizer_json", tokenizer_json),
    ("sentencepiece_model", sentencepiece_model),
    ("counts_file", counts_file),
    ("gguf_vocabulary", gguf_vocabulary),
    ("corpus_reader", corpus_reader),
    ("pretokenize", pretokenize),
    ("pattern", pattern),
    ("train", trained),
];

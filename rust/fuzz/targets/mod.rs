//! What must hold for any input, a function a target: an error is fine, a panic or a wrong result is not.
//!
//! `make fuzz` gives them what cargo-fuzz thinks up; `rust/bpe/tests/fuzz.rs` replays what is kept under `tests/fuzz/`.
#![allow(dead_code, unused_imports, reason = "a test that includes them uses some")]

mod corpus_reader;
mod encode;
mod formats;
mod input;
mod naive;
mod pretokenize;

pub(crate) use corpus_reader::corpus_reader;
pub(crate) use encode::{decode, encode};
pub(crate) use formats::{counts_file, sentencepiece_model, tiktoken_file, tokenizer_json};
pub(crate) use pretokenize::{NAMES, check_splitters, matches, pattern, pretokenize};

type Target = fn(&[u8]);

/// Every target by its name.
pub(crate) const TARGETS: [(&str, Target); 9] = [
    ("encode", encode),
    ("decode", decode),
    ("tiktoken_file", tiktoken_file),
    ("tokenizer_json", tokenizer_json),
    ("sentencepiece_model", sentencepiece_model),
    ("counts_file", counts_file),
    ("corpus_reader", corpus_reader),
    ("pretokenize", pretokenize),
    ("pattern", pattern),
];

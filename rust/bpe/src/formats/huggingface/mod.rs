//! `tokenizer.json`, the file of Hugging Face's `tokenizers`.
//!
//! | file | |
//! |---|---|
//! | `schema.rs` | the fields of the file; its components are those of [`crate::pipeline`] |
//! | `parse.rs` | the file, parsed and checked |
//! | `read.rs` | the tokenizer of a file, with the fastest path that gives the ids of `tokenizers` |
//! | `byte_level.rs` | the fast path of byte-level BPE |
//! | `sentencepiece.rs` | the fast path of SentencePiece models, in both directions |
//! | `write.rs` | the file of a tokenizer |

mod byte_level;
mod parse;
mod read;
mod schema;
mod sentencepiece;
mod write;

pub(crate) use self::read::pipeline_of;

//! The corpus reader: files to documents, in bounded memory.
//!
//! A file is one document unless a separator divides it; a line of JSON Lines is one document. A long document is
//! returned in chunks that end where pre-tokens end whatever follows, so the pre-tokens of its chunks are the
//! pre-tokens of the document.
//!
//! | file | |
//! |---|---|
//! | `reader.rs` | [`CorpusReader`]: one file after another, one chunk at a time |
//! | `options.rs` | how files are read as documents |
//! | `boundaries.rs` | where a document can be divided: never inside a special token |
//! | `text.rs` | one text file |
//! | `utf8_scan.rs`, `skipped.rs` | documents that are not UTF-8, rows without text |
//! | `json_lines.rs` | one file of JSON Lines |
//! | `decompress.rs` | the bytes of a file, decompressed |
//! | `lines.rs` | lines of bounded length |

mod boundaries;
mod decompress;
mod json_lines;
mod lines;
mod options;
mod reader;
mod skipped;
#[cfg(test)]
pub(crate) mod tests;
mod text;
mod utf8_scan;

pub(crate) use self::boundaries::special_matcher;
pub use self::lines::FileLines;
pub use self::options::{CorpusOptions, OnError};
pub use self::reader::{Chunk, CorpusReader};
pub use self::skipped::Skipped;

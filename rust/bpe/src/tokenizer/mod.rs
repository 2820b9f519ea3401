//! The tokenizer: text to ids and back.
//!
//! | file | |
//! |---|---|
//! | `encode.rs` | one text to ids |
//! | `parts.rs` | a text that comes in parts |
//! | `batch.rs` | many texts, on many threads |
//! | `offsets.rs` | ids with character offsets; truncation |
//! | `documents.rs` | documents of files to ids |
//! | `lookup.rs` | tokens by id, bytes and name |
//! | `special_ids.rs`, `template.rs` | BOS, EOS, padding; the post-processor |
//! | `definition.rs` | the parts of a tokenizer |

mod batch;
mod definition;
mod documents;
mod encode;
mod lookup;
mod offsets;
mod parts;
mod special_ids;
mod template;

pub use self::definition::Tokenizer;
pub use self::documents::{DocumentEncoder, EncodedDocuments};
pub use self::offsets::Offsets;
pub use self::special_ids::SpecialIds;

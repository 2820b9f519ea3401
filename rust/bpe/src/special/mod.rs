//! Added tokens: matched as a whole, outside BPE. Special tokens among them are matched only if the caller allows them.
//!
//! Text is searched twice: before normalization for tokens that are not normalized, and each ordinary segment between them
//! after normalization for the others. A special token that is not allowed is treated as ordinary text.
//!
//! Source: `added_vocabulary.rs` of Hugging Face `tokenizers` defines both passes and the flags.

mod added_token;
mod added_tokens;
mod matcher;

pub use self::added_token::{AddedToken, SpecialSet};
pub(crate) use self::added_tokens::AddedTokens;
pub(crate) use self::matcher::longest_of;

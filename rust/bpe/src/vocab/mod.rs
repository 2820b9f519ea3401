//! Vocabularies: tokens and merges.
//!
//! | file | |
//! |---|---|
//! | `vocabulary.rs` | a token table and a merge table |
//! | `token_table.rs` | token bytes to id, id to token bytes |
//! | `merge_table.rs`, `pair_table.rs` | pairs of ids to ranks, ranks to merged ids |
//! | `simd_search.rs` | the SIMD searches of the pair table and of merging |
//! | `sentencepiece.rs` | vocabularies of SentencePiece |
//! | `limits.rs` | bounds on ids and ranks |

mod limits;
mod merge_table;
mod pair_table;
mod sentencepiece;
mod simd_search;
mod token_table;
mod vocabulary;

pub(crate) use self::limits::{ID_BOUND, NO_ID, NO_RANK, check_id};
pub(crate) use self::pair_table::Query;
pub use self::sentencepiece::SentencePieceTokens;
#[cfg(target_arch = "x86_64")]
pub(crate) use self::simd_search::{Avx2, Avx512};
pub(crate) use self::simd_search::{Portable, SimdSearch};
pub use self::vocabulary::Vocab;

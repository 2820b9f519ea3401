//! Word counts: how often each word of a corpus occurs.

mod file;
mod sort;
mod word_counts;
mod word_map;

pub(super) use self::word_counts::SHARD_BITS;
pub use self::word_counts::WordCounts;
pub(super) use self::word_map::{Key, WordMap};

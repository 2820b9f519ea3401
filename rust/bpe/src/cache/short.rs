//! Short pieces with few ids: a two-way set-associative table.

use std::iter;

use super::probe::{Probe, hash_short};
use crate::inline_key::InlineKey;
use crate::memory;
use bpe_llama_simd::pages;

/// The most ids that an entry holds inline.
pub(super) const SHORT_IDS: usize = 3;

/// Up to three ids and their number, or a position in the arena and [`IN_ARENA`].
pub(super) type ShortIds = [u32; SHORT_IDS + 1];

/// In place of the number of ids: `[position, count, generation of the arena, IN_ARENA]`.
pub(super) const IN_ARENA: u32 = u32::MAX;

/// Buckets of 64 bytes, one cache line, with two entries each.
///
/// An entry goes to its bucket, or spills to the second place of a neighbour; where none is free it replaces the second entry
/// of its bucket. The first one stays, as a piece that comes early in a text is likely to be frequent.
pub(super) struct ShortTable {
    /// Buckets from `base` on, where a cache line or a huge page begins. Zeroed words are allocated lazily: unused buckets
    /// cost no memory.
    pub(super) words: Vec<u64>,
    base: usize,
    pub(super) bucket_bits: u32,
    max_bucket_bits: u32,
    /// The number of entries in use.
    used: usize,
}

pub(super) type Bucket = [u64; 8];

/// A key, ids and their number; all 0 if empty.
pub(super) type Entry = [u64; 4];

/// Buckets of the smallest table: 256 KiB.
const MIN_BUCKET_BITS: u32 = 12;

/// Buckets of the smallest table in huge pages: 4 MiB.
const HUGE_BUCKET_BITS: u32 = 16;

/// Buckets in which an entry may be, its own first.
const NEIGHBOURS: usize = 4;

/// Bytes of a huge page of most systems.
const HUGE_PAGE: usize = 2 << 20;

impl ShortTable {
    pub(super) fn new(limit: usize) -> Self {
        let max_bucket_bits = (limit / size_of::<Bucket>()).max(1).ilog2().clamp(MIN_BUCKET_BITS, 28);
        Self::with_buckets(MIN_BUCKET_BITS, max_bucket_bits)
            .unwrap_or_else(|| memory::exhausted::<Bucket>(1 << MIN_BUCKET_BITS))
    }

    /// Returns an empty table, or `None` if there is no memory for it.
    fn with_buckets(bucket_bits: u32, max_bucket_bits: u32) -> Option<Self> {
        // A large table begins where a huge page can begin.
        let alignment = if bucket_bits < HUGE_BUCKET_BITS { size_of::<Bucket>() } else { HUGE_PAGE };
        let words = memory::zeros::<1>((8 << bucket_bits) + alignment / size_of::<u64>())?.into_flattened();
        pages::advise_huge(&words);
        let base = words.as_ptr().align_offset(alignment).min(alignment / size_of::<u64>());
        Some(Self { words, base, bucket_bits, max_bucket_bits, used: 0 })
    }

    /// The most memory that the table takes.
    pub(super) fn max_bytes(&self) -> usize {
        size_of::<Bucket>() << self.max_bucket_bits
    }

    #[inline(always)]
    pub(super) fn buckets(&self) -> &[Bucket] {
        self.words[self.base..].as_chunks().0
    }

    pub(super) fn get(&self, probe: &Probe) -> Option<ShortIds> {
        let home = (probe.hash >> (64 - self.bucket_bits)) as usize;
        for neighbour in 0..NEIGHBOURS {
            let bucket = &self.buckets()[home ^ neighbour];
            let entry = find(bucket, probe.key);
            if entry[..2] == probe.key {
                return Some(unpack_ids(entry));
            }
            if bucket[5] == 0 {
                // Only a full bucket spills to the next, which is rarely in the CPU's cache.
                return None;
            }
        }
        None
    }

    pub(super) fn put(&mut self, probe: &Probe, ids: ShortIds) {
        if self.used > 1 << self.bucket_bits && self.bucket_bits < self.max_bucket_bits {
            self.grow();
        }
        let [low, high] = probe.key;
        self.insert(probe.hash, [low, high, pair(ids[0], ids[1]), pair(ids[2], ids[3])]);
    }

    fn insert(&mut self, hash: u64, entry: Entry) {
        let home = (hash >> (64 - self.bucket_bits)) as usize;
        let entries = self.words[self.base..].as_chunks_mut::<4>().0;
        let second = |neighbour| 2 * (home ^ neighbour) + 1;
        // The key may have an entry already, whose ids were lost when the arena was cleared.
        let place = iter::once(2 * home)
            .chain((0..NEIGHBOURS).map(second))
            .find(|&place| entries[place][1] == 0 || entries[place][..2] == entry[..2])
            .unwrap_or(second(0));
        self.used += usize::from(entries[place][1] == 0);
        entries[place] = entry;
    }

    #[cold]
    fn grow(&mut self) {
        let larger = Self::with_buckets((self.bucket_bits + 2).min(self.max_bucket_bits), self.max_bucket_bits);
        let Some(mut larger) = larger else {
            self.max_bucket_bits = self.bucket_bits;
            return;
        };
        for entry in self.buckets().as_flattened().as_chunks::<4>().0.iter().filter(|entry| entry[1] != 0) {
            larger.insert(hash_short([entry[0], entry[1]]), *entry);
        }
        *self = larger;
    }
}

/// Returns the entry of a bucket with this key if there is one, otherwise the other entry.
#[inline(always)]
pub(super) fn find(bucket: &Bucket, key: InlineKey) -> Entry {
    // Which of the two it is cannot be predicted, so there is no branch on it.
    let second = usize::from((bucket[0] ^ key[0]) | (bucket[1] ^ key[1]) != 0) * 4;
    [bucket[second], bucket[second + 1], bucket[second + 2], bucket[second + 3]]
}

pub(super) fn unpack_ids(entry: Entry) -> ShortIds {
    [entry[2] as u32, (entry[2] >> 32) as u32, entry[3] as u32, (entry[3] >> 32) as u32]
}

fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

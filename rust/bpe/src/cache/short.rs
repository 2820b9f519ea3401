//! Short pieces with few ids.

use super::probe::{Probe, hash_short};
use crate::inline_key::InlineKey;
use bpe_llama_simd::huge_pages;

/// How many ids an entry holds at most.
pub(super) const SHORT_IDS: usize = 3;

/// Up to three ids and how many there are, or [`MANY`] and where in the arena they are.
pub(super) type ShortIds = [u32; SHORT_IDS + 1];

/// In place of the number of ids: `[where, how many, generation of the arena, MANY]`.
pub(super) const MANY: u32 = u32::MAX;

/// Two-way set-associative: a line of 64 bytes has two entries of a key and ids.
pub(super) struct ShortTable {
    /// Lines from `base` on, where a cache line begins. As plain words, memory that is never used costs nothing.
    pub(super) words: Vec<u64>,
    base: usize,
    pub(super) line_bits: u32,
    max_line_bits: u32,
    /// How many entries were filled.
    used: usize,
}

pub(super) type Line = [u64; 8];

/// A key, ids and their number; all 0 where nothing is.
pub(super) type Entry = [u64; 4];

/// Lines of the smallest table: 128 KiB.
const MIN_LINE_BITS: u32 = 11;

impl ShortTable {
    pub(super) fn new(limit: usize) -> Self {
        let max_line_bits = (limit / size_of::<Line>()).max(1).ilog2().clamp(MIN_LINE_BITS, 28);
        Self::with_lines(MIN_LINE_BITS, max_line_bits)
    }

    fn with_lines(line_bits: u32, max_line_bits: u32) -> Self {
        let words = vec![0; 8 * ((1 << line_bits) + 1)];
        huge_pages::advise(&words);
        let base = words.as_ptr().align_offset(size_of::<Line>()).min(8);
        Self { words, base, line_bits, max_line_bits, used: 0 }
    }

    /// How much memory it takes at most.
    pub(super) fn max_bytes(&self) -> usize {
        size_of::<Line>() << self.max_line_bits
    }

    #[inline(always)]
    pub(super) fn lines(&self) -> &[Line] {
        self.words[self.base..].as_chunks().0
    }

    pub(super) fn get(&self, probe: &Probe) -> Option<ShortIds> {
        let at = (probe.hash >> (64 - self.line_bits)) as usize;
        let line = &self.lines()[at];
        let entry = find(line, probe.key);
        if entry[..2] == probe.key {
            return Some(unpack_ids(entry));
        }
        if line[5] == 0 {
            // Only what a full line had to give away is in the neighbouring one, which is rarely in the CPU's cache.
            return None;
        }
        let entry = find(&self.lines()[at ^ 1], probe.key);
        (entry[..2] == probe.key).then(|| unpack_ids(entry))
    }

    pub(super) fn put(&mut self, probe: &Probe, ids: ShortIds) {
        if self.used * 2 > 1 << self.line_bits && self.line_bits < self.max_line_bits {
            self.grow();
        }
        let [low, high] = probe.key;
        self.insert(probe.hash, [low, high, pair(ids[0], ids[1]), pair(ids[2], ids[3])]);
    }

    /// Puts an entry before the others of its line. The last of these moves to the neighbouring line, if there is room.
    fn insert(&mut self, hash: u64, entry: Entry) {
        let at = (hash >> (64 - self.line_bits)) as usize;
        let lines = self.words[self.base..].as_chunks_mut::<8>().0;
        // An entry of this key may be there, if its ids were lost with the arena.
        if lines[at][..2] != entry[..2] {
            let moved = lines[at];
            if moved[5] != 0 && lines[at ^ 1][5] == 0 {
                lines[at ^ 1][4..].copy_from_slice(&moved[4..]);
            }
            self.used += usize::from(moved[5] == 0);
            lines[at][4..].copy_from_slice(&moved[..4]);
        }
        lines[at][..4].copy_from_slice(&entry);
    }

    #[cold]
    fn grow(&mut self) {
        let mut larger = Self::with_lines((self.line_bits + 2).min(self.max_line_bits), self.max_line_bits);
        for line in self.lines() {
            // The older first, so that the order stays.
            for entry in line.as_chunks::<4>().0.iter().rev().filter(|entry| entry[1] != 0) {
                larger.insert(hash_short([entry[0], entry[1]]), *entry);
            }
        }
        *self = larger;
    }
}

/// Returns the entry of a line that has this key, if there is one, else another.
#[inline(always)]
pub(super) fn find(line: &Line, key: InlineKey) -> Entry {
    // Which of the two cannot be foreseen: no branch may depend on it.
    let second = usize::from((line[0] ^ key[0]) | (line[1] ^ key[1]) != 0) * 4;
    [line[second], line[second + 1], line[second + 2], line[second + 3]]
}

pub(super) fn unpack_ids(entry: Entry) -> ShortIds {
    [entry[2] as u32, (entry[2] >> 32) as u32, entry[3] as u32, (entry[3] >> 32) as u32]
}

fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

//! Pieces of 16 bytes or more, and lists of more ids than an inline entry holds.

use crate::memory;
use bpe_llama_simd::prefetch::prefetch;

/// Open addressing from hashes to records in an arena. A record is a piece in windows of 16 bytes, then its ids.
pub(super) struct LongTable {
    /// A hash, 0 for an empty slot; and the position, byte count and id count of its record, packed.
    pub(super) slots: Vec<[u64; 2]>,
    used: usize,
    max_slots: usize,
    pub(super) arena: Vec<u32>,
    max_arena: usize,
    /// How often the arena was cleared.
    pub(super) generation: u32,
}

/// The words of a cache line.
const CACHE_LINE: usize = 16;

const MIN_SLOTS: usize = 1 << 10;

/// The words of a 16-byte window.
const WINDOW: usize = 4;

impl LongTable {
    pub(super) fn new(limit: usize) -> Self {
        let max_slots = 1 << (limit / 4 / size_of::<[u64; 2]>()).max(MIN_SLOTS).ilog2();
        let rest = limit.saturating_sub(max_slots * size_of::<[u64; 2]>());
        let max_arena = (rest / size_of::<u32>()).clamp(1 << 14, u32::MAX as usize);
        Self {
            slots: memory::filled([0; 2], MIN_SLOTS),
            used: 0,
            max_slots,
            arena: Vec::new(),
            max_arena,
            generation: 0,
        }
    }

    #[inline]
    pub(super) fn first_slot(&self, hash: u64) -> usize {
        (hash as usize) & (self.slots.len() - 1)
    }

    /// Prefetches the record that a slot points to.
    #[inline]
    pub(super) fn prefetch_record(&self, slot: usize) {
        let [_, record] = self.slots[slot];
        let (at, _, _) = unpack(record);
        let record = self.arena.as_ptr().wrapping_add(at);
        prefetch(record);
        prefetch(record.wrapping_add(CACHE_LINE));
    }

    /// Returns the position of the ids of `piece` in the arena.
    pub(super) fn find(&self, hash: u64, piece: &[u8]) -> Option<std::ops::Range<usize>> {
        let mut slot = self.first_slot(hash);
        loop {
            let [found, record] = self.slots[slot];
            if found == 0 {
                return None;
            }
            if found == hash {
                let (at, bytes, ids) = unpack(record);
                let ids_at = at + WINDOW * bytes.div_ceil(16);
                if bytes == piece.len() && self.arena[at..ids_at].as_chunks().0.iter().copied().eq(windows_of(piece)) {
                    return Some(ids_at..ids_at + ids);
                }
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
    }

    pub(super) fn put(&mut self, hash: u64, piece: &[u8], ids: &[u32]) {
        let at = self.store(piece, ids);
        if self.used * 2 >= self.slots.len() {
            let larger = (self.slots.len() < self.max_slots).then(|| memory::zeros(self.slots.len() * 4)).flatten();
            let Some(larger) = larger else {
                self.clear();
                return;
            };
            for slot in std::mem::replace(&mut self.slots, larger) {
                if slot[0] != 0 {
                    self.insert(slot);
                }
            }
        }
        self.insert([hash, u64::from(at) << 32 | (piece.len() as u64) << 16 | ids.len() as u64]);
        self.used += 1;
    }

    fn insert(&mut self, entry: [u64; 2]) {
        let mut slot = self.first_slot(entry[0]);
        while self.slots[slot][0] != 0 {
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        self.slots[slot] = entry;
    }

    /// Appends a record to the arena, which is cleared first if it is full, and returns its position.
    pub(super) fn store(&mut self, piece: &[u8], ids: &[u32]) -> u32 {
        let size = WINDOW * piece.len().div_ceil(16) + ids.len();
        if self.arena.len() + size > self.max_arena {
            self.clear();
        }
        let used = self.arena.len();
        if used + size > self.arena.capacity() {
            // Double the capacity, within the limit.
            let wanted = ((used + size) * 2).min(self.max_arena.max(size)) - used;
            if self.arena.try_reserve_exact(wanted).is_err() {
                self.clear();
                memory::reserve(&mut self.arena, size);
            }
        }
        let at = self.arena.len();
        windows_of(piece).for_each(|window| self.arena.extend(window));
        self.arena.extend_from_slice(ids);
        at as u32
    }

    fn clear(&mut self) {
        self.arena.clear();
        self.slots.fill([0; 2]);
        self.used = 0;
        self.generation = self.generation.wrapping_add(1);
    }
}

/// Returns the 16-byte windows of a long piece, or none of an empty one; the last window may overlap the one before.
fn windows_of(piece: &[u8]) -> impl Iterator<Item = [u32; WINDOW]> {
    let (windows, rest) = piece.as_chunks::<16>();
    let last = if rest.is_empty() { None } else { piece.last_chunk() };
    windows.iter().chain(last).map(|window| {
        let words = window.as_chunks::<4>().0;
        std::array::from_fn(|word| u32::from_le_bytes(words[word]))
    })
}

/// Returns the position, byte count and id count of a record.
fn unpack(record: u64) -> (usize, usize, usize) {
    ((record >> 32) as usize, (record >> 16 & 0xFFFF) as usize, (record & 0xFFFF) as usize)
}

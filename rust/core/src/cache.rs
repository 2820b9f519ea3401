//! What pieces were encoded to, so that a word met again costs one look-up.
//!
//! Short pieces with few ids, nearly all there are, lie in a table whose lines hold two entries each, key and ids
//! inline: a hit touches one cache line. What is longer lies behind one another in an arena, found through a table of
//! hashes. Both grow with the text up to a limit. Beyond it a short piece replaces another of its line, and a full arena
//! is emptied.

/// A piece of up to 15 bytes, its length in the top byte: equal keys are equal pieces.
pub(crate) type ShortKey = [u64; 2];

pub(crate) const SHORT_BYTES: usize = 15;

/// Longer pieces are not remembered.
const LONGEST: usize = 512;

/// How many ids an entry holds at most.
const SHORT_IDS: usize = 3;

/// Up to three ids and how many there are, or [`MANY`] and where in the arena they are.
type ShortIds = [u32; SHORT_IDS + 1];

/// How much room a piece needs in a run of ids.
pub(crate) const IDS_A_PIECE: usize = SHORT_IDS + 1;

/// In place of the number of ids: `[where, how many, generation of the arena, MANY]`.
const MANY: u32 = u32::MAX;

/// How much memory the cache of one thread may take, unless told otherwise: 32 MiB.
pub(crate) const DEFAULT_LIMIT: usize = 32 << 20;

/// What a piece is looked up by.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Probe {
    key: ShortKey,
    hash: u64,
}

/// Set in the top byte of the key of a part of a piece, which whole pieces must not be taken for.
const PART: u64 = 1 << 63;

/// The key of a piece too long for one: no short piece has it, nor an empty entry.
const LONG: ShortKey = [0, 0x7F << 56];

impl Probe {
    /// Returns the probe of the piece `bytes[start..end]`.
    #[inline(always)]
    fn new(bytes: &[u8], start: usize, end: usize) -> Self {
        let length = end - start;
        if length > SHORT_BYTES {
            return Self { key: LONG, hash: hash_long(&bytes[start..end]) };
        }
        let key = short_key(bytes, start, length);
        Self { key, hash: hash_short(key) }
    }

    /// Returns the probe of a part, of at most 15 bytes, of a piece.
    pub(crate) fn of_part(part: &[u8]) -> Self {
        let [low, high] = short_key(part, 0, part.len());
        let key = [low, high | PART];
        Self { key, hash: hash_short(key) }
    }
}

/// The memory of one thread.
pub(crate) struct PieceCache {
    short: ShortTable,
    long: LongTable,
}

impl PieceCache {
    /// Returns an empty cache that will take at most about `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self { short: ShortTable::new(limit / 2), long: LongTable::new(limit / 2) }
    }

    /// Writes to `probes` those of the pieces of `bytes` from `start` on that end at `ends`, and starts to load what they
    /// will be compared with.
    ///
    /// So all look-ups are under way before the first is waited for.
    #[inline(never)]
    pub(crate) fn prepare(&self, bytes: &[u8], mut start: usize, ends: &[usize], probes: &mut [Probe]) {
        let (lines, line_shift) = (self.short.lines(), 64 - self.short.line_bits);
        for (&end, probe) in ends.iter().zip(probes) {
            *probe = Probe::new(bytes, start, end);
            start = end;
            prefetch(lines, (probe.hash >> line_shift) as usize);
        }
    }

    /// Writes the ids of pieces to `run`, up to the first that is not known, is long or has many ids.
    ///
    /// Returns how many pieces and how many ids there were. `run` must have room for four ids a piece.
    #[inline(never)]
    pub(crate) fn get_run(&self, probes: &[Probe], run: &mut [u32]) -> (usize, usize) {
        let (lines, line_shift) = (self.short.lines(), 64 - self.short.line_bits);
        let mut count = 0;
        for (i, probe) in probes.iter().enumerate() {
            let entry = find(&lines[(probe.hash >> line_shift) as usize], probe.key);
            let ids = unpack_ids(entry);
            if entry[..2] != probe.key || ids[SHORT_IDS] == MANY {
                return (i, count);
            }
            // One store of fixed width; what is too much of it is overwritten by the next.
            run[count..count + ids.len()].copy_from_slice(&ids);
            count += ids[SHORT_IDS] as usize;
        }
        (probes.len(), count)
    }

    /// Appends the ids of `piece` to `ids`, if it is known, and returns whether it is.
    pub(crate) fn get(&self, probe: &Probe, piece: &[u8], ids: &mut Vec<u32>) -> bool {
        let range = if probe.key == LONG {
            self.long.find(probe.hash, piece)
        } else {
            match self.short.get(probe) {
                None => None,
                Some([at, count, generation, MANY]) => {
                    (generation == self.long.generation).then(|| at as usize..at as usize + count as usize * 4)
                }
                Some(few) => {
                    ids.extend_from_slice(&few[..few[SHORT_IDS] as usize]);
                    return true;
                }
            }
        };
        let Some(range) = range else { return false };
        let bytes = &self.long.arena[range];
        ids.extend(bytes.chunks_exact(4).map(|id| u32::from_le_bytes(id.try_into().unwrap_or_default())));
        true
    }

    /// Remembers the ids of a piece that is not known.
    pub(crate) fn put(&mut self, probe: &Probe, piece: &[u8], ids: &[u32]) {
        if piece.len() > LONGEST {
            return;
        }
        if probe.key == LONG {
            self.long.put(probe.hash, piece, ids);
            return;
        }
        let mut entry = [0; SHORT_IDS + 1];
        if ids.len() <= SHORT_IDS {
            entry[..ids.len()].copy_from_slice(ids);
            entry[SHORT_IDS] = ids.len() as u32;
        } else {
            let at = self.long.store(&[], ids);
            entry = [at, ids.len() as u32, self.long.generation, MANY];
        }
        self.short.put(probe, entry);
    }
}

/// Two-way set-associative: a line of 64 bytes has two entries of a key and ids.
struct ShortTable {
    /// Lines from `base` on, where a cache line begins. As plain words, memory that is never used costs nothing.
    words: Vec<u64>,
    base: usize,
    line_bits: u32,
    max_line_bits: u32,
    /// How many entries were filled.
    used: usize,
}

type Line = [u64; 8];

/// A key, ids and their number; all 0 where nothing is.
type Entry = [u64; 4];

/// Lines of the smallest table: 128 KiB.
const MIN_LINE_BITS: u32 = 11;

impl ShortTable {
    fn new(limit: usize) -> Self {
        let max_line_bits = (limit / size_of::<Line>()).max(1).ilog2().clamp(MIN_LINE_BITS, 28);
        Self::with_lines(MIN_LINE_BITS, max_line_bits)
    }

    fn with_lines(line_bits: u32, max_line_bits: u32) -> Self {
        let words = vec![0; 8 * ((1 << line_bits) + 1)];
        let base = words.as_ptr().align_offset(size_of::<Line>()).min(8);
        Self { words, base, line_bits, max_line_bits, used: 0 }
    }

    #[inline(always)]
    fn lines(&self) -> &[Line] {
        self.words[self.base..].as_chunks().0
    }

    fn get(&self, probe: &Probe) -> Option<ShortIds> {
        let entry = find(&self.lines()[(probe.hash >> (64 - self.line_bits)) as usize], probe.key);
        (entry[..2] == probe.key).then(|| unpack_ids(entry))
    }

    fn put(&mut self, probe: &Probe, ids: ShortIds) {
        if self.used * 2 > 1 << self.line_bits && self.line_bits < self.max_line_bits {
            self.grow();
        }
        let [low, high] = probe.key;
        self.insert(probe.hash, [low, high, pair(ids[0], ids[1]), pair(ids[2], ids[3])]);
    }

    /// Puts an entry before the others of its line, of which the last gives way.
    fn insert(&mut self, hash: u64, entry: Entry) {
        let line = &mut self.words[self.base..].as_chunks_mut::<8>().0[(hash >> (64 - self.line_bits)) as usize];
        self.used += usize::from(line[5] == 0);
        // An entry of this key may be there, if its ids were lost with the arena.
        if line[..2] != entry[..2] {
            line.copy_within(..4, 4);
        }
        line[..4].copy_from_slice(&entry);
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
fn find(line: &Line, key: ShortKey) -> Entry {
    // Which of the two cannot be foreseen: no branch may depend on it.
    let second = usize::from((line[0] ^ key[0]) | (line[1] ^ key[1]) != 0) * 4;
    [line[second], line[second + 1], line[second + 2], line[second + 3]]
}

fn unpack_ids(entry: Entry) -> ShortIds {
    [entry[2] as u32, (entry[2] >> 32) as u32, entry[3] as u32, (entry[3] >> 32) as u32]
}

fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// Open addressing from hashes to records in an arena: a piece's bytes, then its ids in little-endian order.
struct LongTable {
    /// A hash, 0 for an empty slot; where its record is, how many bytes and how many ids it has.
    slots: Vec<[u64; 2]>,
    used: usize,
    max_slots: usize,
    arena: Vec<u8>,
    max_arena: usize,
    /// How often the arena was emptied.
    generation: u32,
}

const MIN_SLOTS: usize = 1 << 10;

impl LongTable {
    fn new(limit: usize) -> Self {
        let max_slots = 1 << (limit / 4 / size_of::<[u64; 2]>()).max(MIN_SLOTS).ilog2();
        let max_arena = (limit / 4 * 3).clamp(1 << 16, u32::MAX as usize);
        Self { slots: vec![[0; 2]; MIN_SLOTS], used: 0, max_slots, arena: Vec::new(), max_arena, generation: 0 }
    }

    #[inline]
    fn first_slot(&self, hash: u64) -> usize {
        (hash as usize) & (self.slots.len() - 1)
    }

    /// Returns where in the arena the ids of `piece` are.
    fn find(&self, hash: u64, piece: &[u8]) -> Option<std::ops::Range<usize>> {
        let mut slot = self.first_slot(hash);
        loop {
            let [found, record] = self.slots[slot];
            if found == 0 {
                return None;
            }
            if found == hash {
                let (at, bytes, ids) = unpack(record);
                if &self.arena[at..at + bytes] == piece {
                    return Some(at + bytes..at + bytes + ids * 4);
                }
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
    }

    fn put(&mut self, hash: u64, piece: &[u8], ids: &[u32]) {
        let at = self.store(piece, ids);
        if self.used * 2 >= self.slots.len() {
            if self.slots.len() >= self.max_slots {
                self.clear();
                return;
            }
            let larger = vec![[0; 2]; self.slots.len() * 4];
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

    /// Appends a record to the arena, emptied first if it is full, and returns where it is.
    fn store(&mut self, piece: &[u8], ids: &[u32]) -> u32 {
        if self.arena.len() + piece.len() + ids.len() * 4 > self.max_arena {
            self.clear();
        }
        let length = self.arena.len();
        let needed = length + piece.len() + ids.len() * 4;
        if needed > self.arena.capacity() {
            // Twice as much, but never more than is allowed.
            self.arena.reserve_exact((needed * 2).min(self.max_arena.max(needed)) - length);
        }
        let at = length as u32;
        self.arena.extend_from_slice(piece);
        self.arena.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        at
    }

    fn clear(&mut self) {
        self.arena.clear();
        self.slots.fill([0; 2]);
        self.used = 0;
        self.generation = self.generation.wrapping_add(1);
    }
}

/// Where a record is, how many bytes and how many ids it has.
fn unpack(record: u64) -> (usize, usize, usize) {
    ((record >> 32) as usize, (record >> 16 & 0xFFFF) as usize, (record & 0xFFFF) as usize)
}

/// `MASKS[n]` keeps the first `n` bytes of sixteen.
const MASKS: [ShortKey; 16] = {
    let mut masks = [[0; 2]; 16];
    let mut n = 1;
    while n < 16 {
        let mask = (1u128 << (8 * n)) - 1;
        masks[n] = [mask as u64, (mask >> 64) as u64];
        n += 1;
    }
    masks
};

/// Returns the key of `bytes[start..start + length]`, at most 15 bytes.
#[inline(always)]
fn short_key(bytes: &[u8], start: usize, length: usize) -> ShortKey {
    let [low, high] = match bytes.get(start..start + 16) {
        Some(window) => [word(window, 0), word(window, 8)],
        None => last_words(bytes, start),
    };
    let mask = MASKS[length & 15];
    [low & mask[0], (high & mask[1]) | (length as u64) << 56]
}

/// The sixteen bytes that the end of the text cuts short, zeros after it.
#[inline]
fn last_words(bytes: &[u8], start: usize) -> ShortKey {
    if let Some(window) = bytes.last_chunk::<16>() {
        let words = u128::from_le_bytes(*window) >> (8 * (start + 16 - bytes.len()));
        return [words as u64, (words >> 64) as u64];
    }
    let mut window = [0; 16];
    let rest = &bytes[start..];
    window[..rest.len()].copy_from_slice(rest);
    [word(&window, 0), word(&window, 8)]
}

/// Returns the little-endian word of the eight bytes from `at` on.
#[inline(always)]
fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default())
}

#[inline(always)]
fn hash_short(key: ShortKey) -> u64 {
    fold(key[0] ^ 0x9E37_79B9_7F4A_7C15, key[1] ^ 0xD1B5_4A32_D192_ED03)
}

/// Returns the hash, not 0, of at least 16 bytes.
#[inline(never)]
fn hash_long(piece: &[u8]) -> u64 {
    let mut hash = piece.len() as u64;
    let chunks = piece.chunks_exact(16);
    for window in chunks.chain(piece.last_chunk::<16>().map(|last| &last[..])) {
        hash = fold(word(window, 0) ^ 0x9E37_79B9_7F4A_7C15 ^ hash, word(window, 8) ^ 0xD1B5_4A32_D192_ED03);
    }
    hash | 1 << 63
}

/// Both halves of the 128-bit product, mixed: every input bit reaches every output bit.
#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ (product >> 64) as u64
}

/// Asks the CPU to load `lines[at]` soon, where it can be asked.
#[inline(always)]
fn prefetch(lines: &[Line], at: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(line) = lines.get(at) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: prefetching reads nothing, and the address is that of a reference.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (lines, at);
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// Ids that only this piece has.
    fn ids_of(piece: &[u8], is_part: bool) -> Vec<u32> {
        let count = piece[0] as usize % 6 + usize::from(is_part);
        (0..=count).map(|i| piece.iter().fold(i as u32, |id, &byte| id.wrapping_mul(31) + u32::from(byte))).collect()
    }

    proptest! {
        #[test]
        fn what_is_known_is_right(
            pieces in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..40), any::<bool>()), 1..400),
            limit in prop_oneof![Just(0), Just(1 << 20)],
        ) {
            let mut cache = PieceCache::new(limit);
            for (piece, is_part) in pieces.iter().chain(&pieces) {
                let is_part = *is_part && piece.len() <= SHORT_BYTES;
                let probe = if is_part { Probe::of_part(piece) } else { Probe::new(piece, 0, piece.len()) };
                let expected = ids_of(piece, is_part);
                let mut run = [0; IDS_A_PIECE];
                if let (1, count) = cache.get_run(&[probe], &mut run) {
                    prop_assert_eq!(&run[..count], &expected[..]);
                }
                let mut ids = vec![];
                if cache.get(&probe, piece, &mut ids) {
                    prop_assert_eq!(ids, expected);
                } else {
                    cache.put(&probe, piece, &expected);
                    prop_assert!(cache.get(&probe, piece, &mut ids));
                    prop_assert_eq!(ids, expected);
                }
            }
        }
    }

    #[test]
    fn nothing_is_forgotten_within_the_limit_and_memory_stays_below_it() {
        let limit = 8 << 20;
        let mut cache = PieceCache::new(limit);
        let mut known = HashMap::new();
        for i in 0..2_000_000_u32 {
            let piece = format!("{i}{}", if i % 3 == 0 { " and some more bytes" } else { "" }).into_bytes();
            let probe = Probe::new(&piece, 0, piece.len());
            let ids = vec![i; i as usize % 5 + 1];
            cache.put(&probe, &piece, &ids);
            if i < 10_000 {
                known.insert(piece, ids);
            }
            if i == 10_000 {
                let found = known.iter().filter(|(piece, ids)| {
                    let mut found = vec![];
                    cache.get(&Probe::new(piece, 0, piece.len()), piece, &mut found) && found == **ids
                });
                // A line of two may have lost one.
                assert!(found.count() > 9_800);
            }
        }
        let bytes = cache.short.words.capacity() * 8 + cache.long.slots.capacity() * 16 + cache.long.arena.capacity();
        assert!(bytes <= limit + (1 << 20), "{bytes} bytes");
    }

    #[test]
    fn a_piece_at_the_end_of_a_text_has_the_probe_it_has_in_the_middle() {
        let text = b"a few words, then more of them";
        for end in 1..text.len() {
            for start in end.saturating_sub(15)..end {
                assert_eq!(Probe::new(&text[..end], start, end), Probe::new(text, start, end), "{start}..{end}");
            }
        }
    }
}

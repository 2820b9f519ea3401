//! What pieces were encoded to, so that a word met again costs one look-up.
//!
//! Short pieces with few ids, nearly all there are, lie in a table whose lines hold two entries each, key and ids
//! inline: a hit touches one cache line. What is longer lies in an arena, found through a table of hashes. Both grow with
//! the text up to a limit. Beyond it a short piece replaces another of its line, and a full arena is emptied.

/// A piece of up to 15 bytes, its length in the top byte: equal keys are equal pieces.
pub(crate) type ShortKey = [u64; 2];

pub(crate) const SHORT_BYTES: usize = 15;

/// Longer pieces, which may have as many ids, are not remembered.
pub(crate) const LONGEST: usize = 512;

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
            if end - start > SHORT_BYTES {
                prefetch(&self.long.slots, self.long.first_slot(probe.hash));
            } else {
                prefetch(lines, (probe.hash >> line_shift) as usize);
            }
            start = end;
        }
    }

    /// Writes to `run` the ids of the pieces of `bytes` from `start` on that end at `ends`, up to the first that is not
    /// known or finds no room.
    ///
    /// Returns how many pieces and how many ids there were. `probes` are those of the same pieces.
    #[inline(never)]
    pub(crate) fn get_run(
        &self,
        bytes: &[u8],
        start: usize,
        ends: &[usize],
        probes: &[Probe],
        run: &mut [u32],
    ) -> (usize, usize) {
        let (lines, line_shift) = (self.short.lines(), 64 - self.short.line_bits);
        let (mut done, mut count) = (0, 0);
        loop {
            // Apart from what follows, so that its few values stay in registers.
            for probe in &probes[done..] {
                let entry = find(&lines[(probe.hash >> line_shift) as usize], probe.key);
                let ids = unpack_ids(entry);
                if entry[..2] != probe.key || ids[SHORT_IDS] == MANY || count + ids.len() > run.len() {
                    break;
                }
                // One store of fixed width; what is too much of it is overwritten by the next.
                run[count..count + ids.len()].copy_from_slice(&ids);
                count += ids[SHORT_IDS] as usize;
                done += 1;
            }
            let (Some(probe), Some(&end)) = (probes.get(done), ends.get(done)) else { break };
            let begin = if done > 0 { ends[done - 1] } else { start };
            let Some(many) = self.get(probe, &bytes[begin..end], &mut run[count..]) else { break };
            count += many;
            done += 1;
        }
        (done, count)
    }

    /// Writes the ids of `piece` to `ids` and returns their number, if they are known and find room.
    #[inline(never)]
    pub(crate) fn get(&self, probe: &Probe, piece: &[u8], ids: &mut [u32]) -> Option<usize> {
        let range = if probe.key == LONG {
            self.long.find(probe.hash, piece)?
        } else {
            match self.short.get(probe)? {
                [at, count, generation, MANY] if generation == self.long.generation => {
                    at as usize..at as usize + count as usize
                }
                [.., MANY] => return None,
                few => {
                    let count = few[SHORT_IDS] as usize;
                    ids.get_mut(..count)?.copy_from_slice(&few[..count]);
                    return Some(count);
                }
            }
        };
        let many = &self.long.arena[range];
        ids.get_mut(..many.len())?.copy_from_slice(many);
        Some(many.len())
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
        let at = (probe.hash >> (64 - self.line_bits)) as usize;
        let entries = [at, at ^ 1].map(|at| find(&self.lines()[at], probe.key));
        entries.into_iter().find(|entry| entry[..2] == probe.key).map(unpack_ids)
    }

    fn put(&mut self, probe: &Probe, ids: ShortIds) {
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

/// Open addressing from hashes to records in an arena: a piece's bytes, four in a number, then its ids.
struct LongTable {
    /// A hash, 0 for an empty slot; where its record is, how many bytes and how many ids it has.
    slots: Vec<[u64; 2]>,
    used: usize,
    max_slots: usize,
    arena: Vec<u32>,
    max_arena: usize,
    /// How often the arena was emptied.
    generation: u32,
}

const MIN_SLOTS: usize = 1 << 10;

impl LongTable {
    fn new(limit: usize) -> Self {
        let max_slots = 1 << (limit / 4 / size_of::<[u64; 2]>()).max(MIN_SLOTS).ilog2();
        let max_arena = (limit / 4 * 3 / size_of::<u32>()).clamp(1 << 14, u32::MAX as usize);
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
                let words = word_count(bytes);
                if bytes == piece.len() && self.arena[at..at + words].iter().copied().eq(words_of(piece)) {
                    return Some(at + words..at + words + ids);
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
        let size = word_count(piece.len()) + ids.len();
        if self.arena.len() + size > self.max_arena {
            self.clear();
        }
        let at = self.arena.len();
        if at + size > self.arena.capacity() {
            // Twice as much, but never more than is allowed.
            self.arena.reserve_exact(((at + size) * 2).min(self.max_arena.max(size)) - at);
        }
        self.arena.extend(words_of(piece));
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

/// Returns the bytes of no piece or one of at least four as numbers; the last may repeat bytes of the one before.
fn words_of(piece: &[u8]) -> impl Iterator<Item = u32> {
    let (words, rest) = piece.as_chunks::<4>();
    let last = if rest.is_empty() { None } else { piece.last_chunk::<4>() };
    words.iter().chain(last).map(|word| u32::from_le_bytes(*word))
}

/// Returns how many numbers [`words_of`] gives for so many bytes.
fn word_count(bytes: usize) -> usize {
    bytes.div_ceil(4)
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

/// Asks the CPU to load `table[at]` soon, where it can be asked.
#[inline(always)]
fn prefetch<T>(table: &[T], at: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(entry) = table.get(at) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: prefetching reads nothing, and the address is that of a reference.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(entry).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (table, at);
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
                for room in [2, 4, 9] {
                    let mut run = vec![0; room];
                    if let (1, count) = cache.get_run(piece, 0, &[piece.len()], &[probe], &mut run) {
                        prop_assert_eq!(&run[..count], &expected[..]);
                    }
                }
                let mut ids = [0; 9];
                if cache.get(&probe, piece, &mut ids).is_none() {
                    cache.put(&probe, piece, &expected);
                }
                prop_assert_eq!(cache.get(&probe, piece, &mut ids), Some(expected.len()));
                prop_assert_eq!(&ids[..expected.len()], expected);
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
                    let mut found = [0; 5];
                    let count = cache.get(&Probe::new(piece, 0, piece.len()), piece, &mut found);
                    count == Some(ids.len()) && found[..ids.len()] == ids[..]
                });
                // A line of two, beside another that is full, may have lost one.
                assert!(found.count() > 9_950);
            }
        }
        let bytes =
            cache.short.words.capacity() * 8 + cache.long.slots.capacity() * 16 + cache.long.arena.capacity() * 4;
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

//! The cache from pieces to ids: a piece that occurs again costs one look-up.
//!
//! Short pieces with few ids, nearly all there are, are in a two-way set-associative table with key and ids inline, so a
//! hit touches one cache line (`short.rs`). Longer pieces and id lists are records in an arena, found through a hash table
//! (`long.rs`). Both grow with the text up to a limit. Beyond it a short piece replaces another of its bucket, and a full
//! arena is cleared. Characters of three bytes within pieces have a table of their own (`characters.rs`).

mod characters;
mod long;
mod probe;
mod short;

use crate::inline_key::INLINE_BYTES;
use bpe_llama_simd::prefetch::prefetch;
pub(crate) use characters::CharacterTable;
use long::LongTable;
use probe::LONG;
pub(crate) use probe::Probe;
use short::{IN_ARENA, SHORT_IDS, ShortTable, find, unpack_ids};

/// The space that a piece needs in a run of ids.
pub(crate) const IDS_PER_PIECE: usize = SHORT_IDS + 1;

/// Most long pieces have at most this many ids.
const SOME: usize = 8;

/// The longest piece that is cached, in bytes; it has at most as many ids.
pub(crate) const MAX_PIECE: usize = 512;

/// The default limit on the memory of one thread's cache: 60 MiB, which is less than 64 MB.
pub(crate) const DEFAULT_LIMIT: usize = 60 << 20;

/// A piece that is not cached.
pub(crate) struct Miss {
    /// The piece is `bytes[begin..end]`.
    pub(crate) begin: usize,
    pub(crate) end: usize,
    pub(crate) probe: Probe,
    /// The number of ids of its run before it.
    pub(crate) ids_before: usize,
}

/// The cache of one thread.
pub(crate) struct PieceCache {
    short: ShortTable,
    long: LongTable,
}

impl PieceCache {
    /// Returns an empty cache that takes at most about `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        // The short table's size is a power of two.
        let short = ShortTable::new(limit / 9 * 5);
        let long = LongTable::new(limit.saturating_sub(short.max_bytes()));
        Self { short, long }
    }

    /// Writes the probes of the pieces of `bytes` from `start` on, which end at `ends`, and prefetches their buckets.
    ///
    /// So the memory latencies of all look-ups of a batch overlap.
    #[inline(never)]
    pub(crate) fn prepare(&self, bytes: &[u8], mut start: usize, ends: &[usize], probes: &mut [Probe]) {
        let (buckets, bucket_shift) = (self.short.buckets(), 64 - self.short.bucket_bits);
        let (mut long_slots, mut long_count) = ([0; 64], 0);
        for (&end, probe) in ends.iter().zip(probes) {
            *probe = Probe::new(bytes, start, end);
            if end - start > INLINE_BYTES {
                let slot = self.long.first_slot(probe.hash);
                prefetch(self.long.slots.as_ptr().wrapping_add(slot));
                long_slots[long_count % 64] = slot;
                long_count += 1;
            } else {
                prefetch(buckets.as_ptr().wrapping_add((probe.hash >> bucket_shift) as usize));
            }
            start = end;
        }
        // The slots have arrived by now: prefetch the records that they point to.
        for &slot in &long_slots[..long_count.min(64)] {
            self.long.prefetch_record(slot);
        }
    }

    /// Writes the ids of the pieces of `bytes` from `start` on, which end at `ends`, to `run`, as far as it has space for a
    /// whole [`MAX_PIECE`] more. Returns the number of pieces and of ids. Pieces that are not cached go to `misses`.
    ///
    /// `probes` belong to the same pieces.
    #[inline(never)]
    pub(crate) fn get_run(
        &self,
        bytes: &[u8],
        start: usize,
        ends: &[usize],
        probes: &[Probe],
        run: &mut [u32],
        misses: &mut Vec<Miss>,
    ) -> (usize, usize) {
        let (buckets, bucket_shift) = (self.short.buckets(), 64 - self.short.bucket_bits);
        let (mut done, mut count) = (0, 0);
        loop {
            // The common case has a loop of its own, so that its few values stay in registers.
            for probe in &probes[done..] {
                let entry = find(&buckets[(probe.hash >> bucket_shift) as usize], probe.key);
                let ids = unpack_ids(entry);
                if entry[..2] != probe.key || ids[SHORT_IDS] == IN_ARENA || count + ids.len() > run.len() {
                    break;
                }
                // One store of fixed width; the next store overwrites the excess.
                run[count..count + ids.len()].copy_from_slice(&ids);
                count += ids[SHORT_IDS] as usize;
                done += 1;
            }
            let (Some(probe), Some(&end)) = (probes.get(done), ends.get(done)) else { break };
            if run.len() - count < MAX_PIECE {
                break;
            }
            let begin = if done > 0 { ends[done - 1] } else { start };
            match self.get(probe, &bytes[begin..end], &mut run[count..]) {
                Some(more) => count += more,
                None => misses.push(Miss { begin, end, probe: *probe, ids_before: count }),
            }
            done += 1;
        }
        (done, count)
    }

    /// Writes the ids of `piece` to `ids` and returns their number, if they are cached and fit.
    #[inline(never)]
    pub(crate) fn get(&self, probe: &Probe, piece: &[u8], ids: &mut [u32]) -> Option<usize> {
        let range = if probe.key == LONG {
            self.long.find(probe.hash, piece)?
        } else {
            match self.short.get(probe)? {
                [at, count, generation, IN_ARENA] if generation == self.long.generation => {
                    at as usize..at as usize + count as usize
                }
                [.., IN_ARENA] => return None,
                inline => {
                    let count = inline[SHORT_IDS] as usize;
                    ids.get_mut(..count)?.copy_from_slice(&inline[..count]);
                    return Some(count);
                }
            }
        };
        let count = range.len();
        match (ids.first_chunk_mut::<SOME>(), self.long.arena[range.start..].first_chunk()) {
            // As above: a copy of fixed width, whose excess is overwritten.
            (Some(some), Some(from)) if count <= SOME => *some = *from,
            _ => ids.get_mut(..count)?.copy_from_slice(&self.long.arena[range]),
        }
        Some(count)
    }

    /// Caches the ids of a piece.
    pub(crate) fn put(&mut self, probe: &Probe, piece: &[u8], ids: &[u32]) {
        if piece.len() > MAX_PIECE {
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
            entry = [at, ids.len() as u32, self.long.generation, IN_ARENA];
        }
        self.short.put(probe, entry);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// Ids that only this piece has.
    fn ids_of(piece: &[u8], is_fragment: bool) -> Vec<u32> {
        let count = piece[0] as usize % 6 + usize::from(is_fragment);
        let id = |i| piece.iter().fold(i, |id: u32, &byte| id.wrapping_mul(31).wrapping_add(u32::from(byte)));
        (0..=count as u32).map(id).collect()
    }

    proptest! {
        #[test]
        fn cached_ids_are_right(
            pieces in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..40), any::<bool>()), 1..400),
            limit in prop_oneof![Just(0), Just(1 << 20)],
        ) {
            let mut cache = PieceCache::new(limit);
            for (piece, is_fragment) in pieces.iter().chain(&pieces) {
                let is_fragment = *is_fragment && piece.len() <= INLINE_BYTES;
                let probe = if is_fragment { Probe::of_fragment(piece) } else { Probe::new(piece, 0, piece.len()) };
                let expected = ids_of(piece, is_fragment);
                for room in [2, 4, 9, MAX_PIECE] {
                    let (mut run, mut misses) = (vec![0; room], Vec::new());
                    let (pieces, count) = cache.get_run(piece, 0, &[piece.len()], &[probe], &mut run, &mut misses);
                    prop_assert!(pieces == 1 || room < MAX_PIECE);
                    if pieces == 1 && misses.is_empty() {
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
    fn entries_stay_within_the_limit_and_memory_below_it() {
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
                // A full bucket whose neighbour is full as well may have lost an entry.
                assert!(found.count() > 9_950);
            }
        }
        let bytes =
            cache.short.words.capacity() * 8 + cache.long.slots.capacity() * 16 + cache.long.arena.capacity() * 4;
        // The words before the base of the short table are never touched.
        assert!(bytes <= limit + (3 << 20), "{bytes} bytes");
    }

    #[test]
    fn a_probe_does_not_depend_on_the_text_after_the_piece() {
        let text = b"a few words, then more of them";
        for end in 1..text.len() {
            for start in end.saturating_sub(15)..end {
                assert_eq!(Probe::new(&text[..end], start, end), Probe::new(text, start, end), "{start}..{end}");
            }
        }
    }
}

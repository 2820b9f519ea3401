//! Ordinary text to ids: pieces from the splitter, ids from the cache or from BPE.

use crate::cache::{IDS_A_PIECE, LONGEST, PieceCache, Probe};
use crate::inline_key::INLINE_BYTES;
use crate::interrupt::Interrupt;
use crate::merge::{FEW, Merger};
use crate::pretokenize::Pretokenizer;
use crate::unmergeable::UnmergeableBoundaries;
use crate::vocab::Vocab;
use crate::{Error, Result};
use bpe_llama_simd::huge_pages;

/// How many pieces the splitter hands over at a time.
const BATCH: usize = 1024;

/// Batches between two interrupt checks: a megabyte or so of text. Regexes make checks of their own.
const PAUSE_EVERY: u64 = 256;

/// Where ids go.
pub(crate) trait Sink {
    fn take(&mut self, ids: &[u32]);
}

impl Sink for Vec<u32> {
    #[inline]
    fn take(&mut self, ids: &[u32]) {
        self.extend_from_slice(ids);
    }
}

/// Only counts.
#[derive(Default)]
pub(crate) struct Counter(pub(crate) usize);

impl Sink for Counter {
    #[inline]
    fn take(&mut self, ids: &[u32]) {
        self.0 += ids.len();
    }
}

/// Returns memory for about as many ids as so many bytes of text become.
pub(crate) fn room_for_ids(bytes: usize) -> Vec<u32> {
    let mut ids = Vec::with_capacity(bytes / 3 + 8);
    huge_pages::advise(ids.spare_capacity_mut());
    ids
}

/// What a thread needs to encode, reused from call to call: nothing is allocated once it is warm.
pub(crate) struct Scratch {
    cache: PieceCache,
    cache_limit: usize,
    merger: Merger,
    ends: Vec<usize>,
    probes: Vec<Probe>,
    /// The ids of a run of known pieces; of one other piece.
    run: Vec<u32>,
    ids: Vec<u32>,
}

impl Scratch {
    /// Returns scratch memory whose cache takes at most about `cache_limit` bytes.
    pub(crate) fn new(cache_limit: usize) -> Self {
        Self {
            cache: PieceCache::new(cache_limit),
            cache_limit,
            merger: Merger::default(),
            ends: Vec::with_capacity(BATCH),
            probes: vec![Probe::default(); BATCH],
            run: vec![0; BATCH * IDS_A_PIECE + LONGEST],
            ids: Vec::new(),
        }
    }

    pub(crate) fn cache_limit(&self) -> usize {
        self.cache_limit
    }
}

/// The parts of a tokenizer that ordinary text needs.
#[derive(Clone, Copy)]
pub(crate) struct Encoder<'a> {
    pub(crate) vocab: &'a Vocab,
    pub(crate) pretokenizer: &'a Pretokenizer,
    pub(crate) boundaries: &'a UnmergeableBoundaries,
    pub(crate) interrupt: Interrupt<'a>,
}

impl Encoder<'_> {
    /// Hands the ids of `text` to `sink`, piece by piece.
    pub(crate) fn encode<S: Sink>(&self, text: &str, scratch: &mut Scratch, sink: &mut S) -> Result<()> {
        let bytes = text.as_bytes();
        let mut start = 0;
        for batch in 1u64.. {
            if batch % PAUSE_EVERY == 0 {
                self.interrupt.check()?;
            }
            scratch.ends.clear();
            self.pretokenizer.fill_ends_interruptible(text, start, &mut scratch.ends, self.interrupt)?;
            let count = scratch.ends.len();
            if count == 0 {
                break;
            }
            if count > scratch.probes.len() {
                // A sequence of patterns may give more than was asked for.
                scratch.probes.resize(count, Probe::default());
            }
            scratch.cache.prepare(bytes, start, &scratch.ends, &mut scratch.probes);
            let mut done = 0;
            while done < count {
                let Scratch { cache, ends, probes, run, .. } = scratch;
                let (pieces, ids) = cache.get_run(bytes, start, &ends[done..], &probes[done..count], run);
                sink.take(&run[..ids]);
                done += pieces;
                start = if pieces > 0 { ends[done - 1] } else { start };
                if done < count {
                    let end = ends[done];
                    self.rarer_piece(&bytes[start..end], scratch.probes[done], scratch)?;
                    sink.take(&scratch.ids);
                    (start, done) = (end, done + 1);
                }
            }
        }
        Ok(())
    }

    /// Leaves the ids of a piece in `scratch.ids`, from the cache if they are there.
    #[inline(never)]
    fn rarer_piece(&self, piece: &[u8], probe: Probe, scratch: &mut Scratch) -> Result<()> {
        scratch.ids.clear();
        if let Some(count) = scratch.cache.get(&probe, piece, &mut scratch.run) {
            scratch.ids.extend_from_slice(&scratch.run[..count]);
            return Ok(());
        }
        self.compute(piece, scratch)?;
        scratch.cache.put(&probe, piece, &scratch.ids);
        Ok(())
    }

    /// Leaves the ids of a whole piece in `scratch.ids`.
    fn compute(&self, piece: &[u8], scratch: &mut Scratch) -> Result<()> {
        if self.vocab.whole_piece_first()
            && let Some(id) = self.vocab.bytes_to_id(piece)
        {
            scratch.ids.push(id);
            return Ok(());
        }
        // What stands on both sides of bytes that are left out meets, so such a piece is not cut.
        let leaves_out = || piece.iter().any(|&byte| self.vocab.byte_id(byte).is_none());
        if piece.len() <= INLINE_BYTES || (self.vocab.drops_unknown() && leaves_out()) {
            return self.merge(piece, scratch);
        }
        // No merge crosses these cuts, so what lies between can be encoded, and remembered, alone.
        let mut rest = piece;
        while let Some(cut) = self.boundaries.next_cut(rest) {
            let (unit, after) = rest.split_at(cut);
            self.unit(unit, scratch)?;
            rest = after;
        }
        self.unit(rest, scratch)
    }

    /// Appends to `scratch.ids` those of a part of a piece that no merge leaves.
    ///
    /// That the part is itself a token plays no role, so it is remembered apart from whole pieces.
    fn unit(&self, unit: &[u8], scratch: &mut Scratch) -> Result<()> {
        if unit.len() > INLINE_BYTES || unit.len() <= FEW {
            return self.merge(unit, scratch);
        }
        let probe = Probe::of_part(unit);
        if let Some(count) = scratch.cache.get(&probe, unit, &mut scratch.run) {
            scratch.ids.extend_from_slice(&scratch.run[..count]);
            return Ok(());
        }
        let begin = scratch.ids.len();
        self.merge(unit, scratch)?;
        scratch.cache.put(&probe, unit, &scratch.ids[begin..]);
        Ok(())
    }

    /// Appends to `scratch.ids` those that merging leaves of a piece.
    #[inline]
    fn merge(&self, piece: &[u8], scratch: &mut Scratch) -> Result<()> {
        let begin = scratch.ids.len();
        if let Err(error) = scratch.merger.merge(self.vocab, piece, &mut scratch.ids) {
            return self.merge_known(piece, begin, error, scratch);
        }
        self.vocab.fall_back(&mut scratch.ids, begin);
        Ok(())
    }

    /// Merges a piece without the bytes that are no tokens, where the vocabulary drops these; else it is an error.
    #[cold]
    #[inline(never)]
    fn merge_known(&self, piece: &[u8], begin: usize, error: Error, scratch: &mut Scratch) -> Result<()> {
        if !self.vocab.drops_unknown() {
            return Err(error);
        }
        scratch.ids.truncate(begin);
        let known: Vec<u8> = piece.iter().copied().filter(|&byte| self.vocab.byte_id(byte).is_some()).collect();
        if known.is_empty() { Ok(()) } else { scratch.merger.merge(self.vocab, &known, &mut scratch.ids) }
    }

    /// Hands over the ids of bytes that need not be UTF-8, taken as one piece.
    pub(crate) fn bytes<S: Sink>(&self, piece: &[u8], scratch: &mut Scratch, sink: &mut S) -> Result<()> {
        scratch.ids.clear();
        match self.vocab.bytes_to_id(piece).filter(|_| self.vocab.whole_piece_first()) {
            Some(id) => scratch.ids.push(id),
            None => self.merge(piece, scratch)?,
        }
        sink.take(&scratch.ids);
        Ok(())
    }
}

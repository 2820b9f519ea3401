//! Ordinary text to ids: pieces from the splitter, ids from the cache or from BPE.

use crate::Result;
use crate::batch::Pause;
use crate::boundaries::Boundaries;
use crate::cache::{LONG_BYTES, PieceCache, SHORT_BYTES, long_key, short_key};
use crate::merge::Merger;
use crate::pretokenize::Pretokenizer;
use crate::vocab::Vocab;

/// How many pieces the splitter hands over at a time.
const BATCH: usize = 256;

/// Batches between two pauses: a megabyte or so of text.
const PAUSE_EVERY: u64 = 1024;

/// Where ids go.
pub(crate) trait Sink {
    /// Takes the first `count` of `ids`.
    fn take(&mut self, ids: &[u32], count: usize);
    /// Takes the first `count` of a short array: cheaper than a slice of unknown length.
    fn take_few<const N: usize>(&mut self, ids: [u32; N], count: usize);
}

impl Sink for Vec<u32> {
    #[inline]
    fn take(&mut self, ids: &[u32], count: usize) {
        self.extend_from_slice(&ids[..count]);
    }

    #[inline]
    fn take_few<const N: usize>(&mut self, ids: [u32; N], count: usize) {
        // One store of fixed width, then the length is put right.
        let length = self.len() + count;
        self.extend_from_slice(&ids);
        self.truncate(length);
    }
}

/// Only counts.
#[derive(Default)]
pub(crate) struct Counter(pub(crate) usize);

impl Sink for Counter {
    fn take(&mut self, _: &[u32], count: usize) {
        self.0 += count;
    }

    #[inline]
    fn take_few<const N: usize>(&mut self, _: [u32; N], count: usize) {
        self.0 += count;
    }
}

/// What a thread needs to encode, reused from call to call: nothing is allocated once it is warm.
#[derive(Default)]
pub(crate) struct Scratch {
    cache: PieceCache,
    merger: Merger,
    ends: Vec<usize>,
    ids: Vec<u32>,
}

/// Hands over the ids of short pieces from the cache, up to the first that is not there; returns how many there were.
///
/// `start` is moved on to the end of the last. Kept apart from the rest so that its few values stay in registers.
#[inline(never)]
fn known_pieces<S: Sink>(cache: &PieceCache, bytes: &[u8], start: &mut usize, ends: &[usize], sink: &mut S) -> usize {
    let mut begin = *start;
    for (i, &end) in ends.iter().enumerate() {
        let length = end - begin;
        let ids = if length <= SHORT_BYTES { cache.get_short(short_key(bytes, begin, length, false)) } else { None };
        let Some(ids) = ids else {
            *start = begin;
            return i;
        };
        sink.take_few(ids, ids[3] as usize);
        begin = end;
    }
    *start = begin;
    ends.len()
}

/// The parts of a tokenizer that ordinary text needs.
#[derive(Clone, Copy)]
pub(crate) struct Encoder<'a> {
    pub(crate) vocab: &'a Vocab,
    pub(crate) pretokenizer: &'a Pretokenizer,
    pub(crate) boundaries: &'a Boundaries,
    pub(crate) pause: Pause<'a>,
}

impl Encoder<'_> {
    /// Hands the ids of `text` to `sink`, piece by piece.
    pub(crate) fn encode<S: Sink>(&self, text: &str, scratch: &mut Scratch, sink: &mut S) -> Result<()> {
        let mut ends = std::mem::take(&mut scratch.ends);
        ends.reserve_exact(BATCH);
        let result = self.encode_batches(text, &mut ends, scratch, sink);
        scratch.ends = ends;
        result
    }

    fn encode_batches<S: Sink>(
        &self,
        text: &str,
        ends: &mut Vec<usize>,
        scratch: &mut Scratch,
        sink: &mut S,
    ) -> Result<()> {
        let bytes = text.as_bytes();
        let mut start = 0;
        for batch in 1u64.. {
            if batch % PAUSE_EVERY == 0 {
                self.pause.ask()?;
            }
            ends.clear();
            self.pretokenizer.fill_ends(text, start, ends)?;
            if ends.is_empty() {
                return Ok(());
            }
            let mut rest = &ends[..];
            while !rest.is_empty() {
                let known = known_pieces(&scratch.cache, bytes, &mut start, rest, sink);
                if let Some(&end) = rest.get(known) {
                    self.rarer_piece(&bytes[start..end], scratch, sink)?;
                    start = end;
                }
                rest = &rest[rest.len().min(known + 1)..];
            }
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn rarer_piece<S: Sink>(&self, piece: &[u8], scratch: &mut Scratch, sink: &mut S) -> Result<()> {
        match piece.len() {
            0..=SHORT_BYTES => {
                self.compute(piece, scratch)?;
                scratch.cache.put_short(short_key(piece, 0, piece.len(), false), &scratch.ids);
            }
            16..=LONG_BYTES => {
                let key = long_key(piece);
                if let Some(ids) = scratch.cache.get_long(key) {
                    sink.take_few(ids, ids[7] as usize);
                    return Ok(());
                }
                self.compute(piece, scratch)?;
                scratch.cache.put_long(key, &scratch.ids);
            }
            _ => self.compute(piece, scratch)?,
        }
        sink.take(&scratch.ids, scratch.ids.len());
        Ok(())
    }

    /// Leaves the ids of a whole piece in `scratch.ids`.
    fn compute(&self, piece: &[u8], scratch: &mut Scratch) -> Result<()> {
        scratch.ids.clear();
        if self.vocab.whole_piece_first()
            && let Some(id) = self.vocab.bytes_to_id(piece)
        {
            scratch.ids.push(id);
            return Ok(());
        }
        if piece.len() <= SHORT_BYTES {
            return scratch.merger.merge(self.vocab, piece, &mut scratch.ids);
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
        if unit.len() > SHORT_BYTES {
            return scratch.merger.merge(self.vocab, unit, &mut scratch.ids);
        }
        let key = short_key(unit, 0, unit.len(), true);
        if let Some(ids) = scratch.cache.get_short(key) {
            scratch.ids.take_few(ids, ids[3] as usize);
            return Ok(());
        }
        let begin = scratch.ids.len();
        scratch.merger.merge(self.vocab, unit, &mut scratch.ids)?;
        scratch.cache.put_short(key, &scratch.ids[begin..]);
        Ok(())
    }

    /// Hands over the ids of bytes that need not be UTF-8, taken as one piece.
    pub(crate) fn bytes<S: Sink>(&self, piece: &[u8], scratch: &mut Scratch, sink: &mut S) -> Result<()> {
        scratch.ids.clear();
        match self.vocab.bytes_to_id(piece).filter(|_| self.vocab.whole_piece_first()) {
            Some(id) => scratch.ids.push(id),
            None => scratch.merger.merge(self.vocab, piece, &mut scratch.ids)?,
        }
        sink.take(&scratch.ids, scratch.ids.len());
        Ok(())
    }
}

//! Ordinary text to ids: the pre-tokenizer yields pieces, the cache or byte-pair encoding their ids.

mod options;
mod scratch;
mod sink;
mod unmergeable;

pub use self::options::EncodeOptions;
pub(crate) use self::scratch::Scratch;
pub(crate) use self::sink::{CountSink, Sink, reserve_ids};
pub(crate) use self::unmergeable::UnmergeableBoundaries;

use crate::cache::{Miss, Probe};
use crate::inline_key::INLINE_BYTES;
use crate::interrupt::Interrupt;
use crate::merge::{GROUP, TINY_BYTES, WIDTH, merge_group};
use crate::pretokenize::{Patience, Pretokenizer};
use crate::vocab::Vocab;
use crate::{Error, Result};

/// Batches of pieces between two interrupt checks: about a megabyte of text. Regex engines check more often.
const CHECK_EVERY: u64 = 256;

/// The parts of a tokenizer that encode ordinary text.
#[derive(Clone, Copy)]
pub(crate) struct Encoder<'a> {
    pub(crate) vocab: &'a Vocab,
    pub(crate) pretokenizer: &'a Pretokenizer,
    pub(crate) boundaries: &'a UnmergeableBoundaries,
    pub(crate) interrupt: Interrupt<'a>,
}

impl Encoder<'_> {
    /// Passes the ids of `text` to `sink`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a byte has no token, or a regex backtracks beyond its bound; what the interrupt check
    /// returns.
    pub(crate) fn encode<S: Sink>(&self, text: &str, scratch: &mut Scratch, sink: &mut S) -> Result<()> {
        if self.pretokenizer.drops_unmatched() {
            return self.encode_matches(text, scratch, sink);
        }
        let bytes = text.as_bytes();
        let patience = Patience::new(text, self.interrupt);
        let mut start = 0;
        for batch in 1u64.. {
            if batch % CHECK_EVERY == 0 {
                self.interrupt.check()?;
            }
            scratch.ends.clear();
            self.pretokenizer.fill_ends_patiently(text, start, &mut scratch.ends, &patience)?;
            patience.pause();
            let count = scratch.ends.len();
            if count == 0 {
                break;
            }
            if count > scratch.probes.len() {
                // A sequence of patterns may exceed the capacity of `ends`.
                scratch.probes.resize(count, Probe::default());
            }
            scratch.cache.prepare(bytes, start, &scratch.ends, &mut scratch.probes);
            let mut done = 0;
            while done < count {
                let Scratch { cache, ends, probes, run, misses, .. } = &mut *scratch;
                misses.clear();
                let (pieces, ids) = cache.get_run(bytes, start, &ends[done..], &probes[done..count], run, misses);
                done += pieces;
                start = ends[done - 1];
                if misses.is_empty() {
                    sink.take(&run[..ids]);
                } else {
                    self.encode_misses(bytes, ids, scratch, sink)?;
                }
            }
        }
        Ok(())
    }

    /// Passes ids to `sink`: the first `count` of `scratch.run`, and those of the misses between them.
    #[cold]
    #[inline(never)]
    fn encode_misses<S: Sink>(&self, bytes: &[u8], count: usize, scratch: &mut Scratch, sink: &mut S) -> Result<()> {
        let misses = std::mem::take(&mut scratch.misses);
        self.merge_ahead(bytes, &misses, scratch);
        let mut taken = 0;
        for miss in &misses {
            sink.take(&scratch.run[taken..miss.ids_before]);
            taken = miss.ids_before;
            self.cached_or_encode(&bytes[miss.begin..miss.end], miss.probe, scratch)?;
            sink.take(&scratch.ids);
        }
        sink.take(&scratch.run[taken..count]);
        scratch.misses = misses;
        Ok(())
    }

    /// Caches the ids of those misses that can be merged in groups.
    fn merge_ahead(&self, bytes: &[u8], misses: &[Miss], scratch: &mut Scratch) {
        if self.vocab.byte_fallback().is_some() {
            return;
        }
        let (mut narrow, mut wide) = (Vec::with_capacity(misses.len()), Vec::new());
        for miss in misses {
            let piece = &bytes[miss.begin..miss.end];
            if piece.len() <= TINY_BYTES || piece.len() > WIDTH {
                continue;
            }
            if self.vocab.whole_piece_first()
                && let Some(id) = self.vocab.bytes_to_id(piece)
            {
                scratch.cache.put(&miss.probe, piece, &[id]);
            } else if piece.len() <= INLINE_BYTES {
                narrow.push(miss);
            } else if self.boundaries.next(piece).is_none() {
                wide.push(miss);
            }
        }
        let Scratch { cache, group: (ids, ends), .. } = scratch;
        for group in narrow.chunks(GROUP).chain(wide.chunks(GROUP)).filter(|group| group.len() > 1) {
            let mut pieces: [&[u8]; GROUP] = [&[]; GROUP];
            pieces.iter_mut().zip(group).for_each(|(piece, miss)| *piece = &bytes[miss.begin..miss.end]);
            ids.clear();
            ends.clear();
            // A byte without an id is reported, or dropped, when its piece's turn comes.
            if merge_group(self.vocab, &pieces[..group.len()], ids, ends).is_ok() {
                let mut begin = 0;
                for ((miss, piece), &end) in group.iter().zip(pieces).zip(&*ends) {
                    cache.put(&miss.probe, piece, &ids[begin..end]);
                    begin = end;
                }
            }
        }
    }

    /// Passes the ids of the matches in `text` to `sink`, where text between matches is dropped.
    #[inline(never)]
    fn encode_matches<S: Sink>(&self, text: &str, scratch: &mut Scratch, sink: &mut S) -> Result<()> {
        let mut result = Ok(());
        self.pretokenizer.each_piece(text, self.interrupt, |start, end| {
            if result.is_ok() {
                result = self.encode_bytes(&text.as_bytes()[start..end], scratch, sink);
            }
        })?;
        result
    }

    /// Writes the ids of a piece to `scratch.ids`, from the cache if it has them.
    #[inline(never)]
    fn cached_or_encode(&self, piece: &[u8], probe: Probe, scratch: &mut Scratch) -> Result<()> {
        scratch.clear_ids();
        if let Some(count) = scratch.cache.get(&probe, piece, &mut scratch.cached) {
            scratch.ids.extend_from_slice(&scratch.cached[..count]);
            return Ok(());
        }
        self.encode_piece(piece, scratch)?;
        scratch.cache.put(&probe, piece, &scratch.ids);
        Ok(())
    }

    /// Writes the ids of a whole piece to `scratch.ids`.
    fn encode_piece(&self, piece: &[u8], scratch: &mut Scratch) -> Result<()> {
        if self.vocab.whole_piece_first()
            && let Some(id) = self.vocab.bytes_to_id(piece)
        {
            scratch.ids.push(id);
            return Ok(());
        }
        // Dropping a byte makes its neighbours adjacent, so a piece with unknown bytes is not split.
        let has_unknown = || piece.iter().any(|&byte| self.vocab.byte_id(byte).is_none());
        if piece.len() <= INLINE_BYTES || (self.vocab.drops_unknown() && has_unknown()) {
            return self.merge(piece, scratch);
        }
        // No merge crosses these boundaries, so each fragment between them can be encoded and cached alone.
        let mut rest = piece;
        while let Some(at) = self.boundaries.next(rest) {
            let (fragment, after) = rest.split_at(at);
            self.encode_fragment(fragment, scratch)?;
            rest = after;
        }
        self.encode_fragment(rest, scratch)
    }

    /// Appends the ids of a fragment between unmergeable boundaries to `scratch.ids`.
    ///
    /// Unlike a whole piece, a fragment that is a token does not become that token at once, so its cache entry is separate.
    fn encode_fragment(&self, fragment: &[u8], scratch: &mut Scratch) -> Result<()> {
        if let Ok(character) = fragment.try_into() {
            if !scratch.characters.get(character, &mut scratch.ids) {
                let begin = scratch.ids.len();
                self.merge(fragment, scratch)?;
                scratch.characters.put(character, &scratch.ids[begin..]);
            }
            return Ok(());
        }
        if fragment.len() > INLINE_BYTES || fragment.len() <= TINY_BYTES {
            return self.merge(fragment, scratch);
        }
        let probe = Probe::of_fragment(fragment);
        if let Some(count) = scratch.cache.get(&probe, fragment, &mut scratch.cached) {
            scratch.ids.extend_from_slice(&scratch.cached[..count]);
            return Ok(());
        }
        let begin = scratch.ids.len();
        self.merge(fragment, scratch)?;
        scratch.cache.put(&probe, fragment, &scratch.ids[begin..]);
        Ok(())
    }

    /// Appends the ids that merging produces from a piece to `scratch.ids`.
    #[inline]
    fn merge(&self, piece: &[u8], scratch: &mut Scratch) -> Result<()> {
        let begin = scratch.ids.len();
        if let Err(error) = scratch.merger.merge(self.vocab, piece, self.interrupt, &mut scratch.ids) {
            return self.merge_without_unknown(piece, begin, error, scratch);
        }
        self.vocab.fall_back(&mut scratch.ids, begin);
        Ok(())
    }

    /// Merges a piece without its unknown bytes if the vocabulary drops them; returns `error` if it does not.
    #[cold]
    #[inline(never)]
    fn merge_without_unknown(&self, piece: &[u8], begin: usize, error: Error, scratch: &mut Scratch) -> Result<()> {
        if !self.vocab.drops_unknown() {
            return Err(error);
        }
        scratch.ids.truncate(begin);
        let known: Vec<u8> = piece.iter().copied().filter(|&byte| self.vocab.byte_id(byte).is_some()).collect();
        if known.is_empty() {
            Ok(())
        } else {
            scratch.merger.merge(self.vocab, &known, self.interrupt, &mut scratch.ids)
        }
    }

    /// Passes the ids of bytes that need not be UTF-8 to `sink`, as one piece.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a byte has no token.
    pub(crate) fn encode_bytes<S: Sink>(&self, piece: &[u8], scratch: &mut Scratch, sink: &mut S) -> Result<()> {
        match self.vocab.bytes_to_id(piece).filter(|_| self.vocab.whole_piece_first()) {
            Some(id) => sink.take(&[id]),
            None => self.merge_bytes(piece, scratch, sink)?,
        }
        Ok(())
    }

    /// Passes the ids that merging produces from bytes to `sink`, also where the bytes are a token.
    ///
    /// # Errors
    /// As [`Encoder::encode_bytes`].
    pub(crate) fn merge_bytes<S: Sink>(&self, piece: &[u8], scratch: &mut Scratch, sink: &mut S) -> Result<()> {
        scratch.ids.clear();
        self.merge(piece, scratch)?;
        sink.take(&scratch.ids);
        Ok(())
    }
}

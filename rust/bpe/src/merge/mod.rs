//! Byte-pair encoding of one piece: bytes to ids, merging the best adjacent pair first.
//!
//! | piece | file | method |
//! |---|---|---|
//! | up to 4 bytes | `tiny.rs` | one merge at a time, in registers |
//! | up to 64 bytes | `windows.rs` | one merge at a time, in arrays on the stack, with SIMD searches; several pieces interleaved |
//! | longer | this file, `windows.rs` | segments of several overlapping windows, merged in parallel and concatenated |
//! | without a seam nearby | `passes.rs` | wider segments, one rank a pass |
//! | without any seam | `heap.rs` | the whole piece, with a heap |
//!
//! **Theorem.** Two encodings can be concatenated if re-encoding the two tokens at the seam returns the same two tokens.
//! So a long piece is encoded segment by segment in linear time. Tests hold every method to the definition.
//!
//! `derive.rs` uses the merger to derive the merges of vocabularies that are given as ranked tokens.

mod derive;
mod heap;
mod passes;
mod splits;
#[cfg(test)]
mod tests;
mod tiny;
mod windows;

pub(crate) use self::tiny::TINY_BYTES;
pub(crate) use self::windows::{GROUP, WIDTH, merge_group};

use self::heap::merge_by_heap;
use self::passes::Passes;
use self::tiny::merge_tiny;
use crate::Result;
use crate::interrupt::Interrupt;
use crate::memory::reserve;
use crate::vocab::Vocab;

/// The widest segment, in bytes; beyond it the heap encodes the whole piece.
const MAX_WIDTH: usize = 1 << 14;

/// Failed seams in a row before the segments are widened.
const MAX_RETRIES: usize = 4;

/// Byte-pair encoder of single pieces, with scratch memory that is reused from piece to piece.
#[derive(Debug, Default, Clone)]
pub(crate) struct Merger {
    passes: Passes,
    /// The bytes of two tokens at a seam, and their encoding.
    seam_bytes: Vec<u8>,
    seam_ids: Vec<u32>,
    /// The last two tokens tried at a seam, and whether they remain two: runs of one letter repeat the question.
    last_seam: Option<(u32, u32, bool)>,
}

impl Merger {
    /// Appends the ids of one piece to `out`: the lowest-ranked adjacent pair is merged until none is left.
    ///
    /// Equal ranks merge left to right, so the result is unique. A piece that is a token gets no special treatment.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if a byte of `piece` has no id, or the error of the
    /// interrupt check, which a long piece makes; `out` is then unchanged.
    ///
    /// # Cost
    /// Linear in `piece.len()`, but `O(n log n)` for a piece that needs the heap.
    ///
    /// # Source
    /// Sennrich et al. 2016, arXiv:1508.07909, section 3.2. Concatenation of encodings: A. Neubeck and H. van Antwerpen,
    /// "So many tokens, so little time", GitHub 2024.
    pub(crate) fn merge(
        &mut self,
        vocab: &Vocab,
        piece: &[u8],
        interrupt: Interrupt<'_>,
        out: &mut Vec<u32>,
    ) -> Result<()> {
        if piece.len() <= TINY_BYTES {
            return merge_tiny(vocab, piece, out);
        }
        if piece.len() <= windows::WIDTH {
            return windows::merge_prefix(vocab, piece, out).map(drop);
        }
        let begin = out.len();
        let result = self.merge_by_segments(vocab, piece, interrupt, out);
        if result.is_err() {
            out.truncate(begin);
        }
        result
    }

    /// Encodes segment after segment, concatenated at seams where the adjacent tokens re-encode to themselves.
    fn merge_by_segments(
        &mut self,
        vocab: &Vocab,
        piece: &[u8],
        interrupt: Interrupt<'_>,
        out: &mut Vec<u32>,
    ) -> Result<()> {
        let begin = out.len();
        self.last_seam = None;
        // `out[begin..]` always encodes `piece[..start]`.
        let (mut start, mut furthest, mut retries, mut width) = (0, 0, 0, windows::SPAN);
        // The previous segment: its bytes, how many of them are encoded, and the range of their ids in `out`.
        let (mut previous, mut covered, mut known): (&[u8], _, _) = (&[], 0, 0..0);
        let mut segments = 0..;
        while start < piece.len() {
            interrupt.check_at(segments.next().unwrap_or(0))?;
            reserve(out, width);
            let rest = &piece[start..];
            let seam = out.len();
            if rest.len() > width && rest[..width] == *previous {
                out.extend_from_within(known.clone());
            } else {
                covered = self.merge_segment(vocab, rest, width, out)?;
            }
            if seam > begin && !self.can_concatenate(vocab, out[seam - 1], out[seam])? {
                // The seam is no token boundary of the whole piece: step back a token; after some retries widen the window.
                out.truncate(seam);
                start -= out.pop().map_or(0, |id| token_len(vocab, id));
                (previous, retries) = (&[], retries + 1);
                if retries > MAX_RETRIES {
                    (retries, width) = (0, width * 4);
                }
                if width > MAX_WIDTH {
                    out.truncate(begin);
                    return merge_by_heap(vocab, piece, interrupt, out);
                }
                continue;
            }
            (previous, known) = (&rest[..width.min(rest.len())], seam..out.len());
            start += covered;
            if start > furthest {
                (furthest, retries) = (start, 0);
            }
        }
        Ok(())
    }

    /// Appends the ids of a prefix of `rest`, encoding its first `width` bytes, and returns the length of that prefix.
    fn merge_segment(&mut self, vocab: &Vocab, rest: &[u8], width: usize, out: &mut Vec<u32>) -> Result<usize> {
        if width <= windows::SPAN || rest.len() <= windows::WIDTH {
            return windows::merge_prefix(vocab, rest, out);
        }
        let seam = out.len();
        self.passes.merge(vocab, &rest[..width.min(rest.len())], out)?;
        if width >= rest.len() {
            return Ok(rest.len());
        }
        // The last quarter may merge with the bytes after it: the next segment encodes it again.
        let (mut covered, mut kept) = (0, seam);
        while kept < out.len() && (kept == seam || covered + token_len(vocab, out[kept]) <= width * 3 / 4) {
            covered += token_len(vocab, out[kept]);
            kept += 1;
        }
        out.truncate(kept);
        Ok(covered)
    }

    /// Returns whether re-encoding the bytes of two adjacent tokens returns the same two tokens.
    fn can_concatenate(&mut self, vocab: &Vocab, left: u32, right: u32) -> Result<bool> {
        if let Some((_, _, can)) = self.last_seam.filter(|&(a, b, _)| (a, b) == (left, right)) {
            return Ok(can);
        }
        let Self { passes, seam_bytes: bytes, seam_ids: ids, last_seam } = self;
        bytes.clear();
        bytes.extend_from_slice(vocab.symbol_bytes(left));
        bytes.extend_from_slice(vocab.symbol_bytes(right));
        ids.clear();
        if bytes.len() <= windows::WIDTH {
            windows::merge_prefix(vocab, bytes, ids)?;
        } else {
            passes.merge(vocab, bytes, ids)?;
        }
        let can = ids[..] == [left, right];
        *last_seam = Some((left, right, can));
        Ok(can)
    }
}

fn token_len(vocab: &Vocab, id: u32) -> usize {
    vocab.symbol_bytes(id).len()
}

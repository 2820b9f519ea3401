//! Byte-pair encoding by SentencePiece's rules: the pair whose piece has the highest score merges first, the leftmost
//! of equal scores.
//!
//! Merging begins with the characters of the text and its user-defined symbols. A pair merges if its concatenated text
//! is a piece. Candidate pairs are in a heap; a pair that an earlier merge invalidated is discarded when popped.

use std::collections::BinaryHeap;
use std::ops::Range;

use hashbrown::HashMap;

use super::normalizer::{character_len, too_long};
use super::piece::PieceKind;
use super::pieces::{Hashes, Pieces};
use super::prefix_trie::PrefixTrie;
use crate::Result;
use crate::interrupt::Interrupt;
use crate::utf8::char_len;

/// The maximum depth of unused pieces within unused pieces.
const MAX_DEPTH: usize = 100;

const NONE: u32 = u32::MAX;

/// The longest segment that is cached, in bytes, and the maximum number of cached segments.
const LONGEST_CACHED: usize = 48;
const MAX_CACHED: usize = 1 << 16;

/// The parts of a model that merging uses.
pub(super) struct Merges<'a> {
    pub(super) pieces: &'a Pieces,
    pub(super) user_defined: Option<&'a PrefixTrie>,
    /// A space in normalized text.
    pub(super) space: &'a [u8],
    pub(super) boundaries: Boundaries,
    /// Whether unused pieces are split into the pieces they were merged from.
    pub(super) splits_unused: bool,
    /// Whether each byte of invalid UTF-8 is a symbol, so that it round-trips.
    pub(super) keeps_bytes: bool,
    pub(super) interrupt: Interrupt<'a>,
}

/// The boundaries that no piece crosses: the segments between them merge independently.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Boundaries {
    /// Between a character other than a space and a space.
    pub(super) before_spaces: bool,
    /// Between a space and a character other than a space.
    pub(super) after_spaces: bool,
}

/// The id of a piece, or none for unknown text, and its length.
type Found = (Option<u32>, u32);

/// Scratch memory, reused from text to text.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    symbols: Vec<Symbol>,
    agenda: BinaryHeap<Pair>,
    hashes: Hashes,
    /// The two parts that each unused piece was last merged from.
    parts: HashMap<u32, [Range<u32>; 2]>,
    /// The pieces of segments, with their lengths.
    cache: HashMap<Box<[u8]>, Box<[Found]>>,
}

/// A range of the text. A merge extends the left symbol and empties the right one.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    begin: u32,
    length: u32,
    previous: u32,
    next: u32,
    /// The id of its piece, or [`NONE`].
    id: u32,
    is_user_defined: bool,
}

/// Two adjacent symbols whose concatenated text is a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pair {
    order: i32,
    left: u32,
    right: u32,
    /// The total length of the two symbols. Another length means that one of them has merged since.
    length: u32,
    id: u32,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order.cmp(&other.order).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Boundaries {
    fn is_any(self) -> bool {
        self.before_spaces || self.after_spaces
    }
}

impl Scratch {
    /// Returns whether the memory is small enough to be reused.
    pub(super) fn is_small(&self) -> bool {
        self.symbols.capacity() <= 1 << 20
    }
}

impl Merges<'_> {
    /// Calls `each` with the pieces of a normalized text in order and their ranges; `None` is unknown text.
    ///
    /// # Errors
    /// The error of the interrupt check; [`crate::Error::InvalidArgument`] for 4 GiB of text without a boundary.
    ///
    /// # Cost
    /// `O(n log n)` in the length of the longest segment between boundaries.
    ///
    /// # Source
    /// `bpe::Model::SampleEncode` in `src/bpe_model.cc` of SentencePiece 0.2.3, whose dropout is 0.
    pub(super) fn encode(
        &self,
        text: &[u8],
        scratch: &mut Scratch,
        each: &mut impl FnMut(Option<u32>, Range<usize>),
    ) -> Result<()> {
        let (mut at, mut begin) = (0, 0);
        let mut after_space = None;
        scratch.symbols.clear();
        for iteration in 0.. {
            if at == text.len() {
                break;
            }
            self.interrupt.check_at(iteration)?;
            let found = self.user_defined.map_or(0, |trie| trie.longest_match(&text[at..]));
            let length = match found {
                0 if self.keeps_bytes => character_len(&text[at..]).unwrap_or(1),
                0 => char_len(text[at]).min(text.len() - at),
                _ => found,
            };
            let is_space = found == 0 && text[at..].starts_with(self.space);
            let is_boundary = match after_space {
                Some(false) => is_space && self.boundaries.before_spaces,
                Some(true) => !is_space && self.boundaries.after_spaces,
                None => false,
            };
            if is_boundary {
                self.merge(text, begin, scratch, each)?;
                scratch.symbols.clear();
                begin = at;
            }
            if u32::try_from(at + length - begin).is_err() {
                return Err(too_long(at + length - begin));
            }
            let index = scratch.symbols.len() as u32;
            scratch.symbols.push(Symbol {
                begin: (at - begin) as u32,
                length: length as u32,
                previous: index.wrapping_sub(1),
                next: index + 1,
                id: NONE,
                is_user_defined: found > 0,
            });
            after_space = if found > 0 { None } else { Some(is_space) };
            at += length;
        }
        self.merge(text, begin, scratch, each)
    }

    /// Merges the symbols of the segment that begins at `start`, and calls `each` with the pieces.
    fn merge(
        &self,
        text: &[u8],
        start: usize,
        scratch: &mut Scratch,
        each: &mut impl FnMut(Option<u32>, Range<usize>),
    ) -> Result<()> {
        let Some(last) = scratch.symbols.last_mut() else { return Ok(()) };
        last.next = NONE;
        let end = (last.begin + last.length) as usize;
        let text = &text[start..start + end];
        if !self.boundaries.is_any() || end > LONGEST_CACHED {
            return self.merge_uncached(text, start, scratch, each);
        }
        let mut at = start;
        if let Some(cached) = scratch.cache.get(text) {
            for &(id, length) in cached {
                each(id, at..at + length as usize);
                at += length as usize;
            }
            return Ok(());
        }
        let mut found = Vec::new();
        self.merge_uncached(text, start, scratch, &mut |id, range| {
            found.push((id, range.len() as u32));
            each(id, range);
        })?;
        if scratch.cache.len() == MAX_CACHED {
            scratch.cache.clear();
        }
        scratch.cache.insert(text.into(), found.into());
        Ok(())
    }

    fn merge_uncached(
        &self,
        text: &[u8],
        start: usize,
        scratch: &mut Scratch,
        each: &mut dyn FnMut(Option<u32>, Range<usize>),
    ) -> Result<()> {
        scratch.hashes.compute(text);
        scratch.parts.clear();
        for (index, symbol) in scratch.symbols.iter_mut().enumerate() {
            self.interrupt.check_at(index)?;
            let id = scratch.hashes.id_of(self.pieces, text, symbol.begin as usize, symbol.length as usize);
            symbol.id = id.unwrap_or(NONE);
        }
        let mut pairs = std::mem::take(&mut scratch.agenda).into_vec();
        for right in 1..scratch.symbols.len() as u32 {
            self.interrupt.check_at(right as usize)?;
            pairs.extend(self.pair(text, scratch, right - 1, right));
        }
        scratch.agenda = pairs.into();
        for iteration in 0.. {
            self.interrupt.check_at(iteration)?;
            let Some(pair) = scratch.agenda.pop() else { break };
            let [left, right] = [pair.left, pair.right].map(|symbol| scratch.symbols[symbol as usize]);
            if left.length == 0 || right.length == 0 || left.length + right.length != pair.length {
                continue;
            }
            let merged = Symbol { length: pair.length, next: right.next, id: pair.id, ..left };
            scratch.symbols[pair.left as usize] = merged;
            scratch.symbols[pair.right as usize].length = 0;
            if right.next != NONE {
                scratch.symbols[right.next as usize].previous = pair.left;
            }
            for (left, right) in [(merged.previous, pair.left), (pair.left, merged.next)] {
                if left != NONE && right != NONE {
                    let pair = self.pair(text, scratch, left, right);
                    scratch.agenda.extend(pair);
                }
            }
        }
        let mut index = 0;
        for iteration in 0.. {
            if index == NONE {
                break;
            }
            self.interrupt.check_at(iteration)?;
            let symbol = scratch.symbols[index as usize];
            let range = symbol.begin..symbol.begin + symbol.length;
            self.emit(text, start, symbol.id, range, scratch, 0, each);
            index = symbol.next;
        }
        Ok(())
    }

    /// Returns the pair of two adjacent symbols, if their text is a piece.
    #[inline]
    fn pair(&self, text: &[u8], scratch: &mut Scratch, left: u32, right: u32) -> Option<Pair> {
        let symbols = [left, right].map(|symbol| scratch.symbols[symbol as usize]);
        if symbols.iter().any(|symbol| symbol.is_user_defined) {
            return None;
        }
        let [first, second] = symbols.map(|symbol| symbol.begin..symbol.begin + symbol.length);
        let length = second.end - first.start;
        let id = scratch.hashes.id_of(self.pieces, text, first.start as usize, length as usize)?;
        let kind = self.pieces.kind(id)?;
        if !is_text(kind) {
            return None;
        }
        if kind == PieceKind::Unused && self.splits_unused {
            scratch.parts.insert(id, [first, second]);
        }
        Some(Pair { order: self.pieces.order(id), left, right, length, id })
    }

    /// Calls `each` with the piece of a range of the text, or with the parts that an unused piece was merged from.
    #[expect(clippy::too_many_arguments, reason = "the state of a recursion")]
    fn emit(
        &self,
        text: &[u8],
        start: usize,
        id: u32,
        range: Range<u32>,
        scratch: &Scratch,
        depth: usize,
        each: &mut dyn FnMut(Option<u32>, Range<usize>),
    ) {
        let range_in_text = start + range.start as usize..start + range.end as usize;
        let kind = self.pieces.kind(id).filter(|&kind| is_text(kind));
        match (kind, scratch.parts.get(&id)) {
            (None, _) => each(None, range_in_text),
            (Some(PieceKind::Unused), parts) if self.splits_unused && depth <= MAX_DEPTH => match parts {
                None => each(None, range_in_text),
                Some(parts) => {
                    for part in parts {
                        let (begin, length) = (part.start as usize, part.len());
                        let id = scratch.hashes.id_of(self.pieces, text, begin, length).unwrap_or(NONE);
                        // The parts are of another occurrence of this text: shift them to this range.
                        let begin = range.start + (part.start - parts[0].start);
                        let range = begin..begin + length as u32;
                        self.emit(text, start, id, range, scratch, depth + 1, each);
                    }
                }
            },
            (Some(_), _) => each(Some(id), range_in_text),
        }
    }
}

/// Returns whether merges can result in a piece of this kind.
pub(super) fn is_text(kind: PieceKind) -> bool {
    matches!(kind, PieceKind::Normal | PieceKind::UserDefined | PieceKind::Unused)
}

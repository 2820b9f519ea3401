//! Byte-pair encoding as SentencePiece does it: the pair whose piece has the highest score is merged first, and of equal
//! scores the leftmost.
//!
//! Merging begins with the characters of the text and its user-defined symbols. A pair merges if its text is a piece,
//! whatever it was made of. Pairs wait in a heap; one that a merge has outdated is left out when its turn comes.

use std::collections::BinaryHeap;
use std::ops::Range;

use hashbrown::HashMap;

use super::normalizer::{character_len, too_long};
use super::pieces::{Hashes, Pieces};
use super::prefix_trie::PrefixTrie;
use crate::Result;
use crate::formats::PieceKind;
use crate::interrupt::Interrupt;

/// An unused piece is made of two that may be unused themselves, but not more often than this.
const DEEPEST: usize = 100;

const NONE: u32 = u32::MAX;

/// The longest part of a text that is remembered, in bytes, and how many are.
const LONGEST_KNOWN: usize = 48;
const MOST_KNOWN: usize = 1 << 16;

/// What merging needs to know of a model.
pub(super) struct Merges<'a> {
    pub(super) pieces: &'a Pieces,
    pub(super) user_defined: Option<&'a PrefixTrie>,
    /// What a space is in normalized text.
    pub(super) space: &'a [u8],
    pub(super) cuts: Cuts,
    /// Whether unused pieces are taken apart again.
    pub(super) splits_unused: bool,
    /// Whether a byte that is no UTF-8 stands alone, so that it comes back.
    pub(super) keeps_bytes: bool,
    pub(super) interrupt: Interrupt<'a>,
}

/// Where a text may be cut because no piece reaches across, so that what lies between is merged alone.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cuts {
    /// Between another character and a space after it.
    pub(super) before_spaces: bool,
    /// Between a space and another character after it.
    pub(super) after_spaces: bool,
}

/// A piece, or none, and its length.
type Found = (Option<u32>, u32);

/// Memory that is used again from text to text.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    symbols: Vec<Symbol>,
    agenda: BinaryHeap<Pair>,
    hashes: Hashes,
    /// What unused pieces were last found to be made of.
    parts: HashMap<u32, [Range<u32>; 2]>,
    /// What parts between cuts became: pieces and their lengths.
    known: HashMap<Box<[u8]>, Box<[Found]>>,
}

/// A part of the text. Merging makes the left one longer and empties the right one.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    begin: u32,
    length: u32,
    previous: u32,
    next: u32,
    /// The piece that it is, or [`NONE`].
    id: u32,
    is_user_defined: bool,
}

/// Two neighbours whose text is a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pair {
    order: i32,
    left: u32,
    right: u32,
    /// The length that the two had; another one now means that one of them was merged since.
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

impl Cuts {
    fn is_any(self) -> bool {
        self.before_spaces || self.after_spaces
    }
}

impl Scratch {
    /// Returns whether it is worth keeping.
    pub(super) fn is_small(&self) -> bool {
        self.symbols.capacity() <= 1 << 20
    }
}

impl Merges<'_> {
    /// Hands over the pieces of a normalized text in order, with their places in it; `None` is what no piece stands for.
    ///
    /// # Errors
    /// What the interrupt check returns; [`crate::Error::InvalidArgument`] for 4 GiB of text that cannot be cut.
    ///
    /// # Cost
    /// `O(n log n)` in the length of the longest part that no cut divides.
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
        for turn in 0.. {
            if at == text.len() {
                break;
            }
            self.interrupt.check_at(turn)?;
            let found = self.user_defined.map_or(0, |trie| trie.longest_match(&text[at..]));
            let length = match found {
                0 if self.keeps_bytes => character_len(&text[at..]).unwrap_or(1),
                0 => step_len(text[at]).min(text.len() - at),
                _ => found,
            };
            let is_space = found == 0 && text[at..].starts_with(self.space);
            let may_cut = match after_space {
                Some(false) => is_space && self.cuts.before_spaces,
                Some(true) => !is_space && self.cuts.after_spaces,
                None => false,
            };
            if may_cut {
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

    /// Merges the symbols of a part of the text that starts at `start`, and hands over what they become.
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
        if !self.cuts.is_any() || end > LONGEST_KNOWN {
            return self.merge_anew(text, start, scratch, each);
        }
        let mut at = start;
        if let Some(known) = scratch.known.get(text) {
            for &(id, length) in known {
                each(id, at..at + length as usize);
                at += length as usize;
            }
            return Ok(());
        }
        let mut found = Vec::new();
        self.merge_anew(text, start, scratch, &mut |id, range| {
            found.push((id, range.len() as u32));
            each(id, range);
        })?;
        if scratch.known.len() == MOST_KNOWN {
            scratch.known.clear();
        }
        scratch.known.insert(text.into(), found.into());
        Ok(())
    }

    fn merge_anew(
        &self,
        text: &[u8],
        start: usize,
        scratch: &mut Scratch,
        each: &mut dyn FnMut(Option<u32>, Range<usize>),
    ) -> Result<()> {
        scratch.hashes.read(text);
        scratch.parts.clear();
        for (turn, symbol) in scratch.symbols.iter_mut().enumerate() {
            self.interrupt.check_at(turn)?;
            let id = scratch.hashes.id_of(self.pieces, text, symbol.begin as usize, symbol.length as usize);
            symbol.id = id.unwrap_or(NONE);
        }
        let mut pairs = std::mem::take(&mut scratch.agenda).into_vec();
        for right in 1..scratch.symbols.len() as u32 {
            self.interrupt.check_at(right as usize)?;
            pairs.extend(self.pair(text, scratch, right - 1, right));
        }
        scratch.agenda = pairs.into();
        for turn in 0.. {
            self.interrupt.check_at(turn)?;
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
        for turn in 0.. {
            if index == NONE {
                break;
            }
            self.interrupt.check_at(turn)?;
            let symbol = scratch.symbols[index as usize];
            let range = symbol.begin..symbol.begin + symbol.length;
            self.hand_over(text, start, symbol.id, range, scratch, 0, each);
            index = symbol.next;
        }
        Ok(())
    }

    /// Returns what two neighbours would merge to.
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

    /// Hands over a part of the text that is this piece: an unused one in the parts it was made of.
    #[expect(clippy::too_many_arguments, reason = "the state of a recursion")]
    fn hand_over(
        &self,
        text: &[u8],
        start: usize,
        id: u32,
        range: Range<u32>,
        scratch: &Scratch,
        depth: usize,
        each: &mut dyn FnMut(Option<u32>, Range<usize>),
    ) {
        let place = start + range.start as usize..start + range.end as usize;
        let kind = self.pieces.kind(id).filter(|&kind| is_text(kind));
        match (kind, scratch.parts.get(&id)) {
            (None, _) => each(None, place),
            (Some(PieceKind::Unused), parts) if self.splits_unused && depth <= DEEPEST => match parts {
                None => each(None, place),
                Some(parts) => {
                    for part in parts {
                        let (begin, length) = (part.start as usize, part.len());
                        let id = scratch.hashes.id_of(self.pieces, text, begin, length).unwrap_or(NONE);
                        // The same text, elsewhere: its places are those of the piece that it is a part of.
                        let begin = range.start + (part.start - parts[0].start);
                        let range = begin..begin + length as u32;
                        self.hand_over(text, start, id, range, scratch, depth + 1, each);
                    }
                }
            },
            (Some(_), _) => each(Some(id), place),
        }
    }
}

/// Returns whether text becomes pieces of this kind.
pub(super) fn is_text(kind: PieceKind) -> bool {
    matches!(kind, PieceKind::Normal | PieceKind::UserDefined | PieceKind::Unused)
}

/// Returns the length that a first byte announces; a byte that continues a character stands alone.
///
/// # Source
/// `OneCharLen` in `src/util.h` of SentencePiece.
#[inline]
fn step_len(first: u8) -> usize {
    match first {
        0xF0.. => 4,
        0xE0.. => 3,
        0xC0.. => 2,
        _ => 1,
    }
}

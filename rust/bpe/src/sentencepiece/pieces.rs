//! The pieces of a model, found by id or by any substring of a text in constant time.

use hashbrown::HashTable;

use super::piece::PieceKind;
use crate::Result;

/// SentencePiece refuses pieces of so many bytes or more.
const TOO_LONG: usize = 8000;

/// The base of the rolling hash: odd, with evenly spread bits.
const BASE: u64 = 0x9E37_79B9_7F4A_7C15;

/// The pieces of a model.
#[derive(Debug, Clone)]
pub(super) struct Pieces {
    /// The concatenated texts of all pieces.
    arena: String,
    /// The offset of each text in `arena`, and the end of the last.
    starts: Vec<u32>,
    scores: Vec<f32>,
    kinds: Vec<PieceKind>,
    by_text: HashTable<u32>,
    /// The powers of [`BASE`], up to the length of the longest piece.
    powers: Vec<u64>,
}

impl Pieces {
    /// Returns the pieces with these texts, scores and kinds; their ids are their indices.
    ///
    /// # Errors
    /// [`crate::Error::Format`] if a text is empty, too long or given twice, or holds a zero byte.
    ///
    /// # Source
    /// `ModelInterface::InitializePieces` in `src/model_interface.cc` of SentencePiece 0.2.3.
    pub(super) fn new<'a>(entries: impl ExactSizeIterator<Item = (&'a str, f32, PieceKind)>) -> Result<Self> {
        let count = entries.len();
        let mut pieces = Self {
            arena: String::new(),
            starts: Vec::with_capacity(count + 1),
            scores: Vec::with_capacity(count),
            kinds: Vec::with_capacity(count),
            by_text: HashTable::with_capacity(count),
            powers: vec![1],
        };
        for (id, (text, score, kind)) in (0u32..).zip(entries) {
            let damaged = |why: &str| Err(malformed!("piece {id}, {:?}, {why}", shortened(text)));
            if text.is_empty() {
                return Err(malformed!("piece {id} is empty"));
            }
            if text.len() >= TOO_LONG {
                return damaged("is too long: expected less than 8000 bytes");
            }
            pieces.starts.push(pieces.arena.len() as u32);
            pieces.arena.push_str(text);
            pieces.scores.push(score);
            pieces.kinds.push(kind);
            if u32::try_from(pieces.arena.len()).is_err() {
                return damaged("exceeds the limit: the pieces have more than 4 GiB in total");
            }
            if text == "\0" && kind == PieceKind::Unused {
                continue; // not found by its text
            }
            if text.contains('\0') {
                return damaged("holds a zero byte");
            }
            while pieces.powers.len() <= text.len() {
                pieces.powers.push(pieces.powers[pieces.powers.len() - 1].wrapping_mul(BASE));
            }
            if let Some(other) = pieces.id_of(text.as_bytes()) {
                return damaged(&format!("has two ids, {other} and {id}"));
            }
            let Self { by_text, arena, starts, .. } = &mut pieces;
            starts.push(arena.len() as u32);
            let hash_of = |id: u32| {
                let range = starts[id as usize] as usize..starts[id as usize + 1] as usize;
                finish(roll(&arena.as_bytes()[range]))
            };
            by_text.insert_unique(hash_of(id), id, |&id| hash_of(id));
            starts.pop();
        }
        pieces.starts.push(pieces.arena.len() as u32);
        Ok(pieces)
    }

    pub(super) fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Returns the text of the piece with this id, `▁` for spaces.
    #[inline]
    pub(super) fn text(&self, id: u32) -> Option<&str> {
        let [begin, end] = self.starts.get(id as usize..id as usize + 2)? else { return None };
        self.arena.get(*begin as usize..*end as usize)
    }

    /// Returns the type of the piece with this id.
    #[inline]
    pub(super) fn kind(&self, id: u32) -> Option<PieceKind> {
        self.kinds.get(id as usize).copied()
    }

    /// Returns the score of a piece as an integer with the same order; minus zero comes before zero.
    #[inline]
    pub(super) fn order(&self, id: u32) -> i32 {
        let bits = self.scores[id as usize].to_bits() as i32;
        // The order of `f32::total_cmp`.
        bits ^ ((bits >> 31) as u32 >> 1) as i32
    }

    /// Returns the id of the piece with this text.
    pub(super) fn id_of(&self, text: &[u8]) -> Option<u32> {
        self.find(finish(roll(text)), text)
    }

    #[inline]
    fn find(&self, hash: u64, text: &[u8]) -> Option<u32> {
        let is_it = |&id: &u32| self.text(id).is_some_and(|piece| piece.as_bytes() == text);
        self.by_text.find(hash, is_it).copied()
    }
}

/// The rolling hashes of all prefixes of a text, which give the hash of any substring in constant time.
#[derive(Debug, Default)]
pub(super) struct Hashes(Vec<u64>);

impl Hashes {
    /// Computes the hashes of a text.
    pub(super) fn compute(&mut self, text: &[u8]) {
        self.0.clear();
        self.0.reserve(text.len() + 1);
        let mut hash = 0u64;
        self.0.push(hash);
        for &byte in text {
            hash = step(hash, byte);
            self.0.push(hash);
        }
    }

    /// Returns the id of the piece at `begin` with this length in the text.
    #[inline]
    pub(super) fn id_of(&self, pieces: &Pieces, text: &[u8], begin: usize, length: usize) -> Option<u32> {
        let power = *pieces.powers.get(length)?;
        let hash = self.0[begin + length].wrapping_sub(self.0[begin].wrapping_mul(power));
        pieces.find(finish(hash), &text[begin..begin + length])
    }
}

#[inline]
fn step(hash: u64, byte: u8) -> u64 {
    hash.wrapping_mul(BASE).wrapping_add(u64::from(byte) + 1)
}

fn roll(text: &[u8]) -> u64 {
    text.iter().fold(0, |hash, &byte| step(hash, byte))
}

/// Mixes the bits of a rolling hash.
#[inline]
fn finish(hash: u64) -> u64 {
    let hash = (hash ^ hash >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    hash ^ hash >> 32
}

fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

//! Vocabularies whose merging begins with characters, and which fall back on bytes: SentencePiece's.
//!
//! The merger begins with bytes, so the first merges put characters together: a lead byte and the next make the start of
//! a character, a start and the next byte a longer start or the character. In UTF-8 these bytes meet nowhere else, so
//! every known character is whole before any other merge is tried, and the ids are those of merging characters.
//!
//! Starts, and characters that are no token but stand in one, are stand-ins with ids from [`Vocab::id_bound`] on. Those
//! left when merging is done become the ids of their bytes: an unknown character falls back on them.

use hashbrown::{HashMap, HashSet};

use super::{NO_ID, Vocab};
use crate::merge::Merger;
use crate::pairs::ID_BOUND;
use crate::{Error, Result};

/// The longest token that merging may make: trying every cut of one takes the square of its length.
const LONGEST: usize = 1024;

/// The tokens of a vocabulary over characters.
#[derive(Debug, Clone, Default)]
pub struct Pieces {
    /// Tokens that merging makes, of UTF-8 text.
    pub merged: Vec<(Vec<u8>, u32)>,
    /// Tokens that only a whole piece becomes.
    pub whole: Vec<(Vec<u8>, u32)>,
    /// Tokens that text never becomes: they are only decoded.
    pub silent: Vec<(Vec<u8>, u32)>,
    /// The ids of the tokens that stand for one byte, in the order of bytes.
    pub bytes: Vec<u32>,
}

impl Vocab {
    /// Returns the vocabulary in which two neighbours merge wherever they make one of `pieces.merged`, the earlier in
    /// that list the sooner; of the same token, the leftmost first.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] as [`Vocab::from_ranks`]; if a token is no UTF-8; if there are not 256 bytes; or if
    /// there are whole tokens, and a merged one which its own text does not become.
    ///
    /// # Cost
    /// One run of BPE for each token, over the merges that come before it.
    ///
    /// # Source
    /// The encoder of SentencePiece, `src/bpe_model.cc`.
    pub fn from_pieces(pieces: &Pieces) -> Result<Self> {
        let (mut vocab, stand_ins) = Self::over_characters(pieces)?;
        let several = pieces.merged.iter().filter(|(bytes, _)| char_count(bytes) > 1);
        vocab.merged.extend(several.clone().map(|&(_, id)| id));
        let first = vocab.merged.len() - several.clone().count();
        let (mut merger, mut parts) = (Merger::default(), Vec::new());
        for ((bytes, _), rank) in several.zip(first as u32..) {
            // As for ranks of byte-level tokens: the pair that is left when all better merges are done is enough.
            parts.clear();
            merger.merge(&vocab, bytes, &mut parts)?;
            if let [left, right] = parts[..] {
                vocab.insert_pair((left, right), rank);
                vocab.merges.push((left, right));
                continue;
            }
            let symbol = |part: &[u8]| {
                let single = || if part.len() == 1 { vocab.byte_id(part[0]) } else { None };
                vocab.bytes_to_id(part).or_else(|| stand_ins.get(part).copied()).or_else(single)
            };
            let cuts = (1..bytes.len()).filter(|&cut| bytes[cut] & 0xC0 != 0x80).map(|cut| bytes.split_at(cut));
            let pairs: Vec<_> = cuts.filter_map(|(left, right)| Some((symbol(left)?, symbol(right)?))).collect();
            for pair in pairs {
                vocab.insert_pair(pair, rank);
                vocab.merges.push(pair);
            }
        }
        if vocab.whole_piece_first {
            vocab.require_merged(&pieces.merged)?;
        }
        Ok(vocab)
    }

    /// Returns the vocabulary with these merges, best first.
    ///
    /// With `whole_piece_first` a piece that is itself a token becomes that token before any merge is tried.
    ///
    /// # Errors
    /// As [`Vocab::from_pieces`] but for the last; and as [`Vocab::from_merges`].
    pub fn from_piece_merges(pieces: &Pieces, merges: Vec<(u32, u32)>, whole_piece_first: bool) -> Result<Self> {
        let (mut vocab, _) = Self::over_characters(pieces)?;
        vocab.whole_piece_first = whole_piece_first;
        if merges.len() + vocab.merged.len() > ID_BOUND as usize {
            let count = merges.len();
            return Err(Error::InvalidArgument(format!("{count} merges: expected less than {ID_BOUND}")));
        }
        for (index, pair) in merges.into_iter().enumerate() {
            vocab.push_merge(pair, index)?;
        }
        Ok(vocab)
    }

    /// Returns the vocabulary of a SentencePiece model that encodes by itself: ids and bytes, without merges.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] as [`Vocab::from_ranks`].
    pub(crate) fn of_model_pieces(tokens: Vec<(Vec<u8>, u32)>, is_silent: impl Fn(u32) -> bool) -> Result<Self> {
        let mut vocab = Self::from_tokens(tokens, is_silent)?;
        vocab.byte_fallback = Some(Box::new([NO_ID; 256]));
        Ok(vocab)
    }

    /// Returns the ids of the tokens that stand for single bytes, if characters fall back on them.
    pub fn byte_fallback(&self) -> Option<&[u32; 256]> {
        self.byte_fallback.as_deref()
    }

    /// Returns whether every token of these becomes itself when its own text is merged.
    pub(crate) fn merges_reach_all(&self, is_meant: impl Fn(&[u8]) -> bool) -> Result<bool> {
        let (mut merger, mut parts) = (Merger::default(), Vec::new());
        for (bytes, id) in self.tokens().filter(|(bytes, _)| is_meant(bytes)) {
            parts.clear();
            merger.merge(self, bytes, &mut parts)?;
            if parts[..] != [id] {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Replaces what merging left of unknown characters, in `ids[from..]`, by the ids of its bytes.
    #[inline]
    pub(crate) fn fall_back(&self, ids: &mut Vec<u32>, from: usize) {
        let Some(bytes) = &self.byte_fallback else { return };
        let Some(first) = ids[from..].iter().position(|&id| id >= self.bound) else { return };
        let rest = ids.split_off(from + first);
        for id in rest {
            if id < self.bound {
                ids.push(id);
            } else {
                ids.extend(self.symbol_bytes(id).iter().map(|&byte| bytes[usize::from(byte)]));
            }
        }
    }

    /// Returns all tokens with the merges that make characters of bytes, and the stand-ins by their bytes.
    fn over_characters(pieces: &Pieces) -> Result<(Self, HashMap<Vec<u8>, u32>)> {
        let bytes: [u32; 256] = pieces.bytes[..].try_into().map_err(|_| {
            Error::InvalidArgument(format!("{} tokens stand for single bytes: expected 256", pieces.bytes.len()))
        })?;
        let active = || pieces.merged.iter().chain(&pieces.whole);
        let characters: HashMap<&[u8], u32> =
            active().filter(|(bytes, _)| char_count(bytes) == 1).map(|(bytes, id)| (&bytes[..], *id)).collect();
        let last = active().chain(&pieces.silent).map(|&(_, id)| id).chain(bytes).max().unwrap_or(0);
        if last >= ID_BOUND {
            return Err(Error::InvalidArgument(format!("id {last} is out of range: expected ids below {ID_BOUND}")));
        }
        let bound = last + 1;
        if pieces.merged.len() >= ID_BOUND as usize / 2 {
            let count = pieces.merged.len();
            return Err(Error::InvalidArgument(format!("{count} tokens: expected less than {}", ID_BOUND / 2)));
        }
        if let Some((piece, id)) = pieces.merged.iter().find(|(piece, _)| piece.len() > LONGEST) {
            let length = piece.len();
            return Err(Error::InvalidArgument(format!("token {id} has {length} bytes: expected at most {LONGEST}")));
        }
        let mut starts: HashMap<Vec<u8>, u32> = HashMap::new();
        let mut joins = Vec::new();
        for (piece, _) in &pieces.merged {
            let text = std::str::from_utf8(piece).map_err(|_| {
                Error::InvalidArgument(format!("token {:?} is no UTF-8", String::from_utf8_lossy(piece)))
            })?;
            for (at, character) in text.char_indices() {
                let character = &piece[at..at + character.len_utf8()];
                let mut left = bytes[usize::from(character[0])];
                for end in 2..=character.len() {
                    let (start, right) = (&character[..end], bytes[usize::from(character[end - 1])]);
                    let next = bound + starts.len() as u32;
                    left = *starts.entry_ref(start).or_insert_with(|| {
                        let id = characters.get(start).copied().unwrap_or(next);
                        joins.push(((left, right), id));
                        id
                    });
                }
            }
        }
        let taken = |byte: u8| characters.contains_key(&[byte][..]);
        let mut silent: HashSet<u32> = pieces.silent.iter().map(|&(_, id)| id).collect();
        silent.extend((0..=255u8).filter(|&byte| taken(byte)).map(|byte| bytes[usize::from(byte)]));
        let mut tokens: Vec<(Vec<u8>, u32)> = active().chain(&pieces.silent).cloned().collect();
        tokens.extend((0..=255u8).map(|byte| (vec![byte], bytes[usize::from(byte)])));
        starts.retain(|_, id| *id >= bound);
        tokens.extend(starts.iter().map(|(start, &id)| (start.clone(), id)));
        let mut vocab = Self::from_tokens(tokens, |id| id >= bound || silent.contains(&id))?;
        vocab.token_count -= starts.len();
        vocab.bound = bound;
        vocab.byte_fallback = Some(Box::new(bytes));
        vocab.whole_piece_first = !pieces.whole.is_empty();
        for ((pair, id), rank) in joins.into_iter().zip(0..) {
            vocab.insert_pair(pair, rank);
            vocab.merged.push(id);
        }
        Ok((vocab, starts))
    }

    fn require_merged(&self, merged: &[(Vec<u8>, u32)]) -> Result<()> {
        let (mut merger, mut parts) = (Merger::default(), Vec::new());
        for (bytes, id) in merged {
            parts.clear();
            merger.merge(self, bytes, &mut parts)?;
            if parts[..] != [*id] {
                let text = String::from_utf8_lossy(bytes);
                return Err(Error::InvalidArgument(format!(
                    "the text of token {text:?} becomes other tokens, which is not supported beside user-defined tokens"
                )));
            }
        }
        Ok(())
    }
}

fn char_count(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte & 0xC0 != 0x80).count()
}

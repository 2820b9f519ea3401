//! SentencePiece vocabularies: merging begins with characters, and unknown characters fall back to byte tokens.
//!
//! The merger begins with bytes, so the first merges join the bytes of each known character: lead byte and next byte make
//! a prefix of the character, a prefix and the next byte a longer prefix or the character. UTF-8 has these byte pairs
//! nowhere else, so every known character is complete before any other merge, and the ids are those of merging characters.
//!
//! Prefixes, and characters that occur in tokens but are no tokens, are internal symbols with ids from [`Vocab::id_bound`]
//! on. Those left after merging are replaced by the byte tokens of their bytes.

use hashbrown::{HashMap, HashSet};

use super::limits::{ID_BOUND, NO_ID, check_id};
use super::vocabulary::Vocab;
use crate::Result;
use crate::utf8::char_count;

/// The longest token that merging may produce: trying every split of one takes quadratic time.
const MAX_TOKEN_BYTES: usize = 1024;

/// The tokens of a SentencePiece vocabulary.
#[derive(Debug, Clone, Default)]
pub struct SentencePieceTokens {
    /// Tokens that merging produces; UTF-8.
    pub merged: Vec<(Vec<u8>, u32)>,
    /// Tokens that only a whole piece becomes.
    pub whole: Vec<(Vec<u8>, u32)>,
    /// Tokens that encoding never produces.
    pub decode_only: Vec<(Vec<u8>, u32)>,
    /// The ids of the 256 byte tokens, by byte.
    pub bytes: Vec<u32>,
}

/// A vocabulary whose only merges join the bytes of characters, and its internal symbols by their bytes.
pub(crate) type CharacterVocab = (Vocab, HashMap<Vec<u8>, u32>);

impl Vocab {
    /// Returns the vocabulary with these merges, best first.
    ///
    /// With `whole_piece_first` a piece that is a token becomes that token without any merge.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] as for [`Vocab::from_merges`]; if a token is not UTF-8; if there are not 256
    /// byte tokens.
    pub fn from_sentencepiece_merges(
        tokens: &SentencePieceTokens,
        merges: Vec<(u32, u32)>,
        whole_piece_first: bool,
    ) -> Result<Self> {
        let (mut vocab, _) = Self::over_characters(tokens)?;
        vocab.whole_piece_first = whole_piece_first;
        vocab.push_merges(merges)?;
        Ok(vocab)
    }

    /// Returns the vocabulary of a SentencePiece model that encodes by itself: ids and bytes, without merges.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] as for [`Vocab::from_ranks`].
    pub(crate) fn of_sentencepiece_model(
        tokens: Vec<(Vec<u8>, u32)>,
        is_decode_only: impl Fn(u32) -> bool,
    ) -> Result<Self> {
        let mut vocab = Self::from_tokens(tokens, is_decode_only)?;
        vocab.byte_fallback = Some(Box::new([NO_ID; 256]));
        Ok(vocab)
    }

    /// Returns the ids of the byte tokens, if unknown characters fall back to them.
    pub fn byte_fallback(&self) -> Option<&[u32; 256]> {
        self.byte_fallback.as_deref()
    }

    /// Replaces the internal symbols in `ids[from..]`, which are parts of unknown characters, by byte tokens.
    #[inline]
    pub(crate) fn fall_back(&self, ids: &mut Vec<u32>, from: usize) {
        let Some(bytes) = &self.byte_fallback else { return };
        let bound = self.id_bound();
        let Some(first) = ids[from..].iter().position(|&id| id >= bound) else { return };
        let rest = ids.split_off(from + first);
        for id in rest {
            if id < bound {
                ids.push(id);
            } else {
                ids.extend(self.symbol_bytes(id).iter().map(|&byte| bytes[usize::from(byte)]));
            }
        }
    }

    /// Returns all tokens with the merges that join the bytes of characters.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] as for [`Vocab::from_sentencepiece_merges`].
    pub(crate) fn over_characters(tokens: &SentencePieceTokens) -> Result<CharacterVocab> {
        let bytes: [u32; 256] = tokens.bytes[..]
            .try_into()
            .map_err(|_| invalid!("there are {} byte tokens: expected 256", tokens.bytes.len()))?;
        let active = || tokens.merged.iter().chain(&tokens.whole);
        let characters: HashMap<&[u8], u32> =
            active().filter(|(bytes, _)| char_count(bytes) == 1).map(|(bytes, id)| (&bytes[..], *id)).collect();
        let last = active().chain(&tokens.decode_only).map(|&(_, id)| id).chain(bytes).max().unwrap_or(0);
        check_id("a token", last)?;
        let bound = last + 1;
        if tokens.merged.len() >= ID_BOUND as usize / 2 {
            let count = tokens.merged.len();
            return Err(invalid!("{count} tokens: expected less than {}", ID_BOUND / 2));
        }
        if let Some((token, id)) = tokens.merged.iter().find(|(token, _)| token.len() > MAX_TOKEN_BYTES) {
            let length = token.len();
            return Err(invalid!("token {id} has {length} bytes: expected at most {MAX_TOKEN_BYTES}"));
        }
        // Prefixes of characters, complete characters among them.
        let mut prefixes: HashMap<Vec<u8>, u32> = HashMap::new();
        let mut merges = Vec::new();
        for (token, _) in &tokens.merged {
            let text = std::str::from_utf8(token)
                .map_err(|_| invalid!("token {:?} is no UTF-8", String::from_utf8_lossy(token)))?;
            for (at, character) in text.char_indices() {
                let character = &token[at..at + character.len_utf8()];
                let mut left = bytes[usize::from(character[0])];
                for end in 2..=character.len() {
                    let (prefix, right) = (&character[..end], bytes[usize::from(character[end - 1])]);
                    let next = bound + prefixes.len() as u32;
                    left = *prefixes.entry_ref(prefix).or_insert_with(|| {
                        let id = characters.get(prefix).copied().unwrap_or(next);
                        merges.push(((left, right), id));
                        id
                    });
                }
            }
        }
        // A byte token is decode-only where another token is the same ASCII character.
        let is_character = |byte: u8| characters.contains_key(&[byte][..]);
        let mut decode_only: HashSet<u32> = tokens.decode_only.iter().map(|&(_, id)| id).collect();
        decode_only.extend((0..=255u8).filter(|&byte| is_character(byte)).map(|byte| bytes[usize::from(byte)]));
        let mut all: Vec<(Vec<u8>, u32)> = active().chain(&tokens.decode_only).cloned().collect();
        all.extend((0..=255u8).map(|byte| (vec![byte], bytes[usize::from(byte)])));
        prefixes.retain(|_, id| *id >= bound);
        all.extend(prefixes.iter().map(|(prefix, &id)| (prefix.clone(), id)));
        let mut vocab = Self::from_tokens(all, |id| id >= bound || decode_only.contains(&id))?;
        vocab.tokens.hide_from(bound, prefixes.len());
        vocab.byte_fallback = Some(Box::new(bytes));
        vocab.whole_piece_first = !tokens.whole.is_empty();
        for (pair, id) in merges {
            let rank = vocab.merges.extend_merged([id]);
            vocab.set_rank(pair, rank);
        }
        Ok((vocab, prefixes))
    }
}

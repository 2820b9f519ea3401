//! SentencePiece pieces as a vocabulary over bytes.

use hashbrown::HashMap;

use super::splits::{isolate, require_space, words_or_whole};
use crate::normalize::METASPACE;
use crate::sentencepiece::{Piece, PieceKind};
use crate::utf8::char_count;
use crate::{AddedToken, Error, Pretokenizer, Result, SentencePieceTokens, SpacePrefix, Spaces, Tokenizer, Vocab};

impl Tokenizer {
    /// Returns the tokenizer with byte-level merges that gives the ids of these pieces.
    ///
    /// Control and unknown pieces become special tokens. `prefix` adds a space before a text, `collapse` removes spaces
    /// at both ends and collapses runs of spaces.
    ///
    /// # Errors
    /// [`Error::Format`] if one of the 256 bytes has no piece, or if two pieces have the same score, so that the
    /// leftmost would merge first. Runs of one character may share a score: the longest merges first, which gives the
    /// same ids.
    pub(super) fn from_byte_level_pieces(pieces: Vec<Piece>, prefix: bool, collapse: bool) -> Result<Self> {
        let mut normal = Vec::new();
        let (mut sorted, mut added, mut bytes) = (SentencePieceTokens::default(), Vec::new(), [None; 256]);
        for (piece, id) in pieces.into_iter().zip(0u32..) {
            let Piece { text, score, kind } = &piece;
            if text.is_empty() {
                return Err(malformed!("piece {id} is empty"));
            }
            let spaced = text.replace(METASPACE, " ").into_bytes();
            match kind {
                // Spaces become `▁` before merging, so text never becomes a piece with a space.
                PieceKind::Normal | PieceKind::UserDefined if text.contains(' ') => {
                    sorted.decode_only.push((spaced, id));
                }
                PieceKind::Normal => normal.push((spaced, id, *score)),
                PieceKind::UserDefined => sorted.whole.push((spaced, id)),
                PieceKind::Unused => sorted.decode_only.push((spaced, id)),
                PieceKind::Unknown | PieceKind::Control => added.push(AddedToken::special(text, id)),
                PieceKind::Byte => {
                    if bytes[usize::from(piece.byte(id)?)].replace(id).is_some() {
                        return Err(malformed!("two pieces are {text:?}"));
                    }
                }
            }
        }
        sorted.bytes = bytes.into_iter().flatten().collect();
        if sorted.bytes.len() < 256 {
            return Err(unsupported(&format!(
                "a vocabulary without byte fallback (it has {} of 256 bytes), in which unknown characters would be lost,",
                sorted.bytes.len()
            )));
        }
        sorted.merged = in_order(normal)?;
        require_space(&sorted)?;
        let pretokenizer = pretokenizer_of(&sorted)?;
        let vocab = Vocab::from_sentencepiece_tokens(&sorted)?;
        let prefix_kind = if prefix { SpacePrefix::Always } else { SpacePrefix::Never };
        let spaces = Spaces { prefix: prefix_kind, collapse, drop_first: prefix || collapse };
        Ok(Self::new(vocab, pretokenizer, added, false)?.with_spaces(spaces))
    }
}

fn unsupported(what: &str) -> Error {
    malformed!("{what} is not supported in a SentencePiece vocabulary")
}

/// Returns the pieces by descending score.
fn in_order(mut pieces: Vec<(Vec<u8>, u32, f32)>) -> Result<Vec<(Vec<u8>, u32)>> {
    if let Some((_, id, score)) = pieces.iter().find(|(.., score)| score.is_nan()) {
        return Err(malformed!("piece {id} has the score {score}"));
    }
    pieces.sort_by(|a, b| b.2.total_cmp(&a.2).then(b.0.len().cmp(&a.0.len())));
    let several: Vec<_> = pieces.iter().filter(|(bytes, ..)| char_count(bytes) > 1).collect();
    // The score that all runs of a character share, if they do.
    let mut shared: HashMap<char, Option<f32>> = HashMap::new();
    for (bytes, _, score) in &several {
        if let Some(character) = run_of(bytes) {
            let known = shared.entry(character).or_insert(Some(*score));
            *known = known.filter(|known| known.total_cmp(score).is_eq());
        }
    }
    for pair in several.windows(2) {
        let [(a, _, score), (b, _, other)] = pair else { continue };
        if score.total_cmp(other).is_ne() {
            continue;
        }
        // A run of one character merges from the left, and all pairs further right are of single characters, so the
        // leftmost and the longest pair are the same, provided that all runs of this character share the score.
        let is_run = |run: char| run_of(b) == Some(run) && shared.get(&run).is_some_and(Option::is_some);
        if !run_of(a).is_some_and(is_run) {
            let [a, b] = [a, b].map(|bytes| String::from_utf8_lossy(bytes));
            return Err(unsupported(&format!("that the pieces {a:?} and {b:?} share the score {score}")));
        }
    }
    Ok(pieces.into_iter().map(|(bytes, id, _)| (bytes, id)).collect())
}

/// Returns the character that a text consists of, if it is only one.
fn run_of(bytes: &[u8]) -> Option<char> {
    let mut characters = std::str::from_utf8(bytes).ok()?.chars();
    let first = characters.next()?;
    characters.all(|character| character == first).then_some(first)
}

/// Returns the pre-tokenizer that isolates user-defined pieces and splits words where that does not change ids.
fn pretokenizer_of(pieces: &SentencePieceTokens) -> Result<Pretokenizer> {
    let rest = words_or_whole(&pieces.merged)?;
    if pieces.whole.is_empty() {
        return Ok(rest);
    }
    let isolated =
        isolate(pieces.whole.iter().map(|(bytes, _)| String::from_utf8_lossy(bytes).into_owned()).collect())?;
    let holds_space = pieces.whole.iter().any(|(bytes, _)| bytes.contains(&b' '));
    Pretokenizer::sequence(if holds_space { vec![isolated] } else { vec![isolated, rest] })
}

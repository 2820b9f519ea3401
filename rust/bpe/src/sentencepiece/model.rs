//! The model: text to the ids of pieces.

use std::ops::Range;

use super::bpe::{self, Boundaries, Merges, is_text};
use super::fragments::Fragments;
use super::normalizer::{Call, Normalizer};
use super::piece::{Piece, PieceKind};
use super::pieces::Pieces;
use super::prefix_trie::PrefixTrie;
use crate::encode::Sink;
use crate::interrupt::Interrupt;
use crate::normalize::After;
use crate::{Result, SpacePrefix, Spaces};
use bpe_llama_simd::ScratchPool;

/// A SentencePiece model of type BPE.
pub(crate) struct SentencePieceModel {
    pieces: Pieces,
    user_defined: Option<PrefixTrie>,
    pub(super) rules: Rules,
    /// By llama.cpp's rules: the user-defined symbols, which divide a text before anything else.
    fragments: Option<Fragments>,
    pub(super) normalizer: Normalizer,
    pub(super) denormalizer: Option<Normalizer>,
    /// The id of the unknown piece, and its text.
    unknown: Option<u32>,
    pub(super) unknown_surface: String,
    /// The ids of the 256 bytes, if unknown text becomes its bytes.
    bytes: Option<Box<[u32; 256]>>,
    boundaries: Boundaries,
    has_unused: bool,
    idle: ScratchPool<bpe::Scratch>,
    /// The bytes of the file.
    source: Vec<u8>,
}

/// The implementation whose rules a model follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rules {
    /// The SentencePiece library.
    SentencePiece,
    /// llama.cpp, for the pieces of a GGUF file. Merges are the same; the rest differs:
    ///
    /// - User-defined symbols are matched in the original text, the longest first. The text after a symbol is encoded
    ///   as a text of its own, with a space before it. Merges can also result in user-defined symbols.
    /// - Unused pieces are like normal ones, but are decoded to nothing, like the unknown piece.
    /// - Zero and minus zero are the same score.
    ///
    /// Deviations from llama.cpp: text never becomes a control piece, and each byte of invalid UTF-8 is encoded alone,
    /// so that it round-trips, while llama.cpp takes as many bytes as the lead byte announces.
    LlamaCpp,
}

/// A model without its pieces.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// `normalizer_spec`.
    pub(crate) normalizer: Normalizer,
    /// `denormalizer_spec`, if it has rules.
    pub(crate) denormalizer: Option<Normalizer>,
    /// Whether unknown text becomes its bytes.
    pub(crate) byte_fallback: bool,
    /// `unk_surface`.
    pub(crate) unknown_surface: String,
    pub(crate) rules: Rules,
}

impl SentencePieceModel {
    /// Returns the model of these pieces, whose ids are their indices; `source` is the file they come from.
    ///
    /// # Errors
    /// [`crate::Error::Format`] for what SentencePiece refuses: an empty piece, one of 8000 bytes or more, or one with
    /// a zero byte; two pieces with the same text; two unknown pieces; byte pieces without byte fallback, or fewer than
    /// 256 with it; neither an unknown piece nor byte fallback.
    ///
    /// # Source
    /// `ModelInterface::InitializePieces` in `src/model_interface.cc` of SentencePiece 0.2.3.
    pub(crate) fn new(entries: &[Piece], options: Options, source: Vec<u8>) -> Result<Self> {
        let is_null = |piece: &Piece| options.byte_fallback && piece.text == "\0";
        let kind_of = |piece: &Piece| if is_null(piece) { PieceKind::Unused } else { piece.kind };
        let pieces = Pieces::new(entries.iter().map(|piece| (piece.text.as_str(), piece.score, kind_of(piece))))?;
        let (mut unknown, mut bytes) = (None, [None; 256]);
        for (piece, id) in entries.iter().zip(0u32..) {
            match piece.kind {
                PieceKind::Unknown => {
                    if let Some(other) = unknown.replace(id) {
                        return Err(malformed!("pieces {other} and {id} are both of the type unknown"));
                    }
                }
                PieceKind::Byte if !options.byte_fallback => {
                    let text = &piece.text;
                    return Err(malformed!(
                        "piece {id}, {text:?}, is a byte piece, but trainer_spec.byte_fallback is not set"
                    ));
                }
                PieceKind::Byte => bytes[usize::from(piece.byte(id)?)] = Some(id),
                _ => {}
            }
        }
        let bytes = if options.byte_fallback {
            let count = bytes.iter().flatten().count();
            let ids = bytes.map(Option::unwrap_or_default);
            if count < 256 {
                return Err(malformed!(
                    "byte fallback is set (trainer_spec.byte_fallback; always for a GGUF file), but it has {count} of 256 bytes"
                ));
            }
            Some(Box::new(ids))
        } else {
            None
        };
        if unknown.is_none() && bytes.is_none() {
            return Err(malformed!("no piece is of the type unknown, and there is no byte fallback"));
        }
        let rules = options.rules;
        let user_defined = || {
            let user_defined = entries.iter().zip(0u32..).filter(|(piece, _)| piece.kind == PieceKind::UserDefined);
            user_defined.map(|(piece, id)| (piece.text.as_str(), id))
        };
        let (trie, fragments) = match rules {
            Rules::SentencePiece => (PrefixTrie::new(user_defined().map(|(text, _)| text.as_bytes())), None),
            Rules::LlamaCpp => (None, Fragments::new(user_defined())),
        };
        let is_unused = |id| pieces.kind(id) == Some(PieceKind::Unused);
        let has_unused = rules == Rules::SentencePiece && (0..pieces.len() as u32).any(is_unused);
        let boundaries =
            if has_unused { Boundaries::default() } else { boundaries(&pieces, options.normalizer.space()) };
        Ok(Self {
            user_defined: trie,
            rules,
            fragments,
            normalizer: options.normalizer,
            denormalizer: options.denormalizer,
            unknown,
            unknown_surface: options.unknown_surface,
            bytes,
            boundaries,
            has_unused,
            pieces,
            idle: ScratchPool::new(),
            source,
        })
    }

    /// Returns the implementation whose rules the model follows.
    pub(crate) fn rules(&self) -> Rules {
        self.rules
    }

    /// Returns the bytes of the file that the model was read from.
    pub(crate) fn source(&self) -> &[u8] {
        &self.source
    }

    /// Returns the text of the piece with this id, `▁` for spaces.
    pub(crate) fn piece(&self, id: u32) -> Option<&str> {
        self.pieces.text(id)
    }

    /// Returns the type of the piece with this id.
    pub(crate) fn kind(&self, id: u32) -> Option<PieceKind> {
        self.pieces.kind(id)
    }

    /// Returns the id of the piece with this text, `▁` for spaces.
    pub(crate) fn id_of_piece(&self, text: &str) -> Option<u32> {
        self.pieces.id_of(text.as_bytes())
    }

    /// Returns the id of the piece with this text, if it is of this kind.
    pub(crate) fn id_of(&self, text: &str, kind: PieceKind) -> Option<u32> {
        self.pieces.id_of(text.as_bytes()).filter(|&id| self.kind(id) == Some(kind))
    }

    /// Returns all pieces: id, text and kind.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (u32, &str, PieceKind)> {
        (0..self.pieces.len() as u32).filter_map(|id| Some((id, self.piece(id)?, self.kind(id)?)))
    }

    /// Returns how the model treats spaces, as far as [`Spaces`] can express it.
    pub(crate) fn spaces(&self) -> Spaces {
        let Normalizer { add_dummy_prefix, remove_extra_whitespaces: collapse, whitespace_as_suffix, .. } =
            self.normalizer;
        let is_prefixed = add_dummy_prefix && !whitespace_as_suffix;
        let prefix = if is_prefixed { SpacePrefix::Always } else { SpacePrefix::Never };
        Spaces { prefix, collapse, drop_first: add_dummy_prefix || collapse }
    }

    /// Returns the byte of a byte piece.
    pub(super) fn byte_of(&self, id: u32) -> Option<u8> {
        crate::byte_alphabet::byte_of(self.piece(id)?)
    }

    /// Passes the ids of a text, which need not be UTF-8, to `sink`.
    ///
    /// # Errors
    /// The error of the interrupt check; [`crate::Error::InvalidArgument`] for 4 GiB of text without a boundary.
    pub(crate) fn encode(
        &self,
        text: &[u8],
        after: After,
        interrupt: Interrupt<'_>,
        sink: &mut impl Sink,
    ) -> Result<()> {
        let Some(fragments) = &self.fragments else { return self.encode_fragment(text, after, interrupt, sink) };
        for (symbol, range) in fragments.split(text, interrupt)? {
            let after = if range.start == 0 { after } else { After::Special };
            match symbol {
                Some(id) => sink.take(&[id]),
                None => self.encode_fragment(&text[range], after, interrupt, sink)?,
            }
        }
        Ok(())
    }

    fn encode_fragment(&self, text: &[u8], after: After, interrupt: Interrupt<'_>, sink: &mut impl Sink) -> Result<()> {
        let normal = self.normalizer.apply(text, self.call(text, after, false, interrupt))?;
        let mut after_unknown = false;
        self.merge(&normal.bytes, interrupt, &mut |id, range| {
            match (id, &self.bytes, self.unknown) {
                (Some(id), ..) => sink.take(&[id]),
                (None, Some(bytes), _) => {
                    normal.bytes[range].iter().for_each(|&byte| sink.take(&[bytes[usize::from(byte)]]));
                }
                // A run of unknown text is one unknown piece.
                (None, None, Some(unknown)) if !after_unknown => sink.take(&[unknown]),
                (None, None, _) => {}
            }
            after_unknown = id.is_none();
        })
    }

    /// Returns the ids of a text, each with its range of bytes in the text.
    ///
    /// By SentencePiece's rules, the last byte piece of a character has the range of the character, the others an empty
    /// range.
    ///
    /// # Source
    /// `PopulateSentencePieceText` in `src/sentencepiece_processor.cc` of SentencePiece 0.2.3.
    pub(crate) fn encode_with_ranges(
        &self,
        text: &[u8],
        after: After,
        interrupt: Interrupt<'_>,
    ) -> Result<Vec<(u32, Range<usize>)>> {
        let mut found = Vec::new();
        let Some(fragments) = &self.fragments else {
            self.add_ranges(text, 0, after, interrupt, &mut found)?;
            return Ok(found);
        };
        for (symbol, range) in fragments.split(text, interrupt)? {
            let after = if range.start == 0 { after } else { After::Special };
            match symbol {
                Some(id) => found.push((id, range)),
                None => self.add_ranges(&text[range.clone()], range.start, after, interrupt, &mut found)?,
            }
        }
        Ok(found)
    }

    /// Appends the ids of the part of a text that begins at `start`.
    fn add_ranges(
        &self,
        text: &[u8],
        start: usize,
        after: After,
        interrupt: Interrupt<'_>,
        found: &mut Vec<(u32, Range<usize>)>,
    ) -> Result<()> {
        let normal = self.normalizer.apply(text, self.call(text, after, true, interrupt))?;
        let mut after_unknown = false;
        self.merge(&normal.bytes, interrupt, &mut |id, range| {
            let (begin, end) = (start + normal.positions[range.start], start + normal.positions[range.end]);
            match (id, &self.bytes, self.unknown) {
                (Some(id), ..) => found.push((id, begin..end)),
                (None, None, Some(unknown)) if !after_unknown => found.push((unknown, begin..end)),
                (None, bytes, _) => {
                    if let Some(bytes) = bytes {
                        let ids = normal.bytes[range].iter().map(|&byte| bytes[usize::from(byte)]);
                        found.extend(ids.zip(0..).map(|(id, index)| (id, self.range_of_byte(index, begin..end))));
                    }
                    // The last byte piece has the range of the character; a run of unknown text is one piece.
                    if let Some((_, last)) = found.last_mut() {
                        last.end = end;
                    }
                }
            }
            after_unknown = id.is_none();
        })
    }

    /// Returns the range of a byte piece other than the last of a character: empty, or the byte itself.
    fn range_of_byte(&self, index: usize, character: Range<usize>) -> Range<usize> {
        match self.rules {
            Rules::SentencePiece => character.start..character.start,
            Rules::LlamaCpp => {
                (character.start + index).min(character.end)..(character.start + index + 1).min(character.end)
            }
        }
    }

    fn call<'a>(&'a self, text: &[u8], after: After, with_positions: bool, interrupt: Interrupt<'a>) -> Call<'a> {
        let collapses = self.normalizer.remove_extra_whitespaces;
        let begins_with_space = match after {
            After::Nothing | After::Special => {
                self.normalizer.add_dummy_prefix && !self.normalizer.whitespace_as_suffix
            }
            After::Text => collapses && text.starts_with(b" "),
            After::Space => collapses,
        };
        Call { protected: self.user_defined.as_ref(), begins_with_space, with_positions, interrupt }
    }

    fn merge(
        &self,
        normal: &[u8],
        interrupt: Interrupt<'_>,
        each: &mut impl FnMut(Option<u32>, Range<usize>),
    ) -> Result<()> {
        let merges = Merges {
            pieces: &self.pieces,
            user_defined: self.user_defined.as_ref(),
            space: self.normalizer.space(),
            boundaries: self.boundaries,
            splits_unused: self.has_unused,
            keeps_bytes: self.normalizer.keeps_bytes,
            interrupt,
        };
        let mut scratch = self.idle.take().unwrap_or_default();
        let result = merges.encode(normal, &mut scratch, each);
        if scratch.is_small() {
            self.idle.give_back(scratch);
        }
        result
    }
}

/// Returns the boundaries beside spaces that no piece crosses.
fn boundaries(pieces: &Pieces, space: &[u8]) -> Boundaries {
    let mut boundaries = Boundaries { before_spaces: true, after_spaces: true };
    let space = std::str::from_utf8(space).unwrap_or_default();
    for id in 0..pieces.len() as u32 {
        if !pieces.kind(id).is_some_and(is_text) {
            continue;
        }
        let text = pieces.text(id).unwrap_or_default();
        for (at, _) in text.match_indices(space) {
            let (before, after) = (&text[..at], &text[at + space.len()..]);
            boundaries.before_spaces &= before.is_empty() || before.ends_with(space);
            boundaries.after_spaces &= after.is_empty() || after.starts_with(space);
        }
    }
    boundaries
}

impl std::fmt::Debug for SentencePieceModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SentencePieceModel").field("pieces", &self.pieces.len()).finish_non_exhaustive()
    }
}

//! SentencePiece's BPE models, whatever their options: the definition that every faster road must equal.
//!
//! | step | file |
//! |---|---|
//! | rules for characters, white space | `normalizer.rs`, with the compiled rules of `charsmap.rs` |
//! | user-defined symbols | `prefix_trie.rs`; as llama.cpp treats them, `fragments.rs` |
//! | pieces by id and by text | `pieces.rs` |
//! | merging | `bpe.rs` |
//! | back to text | `decode.rs` |
//!
//! A vocabulary that byte-level merging can express exactly is encoded by it instead (`vocab/sentencepiece.rs`), which is
//! faster; `formats/sentencepiece.rs` decides.

mod bpe;
mod charsmap;
mod decode;
mod fragments;
mod normalizer;
mod pieces;
mod prefix_trie;

use std::ops::Range;

use self::bpe::{Cuts, Merges, is_text};
pub(crate) use self::decode::Decoding;
use self::fragments::Fragments;
use self::normalizer::Call;
pub(crate) use self::normalizer::Normalizer;
use self::pieces::Pieces;
use self::prefix_trie::PrefixTrie;
use crate::encode::Sink;
use crate::formats::{Piece, PieceKind};
use crate::interrupt::Interrupt;
use crate::normalize::After;
use crate::{Error, Result, SpacePrefix, Spaces};
use bpe_llama_simd::ScratchPool;

/// A SentencePiece model of type BPE.
pub(crate) struct SentencePieceModel {
    pieces: Pieces,
    user_defined: Option<PrefixTrie>,
    /// Whether this is llama.cpp's model of the pieces; what is taken out of a text first.
    rules: Rules,
    fragments: Option<Fragments>,
    normalizer: Normalizer,
    denormalizer: Option<Normalizer>,
    /// The id of what no piece stands for.
    unknown: Option<u32>,
    /// The text of it.
    unknown_surface: String,
    /// The ids of the 256 bytes, if what no piece stands for becomes its bytes.
    bytes: Option<Box<[u32; 256]>>,
    cuts: Cuts,
    has_unused: bool,
    idle: ScratchPool<bpe::Scratch>,
    /// The file.
    source: Vec<u8>,
}

/// Whose rules a model follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rules {
    /// The library's.
    SentencePiece,
    /// llama.cpp's, for the pieces in a GGUF file. The merging is the same; the rest differs:
    ///
    /// - User-defined symbols are taken out of the text as it stands, the longest first, and what follows one is a text of
    ///   its own, with a space before it. Merging makes them as well.
    /// - Unused pieces are like normal ones, but decoded to nothing; so is the unknown piece.
    /// - Zero and minus zero are one score.
    ///
    /// In llama.cpp merging may even make control pieces; here text never becomes them. Bytes that are no UTF-8 are kept one
    /// by one here, so that they come back; there such a byte takes in as many as it announces.
    LlamaCpp,
}

/// What a model is made of, beside its pieces.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// `normalizer_spec`.
    pub(crate) normalizer: Normalizer,
    /// `denormalizer_spec`, if it has rules.
    pub(crate) denormalizer: Option<Normalizer>,
    /// Whether what no piece stands for becomes its bytes.
    pub(crate) byte_fallback: bool,
    /// `unk_surface`.
    pub(crate) unknown_surface: String,
    pub(crate) rules: Rules,
}

impl SentencePieceModel {
    /// Returns the model of these pieces, whose ids are their places; `source` is the file they come from.
    ///
    /// # Errors
    /// [`Error::Format`] for what SentencePiece refuses: an empty piece or one of 8000 bytes, two of one text, a zero
    /// byte in one, two unknown pieces; bytes without byte fallback, or fewer than 256 with it; nothing for unknown text.
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
                        return Err(Error::Format(format!("pieces {other} and {id} are both of the type unknown")));
                    }
                }
                PieceKind::Byte if !options.byte_fallback => {
                    let text = &piece.text;
                    return Err(Error::Format(format!(
                        "piece {id}, {text:?}, stands for a byte, but trainer_spec.byte_fallback is not set"
                    )));
                }
                PieceKind::Byte => bytes[usize::from(byte_of(piece, id)?)] = Some(id),
                _ => {}
            }
        }
        let bytes = if options.byte_fallback {
            let count = bytes.iter().flatten().count();
            let ids = bytes.map(Option::unwrap_or_default);
            if count < 256 {
                return Err(Error::Format(format!(
                    "it falls back on bytes (trainer_spec.byte_fallback; every GGUF file does), but it has {count} of 256 bytes"
                )));
            }
            Some(Box::new(ids))
        } else {
            None
        };
        if unknown.is_none() && bytes.is_none() {
            return Err(Error::Format("no piece is of the type unknown, and there is no byte fallback".to_owned()));
        }
        let rules = options.rules;
        let user_defined = || {
            let numbered = entries.iter().zip(0u32..).filter(|(piece, _)| piece.kind == PieceKind::UserDefined);
            numbered.map(|(piece, id)| (piece.text.as_str(), id))
        };
        let (trie, fragments) = match rules {
            Rules::SentencePiece => (PrefixTrie::new(user_defined().map(|(text, _)| text.as_bytes())), None),
            Rules::LlamaCpp => (None, Fragments::new(user_defined())),
        };
        let is_unused = |id| pieces.kind(id) == Some(PieceKind::Unused);
        let has_unused = rules == Rules::SentencePiece && (0..pieces.len() as u32).any(is_unused);
        let cuts = if has_unused { Cuts::default() } else { cuts(&pieces, options.normalizer.space()) };
        Ok(Self {
            user_defined: trie,
            rules,
            fragments,
            normalizer: options.normalizer,
            denormalizer: options.denormalizer,
            unknown,
            unknown_surface: options.unknown_surface,
            bytes,
            cuts,
            has_unused,
            pieces,
            idle: ScratchPool::new(),
            source,
        })
    }

    /// Whose rules it follows.
    pub(crate) fn rules(&self) -> Rules {
        self.rules
    }

    /// The file that the model was read from.
    pub(crate) fn source(&self) -> &[u8] {
        &self.source
    }

    /// Returns the text of the piece with this id, `▁` for spaces.
    pub(crate) fn piece(&self, id: u32) -> Option<&str> {
        self.pieces.text(id)
    }

    /// Returns what the piece with this id is for.
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

    /// Returns how it treats spaces, as far as [`Spaces`] can say.
    pub(crate) fn spaces(&self) -> Spaces {
        let Normalizer { add_dummy_prefix, remove_extra_whitespaces: collapse, whitespace_as_suffix, .. } =
            self.normalizer;
        let is_prefixed = add_dummy_prefix && !whitespace_as_suffix;
        let prefix = if is_prefixed { SpacePrefix::Always } else { SpacePrefix::Never };
        Spaces { prefix, collapse, drop_first: add_dummy_prefix || collapse }
    }

    /// Returns the byte that a piece stands for.
    fn byte_of(&self, id: u32) -> Option<u8> {
        crate::byte_alphabet::byte_of(self.piece(id)?)
    }

    /// Hands over the ids of a text, which need not be UTF-8.
    ///
    /// # Errors
    /// What the interrupt check returns; [`Error::InvalidArgument`] for 4 GiB of text that cannot be cut.
    pub(crate) fn encode(
        &self,
        text: &[u8],
        after: After,
        interrupt: Interrupt<'_>,
        sink: &mut impl Sink,
    ) -> Result<()> {
        let Some(fragments) = &self.fragments else { return self.encode_fragment(text, after, interrupt, sink) };
        for (symbol, range) in fragments.cut(text, interrupt)? {
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
                // Several unknown pieces in a row are one.
                (None, None, Some(unknown)) if !after_unknown => sink.take(&[unknown]),
                (None, None, _) => {}
            }
            after_unknown = id.is_none();
        })
    }

    /// Returns the ids of a text, and for each the bytes of the text that it stands for.
    ///
    /// By SentencePiece's rules the bytes of a character stand for nothing but for the last, which stands for the whole.
    ///
    /// # Errors
    /// As [`SentencePieceModel::encode`].
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
        for (symbol, range) in fragments.cut(text, interrupt)? {
            let after = if range.start == 0 { after } else { After::Special };
            match symbol {
                Some(id) => found.push((id, range)),
                None => self.add_ranges(&text[range.clone()], range.start, after, interrupt, &mut found)?,
            }
        }
        Ok(found)
    }

    /// Appends the ids of a part of a text that begins at `start`.
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
            let (begin, end) = (start + normal.places[range.start], start + normal.places[range.end]);
            match (id, &self.bytes, self.unknown) {
                (Some(id), ..) => found.push((id, begin..end)),
                (None, None, Some(unknown)) if !after_unknown => found.push((unknown, begin..end)),
                (None, bytes, _) => {
                    if let Some(bytes) = bytes {
                        let ids = normal.bytes[range].iter().map(|&byte| bytes[usize::from(byte)]);
                        found.extend(ids.zip(0..).map(|(id, at)| (id, self.place_of_byte(at, begin..end))));
                    }
                    // The last byte stands for the character; several unknown pieces in a row are one.
                    if let Some((_, last)) = found.last_mut() {
                        last.end = end;
                    }
                }
            }
            after_unknown = id.is_none();
        })
    }

    /// Returns what one of the bytes that stand for a character stands for, but for the last: nothing, or itself.
    fn place_of_byte(&self, number: usize, character: Range<usize>) -> Range<usize> {
        match self.rules {
            Rules::SentencePiece => character.start..character.start,
            Rules::LlamaCpp => {
                (character.start + number).min(character.end)..(character.start + number + 1).min(character.end)
            }
        }
    }

    fn call<'a>(&'a self, text: &[u8], after: After, with_places: bool, interrupt: Interrupt<'a>) -> Call<'a> {
        let collapses = self.normalizer.remove_extra_whitespaces;
        let begins_with_space = match after {
            After::Nothing | After::Special => {
                self.normalizer.add_dummy_prefix && !self.normalizer.whitespace_as_suffix
            }
            After::Text => collapses && text.starts_with(b" "),
            After::Space => collapses,
        };
        Call { protected: self.user_defined.as_ref(), begins_with_space, with_places, interrupt }
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
            cuts: self.cuts,
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

/// Returns where no piece reaches across the ends of words, which spaces begin or end.
fn cuts(pieces: &Pieces, space: &[u8]) -> Cuts {
    let mut cuts = Cuts { before_spaces: true, after_spaces: true };
    let space = std::str::from_utf8(space).unwrap_or_default();
    for id in 0..pieces.len() as u32 {
        if !pieces.kind(id).is_some_and(is_text) {
            continue;
        }
        let text = pieces.text(id).unwrap_or_default();
        for (at, _) in text.match_indices(space) {
            let (before, after) = (&text[..at], &text[at + space.len()..]);
            cuts.before_spaces &= before.is_empty() || before.ends_with(space);
            cuts.after_spaces &= after.is_empty() || after.starts_with(space);
        }
    }
    cuts
}

fn byte_of(piece: &Piece, id: u32) -> Result<u8> {
    crate::byte_alphabet::byte_of(&piece.text).ok_or_else(|| {
        let text = &piece.text;
        Error::Format(format!("piece {id} stands for a byte, but is {text:?}; expected such as \"<0x0A>\""))
    })
}

impl std::fmt::Debug for SentencePieceModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SentencePieceModel").field("pieces", &self.pieces.len()).finish_non_exhaustive()
    }
}

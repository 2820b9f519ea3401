//! SentencePiece's `tokenizer.model`, as Llama 2, TinyLlama and Mistral 7B have it.

use super::huggingface::spaces::{require_space, split_apart, words_or_whole};
use super::protobuf::{Fields, Value};
use crate::normalize::SPACE;
use crate::{AddedToken, Error, Pieces, Pretokenizer, Result, SpacePrefix, Spaces, Tokenizer, Vocab};

/// One entry of a SentencePiece vocabulary; its id is its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// Its text, with `▁` for a space.
    pub text: String,
    /// The higher, the sooner it is merged.
    pub score: f32,
    /// What it is for.
    pub kind: PieceKind,
}

/// What a piece is for: the numbers are those of `tokenizer.model` and of GGUF's `token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PieceKind {
    /// An ordinary token.
    Normal = 1,
    /// Stands for what no token does.
    Unknown = 2,
    /// Controls the model, and is never text.
    Control = 3,
    /// Taken whole wherever its text occurs.
    UserDefined = 4,
    /// Text never becomes it.
    Unused = 5,
    /// Stands for one byte.
    Byte = 6,
}

impl PieceKind {
    /// Returns the kind of a number.
    ///
    /// # Errors
    /// [`Error::Format`] if it is not 1 to 6.
    pub fn from_number(number: u64) -> Result<Self> {
        Ok(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return Err(Error::Format(format!("a piece is of type {number}; expected 1 to 6"))),
        })
    }
}

/// What of a `tokenizer.model` matters for encoding.
#[derive(Default)]
struct Model<'a> {
    pieces: Vec<Piece>,
    /// `trainer_spec` and `normalizer_spec`, unread.
    trainer: Option<&'a [u8]>,
    normalizer: Option<&'a [u8]>,
    denormalizer: Option<&'a [u8]>,
}

impl Tokenizer {
    /// Returns the tokenizer in SentencePiece's `tokenizer.model`.
    ///
    /// Ids are SentencePiece's. What lies between special tokens, where they are allowed, is encoded as a text of its own.
    ///
    /// # Errors
    /// [`Error::Format`] if it is damaged, or not BPE with byte fallback and without a normalization of its own, which
    /// the message names.
    ///
    /// # Source
    /// `src/sentencepiece_model.proto`, `src/normalizer.cc` and `src/bpe_model.cc` of SentencePiece.
    pub fn from_sentencepiece(model: &[u8]) -> Result<Self> {
        let model = Model::read(model)?;
        let [Some(trainer), Some(normalizer)] = [model.trainer, model.normalizer] else {
            return Err(Error::Format("it holds no trainer_spec and normalizer_spec: it may be cut short".to_owned()));
        };
        let (mut ends, mut kind) = (["<s>".to_owned(), "</s>".to_owned()], 1);
        each_field(trainer, |number, value| {
            match (number, value) {
                (3, Value::Varint(number)) => kind = number,
                (24, Value::Varint(1..)) => return Err(unsupported("spaces at the end of words")),
                (46, Value::Bytes(name)) => ends[0] = String::from_utf8_lossy(name).into_owned(),
                (47, Value::Bytes(name)) => ends[1] = String::from_utf8_lossy(name).into_owned(),
                _ => {}
            }
            Ok(())
        })?;
        if kind != 2 {
            let names = ["", "Unigram", "BPE", "Word", "Char"];
            let name = usize::try_from(kind).ok().and_then(|kind| names.get(kind)).unwrap_or(&"unknown");
            return Err(unsupported(&format!("a model of type {kind} ({name}); expected BPE, 2:")));
        }
        let (mut prefix, mut collapse) = (true, true);
        each_field(normalizer, |number, value| {
            match (number, value) {
                (2, Value::Bytes([_, ..])) => return Err(unsupported("a normalizer with character rules of its own")),
                (3, Value::Varint(is_set)) => prefix = is_set != 0,
                (4, Value::Varint(is_set)) => collapse = is_set != 0,
                (5, Value::Varint(0)) => return Err(unsupported("a normalizer that leaves spaces as they are")),
                _ => {}
            }
            Ok(())
        })?;
        each_field(model.denormalizer.unwrap_or_default(), |number, value| match (number, value) {
            (2, Value::Bytes([_, ..])) => Err(unsupported("a denormalizer")),
            _ => Ok(()),
        })?;
        if let Some(piece) = model.pieces.iter().find(|piece| piece.kind == PieceKind::Unused) {
            return Err(unsupported(&format!("the unused piece {:?}", piece.text)));
        }
        let tokenizer = Self::from_pieces(model.pieces, prefix, collapse)?;
        let control = |name: &String| tokenizer.added_tokens().iter().find(|token| token.content == *name);
        let ids = ends.each_ref().map(|name| control(name).map(|token| token.id));
        tokenizer.with_bos_eos(ids[0], ids[1])
    }

    /// Returns the tokenizer of a SentencePiece vocabulary, as `tokenizer.model` and GGUF files hold it.
    ///
    /// Control and unknown pieces are special tokens. `prefix` puts a space before a text, `collapse` removes spaces at
    /// both ends and makes several in a row one.
    ///
    /// # Errors
    /// [`Error::Format`] if one of the 256 bytes has no piece, or two pieces are merged at the same score, so that the
    /// order of the text would decide. Runs of one character may share a score: there the longer comes first, which
    /// gives the same ids.
    pub fn from_pieces(pieces: Vec<Piece>, prefix: bool, collapse: bool) -> Result<Self> {
        let mut normal = Vec::new();
        let (mut sorted, mut added, mut bytes) = (Pieces::default(), Vec::new(), [None; 256]);
        for (piece, id) in pieces.into_iter().zip(0u32..) {
            let Piece { text, score, kind } = piece;
            if text.is_empty() {
                return Err(Error::Format(format!("piece {id} is empty")));
            }
            let spaced = text.replace(SPACE, " ").into_bytes();
            match kind {
                // A space is written `▁` before pieces are looked for: what holds a plain one cannot be found.
                PieceKind::Normal | PieceKind::UserDefined if text.contains(' ') => sorted.silent.push((spaced, id)),
                // Adding zero makes one of -0.0 and 0.0.
                PieceKind::Normal => normal.push((spaced, id, score + 0.0)),
                PieceKind::UserDefined => sorted.whole.push((spaced, id)),
                PieceKind::Unused => sorted.silent.push((spaced, id)),
                PieceKind::Unknown | PieceKind::Control => added.push(AddedToken::special(text, id)),
                PieceKind::Byte => {
                    let byte = byte_of(&text).ok_or_else(|| {
                        Error::Format(format!(
                            "piece {id} stands for a byte, but is {text:?}; expected such as \"<0x0A>\""
                        ))
                    })?;
                    if bytes[usize::from(byte)].replace(id).is_some() {
                        return Err(Error::Format(format!("two pieces are {text:?}")));
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
        let vocab = Vocab::from_pieces(&sorted)?;
        let prefix_kind = if prefix { SpacePrefix::Always } else { SpacePrefix::Never };
        let spaces = Spaces { prefix: prefix_kind, collapse, drop_first: prefix || collapse };
        Ok(Self::new(vocab, pretokenizer, added, false)?.with_spaces(spaces))
    }
}

impl<'a> Model<'a> {
    fn read(message: &'a [u8]) -> Result<Self> {
        let mut model = Self::default();
        each_field(message, |number, value| {
            match (number, value) {
                (1, Value::Bytes(piece)) => model.pieces.push(read_piece(piece, model.pieces.len())?),
                (2, Value::Bytes(spec)) => model.trainer = Some(spec),
                (3, Value::Bytes(spec)) => model.normalizer = Some(spec),
                (5, Value::Bytes(spec)) => model.denormalizer = Some(spec),
                _ => {}
            }
            Ok(())
        })?;
        Ok(model)
    }
}

fn each_field<'a>(message: &'a [u8], mut each: impl FnMut(u64, Value<'a>) -> Result<()>) -> Result<()> {
    let mut fields = Fields::new(message);
    while let Some((number, value)) = fields.next_field()? {
        each(number, value)?;
    }
    Ok(())
}

fn read_piece(message: &[u8], id: usize) -> Result<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: PieceKind::Normal };
    each_field(message, |number, value| {
        match (number, value) {
            (1, Value::Bytes(text)) => {
                let text = std::str::from_utf8(text).map_err(|_| {
                    Error::Format(format!("piece {id} is no UTF-8: {:?}", String::from_utf8_lossy(text)))
                })?;
                text.clone_into(&mut piece.text);
            }
            (2, Value::Fixed32(bits)) => piece.score = f32::from_bits(bits),
            (3, Value::Varint(number)) => piece.kind = PieceKind::from_number(number)?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(piece)
}

fn unsupported(what: &str) -> Error {
    Error::Format(format!("{what} is not supported in a SentencePiece vocabulary"))
}

/// Returns the byte that a piece such as `<0x0A>` stands for.
pub(super) fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_hex = digits.len() == 2 && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'A'..=b'F'));
    if is_hex { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// Returns the pieces by falling score.
fn in_order(mut pieces: Vec<(Vec<u8>, u32, f32)>) -> Result<Vec<(Vec<u8>, u32)>> {
    if let Some((_, id, score)) = pieces.iter().find(|(.., score)| score.is_nan()) {
        return Err(Error::Format(format!("piece {id} has the score {score}")));
    }
    pieces.sort_by(|a, b| b.2.total_cmp(&a.2).then(b.0.len().cmp(&a.0.len())));
    let several: Vec<_> = pieces.iter().filter(|(bytes, ..)| char_count(bytes) > 1).collect();
    let mut known = None;
    for pair in several.windows(2) {
        let [(a, _, score), (b, _, other)] = pair else { continue };
        let run = run_of(a);
        if score.total_cmp(other).is_ne() || (run.is_some() && run == known && run == run_of(b)) {
            continue;
        }
        // From left to right, runs of one character grow alike whether of equal scores the leftmost comes first or the
        // longest: all pairs further right are of single characters. But for that no run may have another score.
        let is_alone =
            |(bytes, _, score): &&(Vec<u8>, u32, f32)| run_of(bytes) != run || score.total_cmp(other).is_eq();
        if run.is_none() || run != run_of(b) || !several.iter().all(is_alone) {
            let [a, b] = [a, b].map(|bytes| String::from_utf8_lossy(bytes));
            return Err(unsupported(&format!("that the pieces {a:?} and {b:?} share the score {score}")));
        }
        known = run;
    }
    Ok(pieces.into_iter().map(|(bytes, id, _)| (bytes, id)).collect())
}

/// Returns the character that a text repeats, if it is of one.
fn run_of(bytes: &[u8]) -> Option<char> {
    let mut characters = std::str::from_utf8(bytes).ok()?.chars();
    let first = characters.next()?;
    characters.all(|character| character == first).then_some(first)
}

fn char_count(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte & 0xC0 != 0x80).count()
}

/// Returns what splits off user-defined pieces, the longest first, and the rest into words where that changes nothing.
fn pretokenizer_of(pieces: &Pieces) -> Result<Pretokenizer> {
    let rest = words_or_whole(&pieces.merged)?;
    if pieces.whole.is_empty() {
        return Ok(rest);
    }
    let apart =
        split_apart(pieces.whole.iter().map(|(bytes, _)| String::from_utf8_lossy(bytes).into_owned()).collect())?;
    let holds_space = pieces.whole.iter().any(|(bytes, _)| bytes.contains(&b' '));
    Pretokenizer::sequence(if holds_space { vec![apart] } else { vec![apart, rest] })
}

//! The fields of a `tokenizer.model`, read and written.

use crate::Result;
use crate::formats::protobuf::{Fields, Message, Value};
use crate::sentencepiece::{Normalizer, Options, Piece, PieceKind, Rules};

/// The text of an unknown piece unless the file says otherwise: U+2047 between spaces.
const UNKNOWN_SURFACE: &str = " \u{2047} ";

/// What [`write_pieces`] begins with. No `tokenizer.model` does: it is no field.
pub(super) const OF_GGUF: &[u8] = b"gguf";

/// The fields of a `tokenizer.model` that encoding and decoding use.
#[derive(Default)]
pub(super) struct ModelFile<'a> {
    pub(super) pieces: Vec<Piece>,
    trainer: Option<Trainer>,
    normalizer: Option<NormalizerSpec<'a>>,
    denormalizer: Option<NormalizerSpec<'a>>,
}

/// `trainer_spec`.
#[derive(Default)]
struct Trainer {
    /// 1, Unigram, by default.
    model_type: Option<u64>,
    whitespace_as_suffix: bool,
    byte_fallback: Option<bool>,
    unknown_surface: Option<String>,
    /// The texts of the BOS, EOS, padding and unknown pieces.
    special_names: [Option<String>; 4],
}

/// `normalizer_spec`.
#[derive(Default)]
struct NormalizerSpec<'a> {
    charsmap: &'a [u8],
    normalizer: Normalizer,
}

impl<'a> ModelFile<'a> {
    /// Returns the fields of a file.
    ///
    /// # Errors
    /// [`crate::Error::Format`] if it is damaged.
    pub(super) fn read(message: &'a [u8]) -> Result<Self> {
        let mut file = Self::default();
        each_field(message, |number, value| {
            match (number, value) {
                (1, Value::Bytes(piece)) => file.pieces.push(read_piece(piece, file.pieces.len())?),
                // A repeated message adds its fields to the first.
                (2, Value::Bytes(spec)) => file.trainer.get_or_insert_default().read(spec)?,
                (3, Value::Bytes(spec)) => file.normalizer.get_or_insert_default().read(spec)?,
                (5, Value::Bytes(spec)) => file.denormalizer.get_or_insert_default().read(spec)?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(file)
    }

    /// Returns the options of the model.
    ///
    /// # Errors
    /// [`crate::Error::Format`] if a message is missing or damaged, or the model is not BPE.
    pub(super) fn options(&self) -> Result<Options> {
        let (Some(trainer), Some(normalizer)) = (&self.trainer, &self.normalizer) else {
            return Err(malformed!("it holds no trainer_spec and normalizer_spec: it may be truncated"));
        };
        require_bpe(trainer.model_type.unwrap_or(1))?;
        let denormalizer = self.denormalizer.as_ref().filter(|spec| !spec.charsmap.is_empty());
        let surface = trainer.unknown_surface.as_deref();
        Ok(Options {
            normalizer: Normalizer {
                whitespace_as_suffix: trainer.whitespace_as_suffix,
                ..normalizer.build("normalizer_spec")?
            },
            denormalizer: denormalizer.map(|spec| spec.build("denormalizer_spec")).transpose()?,
            // SentencePiece refuses byte pieces without this field; here they imply byte fallback.
            byte_fallback: trainer.byte_fallback.unwrap_or_else(|| self.has_all_bytes()),
            unknown_surface: surface.unwrap_or(UNKNOWN_SURFACE).to_owned(),
            rules: Rules::SentencePiece,
        })
    }

    /// Returns the texts of the BOS, EOS, padding and unknown pieces.
    pub(super) fn special_names(&self) -> [String; 4] {
        let names = self.trainer.as_ref().map(|trainer| &trainer.special_names);
        std::array::from_fn(|which| {
            let name = names.and_then(|names| names[which].clone()).filter(|name| !name.is_empty());
            name.unwrap_or_else(|| ["<s>", "</s>", "<pad>", "<unk>"][which].to_owned())
        })
    }

    fn has_all_bytes(&self) -> bool {
        self.pieces.iter().filter(|piece| piece.kind == PieceKind::Byte).count() >= 256
    }

    /// Returns whether byte-level merges can give the same ids, as far as the options decide.
    pub(super) fn is_plain(&self, options: &Options) -> bool {
        let Options { normalizer, denormalizer, byte_fallback, .. } = options;
        let is_odd = |piece: &Piece| match piece.kind {
            PieceKind::Unused => true,
            // Decoding must not drop a space that belongs to a piece.
            PieceKind::UserDefined | PieceKind::Normal if piece.text.contains(' ') => {
                normalizer.remove_extra_whitespaces || (normalizer.add_dummy_prefix && piece.text.starts_with(' '))
            }
            _ => piece.text == "\0",
        };
        *byte_fallback
            && normalizer.charsmap.is_none()
            && normalizer.escape_whitespaces
            && !normalizer.whitespace_as_suffix
            && denormalizer.is_none()
            && !self.pieces.iter().any(is_odd)
    }
}

impl Trainer {
    fn read(&mut self, message: &[u8]) -> Result<()> {
        each_field(message, |number, value| {
            match (number, value) {
                (3, Value::Varint(number)) => self.model_type = Some(number),
                (24, Value::Varint(is_set)) => self.whitespace_as_suffix = is_set != 0,
                (35, Value::Varint(is_set)) => self.byte_fallback = Some(is_set != 0),
                (44, Value::Bytes(text)) => self.unknown_surface = Some(read_text("trainer_spec.unk_surface", text)?),
                (45, Value::Bytes(name)) => self.special_names[3] = Some(read_text("trainer_spec.unk_piece", name)?),
                (46, Value::Bytes(name)) => self.special_names[0] = Some(read_text("trainer_spec.bos_piece", name)?),
                (47, Value::Bytes(name)) => self.special_names[1] = Some(read_text("trainer_spec.eos_piece", name)?),
                (48, Value::Bytes(name)) => self.special_names[2] = Some(read_text("trainer_spec.pad_piece", name)?),
                _ => {}
            }
            Ok(())
        })
    }
}

impl<'a> NormalizerSpec<'a> {
    fn read(&mut self, message: &'a [u8]) -> Result<()> {
        each_field(message, |number, value| {
            match (number, value) {
                (2, Value::Bytes(blob)) => self.charsmap = blob,
                (3, Value::Varint(is_set)) => self.normalizer.add_dummy_prefix = is_set != 0,
                (4, Value::Varint(is_set)) => self.normalizer.remove_extra_whitespaces = is_set != 0,
                (5, Value::Varint(is_set)) => self.normalizer.escape_whitespaces = is_set != 0,
                _ => {}
            }
            Ok(())
        })
    }

    fn build(&self, name: &str) -> Result<Normalizer> {
        let built = self.normalizer.clone().with_rules(self.charsmap);
        built.map_err(|error| malformed!("{name}: {error}"))
    }
}

/// Refuses other models than BPE with a message that says what to do.
fn require_bpe(model_type: u64) -> Result<()> {
    if model_type == 2 {
        return Ok(());
    }
    let names = ["", "Unigram", "BPE", "Word", "Char"];
    let name = usize::try_from(model_type).ok().and_then(|number| names.get(number)).unwrap_or(&"unknown");
    Err(malformed!(
        "it is a SentencePiece model of type {model_type} ({name}), which merges no pairs, so that byte-pair encoding \
         would give other ids: trainer_spec.model_type must be 2 (BPE). Encode with the sentencepiece package instead, or \
         train a model with model_type=\"bpe\""
    ))
}

fn read_text(what: &str, bytes: &[u8]) -> Result<String> {
    let text = std::str::from_utf8(bytes);
    let text = text.map_err(|_| malformed!("{what} is no UTF-8: {:?}", String::from_utf8_lossy(bytes)))?;
    Ok(text.to_owned())
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
            (1, Value::Bytes(text)) => piece.text = read_text(&format!("piece {id}"), text)?,
            (2, Value::Fixed32(bits)) => piece.score = f32::from_bits(bits),
            (3, Value::Varint(number)) => piece.kind = PieceKind::from_number(number)?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(piece)
}

/// Returns a `tokenizer.model` with a prefix, from which `Tokenizer::from_sentencepiece` restores `Tokenizer::from_pieces`.
pub(super) fn write_pieces(pieces: &[Piece], prefix: bool, collapse: bool) -> Vec<u8> {
    let mut model = Message::default();
    for piece in pieces {
        let mut message = Message::default();
        message.bytes(1, piece.text.as_bytes());
        message.fixed32(2, piece.score.to_bits());
        message.varint(3, piece.kind as u64);
        model.bytes(1, message.as_bytes());
    }
    let (mut trainer, mut normalizer) = (Message::default(), Message::default());
    trainer.varint(3, 2);
    trainer.varint(35, 1);
    normalizer.varint(3, u64::from(prefix));
    normalizer.varint(4, u64::from(collapse));
    model.bytes(2, trainer.as_bytes());
    model.bytes(3, normalizer.as_bytes());
    [OF_GGUF, model.as_bytes()].concat()
}

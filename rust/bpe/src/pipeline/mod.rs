//! The pipeline of a `tokenizer.json`, step by step as the file spells it: the general way to encode and decode.
//!
//! Text -> added tokens cut out -> [`normalizer`] -> normalized added tokens cut out -> [`pre_tokenizer`] -> [`model`]
//! -> ids -> [`post_processor`]; and back by the [`decoder`]. [`components`] are the parts as the file has them,
//! [`aligned`] keeps track of where each byte came from, [`search`] finds what a component looks for.
//!
//! [`crate::Tokenizer`] takes this way where no faster one is known to give the same ids.
//!
//! Source: Hugging Face `tokenizers` 0.23 defines what each component means.

mod aligned;
mod charsmap;
pub(crate) mod components;
mod decoder;
mod model;
mod normalizer;
mod post_processor;
mod pre_tokenizer;
mod script_table;
mod scripts;
mod search;

use self::aligned::push_spans;
use self::decoder::Decoders;
use self::model::{Dropout, Memory, Model};
use self::normalizer::Normalizers;
use self::pre_tokenizer::{Piece, PreTokenized, PreTokenizers};
use crate::interrupt::Interrupt;
use crate::special::{AddedTokens, SpecialSet};
use crate::{Error, Result};
use bpe_llama_simd::ScratchPool;

pub(crate) use self::aligned::Aligned;
pub(crate) use self::components::Components;
pub(crate) use self::model::ModelOptions;
pub(crate) use self::post_processor::{Item, Template};

/// Everything but the added tokens, compiled.
pub(crate) struct Pipeline {
    normalizers: Normalizers,
    pre_tokenizers: PreTokenizers,
    model: Model,
    decoders: Decoders,
    idle: ScratchPool<Memory>,
}

/// A token and the bytes of the original text that it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) id: u32,
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// How many characters of white space the token begins and ends with; offsets may leave them out.
    pub(crate) spaces: (usize, usize),
}

impl Pipeline {
    /// # Errors
    /// [`Error::Format`] naming the component that is broken.
    pub(crate) fn new<'a>(
        components: &Components,
        entries: impl Iterator<Item = (&'a str, u32)>,
        merges: impl Iterator<Item = (&'a str, &'a str)>,
        options: ModelOptions,
    ) -> Result<Self> {
        Ok(Self {
            normalizers: Normalizers::compile(components.normalizer.as_ref())?,
            pre_tokenizers: PreTokenizers::compile(components.pre_tokenizer.as_ref())?,
            model: Model::new(entries, merges, options)?,
            decoders: Decoders::compile(components.decoder.as_ref())?,
            idle: ScratchPool::new(),
        })
    }

    /// Returns the normal form of a text.
    pub(crate) fn normalize(&self, text: &str) -> Result<String> {
        self.normalizers.normalize(text)
    }

    pub(crate) fn token_to_id(&self, token: &str) -> Option<u32> {
        self.model.id_of(token)
    }

    /// All tokens of the model, in no order.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = (&str, u32)> {
        self.model.tokens()
    }

    /// The merges, best first.
    pub(crate) fn merges(&self) -> Vec<(u32, u32)> {
        self.model.merges()
    }

    pub(crate) fn token(&self, id: u32) -> Option<&str> {
        self.model.token(id)
    }

    /// Calls back with the ids of a text, piece by piece.
    pub(crate) fn encode(
        &self,
        text: &str,
        (added, allowed): (&AddedTokens, SpecialSet<'_>),
        interrupt: Interrupt<'_>,
        mut dropout: Dropout<'_>,
        sink: &mut dyn FnMut(&[u32]),
    ) -> Result<()> {
        let cut = self.pre_tokenize(text, added, allowed, interrupt)?;
        let (mut parts, mut ids) = (Vec::new(), Vec::new());
        self.with_memory(|memory| {
            for (number, piece) in cut.pieces.iter().enumerate() {
                interrupt.check_at(number)?;
                if let Some(id) = piece.added {
                    sink(&[id]);
                    continue;
                }
                parts.clear();
                let text = &cut.text[piece.start..piece.end];
                self.model.encode(
                    text,
                    memory,
                    dropout.as_mut().map(|drops| &mut **drops as _),
                    interrupt,
                    &mut parts,
                )?;
                ids.clear();
                ids.extend(parts.iter().map(|&(id, _)| id));
                sink(&ids);
            }
            Ok(())
        })
    }

    /// Returns the tokens of a text with the bytes they stand for.
    pub(crate) fn encode_with_offsets(
        &self,
        text: &str,
        (added, allowed): (&AddedTokens, SpecialSet<'_>),
        interrupt: Interrupt<'_>,
    ) -> Result<Vec<Token>> {
        let cut = self.pre_tokenize(text, added, allowed, interrupt)?;
        let (mut tokens, mut parts) = (Vec::new(), Vec::new());
        self.with_memory(|memory| {
            for (number, piece) in cut.pieces.iter().enumerate() {
                interrupt.check_at(number)?;
                let (text, spans) = (&cut.text[piece.start..piece.end], &cut.spans[piece.start..piece.end]);
                parts.clear();
                match piece.added {
                    Some(id) => parts.push((id, text.len() as u32)),
                    None => self.model.encode(text, memory, None, interrupt, &mut parts)?,
                }
                let mut at = 0;
                for &(id, length) in &parts {
                    interrupt.check_at(tokens.len())?;
                    let end = at + length as usize;
                    let range = spans.get(at..end).and_then(|spans| Some((spans.first()?.0, spans.last()?.1)));
                    // Where unknown characters were left out the lengths may lead beyond the piece.
                    let (start, stop) = range.map_or((at, end), |(start, end)| (start as usize, end as usize));
                    let name = if piece.added.is_some() { text } else { self.model.token(id).unwrap_or_default() };
                    tokens.push(Token { id, start, end: stop, spaces: spaces_around(name) });
                    at = end;
                }
            }
            Ok(())
        })?;
        Ok(tokens)
    }

    /// Returns the text of tokens, special ones left out if asked for.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an id that no token has; what the interrupt check returns.
    pub(crate) fn decode(
        &self,
        ids: &[u32],
        added: &AddedTokens,
        skip_special: bool,
        interrupt: Interrupt<'_>,
    ) -> Result<String> {
        let mut tokens = Vec::with_capacity(ids.len());
        for (turn, &id) in ids.iter().enumerate() {
            interrupt.check_at(turn)?;
            let name = added.name_of(id).or_else(|| self.model.token(id));
            let name = name.ok_or_else(|| Error::NotFound(format!("id {id} is not in this vocabulary")))?;
            if !(skip_special && added.by_content(name).is_some_and(|token| token.special)) {
                tokens.push(name.to_owned());
            }
        }
        self.decoders.decode(tokens, interrupt)
    }

    /// Returns whether decoding leaves a token out where special tokens are not wanted.
    pub(crate) fn is_special(&self, id: u32, added: &AddedTokens) -> bool {
        let name = added.name_of(id).or_else(|| self.model.token(id));
        name.and_then(|name| added.by_content(name)).is_some_and(|token| token.special)
    }

    /// Returns whether the text of a token is not known before the run of bytes ends that it is of.
    pub(crate) fn is_byte_of_run(&self, id: u32, added: &AddedTokens) -> bool {
        let name = added.name_of(id).or_else(|| self.model.token(id));
        name.is_some_and(|name| self.decoders.is_byte_of_run(name))
    }

    /// Returns whether the text of tokens goes on from what the last few of those before were decoded to alone.
    pub(crate) fn decodes_by_parts(&self) -> bool {
        self.decoders.decodes_by_parts()
    }

    /// Returns the bytes that a token stands for within a text.
    pub(crate) fn token_bytes(&self, name: &str) -> Vec<u8> {
        self.decoders.token_bytes(name)
    }

    /// Returns whether decoding is no more than putting the bytes of tokens together.
    pub(crate) fn decodes_bytes(&self) -> bool {
        self.decoders.is_byte_level()
    }

    fn pre_tokenize(
        &self,
        text: &str,
        added: &AddedTokens,
        allowed: SpecialSet<'_>,
        interrupt: Interrupt<'_>,
    ) -> Result<PreTokenized> {
        if u32::try_from(text.len()).is_err() {
            return Err(Error::InvalidArgument(format!("the text has {} bytes; expected less than 4 GiB", text.len())));
        }
        added.check(allowed)?;
        let mut whole = PreTokenized::default();
        added.split_raw(text, allowed, interrupt, &mut |part| {
            let (start, stretch) = (part.bytes.start as u32, &text[part.bytes]);
            if part.added.is_some() {
                let begin = whole.text.len();
                whole.text.push_str(stretch);
                push_spans(&mut whole.spans, stretch, start, interrupt)?;
                whole.pieces.push(Piece { start: begin, end: whole.text.len(), added: part.added });
                return Ok(());
            }
            let mut aligned = Aligned::new(stretch, start, interrupt)?;
            self.normalizers.apply(&mut aligned, interrupt)?;
            whole.has_rootless_start |= aligned.has_rootless_start;
            added.split_normalized(&aligned.text, allowed, interrupt, &mut |part| {
                let begin = whole.text.len();
                whole.extend(&aligned.text[part.bytes.clone()], &aligned.spans[part.bytes]);
                whole.pieces.push(Piece { start: begin, end: whole.text.len(), added: part.added });
                Ok(())
            })
        })?;
        self.pre_tokenizers.apply(&mut whole, interrupt)?;
        Ok(whole)
    }

    fn with_memory<R>(&self, work: impl FnOnce(&mut Memory) -> R) -> R {
        let mut memory = self.idle.take().unwrap_or_default();
        let result = work(&mut memory);
        self.idle.give_back(memory);
        result
    }
}

/// Returns how many characters of white space, `Ġ` among them, a token begins and ends with.
pub(crate) fn spaces_around(token: &str) -> (usize, usize) {
    let is_space = |c: &char| *c == '\u{120}' || c.is_whitespace();
    (token.chars().take_while(is_space).count(), token.chars().rev().take_while(is_space).count())
}

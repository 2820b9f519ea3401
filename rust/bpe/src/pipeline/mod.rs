//! The pipeline of a `tokenizer.json`: the general path, which runs every component as the file describes it.
//!
//! | step | file |
//! |---|---|
//! | the components of the file | `components.rs` |
//! | added tokens, in the original text and in the normalized text | [`crate::special`] |
//! | normalization | `normalizer.rs` |
//! | pre-tokenization | `pre_tokenizer.rs`, `scripts.rs`, `script_table.rs` |
//! | byte-pair encoding | `model.rs` |
//! | special tokens around the text | `post_processor.rs` |
//! | ids to text | `decoder.rs` |
//! | matches of a pattern, for several steps | `search.rs` |
//! | the most steps, and the most that they make of a text | `bounds.rs` |
//!
//! [`crate::Tokenizer`] uses the pipeline if no faster path gives the same ids.
//!
//! Source: Hugging Face `tokenizers` 0.23 defines the components.

pub(crate) mod bounds;
pub(crate) mod components;
mod decoder;
mod model;
mod normalizer;
mod post_processor;
mod pre_tokenizer;
mod script_table;
mod scripts;
mod search;

use self::decoder::Decoders;
use self::model::{Cache, Dropout, Model};
use self::normalizer::Normalizers;
use self::pre_tokenizer::{Piece, PreTokenized, PreTokenizers};
use crate::Result;
use crate::interrupt::Interrupt;
use crate::normalize::After;
use crate::normalize::aligned::{Aligned, push_spans};
use crate::special::{AddedTokens, SpecialSet};
use bpe_llama_simd::ScratchPool;

pub(crate) use self::components::Components;
pub(crate) use self::model::{ModelOptions, unknown_in_merge};
pub(crate) use self::post_processor::{Item, Template};

/// The compiled components, except for the added tokens.
pub(crate) struct Pipeline {
    normalizers: Normalizers,
    pre_tokenizers: PreTokenizers,
    model: Model,
    decoders: Decoders,
    idle: ScratchPool<Cache>,
}

/// A token and its range of bytes in the original text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) id: u32,
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// The number of white space characters at the start and the end of the token, which offsets can exclude.
    pub(crate) whitespace: (usize, usize),
}

impl Pipeline {
    /// Returns the pipeline of these components, with the tokens and merges of the model.
    ///
    /// # Errors
    /// [`crate::Error::Format`] naming an invalid component.
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

    /// Returns the id of a token by its name in the file.
    pub(crate) fn token_to_id(&self, token: &str) -> Option<u32> {
        self.model.id_of(token)
    }

    /// Returns the largest id of the model plus one.
    pub(crate) fn id_bound(&self) -> u32 {
        self.model.id_bound
    }

    /// Returns all tokens of the model, in no particular order.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = (&str, u32)> {
        self.model.tokens()
    }

    /// Returns the merges by rank.
    pub(crate) fn merges(&self) -> Vec<(u32, u32)> {
        self.model.merges()
    }

    /// Returns the name of a token in the file.
    pub(crate) fn token(&self, id: u32) -> Option<&str> {
        self.model.token(id)
    }

    /// Passes the ids of a text to `sink`, piece by piece.
    pub(crate) fn encode(
        &self,
        text: &str,
        after: After,
        (added, allowed): (&AddedTokens, SpecialSet<'_>),
        interrupt: Interrupt<'_>,
        mut dropout: Dropout<'_>,
        sink: &mut dyn FnMut(&[u32]),
    ) -> Result<()> {
        let text = self.pre_tokenize(text, after, added, allowed, interrupt)?;
        let (mut parts, mut ids) = (Vec::new(), Vec::new());
        self.with_cache(|cache| {
            for (index, piece) in text.pieces.iter().enumerate() {
                interrupt.check_at(index)?;
                if let Some(id) = piece.added {
                    sink(&[id]);
                    continue;
                }
                parts.clear();
                let piece = &text.text[piece.start..piece.end];
                self.model.encode(
                    piece,
                    cache,
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

    /// Returns the tokens of a text with their ranges of bytes.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] for a text of 4 GiB or more, or an unknown character without an unknown token;
    /// the errors of the components and of the interrupt check.
    pub(crate) fn encode_with_offsets(
        &self,
        text: &str,
        (added, allowed): (&AddedTokens, SpecialSet<'_>),
        interrupt: Interrupt<'_>,
    ) -> Result<Vec<Token>> {
        let text = self.pre_tokenize(text, After::Nothing, added, allowed, interrupt)?;
        let (mut tokens, mut parts) = (Vec::new(), Vec::new());
        self.with_cache(|cache| {
            for (index, piece) in text.pieces.iter().enumerate() {
                interrupt.check_at(index)?;
                let (content, spans) = (&text.text[piece.start..piece.end], &text.spans[piece.start..piece.end]);
                parts.clear();
                match piece.added {
                    Some(id) => parts.push((id, content.len() as u32)),
                    None => self.model.encode(content, cache, None, interrupt, &mut parts)?,
                }
                let mut at = 0;
                for &(id, length) in &parts {
                    interrupt.check_at(tokens.len())?;
                    let end = at + length as usize;
                    let range = spans.get(at..end).and_then(|spans| Some((spans.first()?.0, spans.last()?.1)));
                    // If unknown characters were dropped, the lengths can exceed the piece.
                    let (start, stop) = range.map_or((at, end), |(start, end)| (start as usize, end as usize));
                    let name = if piece.added.is_some() { content } else { self.model.token(id).unwrap_or_default() };
                    tokens.push(Token { id, start, end: stop, whitespace: whitespace_around(name) });
                    at = end;
                }
            }
            Ok(())
        })?;
        Ok(tokens)
    }

    /// Returns the text of ids, without special tokens if `skip_special`.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`] for an id without a token; the error of the interrupt check.
    pub(crate) fn decode(
        &self,
        ids: &[u32],
        added: &AddedTokens,
        skip_special: bool,
        interrupt: Interrupt<'_>,
    ) -> Result<String> {
        let mut tokens = Vec::with_capacity(ids.len());
        for (index, &id) in ids.iter().enumerate() {
            interrupt.check_at(index)?;
            let name = added.name_of(id).or_else(|| self.model.token(id));
            let name = name.ok_or_else(|| not_found!("id {id} is not in this vocabulary"))?;
            if !(skip_special && added.by_content(name).is_some_and(|token| token.special)) {
                tokens.push(name.to_owned());
            }
        }
        self.decoders.decode(tokens, interrupt)
    }

    /// Returns whether decoding without special tokens drops this id.
    pub(crate) fn is_special(&self, id: u32, added: &AddedTokens) -> bool {
        let name = added.name_of(id).or_else(|| self.model.token(id));
        name.and_then(|name| added.by_content(name)).is_some_and(|token| token.special)
    }

    /// Returns whether a token is one of a run of bytes whose text is unknown before the run ends.
    pub(crate) fn is_byte_of_run(&self, id: u32, added: &AddedTokens) -> bool {
        let name = added.name_of(id).or_else(|| self.model.token(id));
        name.is_some_and(|name| self.decoders.is_byte_of_run(name))
    }

    /// Returns whether the text of further ids can be decoded from the last few ids only.
    pub(crate) fn decodes_by_parts(&self) -> bool {
        self.decoders.decodes_by_parts()
    }

    /// Returns the bytes of a token within a text.
    pub(crate) fn token_bytes(&self, name: &str) -> Vec<u8> {
        self.decoders.token_bytes(name)
    }

    /// Returns whether decoding only concatenates the bytes of tokens.
    pub(crate) fn decodes_bytes(&self) -> bool {
        self.decoders.is_byte_level()
    }

    /// Returns the normalized text with its pieces.
    ///
    /// After a special token all spans are one higher, so that no piece is the first of a text.
    fn pre_tokenize(
        &self,
        text: &str,
        after: After,
        added: &AddedTokens,
        allowed: SpecialSet<'_>,
        interrupt: Interrupt<'_>,
    ) -> Result<PreTokenized> {
        let offset = u32::from(after == After::Special);
        if u32::try_from(text.len() + offset as usize).is_err() {
            return Err(invalid!("the text has {} bytes; expected less than 4 GiB", text.len()));
        }
        added.check(allowed)?;
        let mut whole = PreTokenized::default();
        added.split_raw(text, allowed, interrupt, &mut |part| {
            let (start, segment) = (offset + part.bytes.start as u32, &text[part.bytes]);
            if part.added.is_some() {
                let begin = whole.text.len();
                whole.text.push_str(segment);
                push_spans(&mut whole.spans, segment, start, interrupt)?;
                whole.pieces.push(Piece { start: begin, end: whole.text.len(), added: part.added });
                return Ok(());
            }
            let mut aligned = Aligned::new(segment, start, interrupt)?;
            self.normalizers.apply(&mut aligned, interrupt)?;
            whole.has_unaligned_start |= aligned.has_unaligned_start;
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

    fn with_cache<R>(&self, work: impl FnOnce(&mut Cache) -> R) -> R {
        let mut cache = self.idle.take().unwrap_or_default();
        let result = work(&mut cache);
        self.idle.give_back(cache);
        result
    }
}

/// Returns the number of white space characters, including `Ġ`, at the start and the end of a token.
pub(crate) fn whitespace_around(token: &str) -> (usize, usize) {
    let is_whitespace = |c: &char| *c == '\u{120}' || c.is_whitespace();
    (token.chars().take_while(is_whitespace).count(), token.chars().rev().take_while(is_whitespace).count())
}

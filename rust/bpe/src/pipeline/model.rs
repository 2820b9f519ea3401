//! Byte-pair encoding over the characters of a piece, with all options of a `tokenizer.json`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use serde::Serialize;

use crate::interrupt::Interrupt;
use crate::vocab::check_id;
use crate::{Error, Result};

/// Longer pieces are not cached.
const LONGEST_CACHED: usize = 256;

/// The cache is cleared when it holds so many pieces.
const MAX_CACHED: usize = 1 << 16;

type Map<K, V> = HashMap<K, V, FixedState>;

/// The options of a BPE model in a `tokenizer.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct ModelOptions {
    pub(crate) dropout: Option<f32>,
    pub(crate) unk_token: Option<String>,
    pub(crate) continuing_subword_prefix: Option<String>,
    pub(crate) end_of_word_suffix: Option<String>,
    pub(crate) fuse_unk: bool,
    pub(crate) byte_fallback: bool,
    pub(crate) ignore_merges: bool,
}

/// A vocabulary of strings and its merges.
#[derive(Debug)]
pub(crate) struct Model {
    ids: Map<Box<str>, u32>,
    tokens: Map<u32, Box<str>>,
    /// The rank of each pair, and the token it merges to.
    merges: Map<(u32, u32), (u32, u32)>,
    /// The tokens `<0x00>` to `<0xFF>`.
    bytes: [Option<u32>; 256],
    unk: Option<u32>,
    /// The largest id plus one.
    pub(super) id_bound: u32,
    pub(super) options: ModelOptions,
}

/// A token of a piece, and the number of bytes of the piece it covers.
pub(super) type Part = (u32, u32);

/// The tokens of pieces that one thread encoded.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    pieces: Map<Box<str>, Box<[Part]>>,
}

/// A token during merging, in a doubly linked list of indices.
#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    length: u32,
    previous: u32,
    next: u32,
}

const NONE: u32 = u32::MAX;

/// Decides at random which merges BPE-dropout skips.
pub(super) type Dropout<'a> = Option<&'a mut dyn FnMut() -> bool>;

impl Model {
    /// Returns the model of these tokens and merges.
    ///
    /// # Errors
    /// [`Error::Format`] if a merge names or results in a token that is not in the vocabulary, or if two tokens share
    /// an id; [`Error::InvalidArgument`] if an id is out of range.
    pub(super) fn new<'a>(
        entries: impl Iterator<Item = (&'a str, u32)>,
        merges: impl Iterator<Item = (&'a str, &'a str)>,
        options: ModelOptions,
    ) -> Result<Self> {
        let mut model = Self {
            ids: Map::default(),
            tokens: Map::default(),
            merges: Map::default(),
            bytes: [None; 256],
            unk: None,
            id_bound: 0,
            options,
        };
        for (token, id) in entries {
            check_id(format_args!("token {token:?}"), id)?;
            model.id_bound = model.id_bound.max(id + 1);
            if let Some(&other) = model.ids.get(token)
                && other != id
            {
                return Err(malformed!("tokenizer.json: token {token:?} has two ids, {other} and {id}"));
            }
            if let Some(other) = model.tokens.get(&id)
                && **other != *token
            {
                return Err(malformed!("tokenizer.json: id {id} is given to two tokens, {other:?} and {token:?}"));
            }
            model.ids.insert(token.into(), id);
            model.tokens.insert(id, token.into());
        }
        let prefix_length = model.options.continuing_subword_prefix.as_ref().map_or(0, String::len);
        for (rank, (left, right)) in merges.enumerate() {
            let id = |token: &str| model.ids.get(token).copied().ok_or_else(|| unknown_in_merge(rank, token));
            let (left_id, right_id) = (id(left)?, id(right)?);
            let rest = right.get(prefix_length..).ok_or_else(|| {
                let prefix = model.options.continuing_subword_prefix.as_deref().unwrap_or_default();
                malformed!("tokenizer.json: merge {rank} names {right:?}, which does not begin with {prefix:?}")
            })?;
            let merged = [left, rest].concat();
            let merged_id = model.ids.get(merged.as_str()).copied().ok_or_else(|| {
                malformed!("tokenizer.json: merge {rank} gives {merged:?}, which is not in the vocabulary")
            })?;
            model.merges.insert((left_id, right_id), (rank as u32, merged_id));
        }
        for byte in 0..=255u8 {
            model.bytes[usize::from(byte)] = model.ids.get(format!("<0x{byte:02X}>").as_str()).copied();
        }
        model.unk = model.options.unk_token.as_deref().and_then(|unk| model.ids.get(unk)).copied();
        Ok(model)
    }

    pub(super) fn id_of(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    pub(super) fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(&id).map(AsRef::as_ref)
    }

    /// Returns all tokens, in no particular order.
    pub(super) fn tokens(&self) -> impl Iterator<Item = (&str, u32)> {
        self.tokens.iter().map(|(&id, token)| (token.as_ref(), id))
    }

    /// Returns the merges by rank.
    pub(super) fn merges(&self) -> Vec<(u32, u32)> {
        let mut merges: Vec<_> = self.merges.iter().map(|(&pair, &(rank, _))| (rank, pair)).collect();
        merges.sort_unstable();
        merges.into_iter().map(|(_, pair)| pair).collect()
    }

    /// Appends the tokens of a piece.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a character is unknown and the unknown token is not in the vocabulary; the error
    /// of the interrupt check.
    pub(super) fn encode(
        &self,
        piece: &str,
        cache: &mut Cache,
        dropout: Dropout<'_>,
        interrupt: Interrupt<'_>,
        parts: &mut Vec<Part>,
    ) -> Result<()> {
        if dropout.is_some() {
            return self.merge(piece, dropout, interrupt, parts);
        }
        if let Some(known) = cache.pieces.get(piece) {
            parts.extend_from_slice(known);
            return Ok(());
        }
        if self.options.ignore_merges
            && let Some(&id) = self.ids.get(piece)
        {
            parts.push((id, piece.len() as u32));
            return Ok(());
        }
        let start = parts.len();
        self.merge(piece, None, interrupt, parts)?;
        if piece.len() <= LONGEST_CACHED {
            if cache.pieces.len() >= MAX_CACHED {
                cache.pieces.clear();
            }
            cache.pieces.insert(piece.into(), parts[start..].into());
        }
        Ok(())
    }

    /// Appends the tokens to which the characters of a piece merge.
    ///
    /// # Cost
    /// `O(n log n)` in the length of the piece.
    ///
    /// # Source
    /// Sennrich et al. 2016, arXiv:1508.07909; `models/bpe` of Hugging Face `tokenizers` for the rest.
    fn merge(&self, piece: &str, dropout: Dropout<'_>, interrupt: Interrupt<'_>, parts: &mut Vec<Part>) -> Result<()> {
        let mut symbols: Vec<Symbol> = Vec::with_capacity(piece.len());
        let mut push = |id, length: usize| {
            let index = symbols.len() as u32;
            symbols.push(Symbol { id, length: length as u32, previous: index.wrapping_sub(1), next: index + 1 });
        };
        // A pending unknown token, which can fuse with the next one.
        let mut unknown: Option<(u32, usize)> = None;
        let mut name = String::new();
        for (iteration, (at, character)) in piece.char_indices().enumerate() {
            interrupt.check_at(iteration)?;
            let length = character.len_utf8();
            name.clear();
            if at > 0 {
                name.push_str(self.options.continuing_subword_prefix.as_deref().unwrap_or_default());
            }
            name.push(character);
            if at + length == piece.len() {
                name.push_str(self.options.end_of_word_suffix.as_deref().unwrap_or_default());
            }
            if let Some(&id) = self.ids.get(name.as_str()) {
                if let Some((id, length)) = unknown.take() {
                    push(id, length);
                }
                push(id, length);
                continue;
            }
            let bytes = name.bytes().map(|byte| self.bytes[usize::from(byte)]);
            if self.options.byte_fallback && bytes.clone().all(|id| id.is_some()) {
                bytes.flatten().for_each(|id| push(id, 1));
                continue;
            }
            let Some(unk) = &self.options.unk_token else { continue };
            let id = self.unk.ok_or_else(|| {
                invalid!("character {character:?} is unknown, and model.unk_token {unk:?} is not in the vocabulary")
            })?;
            unknown = match unknown {
                Some((id, before)) if self.options.fuse_unk => Some((id, before + length)),
                Some((before, before_length)) => {
                    push(before, before_length);
                    Some((id, length))
                }
                None => Some((id, length)),
            };
        }
        if let Some((id, length)) = unknown {
            push(id, length);
        }
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        self.merge_symbols(&mut symbols, dropout, interrupt)?;
        parts.extend(symbols.iter().filter(|symbol| symbol.length > 0).map(|symbol| (symbol.id, symbol.length)));
        Ok(())
    }

    /// Merges the pair of the lowest rank, the leftmost of equals, until none is left. The right symbol of a merge gets
    /// length 0.
    fn merge_symbols(&self, symbols: &mut [Symbol], mut dropout: Dropout<'_>, interrupt: Interrupt<'_>) -> Result<()> {
        let candidate = |symbols: &[Symbol], index: u32| {
            let symbol = symbols.get(index as usize)?;
            let right = symbols.get(symbol.next as usize)?;
            let &(rank, merged) = self.merges.get(&(symbol.id, right.id))?;
            Some(Reverse((rank, index, merged)))
        };
        // By rank, then index; with the token that the pair merges to.
        let mut queue = Vec::with_capacity(symbols.len());
        for index in 0..symbols.len() {
            interrupt.check_at(index)?;
            queue.extend(candidate(symbols, index as u32));
        }
        let mut queue = BinaryHeap::from(queue);
        let mut skipped = Vec::new();
        for iteration in 0.. {
            interrupt.check_at(iteration)?;
            let Some(Reverse((rank, index, merged))) = queue.pop() else { break };
            if dropout.as_mut().is_some_and(|drops| drops()) {
                skipped.push(Reverse((rank, index, merged)));
                continue;
            }
            queue.extend(skipped.drain(..));
            let left = symbols[index as usize];
            let Some(&right) = symbols.get(left.next as usize) else { continue };
            // An entry is stale if its pair no longer merges to its token.
            let now = self.merges.get(&(left.id, right.id));
            if left.length == 0 || now.is_none_or(|&(_, id)| id != merged) {
                continue;
            }
            symbols[left.next as usize].length = 0;
            if let Some(after) = symbols.get_mut(right.next as usize) {
                after.previous = index;
            }
            symbols[index as usize] =
                Symbol { id: merged, length: left.length + right.length, next: right.next, ..left };
            queue.extend(candidate(symbols, left.previous));
            queue.extend(candidate(symbols, index));
        }
        Ok(())
    }
}

/// Returns the error for a merge that names a token without an id.
pub(crate) fn unknown_in_merge(rank: usize, token: &str) -> Error {
    malformed!("tokenizer.json: merge {rank} names {token:?}, which is not in the vocabulary")
}

//! Normalization as a SentencePiece model requires it: rules for characters, then white space.

use super::prefix_trie::PrefixTrie;
use crate::interrupt::Interrupt;
use crate::normalize::CharsMap;
use crate::pipeline::bounds::Growth;
use crate::{Error, Result};

/// An escaped space: U+2581.
pub(super) const ESCAPED_SPACE: &[u8] = "\u{2581}".as_bytes();

/// The replacement of a byte of invalid UTF-8: U+FFFD.
pub(super) const REPLACEMENT: &[u8] = "\u{FFFD}".as_bytes();

/// The options of `normalizer_spec`, and `treat_whitespace_as_suffix` of `trainer_spec`.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "the flags of the file format")]
pub(crate) struct Normalizer {
    /// Rules for characters.
    pub(crate) charsmap: Option<CharsMap>,
    /// A space is added before a text, or after it.
    pub(crate) add_dummy_prefix: bool,
    /// Spaces at both ends are removed, and runs of spaces collapse to one.
    pub(crate) remove_extra_whitespaces: bool,
    /// A space becomes U+2581.
    pub(crate) escape_whitespaces: bool,
    /// The dummy space is added after the text.
    pub(crate) whitespace_as_suffix: bool,
    /// Bytes of invalid UTF-8 remain unchanged.
    pub(crate) keeps_bytes: bool,
}

/// A normalized text.
#[derive(Debug, Default)]
pub(super) struct Normalized {
    pub(super) bytes: Vec<u8>,
    /// If requested: the offset in the original text of each byte, and of the end.
    pub(super) positions: Vec<usize>,
}

/// The parameters of one call.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    /// Symbols that no rule changes, except that their spaces are escaped.
    pub(super) protected: Option<&'a PrefixTrie>,
    /// Whether a space is added before the text.
    pub(super) begins_with_space: bool,
    /// Whether to compute [`Normalized::positions`].
    pub(super) with_positions: bool,
    pub(super) interrupt: Interrupt<'a>,
}

impl Normalizer {
    /// Returns a space in normalized text.
    pub(super) fn space(&self) -> &'static [u8] {
        if self.escape_whitespaces { ESCAPED_SPACE } else { b" " }
    }

    /// Returns the normal form of a text. Bytes of invalid UTF-8 become U+FFFD or remain unchanged.
    ///
    /// # Source
    /// `Normalizer::Normalize` in `src/normalizer.cc` of SentencePiece 0.2.3.
    pub(super) fn apply(&self, text: &[u8], call: Call<'_>) -> Result<Normalized> {
        let mut normal = Normalized::default();
        let mut at = 0;
        if self.remove_extra_whitespaces {
            while at < text.len() {
                let (replaced, length) = self.first_step(&text[at..], call.protected);
                if replaced != b" " {
                    break;
                }
                at += length;
            }
        }
        if at == text.len() {
            return Ok(normal);
        }
        normal.bytes.reserve(text.len() + text.len() / 2);
        let growth = Growth::new("normalizer", text.len());
        let space = self.space();
        if call.begins_with_space {
            normal.push(space, at, call.with_positions);
        }
        let mut after_space = self.remove_extra_whitespaces;
        for iteration in 0.. {
            if at == text.len() {
                break;
            }
            call.interrupt.check_at(iteration)?;
            growth.check(normal.bytes.len())?;
            let (mut replaced, length) = self.first_step(&text[at..], call.protected);
            while after_space && let Some((b' ', rest)) = replaced.split_first() {
                replaced = rest;
            }
            if !replaced.is_empty() {
                for part in replaced.split_inclusive(|&byte| byte == b' ') {
                    let (word, spaces) = part.split_at(part.len() - usize::from(part.ends_with(b" ")));
                    normal.push(word, at, call.with_positions);
                    if !spaces.is_empty() {
                        normal.push(space, at, call.with_positions);
                    }
                }
                after_space = self.remove_extra_whitespaces && replaced.ends_with(b" ");
            }
            at += length;
        }
        let mut end = text.len();
        while self.remove_extra_whitespaces && normal.bytes.ends_with(space) {
            normal.bytes.truncate(normal.bytes.len() - space.len());
            if call.with_positions {
                end = normal.positions[normal.bytes.len()];
                normal.positions.truncate(normal.bytes.len());
            }
        }
        if self.whitespace_as_suffix && self.add_dummy_prefix {
            normal.push(space, end, call.with_positions);
        }
        if call.with_positions {
            normal.positions.push(end);
        }
        Ok(normal)
    }

    /// Returns the normal form of the first character, rule or symbol of a text, and the number of bytes it replaces.
    #[inline]
    fn first_step<'a>(&'a self, text: &'a [u8], protected: Option<&PrefixTrie>) -> (&'a [u8], usize) {
        let length = protected.map_or(0, |trie| trie.longest_match(text));
        if length > 0 {
            return (&text[..length], length);
        }
        if let Some(found) = self.charsmap.as_ref().and_then(|map| map.longest_match(text)) {
            return found;
        }
        match character_len(text) {
            Some(length) => (&text[..length], length),
            None if self.keeps_bytes => (&text[..1], 1),
            None => (REPLACEMENT, 1),
        }
    }
}

impl Normalized {
    #[inline]
    fn push(&mut self, bytes: &[u8], position: usize, with_positions: bool) {
        self.bytes.extend_from_slice(bytes);
        if with_positions {
            self.positions.resize(self.bytes.len(), position);
        }
    }
}

/// Returns the length of the first character of `text`, or `None` if it is not UTF-8.
#[inline]
pub(super) fn character_len(text: &[u8]) -> Option<usize> {
    let length = match text.first()? {
        ..0x80 => return Some(1),
        0xC2..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF4 => 4,
        _ => return None,
    };
    std::str::from_utf8(text.get(..length)?).ok().map(|_| length)
}

impl Normalizer {
    /// Returns the normalizer with these compiled rules.
    pub(crate) fn with_rules(mut self, blob: &[u8]) -> Result<Self> {
        self.charsmap = if blob.is_empty() { None } else { Some(CharsMap::new(blob)?) };
        Ok(self)
    }
}

impl Default for Normalizer {
    /// Returns the options of an empty `normalizer_spec`.
    fn default() -> Self {
        Self {
            charsmap: None,
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
            whitespace_as_suffix: false,
            keeps_bytes: false,
        }
    }
}

/// Returns the error for a segment that is too long to merge.
pub(super) fn too_long(bytes: usize) -> Error {
    invalid!("a text of {bytes} bytes that cannot be cut: expected less than 4 GiB")
}

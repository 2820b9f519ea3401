//! Text as a SentencePiece model sees it: rules for characters applied, white space treated, places remembered.

use super::charsmap::CharsMap;
use super::prefix_trie::PrefixTrie;
use crate::interrupt::Interrupt;
use crate::{Error, Result};

/// What a space is escaped as: U+2581.
pub(super) const ESCAPED_SPACE: &[u8] = "\u{2581}".as_bytes();

/// What stands for a byte that is no UTF-8: U+FFFD.
pub(super) const REPLACEMENT: &[u8] = "\u{FFFD}".as_bytes();

/// What `normalizer_spec` says, with `treat_whitespace_as_suffix` of `trainer_spec`.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "the flags of the file format")]
pub(crate) struct Normalizer {
    /// Rules for characters.
    pub(crate) charsmap: Option<CharsMap>,
    /// A space is put before a text, or after it.
    pub(crate) add_dummy_prefix: bool,
    /// Spaces at both ends are removed, and several in a row become one.
    pub(crate) remove_extra_whitespaces: bool,
    /// A space becomes U+2581.
    pub(crate) escape_whitespaces: bool,
    /// The dummy space comes after the text.
    pub(crate) whitespace_as_suffix: bool,
    /// A byte that is no UTF-8 stays.
    pub(crate) keeps_bytes: bool,
}

/// What a text becomes.
#[derive(Debug, Default)]
pub(super) struct Normalized {
    pub(super) bytes: Vec<u8>,
    /// If asked for: the place in the text of each byte, and of the end.
    pub(super) places: Vec<usize>,
}

/// How one text is normalized.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    /// What no rule changes, though its spaces are escaped.
    pub(super) protected: Option<&'a PrefixTrie>,
    /// Whether a space comes first.
    pub(super) begins_with_space: bool,
    /// Whether [`Normalized::places`] is wanted.
    pub(super) with_places: bool,
    pub(super) interrupt: Interrupt<'a>,
}

impl Normalizer {
    /// Returns what a space becomes.
    pub(super) fn space(&self) -> &'static [u8] {
        if self.escape_whitespaces { ESCAPED_SPACE } else { b" " }
    }

    /// Returns the normal form of a text, which need not be UTF-8: a byte that is none becomes U+FFFD or stays.
    ///
    /// # Errors
    /// What the interrupt check returns.
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
        let space = self.space();
        if call.begins_with_space {
            normal.push(space, at, call.with_places);
        }
        let mut after_space = self.remove_extra_whitespaces;
        for turn in 0.. {
            if at == text.len() {
                break;
            }
            call.interrupt.check_at(turn)?;
            let (mut replaced, length) = self.first_step(&text[at..], call.protected);
            while after_space && let Some((b' ', rest)) = replaced.split_first() {
                replaced = rest;
            }
            if !replaced.is_empty() {
                for part in replaced.split_inclusive(|&byte| byte == b' ') {
                    let (word, spaces) = part.split_at(part.len() - usize::from(part.ends_with(b" ")));
                    normal.push(word, at, call.with_places);
                    if !spaces.is_empty() {
                        normal.push(space, at, call.with_places);
                    }
                }
                after_space = self.remove_extra_whitespaces && replaced.ends_with(b" ");
            }
            at += length;
        }
        let mut end = text.len();
        while self.remove_extra_whitespaces && normal.bytes.ends_with(space) {
            normal.bytes.truncate(normal.bytes.len() - space.len());
            if call.with_places {
                end = normal.places[normal.bytes.len()];
                normal.places.truncate(normal.bytes.len());
            }
        }
        if self.whitespace_as_suffix && self.add_dummy_prefix {
            normal.push(space, end, call.with_places);
        }
        if call.with_places {
            normal.places.push(end);
        }
        Ok(normal)
    }

    /// Returns what the start of a text becomes, and how many of its bytes that replaces.
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
    fn push(&mut self, bytes: &[u8], place: usize, with_places: bool) {
        self.bytes.extend_from_slice(bytes);
        if with_places {
            self.places.resize(self.bytes.len(), place);
        }
    }
}

/// Returns the length of the character that begins `text`, if that is UTF-8.
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
    /// Returns a normalizer without rules.
    ///
    /// # Errors
    /// As [`CharsMap::new`].
    pub(crate) fn with_rules(mut self, blob: &[u8]) -> Result<Self> {
        self.charsmap = if blob.is_empty() { None } else { Some(CharsMap::new(blob)?) };
        Ok(self)
    }
}

impl Default for Normalizer {
    /// Returns what an empty `normalizer_spec` means.
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

/// Returns the error for a text of which one part is too long to merge.
pub(super) fn too_long(bytes: usize) -> Error {
    Error::InvalidArgument(format!("a text of {bytes} bytes that cannot be cut: expected less than 4 GiB"))
}

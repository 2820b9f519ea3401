//! SentencePiece's `precompiled_charsmap`: a trie of texts, and the replacement of each.
//!
//! The trie is a double array as Darts-clone writes it. A unit is a node: its label is the byte that leads to it, and
//! its index XOR its offset XOR a byte is the index of a child. A node that ends a text has a child with the label 0,
//! which holds the index of the replacement. Every index is checked, since files are untrusted.
//!
//! Source: `src/normalizer.cc` of SentencePiece 0.2.3; `darts.h` of Darts-clone.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::Result;

/// SentencePiece considers at most so many rules that match at one position, the shortest first.
const MAX_MATCHES: usize = 32;

/// The flag of a unit that holds a value.
const IS_VALUE: u32 = 1 << 31;

/// Compiled rules for characters.
#[derive(Debug, Clone)]
pub(crate) struct CharsMap {
    units: Vec<u32>,
    /// Zero-terminated texts; the values of the trie are their offsets.
    replacements: Vec<u8>,
}

impl CharsMap {
    /// Returns the rules of a `tokenizer.model`: the size of the trie in bytes, the trie, and the replacements.
    ///
    /// # Errors
    /// [`crate::Error::Format`] if a size does not fit, or if a unit or a value points outside its array.
    ///
    /// # Source
    /// `Normalizer::DecodePrecompiledCharsMap` in `src/normalizer.cc` of SentencePiece 0.2.3.
    pub(crate) fn new(blob: &[u8]) -> Result<Self> {
        let damaged = |what: String| malformed!("precompiled_charsmap is damaged: {what}");
        let Some((size, rest)) = blob.split_first_chunk::<4>() else {
            return Err(damaged(format!("{} bytes are too few", blob.len())));
        };
        let size = u32::from_le_bytes(*size) as usize;
        if size >= rest.len() {
            return Err(damaged(format!("its trie has {size} bytes, {} are left", rest.len())));
        }
        if size < 1024 || !size.is_multiple_of(1024) {
            return Err(damaged(format!("its trie has {size} bytes; expected a multiple of 1024")));
        }
        let (trie, replacements) = rest.split_at(size);
        if replacements.last() != Some(&0) {
            return Err(damaged("its last replacement does not end in a zero byte".to_owned()));
        }
        let map = Self { units: units_of(trie), replacements: replacements.to_vec() };
        match map.first_bad_unit() {
            None => Ok(map),
            Some(unit) => Err(damaged(format!("unit {unit} of its trie leads nowhere"))),
        }
    }

    /// Returns the rules of a `tokenizer.json`. Like `tokenizers`, it does not check the units.
    ///
    /// # Errors
    /// [`crate::Error::Format`] if the text is not the base64 of a size, a trie of this size, and UTF-8.
    pub(crate) fn from_base64(text: &str) -> Result<Self> {
        let damaged = |what: &str| malformed!("tokenizer.json: precompiled_charsmap is damaged: {what}");
        let bytes = STANDARD.decode(text).map_err(|error| damaged(&error.to_string()))?;
        let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(|| damaged("it is shorter than four bytes"))?;
        let size = u32::from_le_bytes(*size) as usize / 4 * 4;
        let (trie, replacements) = rest.split_at_checked(size).ok_or_else(|| damaged("its trie is cut short"))?;
        if trie.is_empty() {
            return Err(damaged("its trie is empty"));
        }
        let replacements = String::from_utf8(replacements.to_vec()).map_err(|error| damaged(&error.to_string()))?;
        Ok(Self { units: units_of(trie), replacements: replacements.into_bytes() })
    }

    /// Returns the index of a unit that points outside the trie or the replacements, if there is one.
    fn first_bad_unit(&self) -> Option<usize> {
        let is_outside = |at: usize| (at | 0xFF) >= self.units.len();
        self.units.iter().enumerate().position(|(at, &unit)| {
            if label(unit) & IS_VALUE != 0 {
                return at == 0 || value(unit) >= self.replacements.len();
            }
            let children = at ^ offset(unit);
            if at == 0 && (label(unit) != 0 || has_leaf(unit) || offset(unit) == 0) {
                return true;
            }
            is_outside(children) || (has_leaf(unit) && label(self.units[children]) & IS_VALUE == 0)
        })
    }

    /// Returns the replacement of the longest rule that matches at the start of `text`, and the number of bytes it
    /// replaces.
    #[inline]
    pub(crate) fn longest_match(&self, text: &[u8]) -> Option<(&[u8], usize)> {
        let (length, at) = self.matches(text).take(MAX_MATCHES).last()?;
        Some((self.replacement(at)?, length))
    }

    /// Returns the replacement of the shortest rule that matches at the start of `text`: the rule of `tokenizers`.
    pub(crate) fn shortest_match(&self, text: &str) -> Option<&str> {
        let (_, at) = self.matches(text.split('\0').next()?.as_bytes()).next()?;
        std::str::from_utf8(self.replacement(at)?).ok()
    }

    /// Returns the lengths of the rules that match at the start of `text`, the shortest first, with their replacements'
    /// offsets.
    #[inline]
    fn matches<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = (usize, usize)> + 'a {
        let mut at = self.units.first().map_or(0, |&root| offset(root));
        let mut bytes = (1..).zip(text);
        std::iter::from_fn(move || {
            for (length, &byte) in bytes.by_ref() {
                at ^= usize::from(byte);
                let unit = *self.units.get(at)?;
                if label(unit) != u32::from(byte) {
                    return None;
                }
                at ^= offset(unit);
                if has_leaf(unit) {
                    return Some((length, value(*self.units.get(at)?)));
                }
            }
            None
        })
    }

    fn replacement(&self, at: usize) -> Option<&[u8]> {
        let text = self.replacements.get(at..)?;
        Some(&text[..memchr::memchr(0, text).unwrap_or(text.len())])
    }
}

fn units_of(trie: &[u8]) -> Vec<u32> {
    trie.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect()
}

/// Returns the byte that leads to a unit; more than 255 if the unit holds a value.
fn label(unit: u32) -> u32 {
    unit & (IS_VALUE | 0xFF)
}

fn has_leaf(unit: u32) -> bool {
    unit >> 8 & 1 != 0
}

fn offset(unit: u32) -> usize {
    (unit as usize >> 10) << ((unit & 1 << 9) >> 6)
}

fn value(unit: u32) -> usize {
    (unit & !IS_VALUE) as usize
}

#[cfg(test)]
mod tests {
    use super::CharsMap;
    use proptest::prelude::*;

    /// Returns a trie of one block with one rule: `a` becomes `yz`.
    fn one_rule() -> Vec<u8> {
        let mut units = vec![0u32; 256];
        let at = |label: u8| usize::from(label) ^ 1;
        units[0] = 1 << 10;
        units[at(b'a')] = u32::from(b'a') | 1 << 8 | 3 << 10;
        units[at(b'a') ^ 3] = 1 << 31 | 2;
        let mut blob = 1024u32.to_le_bytes().to_vec();
        blob.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        blob.extend(b"x\0yz\0");
        blob
    }

    #[test]
    fn a_rule_is_found() {
        let map = CharsMap::new(&one_rule()).expect("sound");
        assert_eq!(map.longest_match(b"ab"), Some((&b"yz"[..], 1)));
        assert_eq!(map.longest_match(b"b"), None);
        assert_eq!(map.longest_match(b""), None);
    }

    #[test]
    fn truncated_maps_are_refused() {
        let whole = one_rule();
        for end in 0..whole.len() {
            assert!(CharsMap::new(&whole[..end]).is_err() || whole[end - 1] == 0, "{end} bytes");
        }
    }

    proptest! {
        #[test]
        fn random_maps_are_refused_or_searched(
            changes in prop::collection::vec((0usize..1033, any::<u8>()), 0..40),
            text in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut blob = one_rule();
            for (at, byte) in changes {
                blob[at] = byte;
            }
            if let Ok(map) = CharsMap::new(&blob)
                && let Some((_, length)) = map.longest_match(&text)
            {
                prop_assert!(length <= text.len());
            }
        }
    }
}

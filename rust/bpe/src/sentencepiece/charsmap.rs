//! Normalization rules as SentencePiece compiles them: a double-array trie of texts, and what each is replaced by.

use crate::{Error, Result};

/// A text has at most so many rules that begin it looked at, the shortest first.
const MOST_MATCHES: usize = 32;

/// Set in a unit that holds a value.
const IS_VALUE: u32 = 1 << 31;

/// The rules of `precompiled_charsmap`.
#[derive(Debug, Clone)]
pub(crate) struct CharsMap {
    /// The units of a Darts-clone double array.
    units: Vec<u32>,
    /// Replacements, each ended by a zero byte. The trie holds where they begin.
    replacements: Vec<u8>,
}

impl CharsMap {
    /// Returns the rules in a `precompiled_charsmap`: the size of the trie in bytes, the trie, and the replacements.
    ///
    /// # Errors
    /// [`Error::Format`] if a size does not fit, or a unit of the trie or a value leads out of its array.
    ///
    /// # Source
    /// `Normalizer::DecodePrecompiledCharsMap` in `src/normalizer.cc` of SentencePiece 0.2.3.
    pub(crate) fn new(blob: &[u8]) -> Result<Self> {
        let damaged = |what: String| Error::Format(format!("precompiled_charsmap is damaged: {what}"));
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
        let (units, _) = trie.as_chunks::<4>();
        let map = Self {
            units: units.iter().map(|unit| u32::from_le_bytes(*unit)).collect(),
            replacements: replacements.to_vec(),
        };
        match map.first_bad_unit() {
            None => Ok(map),
            Some(unit) => Err(damaged(format!("unit {unit} of its trie leads nowhere"))),
        }
    }

    /// Returns the number of a unit that leads out of the trie or the replacements, if there is one.
    fn first_bad_unit(&self) -> Option<usize> {
        let leads_out = |at: usize| (at | 0xFF) >= self.units.len();
        self.units.iter().enumerate().position(|(at, &unit)| {
            if label(unit) & IS_VALUE != 0 {
                return at == 0 || value(unit) >= self.replacements.len();
            }
            let below = at ^ offset(unit);
            if at == 0 && (label(unit) != 0 || has_leaf(unit) || offset(unit) == 0) {
                return true;
            }
            leads_out(below) || (has_leaf(unit) && label(self.units[below]) & IS_VALUE == 0)
        })
    }

    /// Returns what the longest rule that begins `text` makes of it, and how many bytes of the text that replaces.
    #[inline]
    pub(crate) fn longest_match(&self, text: &[u8]) -> Option<(&[u8], usize)> {
        let mut at = offset(*self.units.first()?);
        let (mut found, mut count) = (None, 0);
        for (length, &byte) in (1..).zip(text) {
            at ^= usize::from(byte);
            let unit = *self.units.get(at)?;
            if label(unit) != u32::from(byte) {
                break;
            }
            at ^= offset(unit);
            if has_leaf(unit) {
                found = Some((value(*self.units.get(at)?), length));
                count += 1;
                if count == MOST_MATCHES {
                    break;
                }
            }
        }
        let (begin, length) = found?;
        let replacement = self.replacements.get(begin..)?;
        let end = memchr::memchr(0, replacement)?;
        Some((&replacement[..end], length))
    }
}

/// The byte on the way to a unit; above 255 if the unit holds a value.
fn label(unit: u32) -> u32 {
    unit & (IS_VALUE | 0xFF)
}

fn has_leaf(unit: u32) -> bool {
    unit >> 8 & 1 != 0
}

/// What a unit's number is combined with to reach those below it.
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

    /// A trie of one block in which the byte `a` leads to a value.
    fn one_rule() -> Vec<u8> {
        let mut units = vec![0u32; 256];
        let at = |label: u8| usize::from(label) ^ 1;
        units[0] = 1 << 10;
        // Below 'a' lies what is reached by combining its number with an offset of 3.
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
    fn what_does_not_fit_is_refused() {
        let whole = one_rule();
        for end in 0..whole.len() {
            assert!(CharsMap::new(&whole[..end]).is_err() || whole[end - 1] == 0, "{end} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_searched(
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

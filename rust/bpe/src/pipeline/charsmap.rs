//! SentencePiece's table of replacements, `precompiled_charsmap`: a trie over bytes, and the texts its leaves name.
//!
//! The trie is a double array as the library Darts writes it: a node is a 32-bit unit that holds a label, an offset and
//! whether a leaf follows. Every index is checked, since files come from anywhere.
//!
//! Source: `src/normalizer.cc` of SentencePiece; Darts-clone's `darts.h`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::{Error, Result};

#[derive(Debug, Clone)]
pub(super) struct Charsmap {
    units: Vec<u32>,
    /// The replacements, each ended by a zero byte.
    texts: String,
}

impl Charsmap {
    /// # Errors
    /// [`Error::Format`] if it is no base64 of a length, a trie of that length, and UTF-8.
    pub(super) fn from_base64(text: &str) -> Result<Self> {
        let broken = |what: &str| Error::Format(format!("tokenizer.json: precompiled_charsmap is damaged: {what}"));
        let bytes = STANDARD.decode(text).map_err(|error| broken(&error.to_string()))?;
        let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(|| broken("it is shorter than four bytes"))?;
        let size = u32::from_le_bytes(*size) as usize / 4 * 4;
        let (units, texts) = rest.split_at_checked(size).ok_or_else(|| broken("its trie is cut short"))?;
        let units: Vec<u32> = units.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
        if units.is_empty() {
            return Err(broken("its trie is empty"));
        }
        let texts = String::from_utf8(texts.to_vec()).map_err(|error| broken(&error.to_string()))?;
        Ok(Self { units, texts })
    }

    /// Returns the replacement of the shortest start of `key` that has one.
    pub(super) fn first(&self, key: &str) -> Option<&str> {
        let mut node = offset(self.units[0]);
        for &byte in key.as_bytes() {
            if byte == 0 {
                return None;
            }
            node ^= byte as usize;
            let unit = *self.units.get(node)?;
            if unit & (1 << 31 | 0xff) != u32::from(byte) {
                return None;
            }
            node ^= offset(unit);
            if unit >> 8 & 1 == 1 {
                let place = (self.units.get(node)? & !(1 << 31)) as usize;
                let text = self.texts.get(place..)?;
                return Some(text.split('\0').next().unwrap_or_default());
            }
        }
        None
    }
}

fn offset(unit: u32) -> usize {
    ((unit >> 10) as usize) << ((unit & 1 << 9) >> 6)
}

//! The ids of characters of three bytes, such as those of Chinese, Japanese and Korean, in a table that fits in the CPU's L2
//! cache.

use crate::memory;

/// The bytes of a character, which has at most as many ids.
const BYTES: usize = 3;

/// 4,096 entries of 16 bytes: some thousand characters make up nearly all text.
const BITS: u32 = 12;

/// An entry of the bytes FF FF FF, which are not in UTF-8.
const EMPTY: [u32; 1 + BYTES] = [u32::MAX; 1 + BYTES];

/// A direct-mapped cache. An entry is the number of ids and the three bytes, followed by the ids.
pub(crate) struct CharacterTable(Vec<[u32; 1 + BYTES]>);

impl CharacterTable {
    pub(crate) fn new() -> Self {
        Self(memory::filled(EMPTY, 1 << BITS))
    }

    /// Appends the ids of a character to `ids`, or returns `false` if they are not known.
    #[inline]
    pub(crate) fn get(&self, character: [u8; BYTES], ids: &mut Vec<u32>) -> bool {
        let bytes = packed(character);
        let [count_and_bytes, known @ ..] = &self.0[slot(bytes)];
        if count_and_bytes & 0xFF_FFFF != bytes {
            return false;
        }
        // A copy of fixed width calls no function.
        ids.extend_from_slice(known);
        ids.truncate(ids.len() - (BYTES - (count_and_bytes >> 24) as usize));
        true
    }

    /// Keeps the ids of a character.
    pub(crate) fn put(&mut self, character: [u8; BYTES], ids: &[u32]) {
        if ids.len() <= BYTES {
            let bytes = packed(character);
            let [count_and_bytes, known @ ..] = &mut self.0[slot(bytes)];
            *count_and_bytes = (ids.len() as u32) << 24 | bytes;
            known[..ids.len()].copy_from_slice(ids);
        }
    }
}

fn packed([first, second, third]: [u8; BYTES]) -> u32 {
    u32::from_le_bytes([first, second, third, 0])
}

fn slot(bytes: u32) -> usize {
    (bytes.wrapping_mul(0x9E37_79B1) >> (32 - BITS)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_characters_have_their_ids() {
        let mut table = CharacterTable::new();
        let slots = (0..1_u32 << 16).map(u32::to_le_bytes).map(|[first, second, third, _]| [first, second, third]);
        for (character, i) in slots.zip(0..) {
            let mut ids = vec![7];
            assert!(!table.get(character, &mut ids), "{character:?} is new");
            let expected = &[i, i + 1, i + 2][..=(i as usize % 3)];
            table.put(character, expected);
            table.put(character, &[i; BYTES + 1]); // too many to keep
            assert!(table.get(character, &mut ids));
            assert_eq!((ids[0], &ids[1..]), (7, expected));
        }
    }
}

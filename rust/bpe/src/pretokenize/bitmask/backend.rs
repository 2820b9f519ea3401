//! The byte-vector trait: 64 bytes compared at once, one bit a byte. Each instruction set implements it in a file.

/// The bytes of a block.
pub(crate) const BLOCK: usize = 64;

/// Bit masks of the ASCII bytes of a block: bit `i` is byte `i`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AsciiMasks {
    /// `[A-Z]`
    pub(crate) upper: u64,
    /// `[a-z]`
    pub(crate) lower: u64,
    /// `[0-9]`
    pub(crate) number: u64,
    /// `[!-~]`
    pub(crate) graph: u64,
    /// `[\t-\r ]`
    pub(crate) whitespace: u64,
    /// `[\r\n]`
    pub(crate) newline: u64,
    pub(crate) space: u64,
    pub(crate) apostrophe: u64,
    pub(crate) slash: u64,
    /// Bytes of 0x80 and above.
    pub(crate) non_ascii: u64,
}

/// Bit masks of the lead bytes of longer characters in a block.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LeadMasks {
    /// Bytes of 0xC0 and above.
    pub(crate) lead: u64,
    /// Leads of three-byte characters that are certainly Han or Kana, and caseless letters.
    pub(crate) han_or_kana: u64,
    /// Leads of three-byte characters that are certainly Hangul.
    pub(crate) hangul: u64,
    /// Leads of two-byte characters that are certainly Cyrillic upper case.
    pub(crate) upper: u64,
    /// Leads of two-byte characters that are certainly Cyrillic lower case.
    pub(crate) lower: u64,
}

/// A block of 64 bytes in vector registers. Methods are inlined into a function that enables the instruction set.
pub(crate) trait ByteVector: Copy {
    fn load(bytes: &[u8; BLOCK]) -> Self;

    /// Returns a bit for each byte in `first..=last`; both are ASCII, or neither is.
    fn range(self, first: u8, last: u8) -> u64;

    /// Returns a bit for each byte equal to `byte`.
    #[inline(always)]
    fn equal(self, byte: u8) -> u64 {
        self.range(byte, byte)
    }

    /// Returns a bit for each byte of 0x80 and above.
    #[inline(always)]
    fn non_ascii(self) -> u64 {
        self.range(0x80, 0xff)
    }

    /// Classifies the ASCII bytes of a block.
    #[inline(always)]
    fn ascii(bytes: &[u8; BLOCK]) -> AsciiMasks {
        let vector = Self::load(bytes);
        let space = vector.equal(b' ');
        AsciiMasks {
            upper: vector.range(b'A', b'Z'),
            lower: vector.range(b'a', b'z'),
            number: vector.range(b'0', b'9'),
            graph: vector.range(b'!', b'~'),
            whitespace: vector.range(b'\t', b'\r') | space,
            newline: vector.equal(b'\n') | vector.equal(b'\r'),
            space,
            apostrophe: vector.equal(b'\''),
            slash: vector.equal(b'/'),
            non_ascii: vector.non_ascii(),
        }
    }

    /// Classifies the lead bytes of longer characters.
    ///
    /// A script is classified only if its leads occur: a branch that is well predicted within one script.
    #[inline(always)]
    fn leads(bytes: &[u8; BLOCK]) -> LeadMasks {
        let vector = Self::load(bytes);
        let mut leads = LeadMasks { lead: vector.range(0xc0, 0xff), ..LeadMasks::default() };
        let cyrillic = vector.range(0xd0, 0xd1);
        if cyrillic != 0 {
            let d0 = vector.range(0xd0, 0xd0);
            leads.upper = d0 & (vector.range(0x80, 0xaf) >> 1);
            leads.lower = (d0 & (vector.range(0xb0, 0xbf) >> 1)) | (cyrillic & !d0 & (vector.range(0x80, 0x9f) >> 1));
        }
        let han = vector.range(0xe4, 0xe9);
        if han != 0 {
            let doubtful = (vector.range(0xe4, 0xe4) & !(vector.range(0xb8, 0xbf) >> 1))
                | (vector.range(0xe9, 0xe9) & (vector.range(0xbe, 0xbf) >> 1));
            leads.han_or_kana = han & !doubtful;
        }
        let kana = vector.range(0xe3, 0xe3);
        if kana != 0 {
            let letters = ((vector.range(0x81, 0x81) >> 1) & !(vector.range(0x80, 0x80) >> 2))
                | ((vector.range(0x82, 0x82) >> 1)
                    & !(vector.range(0x97, 0x9c) >> 2)
                    & !(vector.range(0xa0, 0xa0) >> 2))
                | ((vector.range(0x83, 0x83) >> 1) & !(vector.range(0xbb, 0xbb) >> 2));
            leads.han_or_kana |= kana & letters;
        }
        let hangul = vector.range(0xea, 0xed);
        if hangul != 0 {
            let doubtful = (vector.range(0xea, 0xea) & !(vector.range(0xb0, 0xbf) >> 1))
                | (vector.range(0xed, 0xed) & !(vector.range(0x80, 0x9d) >> 1));
            leads.hangul = hangul & !doubtful;
        }
        leads
    }

    /// Appends `first + i` for each set bit `i`, lowest first; 64 ends must fit.
    #[inline(always)]
    fn push_all(mut bits: u64, first: usize, ends: &mut Vec<usize>) {
        debug_assert!(ends.capacity() - ends.len() >= BLOCK);
        let count = bits.count_ones() as usize;
        // SAFETY: at least 64 ends fit after the length, and the first `count` are initialised. Ends are written eight at a
        // time, even if fewer are left: a branch on each bit would be mispredicted in every block.
        unsafe {
            let out = ends.as_mut_ptr().add(ends.len());
            for eight in (0..count).step_by(8) {
                for index in eight..eight + 8 {
                    out.add(index).write(first + bits.trailing_zeros() as usize);
                    bits &= bits.wrapping_sub(1);
                }
            }
            ends.set_len(ends.len() + count);
        }
    }
}

/// Appends `first + i` for each set bit `i`, lowest first, as far as the capacity of `ends` goes.
#[inline(always)]
pub(crate) fn push_ends<V: ByteVector>(mut bits: u64, first: usize, ends: &mut Vec<usize>) {
    let spare = ends.capacity() - ends.len();
    if spare >= BLOCK {
        return V::push_all(bits, first, ends);
    }
    for _ in 0..spare.min(bits.count_ones() as usize) {
        ends.push(first + bits.trailing_zeros() as usize);
        bits &= bits - 1;
    }
}

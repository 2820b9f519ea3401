//! Character classes: one byte of class bits for each code point, in the tables that `build.rs` writes.

include!(concat!(env!("OUT_DIR"), "/unicode_tables.rs"));

/// The Unicode version of the classes (`\p{L}`, `\s` …) that named patterns and regexes match.
///
/// It is the version of `regex-syntax`, with which `fancy-regex` and tiktoken match.
pub const UNICODE_VERSION: &str = env!("UNICODE_VERSION");

/// General categories Lu and Lt.
pub(super) const UPPER: u8 = 1;
/// General category Ll.
pub(super) const LOWER: u8 = 1 << 1;
/// General categories Lm and Lo: letters without case.
pub(super) const CASELESS: u8 = 1 << 2;
/// General category M.
pub(super) const MARK: u8 = 1 << 3;
/// General category N.
pub(super) const NUMBER: u8 = 1 << 4;
/// The property `White_Space`, which is `\s`.
pub(super) const WHITESPACE: u8 = 1 << 5;
/// General categories P and S.
pub(super) const SYMBOL: u8 = 1 << 6;
/// Carriage return and line feed, which are `WHITESPACE` as well.
pub(super) const NEWLINE: u8 = 1 << 7;
/// General category L.
pub(super) const LETTER: u8 = UPPER | LOWER | CASELESS;

/// The class bits of every ASCII byte; 0 for other bytes.
pub(super) static ASCII: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 128 {
        table[byte] = CLASSES[BLOCK_OF[byte >> 6] as usize * 64 + (byte & 63)];
        byte += 1;
    }
    table
};

/// Returns the class bits of the character at byte `at`, and its length in bytes.
///
/// `text` must be valid UTF-8 and `at` the first byte of a character.
#[inline(always)]
pub(super) fn class_at(text: &[u8], at: usize) -> (u8, usize) {
    let lead = text[at];
    if lead < 0x80 { (ASCII[lead as usize], 1) } else { non_ascii_class_at(text, at) }
}

/// As [`class_at`], for a character of two to four bytes.
#[inline]
pub(super) fn non_ascii_class_at(text: &[u8], at: usize) -> (u8, usize) {
    let (block, last, length) = match text[at] {
        lead @ 0..0xe0 => (usize::from(lead & 0x1f), text[at + 1], 2),
        lead @ 0xe0..0xf0 => (usize::from(lead & 0x0f) << 6 | bits(text[at + 1]), text[at + 2], 3),
        lead => {
            let high = usize::from(lead & 0x07) << 12 | bits(text[at + 1]) << 6;
            (high | bits(text[at + 2]), text[at + 3], 4)
        }
    };
    (CLASSES[usize::from(BLOCK_OF[block]) * 64 + bits(last)], length)
}

/// The six payload bits of a continuation byte.
#[inline(always)]
fn bits(continuation: u8) -> usize {
    usize::from(continuation & 0x3f)
}

/// Returns the end of the run of characters from `at` on whose class `is_member` accepts.
#[inline(always)]
pub(super) fn run_end(text: &[u8], mut at: usize, is_member: impl Fn(u8) -> bool) -> usize {
    while at < text.len() {
        let (class, length) = class_at(text, at);
        if !is_member(class) {
            break;
        }
        at += length;
    }
    at
}

/// `[一-龥぀-ゟ゠-ヿ]`
#[inline(always)]
pub(super) fn is_han_or_kana(text: &[u8], at: usize, length: usize) -> bool {
    if length != 3 {
        return false;
    }
    // The UTF-8 bytes of U+3040..=U+30FF and U+4E00..=U+9FA5, as big-endian integers.
    let unit = u32::from_be_bytes([0, text[at], text[at + 1], text[at + 2]]);
    (0x00e3_8180..=0x00e3_83bf).contains(&unit) || (0x00e4_b880..=0x00e9_bea5).contains(&unit)
}

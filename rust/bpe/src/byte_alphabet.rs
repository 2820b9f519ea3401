//! GPT-2's byte alphabet: every byte as one printable character, so that JSON can contain token bytes.
//!
//! Source: the byte-to-character table of GPT-2's tokenizer (Radford et al. 2019); `tokenizers` calls it `ByteLevel`.

/// Returns whether a byte is its own character: printable, and not a space.
const fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// Returns the 256 bytes in the order of their ids in GPT-2 and in the byte-level alphabet of `tokenizers`: printable
/// Latin-1 first.
///
/// # Source
/// `bytes_to_unicode` in the GPT-2 release.
pub fn byte_order() -> impl Iterator<Item = u8> {
    (0..=255).filter(|&byte| is_printable(byte)).chain((0..=255).filter(|&byte| !is_printable(byte)))
}

/// `CHARS[byte]` is the character of a byte: itself if printable, otherwise the next free character from U+0100 on.
pub(crate) const CHARS: [char; 256] = {
    let mut chars = ['\0'; 256];
    let mut byte = 0;
    let mut next = 0x100;
    while byte < 256 {
        let code = if is_printable(byte as u8) {
            byte as u32
        } else {
            next += 1;
            next - 1
        };
        chars[byte] = match char::from_u32(code) {
            Some(c) => c,
            None => panic!("all codes are below the surrogates"),
        };
        byte += 1;
    }
    chars
};

/// The inverse of [`CHARS`], up to the last character in use.
const BYTES: [Option<u8>; 0x144] = {
    let mut bytes = [None; 0x144];
    let mut byte = 0;
    while byte < 256 {
        bytes[CHARS[byte] as usize] = Some(byte as u8);
        byte += 1;
    }
    bytes
};

/// Returns bytes as characters of the alphabet.
pub(crate) fn to_chars(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| CHARS[byte as usize]).collect()
}

/// Returns the bytes of a string in the alphabet, or `None` if it has another character.
pub(crate) fn to_bytes(token: &str) -> Option<Vec<u8>> {
    token.chars().map(|c| BYTES.get(c as usize).copied().flatten()).collect()
}

/// Returns the byte of a byte token of SentencePiece, such as `<0x0A>`.
pub(crate) fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_hex = digits.len() == 2 && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'A'..=b'F'));
    if is_hex { u8::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_gpt2s() {
        assert_eq!(to_chars(b" \n!~\x7f\xa0\xad\xff"), "\u{120}\u{10a}!~\u{121}\u{142}\u{143}\u{ff}");
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(to_bytes(&to_chars(&all)), Some(all));
        assert_eq!(to_bytes("a b"), None);
    }
}

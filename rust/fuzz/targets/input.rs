//! Bytes to choices and text.

/// Takes an input apart from the front; past its end every choice is 0.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    pub(crate) fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// One character of each kind that a pattern tells apart, two hundred and fifty-six with the repeats.
const KINDS: &str = "aAbBsStTdDmMlLrReEvV09123 \t\n\r\u{b}\u{c}'’!?./,-_(\"$+<|`^~éÉßſªʼЖжǅוشक中龥龦のー・゠ｱ가각²½٣Ⅷ〇\
    \u{301}\u{93f}\u{20dd}\u{fe0f}\u{200d}\u{a0}\u{85}\u{2028}\u{3000}\u{200b}\u{feff}❤👩🦀€©\u{e000}\u{10ffff}\u{378}\0\u{7f}";

/// Text from bytes: themselves, or a character of some kind for each, which reaches more of a grammar.
pub(crate) fn text(bytes: &[u8], by_kind: bool) -> String {
    if !by_kind {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    let kinds: Vec<char> = KINDS.chars().collect();
    bytes.iter().map(|&byte| kinds[byte as usize % kinds.len()]).collect()
}

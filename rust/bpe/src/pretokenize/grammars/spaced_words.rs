//! Words with the spaces before them: the pieces of SentencePiece vocabularies in which no token spans two words.

/// The pattern, as a regex.
pub(crate) const PATTERN: &str = " *[^ ]+| +";

/// Appends the ends of the next pieces, within the capacity of `ends`.
pub(crate) fn fill_ends(text: &[u8], start: usize, ends: &mut Vec<usize>) {
    let mut at = start;
    while at < text.len() && ends.len() < ends.capacity() {
        at += text[at..].iter().take_while(|&&byte| byte == b' ').count();
        at += memchr::memchr(b' ', &text[at..]).unwrap_or(text.len() - at);
        ends.push(at);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{PATTERN, fill_ends};
    use crate::pretokenize::tests::oracle::{all_ends, ends_of_regex};

    proptest! {
        #[test]
        fn pieces_are_those_of_the_regex(text in "[ aé\n]{0,60}| {0,20}", room in 1usize..8) {
            prop_assert_eq!(all_ends(fill_ends, &text, room), ends_of_regex(PATTERN, &text));
        }
    }
}

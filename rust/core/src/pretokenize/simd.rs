//! The vector units behind [`super::block`]: the same three functions for each, chosen at run time.
//!
//! All `unsafe` code of the splitters is in this file. The portable tier is the safe twin of the others; tests hold
//! them equal on random bytes.

use super::block::{Ascii, BLOCK, BlockGrammar, Wide};

#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

/// One way to look at 64 bytes at once.
pub(super) trait Tier {
    fn ascii(bytes: &[u8; BLOCK]) -> Ascii;

    fn wide(bytes: &[u8; BLOCK]) -> Wide;

    /// Appends `first + i` for each set bit `i`, lowest first, as far as the capacity of `ends` goes.
    #[inline(always)]
    fn push_ends(mut bits: u64, first: usize, ends: &mut Vec<usize>) {
        let spare = ends.capacity() - ends.len();
        for _ in 0..spare.min(bits.count_ones() as usize) {
            ends.push(first + bits.trailing_zeros() as usize);
            bits &= bits - 1;
        }
    }
}

/// Appends the ends of the pieces of `text` from `start` on, within the capacity of `ends`.
#[inline]
pub(super) fn fill_ends<G: BlockGrammar>(text: &[u8], start: usize, ends: &mut Vec<usize>) {
    #[cfg(target_arch = "x86_64")]
    {
        if x86::has_avx512() {
            // SAFETY: the CPU has what the function is compiled for.
            return unsafe { x86::fill_ends_avx512::<G>(text, start, ends) };
        }
        if x86::has_avx2() {
            // SAFETY: as above.
            return unsafe { x86::fill_ends_avx2::<G>(text, start, ends) };
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        if std::arch::is_aarch64_feature_detected!("neon") {
            // SAFETY: as above.
            return unsafe { neon::fill_ends::<G>(text, start, ends) };
        }
    }
    super::block::fill_ends::<portable::Portable, G>(text, start, ends);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::block::fill_ends;
    use super::super::scan::Grammar;
    use super::super::{cl100k, deepseek_v3, llama3, o200k, qwen2, r50k, smollm};
    use super::*;

    /// The ends by [`Grammar::piece_end`] alone.
    fn naive<G: Grammar>(text: &[u8]) -> Vec<usize> {
        let mut ends = Vec::new();
        let mut at = 0;
        while at < text.len() {
            at = G::piece_end(text, at);
            ends.push(at);
        }
        ends
    }

    type FillEnds = fn(&[u8], usize, &mut Vec<usize>);

    /// Every tier that this CPU can run.
    fn tiers<G: BlockGrammar>() -> Vec<(&'static str, FillEnds)> {
        let mut tiers: Vec<(&str, FillEnds)> = vec![("portable", fill_ends::<portable::Portable, G>)];
        #[cfg(target_arch = "x86_64")]
        {
            if x86::has_avx2() {
                // SAFETY: the CPU has what the function is compiled for.
                tiers.push(("avx2", |text, start, ends| unsafe { x86::fill_ends_avx2::<G>(text, start, ends) }));
            }
            if x86::has_avx512() {
                // SAFETY: as above.
                tiers.push(("avx512", |text, start, ends| unsafe { x86::fill_ends_avx512::<G>(text, start, ends) }));
            }
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: every 64-bit ARM has NEON.
        tiers.push(("neon", |text, start, ends| unsafe { neon::fill_ends::<G>(text, start, ends) }));
        tiers
    }

    fn check<G: BlockGrammar>(text: &str, capacity: usize) {
        let expected = naive::<G>(text.as_bytes());
        for (name, fill_ends) in tiers::<G>() {
            let mut actual = Vec::new();
            let mut at = 0;
            while at < text.len() {
                let mut ends = Vec::with_capacity(capacity);
                fill_ends(text.as_bytes(), at, &mut ends);
                assert!(!ends.is_empty() && ends.len() <= capacity, "{name}: {} of {capacity} ends", ends.len());
                at = ends[ends.len() - 1];
                actual.extend(ends);
            }
            assert_eq!(actual, expected, "{name}");
        }
    }

    fn check_all(text: &str, capacity: usize) {
        check::<r50k::R50k>(text, capacity);
        check::<cl100k::Cl100k>(text, capacity);
        check::<llama3::Llama3>(text, capacity);
        check::<o200k::O200k>(text, capacity);
        check::<qwen2::Qwen2>(text, capacity);
        check::<smollm::SmolLm>(text, capacity);
        check::<deepseek_v3::DeepSeekV3>(text, capacity);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn every_tier_equals_one_piece_after_the_other(
            text in "([a-zA-Z' \\n]{0,30}|[a-cA-Cſs'é中\\u{3000}가のカ・゛À1²٣!./, \\t\\r\\n\\u{301}\\u{a0}Жж❤\\u{fe0f}]|[ \\n]{3,80}|'[sSlL]|\\PC|1{3,9}){0,40}",
            capacity in 64..200_usize,
        ) {
            check_all(&text, capacity);
            check_all(&text, 7);
        }
    }

    #[test]
    fn masks_of_every_byte_are_the_same_in_every_tier() {
        for first in 0..=255_u8 {
            // Every byte, each beside every other.
            for step in [1_u8, 3, 101] {
                let mut bytes = [first; BLOCK];
                for (index, byte) in bytes.iter_mut().enumerate().skip(1).step_by(2) {
                    *byte = (index as u8).wrapping_mul(step).wrapping_add(first);
                }
                let expected = (portable::Portable::ascii(&bytes), portable::Portable::wide(&bytes));
                for (index, &byte) in bytes.iter().enumerate() {
                    let bit = |mask: u64| mask >> index & 1 == 1;
                    assert_eq!(bit(expected.0.upper), byte.is_ascii_uppercase());
                    assert_eq!(bit(expected.0.lower), byte.is_ascii_lowercase());
                    assert_eq!(bit(expected.0.number), byte.is_ascii_digit());
                    assert_eq!(bit(expected.0.space), matches!(byte, b'\t'..=b'\r' | b' '));
                    assert_eq!(bit(expected.0.newline), matches!(byte, b'\r' | b'\n'));
                    assert_eq!(bit(expected.0.blank), byte == b' ');
                    assert_eq!(bit(expected.0.apostrophe), byte == b'\'');
                    assert_eq!(bit(expected.0.slash), byte == b'/');
                    assert_eq!(bit(expected.0.wide), byte >= 0x80);
                    assert_eq!(bit(expected.1.lead), byte >= 0xc0);
                    assert_eq!(bit(expected.0.graph), byte.is_ascii_graphic());
                }
                #[cfg(target_arch = "x86_64")]
                for masks in x86::masks(&bytes) {
                    assert_eq!(masks, expected);
                }
            }
        }
    }

    /// Every character of two or three bytes of which `Wide` says something.
    #[test]
    fn leads_that_promise_a_class_keep_it() {
        use super::super::deepseek_v3::is_han_or_kana;
        use super::super::unicode::{CASELESS, LOWER, UPPER, class_at};
        for c in ('\u{80}'..=char::MAX).filter(|c| c.len_utf8() < 4) {
            let mut bytes = [0; BLOCK];
            c.encode_utf8(&mut bytes);
            let wide = portable::Portable::wide(&bytes);
            let (class, length) = class_at(&bytes, 0);
            let in_part = is_han_or_kana(&bytes, 0, length);
            assert_eq!(wide.lead, 1);
            assert!(wide.han_or_kana & 1 == 0 || (class == CASELESS && in_part), "{c:?}");
            assert!(wide.hangul & 1 == 0 || (class == CASELESS && !in_part && length == 3), "{c:?}");
            assert!(wide.upper & 1 == 0 || (class == UPPER && length == 2), "{c:?}");
            assert!(wide.lower & 1 == 0 || (class == LOWER && length == 2), "{c:?}");
        }
    }
}

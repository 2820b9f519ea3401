//! The vector units behind [`super::block`]: the same few functions for each, chosen at run time.
//!
//! All `unsafe` code of the splitters is here. The portable backend is the safe twin of the others; tests hold
//! them equal on random bytes.

use super::block::{Ascii, BLOCK, BlockGrammar, Wide};
#[cfg(target_arch = "x86_64")]
use bpe_llama_simd::backend::has_avx2_and_bits;

#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

/// One way to look at 64 bytes at once.
pub(super) trait Backend {
    fn ascii(bytes: &[u8; BLOCK]) -> Ascii;

    /// The bytes in `first..=last`, both of at least 0x80.
    fn wide_range(bytes: &[u8; BLOCK], first: u8, last: u8) -> u64;

    /// Each group is looked at only if its leads occur, which within one script hardly changes.
    #[inline(always)]
    fn wide(bytes: &[u8; BLOCK]) -> Wide {
        let mut wide = Wide { lead: Self::wide_range(bytes, 0xc0, 0xff), ..Wide::default() };
        let cyrillic = Self::wide_range(bytes, 0xd0, 0xd1);
        if cyrillic != 0 {
            let d0 = Self::wide_range(bytes, 0xd0, 0xd0);
            wide.upper = d0 & (Self::wide_range(bytes, 0x80, 0xaf) >> 1);
            wide.lower = (d0 & (Self::wide_range(bytes, 0xb0, 0xbf) >> 1))
                | (cyrillic & !d0 & (Self::wide_range(bytes, 0x80, 0x9f) >> 1));
        }
        let han = Self::wide_range(bytes, 0xe4, 0xe9);
        if han != 0 {
            let doubtful = (Self::wide_range(bytes, 0xe4, 0xe4) & !(Self::wide_range(bytes, 0xb8, 0xbf) >> 1))
                | (Self::wide_range(bytes, 0xe9, 0xe9) & (Self::wide_range(bytes, 0xbe, 0xbf) >> 1));
            wide.han_or_kana = han & !doubtful;
        }
        let kana = Self::wide_range(bytes, 0xe3, 0xe3);
        if kana != 0 {
            let letters = ((Self::wide_range(bytes, 0x81, 0x81) >> 1) & !(Self::wide_range(bytes, 0x80, 0x80) >> 2))
                | ((Self::wide_range(bytes, 0x82, 0x82) >> 1)
                    & !(Self::wide_range(bytes, 0x97, 0x9c) >> 2)
                    & !(Self::wide_range(bytes, 0xa0, 0xa0) >> 2))
                | ((Self::wide_range(bytes, 0x83, 0x83) >> 1) & !(Self::wide_range(bytes, 0xbb, 0xbb) >> 2));
            wide.han_or_kana |= kana & letters;
        }
        let hangul = Self::wide_range(bytes, 0xea, 0xed);
        if hangul != 0 {
            let doubtful = (Self::wide_range(bytes, 0xea, 0xea) & !(Self::wide_range(bytes, 0xb0, 0xbf) >> 1))
                | (Self::wide_range(bytes, 0xed, 0xed) & !(Self::wide_range(bytes, 0x80, 0x9d) >> 1));
            wide.hangul = hangul & !doubtful;
        }
        wide
    }

    /// Appends `first + i` for each set bit `i`, lowest first; 64 ends must fit.
    #[inline(always)]
    fn push_all(mut bits: u64, first: usize, ends: &mut Vec<usize>) {
        debug_assert!(ends.capacity() - ends.len() >= BLOCK);
        let count = bits.count_ones() as usize;
        // SAFETY: at least 64 ends fit behind the length. Eight are written at a time, whether there are so many or
        // not, since a branch for each would be mispredicted every block; the first `count` are then initialised.
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
pub(super) fn push_ends<T: Backend>(mut bits: u64, first: usize, ends: &mut Vec<usize>) {
    let spare = ends.capacity() - ends.len();
    if spare >= BLOCK {
        return T::push_all(bits, first, ends);
    }
    for _ in 0..spare.min(bits.count_ones() as usize) {
        ends.push(first + bits.trailing_zeros() as usize);
        bits &= bits - 1;
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
        if has_avx2_and_bits() {
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
    use super::super::oracle::all_ends;
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

    /// The masks of one block by every backend but the portable one.
    fn fast_masks(bytes: &[u8; BLOCK]) -> Vec<(Ascii, Wide)> {
        #[cfg(target_arch = "x86_64")]
        return x86::masks(bytes);
        #[cfg(target_arch = "aarch64")]
        return neon::masks(bytes);
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        return vec![(portable::Portable::ascii(bytes), portable::Portable::wide(bytes))];
    }

    type FillEnds = fn(&[u8], usize, &mut Vec<usize>);

    /// Every backend that this CPU can run.
    fn backends<G: BlockGrammar>() -> Vec<(&'static str, FillEnds)> {
        let mut backends: Vec<(&str, FillEnds)> = vec![("portable", fill_ends::<portable::Portable, G>)];
        #[cfg(target_arch = "x86_64")]
        {
            if has_avx2_and_bits() {
                // SAFETY: the CPU has what the function is compiled for.
                backends.push(("avx2", |text, start, ends| unsafe { x86::fill_ends_avx2::<G>(text, start, ends) }));
            }
            if x86::has_avx512() {
                // SAFETY: as above.
                backends.push(("avx512", |text, start, ends| unsafe { x86::fill_ends_avx512::<G>(text, start, ends) }));
            }
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: every 64-bit ARM has NEON.
        backends.push(("neon", |text, start, ends| unsafe { neon::fill_ends::<G>(text, start, ends) }));
        backends
    }

    fn check<G: BlockGrammar>(text: &str, capacity: usize) {
        let expected = naive::<G>(text.as_bytes());
        for (name, fill_ends) in backends::<G>() {
            assert_eq!(all_ends(fill_ends, text, capacity), expected, "{name}");
        }
    }

    fn check_all(text: &str, capacity: usize) {
        check::<r50k::R50k>(text, capacity);
        check::<cl100k::Cl100k>(text, capacity);
        check::<llama3::Llama3>(text, capacity);
        check::<o200k::O200k>(text, capacity);
        check::<qwen2::Qwen2>(text, capacity);
        check::<smollm::SmolLm<false>>(text, capacity);
        check::<smollm::SmolLm<true>>(text, capacity);
        check::<deepseek_v3::DeepSeekV3>(text, capacity);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn every_tier_equals_one_piece_after_the_other(
            text in "([a-zA-Z' \\n]{0,30}|[a-cA-Cſs'é中\\u{3000}가のカ・゛À1²٣\u{11de0}!./, \\t\\r\\n\\u{301}\\u{a0}Жж❤\\u{fe0f}]|[ \\n]{3,80}|'[sSlL]|\\PC|1{3,9}){0,40}",
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
                for (ascii, wide) in fast_masks(&bytes) {
                    assert_eq!((ascii, wide.lead), (expected.0, expected.1.lead));
                }
            }
        }
    }

    /// Prints MB/s of each backend on the files named in `SPLIT_FILES`, separated by commas:
    /// `SPLIT_FILES=a.txt,b.txt cargo test --release -p bpe-llama --lib speed_of_each_tier -- --ignored --nocapture`
    #[test]
    #[ignore = "a measurement, for release builds"]
    fn speed_of_each_tier() {
        fn fastest<G: BlockGrammar>(grammar: &str, path: &str, text: &str) {
            let mut backends = backends::<G>();
            backends.push(("piece by piece", |text, start, ends| {
                let mut at = start;
                while at < text.len() && ends.len() < ends.capacity() {
                    at = G::piece_end(text, at);
                    ends.push(at);
                }
            }));
            for (backend, fill_ends) in backends {
                let mut best = std::time::Duration::MAX;
                for _ in 0..9 {
                    let began = std::time::Instant::now();
                    let (mut ends, mut at) = (Vec::with_capacity(512), 0);
                    while at < text.len() {
                        ends.clear();
                        fill_ends(text.as_bytes(), at, &mut ends);
                        at = ends[ends.len() - 1];
                    }
                    best = best.min(began.elapsed());
                }
                println!("{path} {grammar} {backend}: {:.0} MB/s", text.len() as f64 / 1e6 / best.as_secs_f64());
            }
        }
        for path in std::env::var("SPLIT_FILES").expect("files to read").split(',') {
            let text = std::fs::read_to_string(path).expect("a readable file");
            fastest::<cl100k::Cl100k>("cl100k", path, &text);
            fastest::<o200k::O200k>("o200k", path, &text);
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
            let (class, length) = class_at(&bytes, 0);
            let in_part = is_han_or_kana(&bytes, 0, length);
            let fast = fast_masks(&bytes).into_iter().map(|(_, wide)| wide);
            for wide in std::iter::once(portable::Portable::wide(&bytes)).chain(fast) {
                assert_eq!(wide.lead, 1);
                assert!(wide.han_or_kana & 1 == 0 || (class == CASELESS && in_part), "{c:?}");
                assert!(wide.hangul & 1 == 0 || (class == CASELESS && !in_part && length == 3), "{c:?}");
                assert!(wide.upper & 1 == 0 || (class == UPPER && length == 2), "{c:?}");
                assert!(wide.lower & 1 == 0 || (class == LOWER && length == 2), "{c:?}");
            }
        }
    }
}

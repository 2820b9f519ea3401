//! Every bitmask backend against the grammars one piece at a time.

use proptest::prelude::*;

use super::oracle::all_ends;
use crate::pretokenize::bitmask::backend::{AsciiMasks, BLOCK, ByteVector, LeadMasks};
#[cfg(target_arch = "aarch64")]
use crate::pretokenize::bitmask::neon;
use crate::pretokenize::bitmask::splitter::fill_ends;
#[cfg(target_arch = "x86_64")]
use crate::pretokenize::bitmask::x86;
use crate::pretokenize::bitmask::{BitmaskGrammar, portable};
use crate::pretokenize::grammars::{cl100k, deepseek_v3, llama3, o200k, qwen2, r50k, smollm};
use crate::pretokenize::scan::Grammar;
use crate::pretokenize::unicode::{CASELESS, LOWER, UPPER, class_at, is_han_or_kana};
#[cfg(target_arch = "x86_64")]
use bpe_llama_simd::Tier;

/// Returns the ends by [`Grammar::piece_end`] alone.
fn naive<G: Grammar>(text: &[u8]) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut at = 0;
    while at < text.len() {
        at = G::piece_end(text, at);
        ends.push(at);
    }
    ends
}

/// Returns the masks of a block by every backend except the portable one.
fn fast_masks(bytes: &[u8; BLOCK]) -> Vec<(AsciiMasks, LeadMasks)> {
    #[cfg(target_arch = "x86_64")]
    return x86::masks(bytes);
    #[cfg(target_arch = "aarch64")]
    return neon::masks(bytes);
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return vec![(portable::Portable::ascii(bytes), portable::Portable::leads(bytes))];
}

type FillEnds = fn(&[u8], usize, &mut Vec<usize>);

/// Returns every backend that this CPU can run.
fn backends<G: BitmaskGrammar>() -> Vec<(&'static str, FillEnds)> {
    let mut backends: Vec<(&str, FillEnds)> = vec![("portable", fill_ends::<portable::Portable, G>)];
    #[cfg(target_arch = "x86_64")]
    {
        if Tier::Avx2.is_used() {
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

fn check<G: BitmaskGrammar>(text: &str, capacity: usize) {
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
    fn every_backend_equals_the_grammar(
        text in "([a-zA-Z' \\n]{0,30}|[a-cA-Cſs'é中\\u{3000}가のカ・゛À1²٣\u{11de0}!./, \\t\\r\\n\\u{301}\\u{a0}Жж❤\\u{fe0f}]|[ \\n]{3,80}|'[sSlL]|\\PC|1{3,9}){0,40}",
        capacity in 64..200_usize,
    ) {
        check_all(&text, capacity);
        check_all(&text, 7);
    }
}

#[test]
fn every_backend_has_the_same_masks() {
    for first in 0..=255_u8 {
        // Every byte, each beside every other.
        for step in [1_u8, 3, 101] {
            let mut bytes = [first; BLOCK];
            for (index, byte) in bytes.iter_mut().enumerate().skip(1).step_by(2) {
                *byte = (index as u8).wrapping_mul(step).wrapping_add(first);
            }
            let expected = (portable::Portable::ascii(&bytes), portable::Portable::leads(&bytes));
            for (index, &byte) in bytes.iter().enumerate() {
                let bit = |mask: u64| mask >> index & 1 == 1;
                assert_eq!(bit(expected.0.upper), byte.is_ascii_uppercase());
                assert_eq!(bit(expected.0.lower), byte.is_ascii_lowercase());
                assert_eq!(bit(expected.0.number), byte.is_ascii_digit());
                assert_eq!(bit(expected.0.whitespace), matches!(byte, b'\t'..=b'\r' | b' '));
                assert_eq!(bit(expected.0.newline), matches!(byte, b'\r' | b'\n'));
                assert_eq!(bit(expected.0.space), byte == b' ');
                assert_eq!(bit(expected.0.apostrophe), byte == b'\'');
                assert_eq!(bit(expected.0.slash), byte == b'/');
                assert_eq!(bit(expected.0.non_ascii), byte >= 0x80);
                assert_eq!(bit(expected.1.lead), byte >= 0xc0);
                assert_eq!(bit(expected.0.graph), byte.is_ascii_graphic());
            }
            for (ascii, leads) in fast_masks(&bytes) {
                assert_eq!((ascii, leads.lead), (expected.0, expected.1.lead));
            }
        }
    }
}

/// Prints MB/s of each backend on the files named in `SPLIT_FILES`, separated by commas:
/// `SPLIT_FILES=a.txt,b.txt cargo test --release -p bpe-llama --lib speed_of_each_backend -- --ignored --nocapture`
#[test]
#[ignore = "a measurement, for release builds"]
fn speed_of_each_backend() {
    fn fastest<G: BitmaskGrammar>(grammar: &str, path: &str, text: &str) {
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

/// Every character of two or three bytes, against its class.
#[test]
fn lead_masks_are_right() {
    for c in ('\u{80}'..=char::MAX).filter(|c| c.len_utf8() < 4) {
        let mut bytes = [0; BLOCK];
        c.encode_utf8(&mut bytes);
        let (class, length) = class_at(&bytes, 0);
        let in_part = is_han_or_kana(&bytes, 0, length);
        let fast = fast_masks(&bytes).into_iter().map(|(_, leads)| leads);
        for leads in std::iter::once(portable::Portable::leads(&bytes)).chain(fast) {
            assert_eq!(leads.lead, 1);
            assert!(leads.han_or_kana & 1 == 0 || (class == CASELESS && in_part), "{c:?}");
            assert!(leads.hangul & 1 == 0 || (class == CASELESS && !in_part && length == 3), "{c:?}");
            assert!(leads.upper & 1 == 0 || (class == UPPER && length == 2), "{c:?}");
            assert!(leads.lower & 1 == 0 || (class == LOWER && length == 2), "{c:?}");
        }
    }
}

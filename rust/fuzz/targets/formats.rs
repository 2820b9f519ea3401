//! Vocabularies and counts from files.

use std::collections::HashMap;

use bpe_llama::formats::{Piece, PieceKind};
use bpe_llama::train::{TrainOptions, WordCounts, train};
use bpe_llama::{AddedToken, After, Interrupt, Pretokenizer, SpecialSet, Tokenizer, Vocab};
use serde_json::Value;

use super::input::{self, Input};
use super::naive;

const TEXTS: [&str; 2] = ["the thing, aabbaabb 12 é\n\n  <|end|>", "日本語 ababababab \u{301}"];

/// A `.tiktoken` file: what loads encodes by its ranks, and loads again from what it saves.
pub(crate) fn tiktoken_file(input: &[u8]) {
    let Ok(vocab) = Vocab::from_tiktoken(input) else { return };
    let ranks: HashMap<Vec<u8>, u32> = vocab.tokens().map(|(bytes, id)| (bytes.to_vec(), id)).collect();
    if let Ok(saved) = vocab.to_tiktoken() {
        let again = Vocab::from_tiktoken(saved.as_bytes()).expect("what was saved");
        assert!(vocab.tokens().eq(again.tokens()) && vocab.merges() == again.merges());
    }
    let tokenizer =
        Tokenizer::new(vocab, Pretokenizer::new("cl100k").expect("a name"), vec![], false).expect("no clash");
    for text in TEXTS {
        let pieces = tokenizer.pretokenizer().split(text).expect("a linear pattern");
        let expected: Option<Vec<Vec<u32>>> =
            pieces.iter().map(|piece| naive::by_ranks(&ranks, piece.as_bytes())).collect();
        match (tokenizer.encode_ordinary(text), expected) {
            (Ok(ids), Some(expected)) => assert_eq!(ids, expected.concat()),
            (Err(_), None) => {}
            // A token that stands for bytes which have none: the definition never asks for them one by one.
            (Err(_), Some(_)) => assert!((0..=255_u8).any(|byte| !ranks.contains_key(&[byte][..]))),
            (Ok(ids), None) => panic!("{ids:?} for what the definition cannot encode"),
        }
    }
}

/// A `tokenizer.json`: what loads gives the text back, and is the same tokenizer when saved and loaded.
pub(crate) fn tokenizer_json(input: &[u8]) {
    if let Ok(tokenizer) = Tokenizer::from_huggingface(input) {
        check_tokenizer(&tokenizer);
    }
}

/// A `tokenizer.model`: as a `tokenizer.json`; one that encodes by its own steps is the same when loaded again, and its
/// places lie in the text.
pub(crate) fn sentencepiece_model(input: &[u8]) {
    let Ok(tokenizer) = Tokenizer::from_sentencepiece(input) else { return };
    let Some(model) = tokenizer.sentencepiece_model() else { return check_tokenizer(&tokenizer) };
    let again = Tokenizer::from_sentencepiece(model).expect("what was loaded");
    for text in TEXTS {
        for allowed in [SpecialSet::None, SpecialSet::All] {
            let ids = tokenizer.encode(text, allowed).expect("any text");
            assert_eq!(again.encode(text, allowed).expect("as before"), ids);
            let (same, offsets) = tokenizer.encode_with_offsets(text, allowed, Interrupt::NEVER).expect("any text");
            assert_eq!(same, ids);
            assert!(offsets.iter().all(|&(begin, end)| begin <= end && end <= text.chars().count()));
            let mut stream = tokenizer.decode_stream(false);
            let mut decoded = String::new();
            for &id in &ids {
                decoded += &stream.push(&tokenizer, id).expect("known ids");
            }
            decoded += &stream.flush(&tokenizer).expect("a decoder of bytes");
            assert_eq!(decoded, tokenizer.decode_lossy(&ids, false, Interrupt::NEVER).expect("known ids"));
        }
    }
}

/// The vocabulary of a GGUF file, in each of its three forms: as a `tokenizer.json`.
///
/// The input: the form, the number of tokens, the tokens, pairs of ids that merge, an id that is matched as a whole.
pub(crate) fn gguf_vocabulary(input: &[u8]) {
    let mut input = Input(input);
    let (form, count) = (input.byte(), input.byte() % 64);
    let mut texts: Vec<String> = Vec::new();
    for _ in 0..count {
        let length = 1 + usize::from(input.byte() % 8);
        texts.push(input::text(input.take(length), form & 4 != 0));
    }
    // With every byte, so that texts can be encoded: in GPT-2's alphabet, or by name.
    if form & 8 != 0 {
        texts.extend((0..=255_u8).map(|byte| match (form % 3, byte) {
            (0, b'!'..=b'~') => char::from(byte).to_string(),
            (0, 0..=b' ') => char::from_u32(256 + u32::from(byte)).expect("a letter").to_string(),
            _ => format!("<0x{byte:02X}>"),
        }));
        texts.push("\u{2581}".to_owned());
    }
    let added_id = u32::from(input.byte());
    let content = texts.get(added_id as usize).cloned().unwrap_or_default();
    let added = if form & 16 == 0 { vec![] } else { vec![AddedToken::special(content, added_id)] };
    let merges = input.0.chunks_exact(2).map(|pair| (pair[0].into(), pair[1].into())).collect();
    let kind = |text: &String, id: u32| match &text[..] {
        _ if form & 16 != 0 && id == added_id => PieceKind::Control, // text never becomes this piece
        text if text.starts_with("<0x") => PieceKind::Byte,
        text if text.starts_with('\u{301}') => PieceKind::Control,
        _ => PieceKind::Normal,
    };
    let piece = |(text, id): (&String, u32)| Piece { text: text.clone(), score: (id % 7) as f32, kind: kind(text, id) };
    let pieces = texts.iter().zip(0..).map(piece).collect();
    let patterns = ["llama3", r"\p{N}", r"[^\n]+|\n+"].map(str::to_owned);
    let tokenizer = match form % 3 {
        0 => Tokenizer::from_gguf(&texts, merges, &patterns[..usize::from(form >> 6)], form & 32 != 0, added),
        1 => Tokenizer::from_gguf_pieces(pieces, form & 32 != 0, added),
        _ => Tokenizer::from_gguf_characters(pieces, merges, added),
    };
    if let Ok(tokenizer) = tokenizer {
        check_tokenizer(&tokenizer);
    }
}

fn check_tokenizer(tokenizer: &Tokenizer) {
    let saved = tokenizer.to_huggingface();
    let again = saved.as_ref().ok().map(|saved| Tokenizer::from_huggingface(saved.as_bytes()).expect("what was saved"));
    let gives_back = saved.as_ref().map_or(true, |saved| gives_spaces_back(saved));
    for text in TEXTS {
        for allowed in [SpecialSet::None, SpecialSet::All] {
            let Ok(ids) = tokenizer.encode(text, allowed) else { continue };
            if let Some(again) = &again {
                assert_eq!(again.encode(text, allowed).expect("as before"), ids);
            }
            let decoded = tokenizer.decode_bytes(&ids).expect("known ids");
            // Only these ways of encoding keep every byte of a text.
            if tokenizer.general_because().is_some() || tokenizer.vocab().drops_unknown() {
                continue;
            }
            match tokenizer.spaces() {
                // Each part between added tokens has its own spaces, so only one without is checked.
                Some(spaces) if gives_back && !ids.iter().any(|&id| tokenizer.vocab().id_to_bytes(id).is_none()) => {
                    let normal = spaces.normalize(text, After::Nothing);
                    // Whether the first space is dropped is up to the file's decoder.
                    let without = normal.strip_prefix(' ').unwrap_or(&normal);
                    assert!(decoded == normal.as_bytes() || decoded == without.as_bytes(), "{decoded:?}");
                }
                None if !tokenizer.normalizes() => assert_eq!(decoded, text.as_bytes()),
                _ => {}
            }
        }
    }
}

/// Returns whether the decoder of a `tokenizer.json` turns `▁` into spaces, drops at most the first one, and does no more.
fn gives_spaces_back(saved: &str) -> bool {
    let file: Value = serde_json::from_str(saved).expect("what was saved");
    let decoder = &file["decoder"];
    let steps = decoder["decoders"].as_array().map_or(std::slice::from_ref(decoder), Vec::as_slice);
    let has_spaces = |step: &Value| match step["type"].as_str() {
        Some("Metaspace") => step["replacement"] == "\u{2581}",
        Some("Replace") => step["pattern"]["String"] == "\u{2581}" && step["content"] == " ",
        _ => false,
    };
    let keeps = |step: &Value| match step["type"].as_str() {
        Some("ByteFallback" | "Fuse") => true,
        Some("Strip") => step["content"] == " " && step["start"] == 1 && step["stop"] == 0,
        _ => has_spaces(step),
    };
    steps.iter().any(has_spaces) && steps.iter().all(keeps)
}

/// Word counts: the bytes that load are the bytes that are saved, and parts add up to the whole.
///
/// Every input is also tried as the body of a file with the right magic and checksum.
pub(crate) fn counts_file(input: &[u8]) {
    check_counts(input);
    let mut file = [b"BPEWORDS\x01", input].concat();
    let checksum = crc32fast::hash(&file);
    file.extend(checksum.to_le_bytes());
    check_counts(&file);
}

fn check_counts(file: &[u8]) {
    let Ok(counts) = WordCounts::from_bytes(file, Interrupt::NEVER) else { return };
    let to_bytes = |counts: &WordCounts| counts.to_bytes(Interrupt::NEVER).expect("not stopped");
    let bytes = to_bytes(&counts);
    let again = WordCounts::from_bytes(&bytes, Interrupt::NEVER).expect("what was saved");
    assert_eq!(to_bytes(&again), bytes);
    let parts = counts.split(3);
    let mut sum = parts[0].clone();
    parts[1..].iter().for_each(|part| sum.merge(part, Interrupt::NEVER).expect("of one kind"));
    assert_eq!(to_bytes(&sum), bytes);
    sum.merge(&counts, Interrupt::NEVER).expect("of one kind");
    assert_eq!((sum.len(), sum.is_empty()), (counts.len(), counts.is_empty()));
    let options = TrainOptions { vocab_size: 280, ..TrainOptions::default() };
    if let Ok(trained) = train(&counts, &options, &mut |_| Ok(())) {
        assert!(trained.tokens.len() <= 280 && trained.merges.len() + 256 == trained.tokens.len());
    }
}

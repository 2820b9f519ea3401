//! SentencePiece vocabularies, held to their definition: merge characters, the best score first, the leftmost first.

use std::collections::HashMap;

use bpe_llama::formats::{Piece, PieceKind};
use bpe_llama::train::Trained;
use bpe_llama::{After, Interrupt, Pretokenizer, SpacePrefix, Spaces, SpecialSet, Tokenizer};
use proptest::prelude::*;

const SPACE: &str = "\u{2581}";

fn piece(text: &str, score: f32, kind: PieceKind) -> Piece {
    Piece { text: text.to_owned(), score, kind }
}

/// Unknown, a control piece, the space and the 256 bytes: what every vocabulary here begins with.
fn base() -> Vec<Piece> {
    let mut pieces = vec![piece("<unk>", 0.0, PieceKind::Unknown), piece("<s>", 0.0, PieceKind::Control)];
    pieces.extend((0..=255).map(|byte| piece(&format!("<0x{byte:02X}>"), 0.0, PieceKind::Byte)));
    pieces.push(piece(SPACE, -1e9, PieceKind::Normal));
    pieces
}

/// The definition, word for word: llama.cpp's.
///
/// User-defined symbols are taken out of the text, the longest first, and what lies between is merged alone.
fn naive(pieces: &[Piece], text: &str) -> Vec<u32> {
    let numbered = || pieces.iter().zip(0u32..);
    let mut symbols: Vec<_> = numbered().filter(|(piece, _)| piece.kind == PieceKind::UserDefined).collect();
    symbols.sort_by_key(|(piece, id)| (std::cmp::Reverse(piece.text.len()), *id));
    let mut parts: Vec<(Option<u32>, &str)> = vec![(None, text)];
    for (symbol, id) in symbols {
        let mut cut = Vec::new();
        for (known, part) in parts {
            for (number, between) in part.split(symbol.text.as_str()).enumerate() {
                cut.extend((number > 0).then_some((Some(id), "")));
                cut.extend((known.is_some() || !between.is_empty()).then_some((known, between)));
            }
        }
        parts = cut;
    }
    parts.into_iter().flat_map(|(id, part)| id.map_or_else(|| naive_part(pieces, part), |id| vec![id])).collect()
}

/// Two neighbours merge if their text is a piece: the best score first, the leftmost first.
fn naive_part(pieces: &[Piece], text: &str) -> Vec<u32> {
    let numbered = || pieces.iter().zip(0u32..).map(|(piece, id)| (piece.text.as_str(), id));
    let is_text =
        |id: u32| matches!(pieces[id as usize].kind, PieceKind::Normal | PieceKind::UserDefined | PieceKind::Unused);
    let known: HashMap<&str, u32> = numbered().filter(|(_, id)| is_text(*id)).collect();
    let bytes: HashMap<&str, u32> = numbered().filter(|(_, id)| !is_text(*id)).collect();
    let text = if text.is_empty() { String::new() } else { format!("{SPACE}{}", text.replace(' ', SPACE)) };
    let mut ends: Vec<usize> = text.char_indices().map(|(at, character)| at + character.len_utf8()).collect();
    loop {
        let begin = |place: usize| if place == 0 { 0 } else { ends[place - 1] };
        let mut best: Option<(f32, usize)> = None;
        for place in 0..ends.len().saturating_sub(1) {
            if let Some(&id) = known.get(&text[begin(place)..ends[place + 1]])
                && best.is_none_or(|(score, _)| pieces[id as usize].score > score)
            {
                best = Some((pieces[id as usize].score, place));
            }
        }
        let Some((_, place)) = best else { break };
        ends.remove(place);
    }
    let mut ids = Vec::new();
    let mut begin = 0;
    for end in ends {
        match known.get(&text[begin..end]) {
            Some(&id) => ids.push(id),
            None => ids.extend(text[begin..end].bytes().map(|byte| bytes[format!("<0x{byte:02X}>").as_str()])),
        }
        begin = end;
    }
    ids
}

/// Pieces over a few characters of one to four bytes, some of which are no piece themselves, and runs of spaces of one score.
fn vocabulary() -> impl Strategy<Value = Vec<Piece>> {
    let piece_text = prop::collection::vec(prop::sample::select(vec!["\u{2581}", "a", "b", "é", "里", "😀"]), 1..5);
    let texts = prop::collection::btree_set(piece_text.prop_map(|parts| parts.concat()), 0..50);
    let texts = texts.prop_map(|texts| texts.into_iter().collect::<Vec<_>>()).prop_shuffle();
    let runs = prop::collection::btree_set(2usize..9, 0..5);
    let whole = prop::collection::btree_set("[ab\u{2581}]{1,3}c|c[ab]", 0..3);
    let whole = prop_oneof![3 => Just(None), 1 => whole.prop_map(Some)];
    let alike = prop_oneof![Just(1u8), 1u8..9];
    // Every how many pieces a score is given, and an unused one.
    let kinds = (alike, prop_oneof![3 => Just(255u8), 1 => 1u8..9]);
    (texts, runs, whole, kinds).prop_map(|(texts, runs, whole, (alike, unused))| {
        let mut pieces = base();
        let is_run = |text: &String| text.replace('\u{2581}', "").is_empty();
        let texts = texts.into_iter().filter(|text| !is_run(text));
        let kind = |i: u8| if i % unused == unused - 1 { PieceKind::Unused } else { PieceKind::Normal };
        pieces.extend(texts.zip(0u8..).map(|(text, i)| piece(&text, -f32::from(i / alike), kind(i))));
        pieces.extend(runs.into_iter().map(|n| piece(&SPACE.repeat(n), -1e9, PieceKind::Normal)));
        let is_new = |text: &String| !pieces.iter().any(|piece| piece.text == *text);
        let whole: Vec<_> = whole.into_iter().flatten().filter(is_new).collect();
        pieces.extend(whole.iter().map(|text| piece(text, 0.0, PieceKind::UserDefined)));
        pieces
    })
}

fn text() -> impl Strategy<Value = String> {
    let parts = vec!["a", "b", "c", " ", "  ", "\u{2581}", "é", "里", "😀", "語", "\0", "\n", "\u{10FFFF}"];
    prop::collection::vec(prop::sample::select(parts), 0..120).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn ids_are_those_of_the_definition(pieces in vocabulary(), texts in prop::collection::vec(text(), 1..6)) {
        let tokenizer = Tokenizer::from_pieces(pieces.clone(), true, false).expect("sound");
        let again = tokenizer.sentencepiece_model().map(|model| Tokenizer::from_sentencepiece(model).expect("ours"));
        // Unused pieces have no text, and the space before what follows a user-defined symbol was put there.
        let comes_back = pieces.iter().all(|piece| !matches!(piece.kind, PieceKind::Unused | PieceKind::UserDefined));
        let saved = tokenizer.to_huggingface().map(|json| Tokenizer::from_huggingface(json.as_bytes()).expect("ours"));
        for text in texts {
            let ids = tokenizer.encode_ordinary(&text).expect("bytes to fall back on");
            prop_assert_eq!(&ids, &naive(&pieces, &text), "{:?}", text);
            let decoded = tokenizer.decode_bytes(&ids).expect("known ids");
            if comes_back {
                prop_assert_eq!(&decoded, &text.replace(SPACE, " ").into_bytes());
            }
            let mut stream = tokenizer.decode_stream(false);
            let mut streamed = String::new();
            for &id in &ids {
                streamed += &stream.push(&tokenizer, id).expect("known");
            }
            streamed += &stream.flush(&tokenizer).expect("a decoder of bytes");
            prop_assert_eq!(streamed.as_bytes(), decoded);
            if let Some(again) = &again {
                prop_assert_eq!(&again.encode_ordinary(&text).expect("as before"), &ids);
            }
            if let Ok(saved) = &saved {
                prop_assert_eq!(&saved.encode_ordinary(&text).expect("as before"), &ids);
            }
        }
    }

    #[test]
    fn any_bytes_come_back(pieces in vocabulary(), start in text(), tail in prop::collection::vec(any::<u8>(), 0..20)) {
        let pieces: Vec<Piece> =
            pieces.into_iter().filter(|piece| !matches!(piece.kind, PieceKind::Unused | PieceKind::UserDefined)).collect();
        let tokenizer = Tokenizer::from_pieces(pieces, true, false).expect("sound");
        let bytes = [start.replace(SPACE, "").as_bytes(), &[0xE2, 0xFF], &tail].concat();
        prop_assume!(!bytes.windows(3).any(|three| three == SPACE.as_bytes()));
        let ids = tokenizer.encode_bytes(&bytes, Interrupt::NEVER).expect("bytes to fall back on");
        prop_assert_eq!(tokenizer.decode_bytes(&ids).expect("known ids"), bytes);
    }

    #[test]
    fn offsets_cover_the_text(pieces in vocabulary(), text in text()) {
        let has_symbols = pieces.iter().any(|piece| piece.kind == PieceKind::UserDefined);
        let tokenizer = Tokenizer::from_pieces(pieces, true, false).expect("sound");
        let text = text.replace(SPACE, "");
        let (ids, offsets) = tokenizer.encode_with_offsets(&text, SpecialSet::None, Interrupt::NEVER).expect("nothing replaced");
        prop_assert_eq!(&ids, &tokenizer.encode_ordinary(&text).expect("bytes to fall back on"));
        let characters: Vec<char> = text.chars().collect();
        prop_assert_eq!(offsets.last().map_or(0, |&(_, end)| end), characters.len());
        let mut done = 0;
        for (id, (start, end)) in ids.into_iter().zip(offsets) {
            let token = tokenizer.id_to_bytes(id).expect("known");
            let named: String = characters[start..end].iter().collect();
            // The bytes of one character name it, or in SentencePiece's way only the last of them does.
            let is_byte = token.len() == 1 && end - start <= 1;
            let more = token.len().saturating_sub(named.len());
            let is_prefixed = more <= usize::from(start == 0 || has_symbols);
            prop_assert!(is_byte || (token.ends_with(named.as_bytes()) && is_prefixed));
            prop_assert!(start <= done && done <= end.max(done));
            done = end;
        }
        let kept = tokenizer.truncate(&text, 3, SpecialSet::None, Interrupt::NEVER).expect("nothing replaced");
        prop_assert!(text.starts_with(kept) && tokenizer.encode_ordinary(kept).expect("as before").len() <= 3);
    }

    #[test]
    fn collapsing_leaves_single_spaces(text in text()) {
        let spaces = Spaces { prefix: SpacePrefix::Always, collapse: true, drop_first: true };
        let words: Vec<&str> = text.split(' ').filter(|word| !word.is_empty()).collect();
        let expected = if words.is_empty() { String::new() } else { format!(" {}", words.join(" ")) };
        let expected = expected.replace(SPACE, " ");
        prop_assert_eq!(spaces.normalize(&text, After::Nothing), expected.trim_end_matches(' '));
    }
}

fn refused(pieces: Vec<Piece>) -> String {
    Tokenizer::from_pieces(pieces, true, false).expect_err("not sound").to_string()
}

#[test]
fn what_would_lose_text_or_leave_ids_open_is_refused() {
    let with = |more: &[Piece]| [base(), more.to_vec()].concat();
    let normal = |text: &str, score| piece(text, score, PieceKind::Normal);
    assert!(refused(base()[..200].to_vec()).contains("it has 198 of 256 bytes"));
    assert!(refused(with(&[normal("a", f32::NAN)])).contains("NaN"));
    assert!(refused(with(&[normal("a", -1.0), normal("a", -2.0)])).contains("two ids"));
    assert!(refused(with(&[normal("", -1.0)])).contains("piece 259 is empty"));
    assert!(refused(with(&[piece("<0x1>", 0.0, PieceKind::Byte)])).contains("<0x1>"));
    assert!(refused(with(&[piece("<0x41>", 0.0, PieceKind::Byte)])).contains("two ids"));
    assert!(refused(with(&[normal(&"ab".repeat(4000), -1.0)])).contains("less than 8000 bytes"));
}

#[test]
fn what_byte_level_merging_cannot_express_is_encoded_by_the_model() {
    let with = |more: &[Piece]| [base(), more.to_vec()].concat();
    let normal = |text: &str, score| piece(text, score, PieceKind::Normal);
    let encodes_itself = |pieces: Vec<Piece>| {
        let tokenizer = Tokenizer::from_pieces(pieces.clone(), true, false).expect("sound");
        for text in ["abab  ba", "aaaaaaa", "", " "] {
            assert_eq!(tokenizer.encode_ordinary(text).expect("bytes to fall back on"), naive(&pieces, text), "{text}");
        }
        tokenizer.sentencepiece_model().is_some()
    };
    assert!(encodes_itself(with(&[normal("ab", -1.0), normal("ba", -1.0)])));
    assert!(encodes_itself(base().into_iter().filter(|piece| piece.text != SPACE).collect()));
    assert!(encodes_itself(with(&[normal(&"ab".repeat(600), -1.0)])));
    // Runs of one character may tie, but only all of them.
    assert!(!encodes_itself(with(&[normal("aa", -1.0), normal("aaa", -1.0)])));
    assert!(encodes_itself(with(&[normal("aa", -1.0), normal("aaa", -1.0), normal("aaaa", -2.0)])));
}

#[test]
fn such_a_vocabulary_is_not_extended() {
    let tokenizer = Tokenizer::from_pieces(base(), true, false).expect("valid");
    let trained = Trained { tokens: vec![Vec::new(); tokenizer.vocab_size()], merges: Vec::new() };
    let extended = tokenizer.extended(&trained, Pretokenizer::new("cl100k").expect("a known name"), &[]);
    let error = extended.expect_err("its spaces would be lost").to_string();
    assert!(error.contains("SentencePiece vocabulary"), "{error}");
}

#[test]
fn special_and_byte_tokens_do_not_come_of_text() {
    let mut pieces = base();
    let texts = ["<", "s", ">", "<s", "0", "x", "4", "1", "<0", "<0x", "<0x4", "<0x41", "s>"];
    pieces.extend(texts.iter().zip(1u8..).map(|(text, i)| piece(text, -f32::from(i), PieceKind::Normal)));
    let tokenizer = Tokenizer::from_pieces(pieces, true, false).expect("valid");
    for text in ["<s>", "<0x41>", "<unk>"] {
        let ids = tokenizer.encode_ordinary(text).expect("bytes to fall back on");
        assert_eq!(tokenizer.decode_bytes(&ids).expect("known"), text.as_bytes());
        assert!(ids.len() > 2 && !ids.contains(&1) && !ids.contains(&(2 + 0x41)), "{text}: {ids:?}");
    }
    assert_eq!(tokenizer.encode("<s>", SpecialSet::All).expect("allowed"), [1]);
    assert_eq!(tokenizer.bos_id(), Some(1));
    let json = tokenizer.to_huggingface().expect("plain");
    assert!(json.contains("\"<0x41>\":67"));
}

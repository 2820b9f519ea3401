//! SentencePiece vocabularies, held to their definition: merge characters, the best score first, the leftmost first.

use std::collections::HashMap;

use bpe_llama::formats::{Piece, PieceKind};
use bpe_llama::train::Trained;
use bpe_llama::{After, Pretokenizer, SpacePrefix, Spaces, SpecialSet, Tokenizer};
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

/// The definition, word for word.
fn naive(pieces: &[Piece], text: &str) -> Vec<u32> {
    let of_kind = |kind: PieceKind| {
        pieces
            .iter()
            .zip(0u32..)
            .filter(move |(piece, _)| piece.kind == kind)
            .map(|(piece, id)| (piece.text.as_str(), id))
    };
    let normal: HashMap<&str, u32> = of_kind(PieceKind::Normal).collect();
    let bytes: HashMap<&str, u32> = of_kind(PieceKind::Byte).collect();
    let mut text = text.replace(' ', SPACE);
    if !text.is_empty() {
        text.insert_str(0, SPACE);
    }
    // A symbol and, for a user-defined one, its id.
    let mut symbols: Vec<(&str, Option<u32>)> = Vec::new();
    let mut rest = text.as_str();
    while let Some(character) = rest.chars().next() {
        let whole = of_kind(PieceKind::UserDefined).filter(|(piece, _)| rest.starts_with(piece));
        let whole = whole.max_by_key(|(piece, _)| piece.len());
        let length = whole.map_or(character.len_utf8(), |(piece, _)| piece.len());
        symbols.push((&rest[..length], whole.map(|(_, id)| id)));
        rest = &rest[length..];
    }
    let join = |pair: &[(&str, Option<u32>)]| {
        let (left, right) = (pair[0], pair[1]);
        let id = *normal.get([left.0, right.0].concat().as_str()).filter(|_| left.1.is_none() && right.1.is_none())?;
        Some(pieces[id as usize].score)
    };
    let mut at = 0;
    loop {
        let mut best: Option<(f32, usize)> = None;
        for (place, pair) in symbols.windows(2).enumerate() {
            if let Some(score) = join(pair)
                && best.is_none_or(|(known, _)| score > known)
            {
                best = Some((score, place));
            }
        }
        let Some((_, place)) = best else { break };
        let begin: usize = symbols[..place].iter().map(|(symbol, _)| symbol.len()).sum();
        let length = symbols[place].0.len() + symbols[place + 1].0.len();
        symbols[place] = (&text[begin..begin + length], None);
        symbols.remove(place + 1);
        at += 1;
        assert!(at <= text.len());
    }
    let mut ids = Vec::new();
    for (symbol, id) in symbols {
        match id.or_else(|| normal.get(symbol).copied()) {
            Some(id) => ids.push(id),
            None => ids.extend(symbol.bytes().map(|byte| bytes[format!("<0x{byte:02X}>").as_str()])),
        }
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
    (texts, runs, prop_oneof![3 => Just(None), 1 => whole.prop_map(Some)]).prop_map(|(texts, runs, whole)| {
        let mut pieces = base();
        let is_run = |text: &String| text.replace('\u{2581}', "").is_empty();
        let texts = texts.into_iter().filter(|text| !is_run(text));
        pieces.extend(texts.zip(0u8..).map(|(text, i)| piece(&text, -f32::from(i), PieceKind::Normal)));
        pieces.extend(runs.into_iter().map(|n| piece(&SPACE.repeat(n), -1e9, PieceKind::Normal)));
        pieces.extend(whole.into_iter().flatten().map(|text| piece(&text, 0.0, PieceKind::UserDefined)));
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
        // Beside user-defined pieces, those that merging does not reach are refused.
        let Ok(tokenizer) = Tokenizer::from_pieces(pieces.clone(), true, false) else {
            prop_assert!(pieces.iter().any(|piece| piece.kind == PieceKind::UserDefined));
            return Ok(());
        };
        let saved = tokenizer.to_huggingface().map(|json| Tokenizer::from_huggingface(json.as_bytes()).expect("ours"));
        for text in texts {
            let ids = tokenizer.encode_ordinary(&text).expect("bytes to fall back on");
            prop_assert_eq!(&ids, &naive(&pieces, &text), "{:?}", text);
            prop_assert_eq!(tokenizer.decode_bytes(&ids).expect("known ids"), text.replace(SPACE, " ").into_bytes());
            let mut stream = tokenizer.decode_stream();
            let mut streamed: String =
                ids.iter().map(|&id| stream.push(tokenizer.id_to_bytes(id).expect("known"))).collect();
            streamed += &stream.flush();
            prop_assert_eq!(streamed, text.replace(SPACE, " "));
            if let Ok(saved) = &saved {
                prop_assert_eq!(&saved.encode_ordinary(&text).expect("as before"), &ids);
            }
        }
    }

    #[test]
    fn any_bytes_come_back(pieces in vocabulary(), start in text(), tail in prop::collection::vec(any::<u8>(), 0..20)) {
        let Ok(tokenizer) = Tokenizer::from_pieces(pieces, true, false) else { return Ok(()) };
        let bytes = [start.replace(SPACE, "").as_bytes(), &[0xE2, 0xFF], &tail].concat();
        prop_assume!(!bytes.windows(3).any(|three| three == SPACE.as_bytes()));
        let ids = tokenizer.encode_bytes(&bytes).expect("bytes to fall back on");
        prop_assert_eq!(tokenizer.decode_bytes(&ids).expect("known ids"), bytes);
    }

    #[test]
    fn offsets_cover_the_text(pieces in vocabulary(), text in text()) {
        let Ok(tokenizer) = Tokenizer::from_pieces(pieces, true, false) else { return Ok(()) };
        let text = text.replace(SPACE, "");
        let (ids, ends) = tokenizer.encode_with_ends(&text, SpecialSet::None).expect("nothing replaced");
        prop_assert_eq!(&ids, &tokenizer.encode_ordinary(&text).expect("bytes to fall back on"));
        prop_assert_eq!(ends.last().copied().unwrap_or(0), text.len());
        let mut start = 0;
        for (id, end) in ids.into_iter().zip(ends) {
            let token = tokenizer.id_to_bytes(id).expect("known");
            prop_assert!(token.ends_with(&text.as_bytes()[start..end]) && token.len() - (end - start) <= usize::from(start == 0));
            start = end;
        }
        let kept = tokenizer.truncate(&text, 3, SpecialSet::None).expect("nothing replaced");
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
    Tokenizer::from_pieces(pieces, true, false).expect_err("not supported").to_string()
}

#[test]
fn what_would_lose_text_or_leave_ids_open_is_refused() {
    let with = |more: &[Piece]| [base(), more.to_vec()].concat();
    let normal = |text: &str, score| piece(text, score, PieceKind::Normal);
    assert!(refused(base()[..200].to_vec()).contains("it has 198 of 256 bytes"));
    assert!(refused(with(&[normal("ab", -1.0), normal("ba", -1.0)])).contains("share the score -1"));
    let no_space = base().into_iter().filter(|piece| piece.text != SPACE).collect();
    assert!(refused(no_space).contains("stands for a space"));
    // Runs of one character may tie, but only all of them.
    assert!(Tokenizer::from_pieces(with(&[normal("aa", -1.0), normal("aaa", -1.0)]), true, false).is_ok());
    let error = refused(with(&[normal("aa", -1.0), normal("aaa", -1.0), normal("aaaa", -2.0)]));
    assert!(error.contains("share the score -1"), "{error}");
    assert!(refused(with(&[normal("a", f32::NAN)])).contains("NaN"));
    assert!(refused(with(&[normal("a", -1.0), normal("a", -2.0)])).contains("two ids"));
    assert!(refused(with(&[normal("", -1.0)])).contains("piece 259 is empty"));
    assert!(refused(with(&[piece("<0x1>", 0.0, PieceKind::Byte)])).contains("<0x1>"));
    assert!(refused(with(&[piece("<0x41>", 0.0, PieceKind::Byte)])).contains("two pieces"));
    assert!(refused(with(&[normal(&"ab".repeat(600), -1.0)])).contains("1200 bytes"));
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

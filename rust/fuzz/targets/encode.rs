//! Text to ids and back.

use std::collections::HashMap;

use bpe_llama::{AddedToken, EncodeOptions, Interrupt, Pretokenizer, SpecialSet, Tokenizer, Utf8Stream, Vocab};

use super::input::{self, Input};
use super::naive;

/// The longest text, in bytes of input: the oracle's time is quadratic in it.
const MAX_TEXT: usize = 500;

const PATTERNS: [&str; 8] =
    ["r50k", "cl100k", "llama3", "o200k", "qwen2", "deepseek_v3", "smollm", r"[a-m]+|\s+|[^a-m\s]+"];

/// A vocabulary and a text, both from the input: the ids are the oracle's, and decode to the text.
///
/// The input: the kind of vocabulary, the pattern, the number of tokens, the tokens, the text.
pub(crate) fn encode(input: &[u8]) {
    let mut input = Input(input);
    let (kind, pattern, count) = (input.byte(), input.byte(), input.byte());
    let pretokenizer = Pretokenizer::new(PATTERNS[pattern as usize % PATTERNS.len()]).expect("a pattern");
    let maker = if kind & 1 == 0 { by_ranks } else { by_merges };
    let (vocab, oracle) = maker(&mut input, kind & 2 != 0, usize::from(count % 64));
    let next = vocab.id_bound();
    let specials = ["<|a|>", "<|a|>b", " "].into_iter().zip(next..).map(|(text, id)| AddedToken::special(text, id));
    let tokenizer = Tokenizer::new(vocab, pretokenizer, specials.collect(), false).expect("ids of their own");

    let bytes = input.take(MAX_TEXT);
    let text: &str = &input::text(bytes, kind & 4 != 0);
    let pieces = tokenizer.pretokenizer().split(text).expect("a linear pattern");
    let expected: Vec<u32> = pieces.iter().flat_map(|piece| oracle(piece.as_bytes())).collect();
    // The second time the cache answers.
    for _ in 0..2 {
        assert_eq!(tokenizer.encode_ordinary(text).expect("every byte is a token"), expected);
    }
    let options = EncodeOptions::default();
    assert_eq!(tokenizer.count(text, options).expect("as above"), expected.len());
    assert_eq!(tokenizer.encode_batch(&[text, text], options, 1).expect("as above").0, expected.repeat(2));
    assert_eq!(tokenizer.encode_with_offsets(text, SpecialSet::None, Interrupt::NEVER).expect("as above").0, expected);
    assert_eq!(tokenizer.decode_bytes(&expected).expect("known ids"), text.as_bytes());
    let part = tokenizer.truncate(text, expected.len() / 2, SpecialSet::None, Interrupt::NEVER).expect("as above");
    assert!(text.starts_with(part));
    assert!(tokenizer.count(part, options).expect("as above") <= expected.len() / 2);

    let special = tokenizer.encode(text, SpecialSet::All).expect("as above");
    assert_eq!(tokenizer.decode_bytes(&special).expect("known ids"), text.as_bytes());
    let ids = tokenizer.encode_bytes(bytes, Interrupt::NEVER).expect("every byte is a token");
    assert_eq!(tokenizer.decode_bytes(&ids).expect("known ids"), bytes);
}

type Oracle = Box<dyn Fn(&[u8]) -> Vec<u32>>;

/// Tokens of any bytes, whose ids are their ranks. With `bytes_last` every token comes before the bytes it is made of.
fn by_ranks(input: &mut Input<'_>, bytes_last: bool, count: usize) -> (Vocab, Oracle) {
    let mut tokens: Vec<Vec<u8>> = Vec::new();
    for _ in 0..count {
        let length = 2 + usize::from(input.byte() % 8);
        let token = input.take(length).to_vec();
        if token.len() >= 2 && !tokens.contains(&token) {
            tokens.push(token);
        }
    }
    let bytes = (0..=255_u8).map(|byte| vec![byte]);
    let tokens: Vec<_> =
        if bytes_last { tokens.into_iter().chain(bytes).collect() } else { bytes.chain(tokens).collect() };
    let ranks: HashMap<Vec<u8>, u32> = tokens.iter().cloned().zip(0..).collect();
    let vocab = Vocab::from_ranks(tokens.into_iter().zip(0..).collect()).expect("distinct tokens");
    (vocab, Box::new(move |piece| naive::by_ranks(&ranks, piece).expect("every byte is a token")))
}

/// Tokens made of pairs of earlier ones, merged in the order of the input, or the reverse, whatever their ids.
fn by_merges(input: &mut Input<'_>, reversed: bool, count: usize) -> (Vocab, Oracle) {
    let mut tokens: Vec<Vec<u8>> = (0..=255_u8).map(|byte| vec![byte]).collect();
    let mut merges: Vec<(u32, u32)> = Vec::new();
    for _ in 0..count {
        let (flags, left, right) = (input.byte(), input.byte(), input.byte());
        // A byte, or one of the tokens made so far.
        let pick = |byte: u8, is_new: bool| {
            if is_new { tokens.len() - 1 - usize::from(byte) % (tokens.len() - 255) } else { byte.into() }
        };
        let (left, right) = (pick(left, flags & 1 != 0), pick(right, flags & 2 != 0));
        let token = [&tokens[left][..], &tokens[right]].concat();
        if token.len() > 32 || merges.contains(&(left as u32, right as u32)) {
            continue;
        }
        merges.push((left as u32, right as u32));
        if !tokens.contains(&token) {
            tokens.push(token);
        }
    }
    if reversed {
        merges.reverse();
    }
    let vocab =
        Vocab::from_merges(tokens.iter().cloned().zip(0..).collect(), merges.clone(), false).expect("known tokens");
    (vocab, Box::new(move |piece| naive::by_merges(&tokens, &merges, piece)))
}

/// Tokens cut anywhere, pushed one by one: the stream's text is that of all bytes, and no id is taken that is not there.
///
/// The input: pairs of bytes, each an id below 65,536.
pub(crate) fn decode(input: &[u8]) {
    let tokens = (0..=255_u8).map(|byte| vec![byte]).chain([
        b"the".to_vec(),
        "é".into(),
        b"\xe2\x82".to_vec(),
        b"\x80\xff\xf0".to_vec(),
    ]);
    let vocab = Vocab::from_ranks(tokens.zip(0..).collect()).expect("distinct tokens");
    let bound = vocab.id_bound();
    let end = AddedToken::special("<|end|>", bound + 1);
    let tokenizer = Tokenizer::new(vocab, Pretokenizer::new("cl100k").expect("a name"), vec![end], false)
        .expect("an id of its own");
    let ids: Vec<u32> = input.chunks_exact(2).map(|pair| u32::from(u16::from_le_bytes([pair[0], pair[1]]))).collect();
    let known = |&id: &u32| id < bound || id == bound + 1;
    match tokenizer.decode_bytes(&ids) {
        Ok(_) => assert!(ids.iter().all(known)),
        Err(error) => {
            let first = ids.iter().find(|id| !known(id)).expect("an unknown id");
            assert!(error.to_string().contains(&format!("id {first} ")), "{error}");
        }
    }
    let ids: Vec<u32> = ids.into_iter().map(|id| id % bound).collect();
    let bytes = tokenizer.decode_bytes(&ids).expect("known ids");
    let mut stream = Utf8Stream::default();
    let mut text = String::new();
    for &id in &ids {
        let token = tokenizer.id_to_bytes(id).expect("a known id");
        let part = stream.push(token);
        // At most three bytes are held back.
        assert!(part.len() + 3 >= token.len() || part.contains('\u{fffd}'));
        text += &part;
    }
    assert_eq!(text + &stream.flush(), String::from_utf8_lossy(&bytes));
}

//! The tokenizers in the metadata of GGUF files, with the ids of llama.cpp.

use hashbrown::HashSet;

use super::sentencepiece::{require_space, words_or_whole};
use crate::byte_alphabet::{byte_of, to_bytes};
use crate::normalize::METASPACE;
use crate::sentencepiece::{Piece, PieceKind};
use crate::{AddedToken, Pretokenizer, Result, SentencePieceTokens, SpacePrefix, Spaces, Tokenizer, Vocab};

/// Lines, and the line breaks between them.
const LINES: &str = r"[^\n]+|\n+";

impl Tokenizer {
    /// Returns the byte-level tokenizer of a GGUF file.
    ///
    /// `tokens` are in GPT-2's byte alphabet, and their ids are their indices; text never becomes a token with other
    /// characters. `merges` are pairs of ids by rank. Each of the `patterns` splits the pieces of the one before.
    /// `added` tokens match before the text is split; they are also ordinary tokens if a merge names them.
    ///
    /// # Errors
    /// [`crate::Error::Format`] if a merge names an added token whose bytes in the byte alphabet are not its text, or
    /// if merges turn the text of a special token into it; as [`Vocab::from_merges`], [`Pretokenizer::new`] and
    /// [`Tokenizer::new`].
    ///
    /// # Source
    /// `src/llama-vocab.cpp` of llama.cpp.
    pub fn from_gguf(
        tokens: &[String],
        merges: Vec<(u32, u32)>,
        patterns: &[String],
        ignore_merges: bool,
        added: Vec<AddedToken>,
    ) -> Result<Self> {
        let text_of = |id: u32| tokens.get(id as usize).map_or("", String::as_str);
        let joined: Vec<String> =
            merges.iter().map(|&(left, right)| format!("{}{}", text_of(left), text_of(right))).collect();
        let parts = merges.iter().flat_map(|&(left, right)| [text_of(left), text_of(right)]);
        let named: HashSet<&str> = parts.chain(joined.iter().map(String::as_str)).collect();
        let (mut added_only, mut merged) = (HashSet::new(), Vec::new());
        for AddedToken { content, id, special, .. } in &added {
            let is_text = to_bytes(content).is_some_and(|bytes| bytes == content.as_bytes());
            if !named.contains(content.as_str()) {
                added_only.insert(*id);
            } else if !is_text {
                return Err(malformed!("a merge names token {id}, {content:?}, which is matched as a whole"));
            } else if *special {
                merged.push((content.clone(), *id));
            }
        }
        let (mut ordinary, mut decode_only) = (Vec::with_capacity(tokens.len()), Vec::new());
        for (token, id) in tokens.iter().zip(0u32..).filter(|(_, id)| !added_only.contains(id)) {
            match to_bytes(token) {
                Some(bytes) => ordinary.push((bytes, id)),
                None => decode_only.push((token.as_bytes().to_vec(), id)),
            }
        }
        let vocab = Vocab::from_merges_and_decode_only(ordinary, decode_only, merges, ignore_merges)?;
        let steps = patterns.iter().map(|pattern| Pretokenizer::new(pattern)).collect::<Result<_>>()?;
        let tokenizer = Self::new(vocab, Pretokenizer::sequence(steps)?, added, false)?;
        for (content, id) in merged {
            if tokenizer.encode_ordinary(&content)?.contains(&id) {
                return Err(malformed!("merges make the special token {id} of its text, {content:?}"));
            }
        }
        Ok(tokenizer)
    }

    /// Returns the tokenizer of a GGUF file with a SentencePiece vocabulary.
    ///
    /// It is the tokenizer of [`Tokenizer::from_pieces`] with `added` tokens, which match before everything else. With
    /// `prefix`, a space is added before the text after an added token. Control pieces take no part in merges.
    ///
    /// # Errors
    /// As [`Tokenizer::from_pieces`] and [`Tokenizer::new`].
    ///
    /// # Source
    /// `llama_vocab::impl::tokenize` in `src/llama-vocab.cpp` of llama.cpp.
    pub fn from_gguf_pieces(pieces: Vec<Piece>, prefix: bool, added: Vec<AddedToken>) -> Result<Self> {
        let merging = Self::from_pieces(pieces, prefix, false)?;
        let whole = Self::new(merging.vocab().clone(), merging.pretokenizer().clone(), added, false)?;
        let whole = match merging.spaces() {
            Some(spaces) => whole.with_spaces(spaces),
            None => whole,
        };
        Ok(whole.encoding_as(&merging))
    }

    /// Returns the tokenizer of a GGUF file with a vocabulary over characters and a list of merges.
    ///
    /// Unknown characters become their bytes. The ids of `pieces` are their indices; scores are ignored, and control
    /// pieces take no part in merges. Lines and the line breaks between them merge separately.
    ///
    /// # Errors
    /// [`crate::Error::Format`] if merges do not reach a token of several line breaks, which llama.cpp looks up as a
    /// whole. As [`Vocab::from_sentencepiece_merges`] and [`Tokenizer::new`].
    ///
    /// # Source
    /// `LLAMA_VOCAB_PRE_TYPE_GEMMA4` in `src/llama-vocab.cpp` of llama.cpp.
    pub fn from_gguf_characters(pieces: Vec<Piece>, merges: Vec<(u32, u32)>, added: Vec<AddedToken>) -> Result<Self> {
        let (mut sorted, mut bytes) = (SentencePieceTokens::default(), [None; 256]);
        for (Piece { text, kind, .. }, id) in pieces.into_iter().zip(0u32..) {
            let spaced = text.replace(METASPACE, " ").into_bytes();
            match (kind, byte_of(&text)) {
                (PieceKind::Control, _) => {}
                (PieceKind::Byte, Some(byte)) => bytes[usize::from(byte)] = Some(id),
                // Spaces become `▁` before merging, so text never becomes this token.
                _ if text.contains(' ') => sorted.decode_only.push((spaced, id)),
                _ => sorted.merged.push((spaced, id)),
            }
        }
        sorted.bytes = bytes.into_iter().flatten().collect();
        require_space(&sorted)?;
        let is_breaks = |bytes: &[u8]| bytes.iter().all(|&byte| byte == b'\n');
        let mixes = sorted.merged.iter().any(|(bytes, _)| bytes.contains(&b'\n') && !is_breaks(bytes));
        let pretokenizer = if mixes { Pretokenizer::new(LINES)? } else { words_or_whole(&sorted.merged)? };
        let vocab = Vocab::from_sentencepiece_merges(&sorted, merges, false)?;
        if !vocab.merges_reach_all(is_breaks)? {
            return Err(malformed!("several line breaks are a token that merges do not make"));
        }
        let spaces = Spaces { prefix: SpacePrefix::Never, collapse: false, drop_first: false };
        Ok(Self::new(vocab, pretokenizer, added, false)?.with_spaces(spaces))
    }
}

#[cfg(test)]
mod tests {
    use crate::sentencepiece::{Piece, PieceKind};
    use crate::{AddedToken, SpecialSet, Tokenizer};

    fn tokens() -> Vec<String> {
        ["a", "b", "ab", "<end>", "語"].map(str::to_owned).to_vec()
    }

    fn build(added: Vec<AddedToken>) -> crate::Result<Tokenizer> {
        Tokenizer::from_gguf(&tokens(), vec![(0, 1)], &["r50k".to_owned()], false, added)
    }

    #[test]
    fn text_never_becomes_a_token_outside_the_alphabet() {
        let tokenizer = build(vec![AddedToken::special("<end>", 3)]).expect("a tokenizer");
        assert_eq!(tokenizer.encode("abb<end>", SpecialSet::All).ok(), Some(vec![2, 1, 3]));
        assert!(tokenizer.encode_ordinary("語").is_err());
        assert_eq!(tokenizer.decode_bytes(&[4]).ok(), Some("語".as_bytes().to_vec()));
        let saved = tokenizer.to_huggingface().expect("JSON");
        let read = Tokenizer::from_huggingface(saved.as_bytes()).expect("a tokenizer");
        // `tokenizers` drops unknown characters.
        assert_eq!(read.encode_ordinary("語").ok(), Some(Vec::new()));
        assert_eq!(read.decode_bytes(&[4, 2]).ok(), Some("語ab".as_bytes().to_vec()));
    }

    #[test]
    fn a_special_character_is_saved_only_where_text_does_not_become_it() {
        let piece = |text: String, kind| Piece { text, score: 0.0, kind };
        let bytes = (0..=255u8).map(|byte| piece(format!("<0x{byte:02X}>"), PieceKind::Byte));
        for (line, is_saved) in [("c\n", false), ("c", true)] {
            let others = ["\u{2581}", line].map(|text| piece(text.to_owned(), PieceKind::Normal));
            let pieces = [piece("b".to_owned(), PieceKind::Control)].into_iter().chain(others).chain(bytes.clone());
            let added = vec![AddedToken::special("b", 0)];
            let tokenizer = Tokenizer::from_gguf_characters(pieces.collect(), vec![], added).expect("a tokenizer");
            let ids = tokenizer.encode_ordinary("b").expect("its byte");
            assert_eq!(ids, [3 + u32::from(b'b')]);
            match tokenizer.to_huggingface() {
                Ok(saved) => {
                    let read = Tokenizer::from_huggingface(saved.as_bytes()).expect("a tokenizer");
                    assert!(is_saved && read.encode_ordinary("b").ok() == Some(ids));
                }
                Err(error) => assert!(!is_saved && error.to_string().contains("its special token \"b\""), "{error}"),
            }
        }
    }

    #[test]
    fn merges_do_not_result_in_special_tokens() {
        let error = build(vec![AddedToken::special("ab", 2)]).expect_err("a merge makes it");
        assert!(error.to_string().contains("merges make the special token 2"), "{error}");
        let patterns = ["a(?=b)".to_owned()];
        let split = Tokenizer::from_gguf(&tokens(), vec![(0, 1)], &patterns, false, vec![AddedToken::special("ab", 2)]);
        let split = split.expect("a tokenizer");
        assert_eq!(split.encode_ordinary("ab").ok(), Some(vec![0, 1]));
        assert_eq!(split.encode("ab", SpecialSet::All).ok(), Some(vec![2]));
        let whole = AddedToken { special: false, ..AddedToken::special("ab", 2) };
        assert_eq!(build(vec![whole]).expect("a tokenizer").encode_ordinary("aab").ok(), Some(vec![0, 2]));
    }
}

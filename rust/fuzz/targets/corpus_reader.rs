//! The corpus reader: files to documents.

use std::io::Write;
use std::path::{Path, PathBuf};

use bpe_llama::corpus::{CorpusOptions, CorpusReader};
use bpe_llama::{Pretokenizer, Tokenizer, Vocab};

use super::input::Input;

const SUFFIXES: [&str; 6] = ["txt", "txt.gz", "txt.zst", "jsonl", "jsonl.gz", "jsonl.zst"];
const SPECIAL: &str = "<s>";

/// The documents are those of a naive reader, and the ids of a document are the concatenated ids of its chunks.
///
/// Input: the suffix; flags (repeat, compress, separator); the separator; the content.
pub(crate) fn corpus_reader(input: &[u8]) {
    let mut input = Input(input);
    let suffix = SUFFIXES[input.byte() as usize % SUFFIXES.len()];
    let flags = input.byte();
    let separator = ["|", "\n\n", "<s>", "é"][input.byte() as usize % 4];
    let mut content = input.0.to_vec();
    if flags & 1 != 0 && !content.is_empty() {
        // Longer than a block.
        content = content.repeat(300_000 / content.len() + 1);
    }
    // Uncompressed content in a file with a compressed suffix is damaged data.
    let is_sound = flags & 2 != 0 || !suffix.contains('.');
    let stored = if is_sound { compress(&content, suffix) } else { content.clone() };

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("file").with_extension(suffix);
    std::fs::write(&path, stored).expect("a file");
    let separator = (flags & 4 != 0).then(|| separator.to_owned());
    let options = CorpusOptions {
        separator: separator.clone(),
        special_tokens: vec![SPECIAL.to_owned()],
        ..CorpusOptions::default()
    };
    let expected = if suffix.starts_with("txt") { split(&content, separator.as_deref()) } else { lines(&content) };
    match (read(&path, options), expected) {
        (Ok(documents), Some(expected)) if is_sound => assert_eq!(documents, expected),
        (Err(error), Some(_)) if is_sound && suffix.starts_with("txt") => panic!("{error}"),
        (Ok(_), None) if is_sound && suffix.starts_with("txt") => panic!("no UTF-8, but no error"),
        (Err(error), _) => assert!(error.to_string().contains("file.")),
        _ => {}
    }
}

fn compress(content: &[u8], suffix: &str) -> Vec<u8> {
    match Path::new(suffix).extension().and_then(|last| last.to_str()) {
        Some("gz") => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(content).expect("in memory");
            encoder.finish().expect("in memory")
        }
        Some("zst") => zstd::encode_all(content, 1).expect("in memory"),
        _ => content.to_vec(),
    }
}

/// Returns the documents of a file, and checks the ids of their chunks.
fn read(path: &Path, options: CorpusOptions) -> bpe_llama::Result<Vec<String>> {
    let tokenizer = bytes_and_spaces();
    let mut corpus = CorpusReader::new(vec![PathBuf::from(path)], tokenizer.pretokenizer().clone(), options)?;
    let (mut texts, mut text, mut ids) = (Vec::new(), String::new(), Vec::new());
    while let Some(chunk) = corpus.next_chunk()? {
        assert_eq!(chunk.document, texts.len() as u64);
        ids.extend(tokenizer.encode_ordinary(&chunk.text)?);
        text += &chunk.text;
        if chunk.is_last {
            assert!(ids == tokenizer.encode_ordinary(&text)?, "a chunk's end changes ids");
            ids.clear();
            texts.push(std::mem::take(&mut text));
        }
    }
    assert!(text.is_empty(), "the last chunk ends its document");
    assert_eq!(corpus.bytes_read(), corpus.total_bytes());
    Ok(texts)
}

/// Returns a tokenizer with tokens that pre-tokenization separates or not, so that ids depend on the boundaries.
fn bytes_and_spaces() -> Tokenizer {
    let tokens = (0..=255_u8)
        .map(|byte| vec![byte])
        .chain(["  ", " a", "aa", "\n\n", " \n", "''", "11", "é", "日本"].map(|token| token.as_bytes().to_vec()));
    let vocab = Vocab::from_ranks(tokens.zip(0..).collect()).expect("distinct tokens");
    Tokenizer::new(vocab, Pretokenizer::new("cl100k").expect("a name"), vec![], false).expect("no clash")
}

/// Returns the texts between separators, without a byte-order mark; an empty text after the last separator is no
/// document.
fn split(content: &[u8], separator: Option<&str>) -> Option<Vec<String>> {
    let text = std::str::from_utf8(content).ok()?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let Some(separator) = separator else { return Some(vec![text.to_owned()]) };
    let mut parts: Vec<String> = text.split(separator).map(str::to_owned).collect();
    if parts.len() > 1 && parts.last().is_some_and(String::is_empty) {
        parts.pop();
    }
    Some(parts)
}

/// Returns the field of every line, or `None` if a line is not valid JSON: then the outcome is unspecified.
fn lines(content: &[u8]) -> Option<Vec<String>> {
    let lines = content.split(|&byte| byte == b'\n').filter(|line| !line.iter().all(u8::is_ascii_whitespace));
    lines
        .map(|line| Some(serde_json::from_slice::<serde_json::Value>(line).ok()?.get("text")?.as_str()?.to_owned()))
        .collect()
}

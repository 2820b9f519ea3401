//! The reader against plain ways to read the same files.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::{CorpusOptions, CorpusReader, FileLines};
use crate::pretokenize::Pretokenizer;
use crate::{Error, Result};

/// Returns the documents of a file, read in blocks of this size, and the number of chunks.
pub(crate) fn read(path: &Path, options: &CorpusOptions, block_bytes: usize) -> Result<(Vec<String>, usize)> {
    let corpus = CorpusReader::new(vec![path.to_owned()], Pretokenizer::new("cl100k")?, options.clone())?;
    let mut corpus = corpus.with_block_bytes(block_bytes);
    let (mut texts, mut chunks) = (vec![String::new()], 0);
    while let Some(chunk) = corpus.next_chunk()? {
        chunks += 1;
        assert_eq!(chunk.document as usize, texts.len() - 1);
        texts[chunk.document as usize].push_str(&chunk.text);
        if chunk.is_last {
            texts.push(String::new());
        }
    }
    assert_eq!(texts.pop().as_deref(), Some(""), "the last chunk ends its document");
    Ok((texts, chunks))
}

/// Returns the path of a new file, and its temporary folder.
pub(crate) fn write(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).expect("a file");
    (folder, path)
}

proptest! {
    #[test]
    fn documents_are_the_text_between_separators(text in "([a-c]{0,9}[ |é日]{0,3}){0,60}", block_bytes in 1usize..40) {
        let (_folder, path) = write("corpus.txt", text.as_bytes());
        let whole = read(&path, &CorpusOptions::default(), block_bytes).expect("text").0;
        prop_assert_eq!(whole, vec![text.clone()]);
        let options = CorpusOptions { separator: Some("||".to_owned()), ..CorpusOptions::default() };
        let mut expected: Vec<_> = text.split("||").collect();
        if expected.len() > 1 && expected.last() == Some(&"") {
            expected.pop();
        }
        prop_assert_eq!(read(&path, &options, block_bytes).expect("text").0, expected);
    }
}

#[test]
fn long_documents_come_in_parts() {
    let text = "some words ".repeat(10_000);
    let rows = format!("{{\"text\": \"{text}\"}}\n{{\"text\": \"b\"}}\n");
    for (name, content, count) in [("corpus.txt", &text, 1), ("corpus.jsonl", &rows, 2)] {
        let (_folder, path) = write(name, content.as_bytes());
        let (texts, chunks) = read(&path, &CorpusOptions::default(), 1 << 12).expect("text");
        assert!(texts[0] == text && texts.len() == count && chunks > 10, "{name}");
    }
}

/// Reads a file in blocks of 1,000 bytes, with at most 5,000 bytes undivided.
fn read_bounded(path: &Path, pattern: &str, separator: Option<&str>) -> Result<Vec<usize>> {
    let options = CorpusOptions { separator: separator.map(str::to_owned), ..CorpusOptions::default() };
    let corpus = CorpusReader::new(vec![path.to_owned()], Pretokenizer::new(pattern)?, options)?;
    let (mut corpus, mut lengths) = (corpus.with_block_bytes(1000).with_max_part(5000), Vec::new());
    while let Some(chunk) = corpus.next_chunk()? {
        lengths.push(chunk.text.len());
    }
    Ok(lengths)
}

#[test]
fn text_without_a_place_to_divide_it_is_bounded() {
    let (words, letters) = ("some words ".repeat(2000), "a".repeat(5000));
    let with_field = |text: &str| format!("{{\"text\": \"{text}\"}}\n{{\"text\": \"b\"}}\n");
    for (name, wrap) in
        [("c.txt", &(|text: &str| text.to_owned()) as &dyn Fn(&str) -> String), ("c.jsonl", &with_field)]
    {
        for (pattern, text, place) in [
            ("cl100k", words.clone(), None),
            ("cl100k", letters.clone(), None),
            ("cl100k", format!("{words}{letters}a"), Some("21999")),
            (r"\w+|\W", words[..5000].to_owned(), None),
            (r"\w+|\W", words[..5001].to_owned(), Some("0")),
        ] {
            let (_folder, path) = write(name, wrap(&text).as_bytes());
            match (read_bounded(&path, pattern, None), place) {
                (Ok(lengths), None) => assert!(lengths.iter().all(|&length| length <= 5000), "{name}, {pattern}"),
                (Err(error), Some(place)) => {
                    let error = error.to_string();
                    assert!(error.contains(name) && error.contains(&format!("from byte {place}")), "{error}");
                    assert!(error.contains("more than 5000 bytes"), "{error}");
                }
                (outcome, _) => panic!("{name}, {pattern}: {outcome:?}"),
            }
        }
    }
    let (_folder, path) = write("c.txt", format!("{}|{}|b", &words[..5000], &words[..5001]).as_bytes());
    let error = read_bounded(&path, r"\w+|\W", Some("|")).expect_err("the second document").to_string();
    assert!(error.contains("c.txt, from byte 5001: a document of more than 5000 bytes"), "{error}");
}

#[test]
fn a_long_text_without_chunk_boundaries_returns_control() {
    let (_folder, path) = write("c.txt", "a".repeat(100_000).as_bytes());
    let corpus = CorpusReader::new(vec![path], Pretokenizer::new("cl100k").expect("a name"), CorpusOptions::default());
    let mut corpus = corpus.expect("a file").with_block_bytes(500);
    let first = corpus.next_chunk().expect("text").expect("a chunk");
    assert!(first.is_heartbeat());
}

#[test]
fn a_file_that_shrinks_is_an_error() {
    for name in ["corpus.txt", "corpus.jsonl"] {
        let (_folder, path) = write(name, "{\"text\": \"a line\"}\n".repeat(100_000).as_bytes());
        let splitter = Pretokenizer::new("cl100k").expect("a known name");
        let mut corpus = CorpusReader::new(vec![path.clone()], splitter, CorpusOptions::default()).expect("a file");
        corpus.next_chunk().expect("text");
        File::options().write(true).open(&path).and_then(|file| file.set_len(1_000_000)).expect("shorter");
        let error = loop {
            match corpus.next_chunk() {
                Ok(chunk) => assert!(chunk.is_some(), "it ended in silence"),
                Err(error) => break error.to_string(),
            }
        };
        assert!(error.contains(name) && error.contains("shrank") && error.contains("of 1900000"), "{error}");
    }
}

#[test]
fn compressed_files_and_json_lines() {
    let lines = b"{\"text\": \"one\", \"n\": 1}\n\n{\"id\": [1], \"text\": \"t\\u0077o\"}";
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(lines).expect("in memory");
    let gzip = gzip.finish().expect("in memory");
    let zstd = zstd::encode_all(&lines[..], 1).expect("in memory");
    for (name, bytes) in [("c.jsonl", &lines[..]), ("c.jsonl.gz", &gzip), ("c.ndjson.zst", &zstd)] {
        let (_folder, path) = write(name, bytes);
        assert_eq!(read(&path, &CorpusOptions::default(), 16).expect(name).0, ["one", "two"]);
    }
    for (name, bytes) in [("l.txt", &lines[..]), ("l.gz", &gzip), ("l.zst", &zstd)] {
        let (_folder, path) = write(name, bytes);
        let found: Result<Vec<_>> = FileLines::open(&path).expect(name).collect();
        assert_eq!(found.expect(name), lines.split_inclusive(|&byte| byte == b'\n').collect::<Vec<_>>());
    }
    // Several compressed streams in one file are one text.
    let (_folder, path) = write("c.txt.gz", &[&gzip[..], &gzip].concat());
    assert_eq!(read(&path, &CorpusOptions::default(), 16).expect("text").0[0].len(), 2 * lines.len());
    let (_folder, path) = write("c.txt.zst", &[&zstd[..], &zstd].concat());
    assert_eq!(read(&path, &CorpusOptions::default(), 16).expect("text").0[0].len(), 2 * lines.len());
    for (name, bytes) in [("c.gz", &gzip[..gzip.len() / 2]), ("c.zst", &zstd[..zstd.len() / 2]), ("d.gz", b"plain")] {
        let (_folder, path) = write(name, bytes);
        let error = read(&path, &CorpusOptions::default(), 16).expect_err("damaged");
        assert!(matches!(error, Error::Format(_)) && error.to_string().contains(name), "{error}");
        let lines: Result<Vec<_>> = FileLines::open(&path).and_then(Iterator::collect);
        assert_eq!(lines.expect_err("damaged").to_string(), error.to_string());
    }
}

#[test]
fn many_empty_members_of_gzip_are_refused() {
    let gzip = |text: &[u8]| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(text).and_then(|()| gzip.finish()).expect("in memory")
    };
    let (_folder, path) = write("c.gz", &[gzip(b"a"), gzip(b"").repeat(10_000), gzip(b"b")].concat());
    assert_eq!(read(&path, &CorpusOptions::default(), 16).expect("text").0, ["ab"]);
    let (_folder, path) = write("c.gz", &gzip(b"").repeat(20_000));
    let error = read(&path, &CorpusOptions::default(), 16).expect_err("too many").to_string();
    assert!(error.contains("c.gz: damaged compressed data: too many empty members in a row"), "{error}");
}

#[test]
fn errors_name_the_place() {
    let (_folder, path) = write("bad.txt", &[&[b'a'; 50][..], b"\xff"].concat());
    for block_bytes in [3, 1000] {
        let error = read(&path, &CorpusOptions::default(), block_bytes).expect_err("not UTF-8");
        assert!(error.to_string().ends_with("bad.txt: invalid UTF-8 at byte 50"), "{error}");
    }
    let (_folder, path) = write("cut.txt", "ab日".as_bytes().split_last().expect("bytes").1);
    let error = read(&path, &CorpusOptions::default(), 3).expect_err("a character cut in two");
    assert!(error.to_string().ends_with("cut.txt: invalid UTF-8 at byte 2"), "{error}");
    for (line, what) in [("{}", "no field \"text\""), ("[1]", "an object"), ("{\"text\": 1}", "integer"), ("{", "EOF")]
    {
        let (_folder, path) = write("c.jsonl", format!("{{\"text\": \"\"}}\n{line}\n").as_bytes());
        let error = read(&path, &CorpusOptions::default(), 16).expect_err("a bad line").to_string();
        assert!(error.contains("c.jsonl, line 2") && error.contains(what), "{error}");
    }
}

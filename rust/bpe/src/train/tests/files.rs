//! Counting the words of files: chunks, and rows that are skipped.

use std::io::Write;
use std::path::Path;

use proptest::prelude::*;

use crate::corpus::tests::{read, write};
use crate::corpus::{CorpusOptions, CorpusReader, OnError, Skipped};
use crate::pretokenize::{Pretokenizer, SUPERWORD_PATTERN};
use crate::train::{Counter, WordCounts, count_files};
use crate::{Error, Interrupt};

/// The block size of a reader.
const BLOCK_BYTES: usize = 1 << 18;

fn skipping(separator: Option<&str>) -> CorpusOptions {
    let separator = separator.map(str::to_owned);
    CorpusOptions { separator, on_error: OnError::Skip, ..CorpusOptions::default() }
}

/// Returns what is skipped in a file that is counted on `num_threads` threads, and the number of words.
fn skipped(path: &Path, options: CorpusOptions, num_threads: usize) -> (Skipped, u64) {
    let splitter = Pretokenizer::new("cl100k").expect("a known name");
    let mut corpus = CorpusReader::new(vec![path.to_owned()], splitter, options).expect("a file");
    let counts = count_files(&mut corpus, num_threads, &mut |_| Ok(())).expect("text");
    assert_eq!(corpus.bytes_read(), corpus.total_bytes());
    (corpus.skipped().clone(), counts.total())
}

/// Lines without text, and a part of the error message of each.
const BAD_LINES: [(&[u8], &str); 13] = [
    (b"null", "null"),
    (b"{\"text\": null}", "field \"text\" is null"),
    (b"{\"t\": \"a\"}", "no field \"text\""),
    (b"{\"text\": 3}", "integer `3`"),
    (b"{\"text\": [\"a\"]}", "sequence"),
    (b"{\"text\": \"a", "EOF"),
    (b"{\"text\": \"a\"} b", "trailing characters"),
    (b"{\"text\": \"\\ud800\"}", "lone surrogate at column"),
    (b"{\"text\": \"\\ud800x\"}", "lone surrogate"),
    (b"{\"text\": \"\\ud800\\u0041\"}", "lone surrogate"),
    (b"{\"text\": \"\\udc00\\ud800\"}", "lone surrogate"),
    (b"{\"text\": \"caf\xe9\"}", "invalid UTF-8 at byte 13 of the line"),
    (b"\xef\xbb\xbf{\"text\": \"a\"}", "expected value at column 1"),
];

#[test]
fn a_bad_line_is_an_error_or_is_skipped() {
    let good = b"{\"text\": \"a good one, \\ud83d\\ude00\", \"other\": null}";
    for (bad, what) in BAD_LINES {
        for (end, block_bytes) in [("\n", 1), ("", 1000)] {
            let bytes = [good, &b"\n \n"[..], good, b"\n", bad, end.as_bytes()].concat();
            let (_folder, path) = write("c.jsonl", &bytes);
            let error = read(&path, &CorpusOptions::default(), block_bytes).expect_err("a bad line").to_string();
            assert!(error.contains("c.jsonl, line 4: ") && error.contains(what), "{error}");
            let found = read(&path, &skipping(None), block_bytes).expect("skips").0;
            assert_eq!(found, ["a good one, 😀"; 2], "{what}");
            assert_eq!(skipped(&path, skipping(None), 1).0, Skipped { rows: 1, first: Some(error) });
        }
    }
}

#[test]
fn a_long_file_loses_its_bad_lines_and_no_other() {
    let (mut bytes, mut kept, mut bad) = (b"\xef\xbb\xbf".to_vec(), Vec::new(), 0);
    for index in 0..40_000 {
        if index % 7 == 3 || (20_000..30_000).contains(&index) {
            bytes.extend(BAD_LINES[bad % BAD_LINES.len()].0);
            bad += 1;
        } else {
            bytes.extend(format!("{{\"text\": \"line {index}\"}}").bytes());
            kept.push(format!("line {index}"));
        }
        bytes.push(b'\n');
    }
    assert!(bytes.len() > 2 * BLOCK_BYTES);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&bytes).expect("in memory");
    let packed =
        [("c.jsonl.gz", gzip.finish()), ("c.ndjson.zst", zstd::encode_all(&bytes[..], 1)), ("c.jsonl", Ok(bytes))];
    for (name, bytes) in packed {
        let (_folder, path) = write(name, &bytes.expect("in memory"));
        assert_eq!(read(&path, &skipping(None), BLOCK_BYTES).expect("skips").0, kept);
        let (of_one, words) = skipped(&path, skipping(None), 1);
        assert_eq!(of_one.rows, bad as u64);
        assert!(of_one.first.as_ref().is_some_and(|first| first.contains(&format!("{name}, line 4: "))), "{of_one:?}");
        assert_eq!(skipped(&path, skipping(None), 3), (of_one, words));
    }
}

#[test]
fn a_byte_order_mark_is_dropped_only_at_the_start_of_a_file() {
    for block_bytes in [1, 2, 1000] {
        for options in [CorpusOptions::default(), skipping(None)] {
            let (_folder, path) = write("a.txt", "\u{feff}a\u{feff}b\n\u{feff}".as_bytes());
            assert_eq!(read(&path, &options, block_bytes).expect("text").0, ["a\u{feff}b\n\u{feff}"]);
            let (_folder, path) = write("a.txt", "\u{feff}\u{feff}".as_bytes());
            assert_eq!(read(&path, &options, block_bytes).expect("text").0, ["\u{feff}"]);
            let (_folder, path) = write("a.txt", "\u{feff}".as_bytes());
            assert_eq!(read(&path, &options, block_bytes).expect("text").0, [""]);
            let (_folder, path) = write("a.jsonl", "\u{feff}\n{\"text\": \"\u{feff}a\"}".as_bytes());
            assert_eq!(read(&path, &options, block_bytes).expect("text").0, ["\u{feff}a"]);
        }
        let (_folder, path) = write("a.txt", b"\xff||\xef\xbb\xbfa");
        assert_eq!(read(&path, &skipping(Some("||")), block_bytes).expect("text").0, ["\u{feff}a"]);
    }
    let (_folder, path) = write("a.txt", b"\xef\xbb\xbfab\xff");
    let error = read(&path, &CorpusOptions::default(), 2).expect_err("not UTF-8");
    assert!(error.to_string().ends_with("invalid UTF-8 at byte 5"), "{error}");
}

#[test]
fn a_long_invalid_document_is_skipped_in_blocks() {
    let bad = [&b"\xff"[..], &vec![b'x'; 1_000_000]].concat();
    let (_folder, path) = write("a.txt", &[&b"one||"[..], &bad, b"||two"].concat());
    assert_eq!(read(&path, &skipping(Some("||")), BLOCK_BYTES).expect("text").0, ["one", "two"]);
    let first = format!("{}: invalid UTF-8 at byte 5", path.display());
    let expected = (Skipped { rows: 1, first: Some(first) }, 2);
    for num_threads in [1, 3] {
        assert_eq!(skipped(&path, skipping(Some("||")), num_threads), expected);
    }
}

#[test]
fn a_long_run_of_bad_lines_is_skipped_in_blocks() {
    let (_folder, path) = write("a.jsonl", &b"null\n".repeat(200_000));
    let (kept, chunks) = read(&path, &skipping(None), BLOCK_BYTES).expect("skips");
    assert!(kept.is_empty() && chunks >= 3, "{chunks}");
    assert_eq!(skipped(&path, skipping(None), 2).0.rows, 200_000);
}

#[test]
fn a_damaged_file_is_an_error() {
    let (_folder, path) = write("a.txt.gz", b"plain");
    assert!(matches!(read(&path, &skipping(None), 10), Err(Error::Format(_))));
    assert!(matches!(read(Path::new("none.txt"), &skipping(None), 10), Err(Error::Io { .. })));
    if cfg!(unix) {
        let error = read(Path::new("/dev/null"), &skipping(None), 10).expect_err("a device");
        assert!(error.to_string().starts_with("/dev/null: a named pipe or a device"), "{error}");
    }
}

proptest! {
    /// Counting chunk by chunk equals counting the whole text, special tokens included.
    #[test]
    fn chunks_change_no_word(
        text in "([a-c]{0,6}( |<s>|<s><t>|\\n|[.!]|é){0,3}){0,60}",
        block_bytes in 1usize..60,
        pattern in prop::sample::select(vec!["cl100k", SUPERWORD_PATTERN]),
    ) {
        let special_tokens = vec!["<s>".to_owned(), "<t>".to_owned(), "s>a".to_owned(), "c <s>".to_owned()];
        let splitter = Pretokenizer::new(pattern).expect("a known pattern");
        let mut counter = Counter::new(splitter.clone(), &special_tokens).expect("valid");
        counter.add(&text).expect("a linear pattern");
        let (_folder, path) = write("corpus.txt", text.as_bytes());
        let options = CorpusOptions { special_tokens, ..CorpusOptions::default() };
        let corpus = CorpusReader::new(vec![path], splitter, options).expect("a file");
        let mut corpus = corpus.with_block_bytes(block_bytes);
        let counts = count_files(&mut corpus, 1 + block_bytes % 2, &mut |_| Ok(())).expect("text");
        let sorted = |counts: &WordCounts| counts.most_common(usize::MAX, Interrupt::NEVER).expect("not stopped");
        prop_assert_eq!(sorted(&counts), sorted(&counter.finish()));
    }

    /// A document is skipped if and only if it is not UTF-8, wherever blocks end.
    #[test]
    fn documents_that_are_not_utf8_are_skipped(
        parts in prop::collection::vec(
            prop::sample::select(vec![&b"a"[..], b" b", b"\xff", "日".as_bytes(), b"\xe6\x97", b"\xa5", b"|", b"||", b"\xf0\x9f"]),
            0..40,
        ),
        separator in prop::sample::select(vec![None, Some("||"), Some("|"), Some("日")]),
        block_bytes in 1usize..20,
    ) {
        let bytes = parts.concat();
        let (_folder, path) = write("a.txt", &bytes);
        let mut documents = match separator {
            None => vec![&bytes[..]],
            Some(separator) => split(&bytes, separator.as_bytes()),
        };
        if documents.len() > 1 && documents.last().is_some_and(|last| last.is_empty()) {
            documents.pop();
        }
        let kept: Vec<&str> = documents.iter().filter_map(|document| std::str::from_utf8(document).ok()).collect();
        prop_assert_eq!(read(&path, &skipping(separator), block_bytes).expect("skips").0, &kept[..]);
        let skipped_count = documents.len() - kept.len();
        prop_assert_eq!(skipped(&path, skipping(separator), 1).0.rows, skipped_count as u64);
        let options = CorpusOptions { on_error: OnError::Raise, ..skipping(separator) };
        let error = read(&path, &options, block_bytes).err().map(|error| error.to_string());
        prop_assert_eq!(error, skipped(&path, skipping(separator), 2).0.first);
    }
}

fn split<'a>(mut bytes: &'a [u8], separator: &[u8]) -> Vec<&'a [u8]> {
    let mut parts = Vec::new();
    while let Some(at) = bytes.windows(separator.len()).position(|window| window == separator) {
        parts.push(&bytes[..at]);
        bytes = &bytes[at + separator.len()..];
    }
    parts.push(bytes);
    parts
}

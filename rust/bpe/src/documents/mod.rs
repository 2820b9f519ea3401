//! Files to documents, in bounded memory: a file is one document unless a separator cuts it; a line of JSON lines is one document.
//!
//! Long documents come in several chunks, cut where pieces end, so that tokenizing the chunks one by one gives what tokenizing the
//! whole would give.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aho_corasick::AhoCorasick;

use crate::pretokenize::Pretokenizer;
use crate::train::special_matcher;
use crate::{Error, Result};

mod bad_rows;
mod file_lines;
mod lines;
mod paths;
mod reader;
mod text;
mod utf8_scan;

pub use bad_rows::{OnError, Skipped};
pub use file_lines::FileLines;
pub use paths::expand_paths;

use lines::LineSource;
use reader::{decompressed, extension, io_error};
use text::TextSource;
use utf8_scan::Utf8Scan;

/// Bytes read at a time: what a thread's cache holds.
const BLOCK_BYTES: usize = 1 << 18;

/// At the start of a file it says that the file is UTF-8, and is no part of the text.
const BYTE_ORDER_MARK: &str = "\u{feff}";

/// How files are read as documents.
#[derive(Debug, Clone)]
pub struct DocumentOptions {
    /// Text that ends a document within a file; itself in no document. Not used for JSON lines.
    pub separator: Option<String>,
    /// The field of each JSON line that holds the text.
    pub field: String,
    /// Chunks are never cut inside one of these.
    pub special_tokens: Vec<String>,
    /// What is done with a line of JSON lines that holds no text, and with a document of other files that is not UTF-8.
    pub on_error: OnError,
}

impl Default for DocumentOptions {
    fn default() -> Self {
        Self { separator: None, field: "text".to_owned(), special_tokens: Vec::new(), on_error: OnError::Raise }
    }
}

/// A document or part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The document's number, from 0, over all files.
    pub document: u64,
    /// The text; empty where the document is, and where [`Chunk::is_pause`].
    pub text: String,
    /// Whether the document ends here.
    pub is_last: bool,
}

impl Chunk {
    /// Whether it is no part of a document, but a moment to stop in: a stretch of a file was checked or left out.
    pub fn is_pause(&self) -> bool {
        self.text.is_empty() && !self.is_last
    }
}

/// Reads documents from files, one after the other.
///
/// ```
/// use bpe_llama::documents::{DocumentOptions, Documents};
/// use bpe_llama::pretokenize::Pretokenizer;
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("corpus.txt");
/// std::fs::write(&path, "first||second")?;
/// let options = DocumentOptions { separator: Some("||".to_owned()), ..DocumentOptions::default() };
/// let mut documents = Documents::new(vec![path], Pretokenizer::new("cl100k")?, options)?;
/// assert_eq!(documents.next_chunk()?.map(|chunk| chunk.text), Some("first".to_owned()));
/// assert_eq!(documents.next_chunk()?.map(|chunk| (chunk.document, chunk.is_last)), Some((1, true)));
/// assert_eq!(documents.next_chunk()?, None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Documents {
    paths: std::vec::IntoIter<PathBuf>,
    rules: Rules,
    source: Option<Source>,
    document: u64,
    skipped: Skipped,
    total_bytes: u64,
    bytes_read: Arc<AtomicU64>,
}

/// What decides where documents end and where they may be cut.
#[derive(Debug)]
struct Rules {
    options: DocumentOptions,
    splitter: Pretokenizer,
    special_tokens: Option<AhoCorasick>,
    longest_special: usize,
    /// Bytes read at a time; a document of more comes in parts.
    block_bytes: usize,
}

#[derive(Debug)]
enum Source {
    /// A file whose documents are checked before they are read.
    Scan(Utf8Scan),
    Text(TextSource),
    Lines(LineSource),
}

impl Documents {
    /// Prepares to read `paths` in the order given. Nothing is opened yet, but every file must exist.
    ///
    /// Files ending in `.gz` or `.zst` are decompressed, `.jsonl` and `.ndjson` (compressed or not) read as JSON lines, all others
    /// as text. A byte-order mark at the start of a file is left out. With [`OnError::Skip`], text files are read twice.
    ///
    /// # Errors
    /// [`Error::Io`] if a file does not exist; [`Error::InvalidArgument`] if the separator is empty, or a special token is empty or
    /// given twice.
    pub fn new(paths: Vec<PathBuf>, splitter: Pretokenizer, options: DocumentOptions) -> Result<Self> {
        if options.separator.as_deref() == Some("") {
            return Err(Error::InvalidArgument("separator is empty; leave it out to keep files whole".to_owned()));
        }
        let mut total_bytes = 0;
        for path in &paths {
            total_bytes += std::fs::metadata(path).map_err(|source| io_error(path, source))?.len();
        }
        let special_tokens = special_matcher(&options.special_tokens)?;
        let longest_special = options.special_tokens.iter().map(String::len).max().unwrap_or(0);
        Ok(Self {
            paths: paths.into_iter(),
            rules: Rules { options, splitter, special_tokens, longest_special, block_bytes: BLOCK_BYTES },
            source: None,
            document: 0,
            skipped: Skipped::default(),
            total_bytes,
            bytes_read: Arc::new(AtomicU64::new(0)),
        })
    }

    /// Returns the next document or part of one, or `None` at the end of the last file.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read, or shrinks meanwhile; [`Error::Format`], naming file and byte or line, if it is not UTF-8, not the JSON
    /// expected, or damaged compressed data. With [`OnError::Skip`] the last is an error still, the others are counted.
    pub fn next_chunk(&mut self) -> Result<Option<Chunk>> {
        loop {
            let part = match &mut self.source {
                Some(Source::Scan(scan)) => {
                    if let Some(bad) = scan.step()? {
                        let path = scan.path().to_owned();
                        self.skipped.add(&path, &bad);
                        let reader = decompressed(&path, &self.bytes_read)?.0;
                        self.source = Some(Source::Text(TextSource::new(&path, reader, bad.ranges)));
                    }
                    Some((String::new(), false))
                }
                Some(Source::Text(text)) => text.next_part(&self.rules)?,
                Some(Source::Lines(lines)) => lines.next_line(&self.rules, &mut self.skipped)?,
                None => None,
            };
            if let Some((text, is_last)) = part {
                let document = self.document;
                self.document += u64::from(is_last);
                return Ok(Some(Chunk { document, text, is_last }));
            }
            let Some(path) = self.paths.next() else { return Ok(None) };
            self.source = Some(open(&path, &self.rules, &self.bytes_read)?);
        }
    }

    /// What was left out so far.
    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// The size of all files together, compressed ones as they are.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Bytes read so far from the files, compressed ones as they are.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// What decides where pieces end.
    pub fn splitter(&self) -> &Pretokenizer {
        &self.rules.splitter
    }

    /// The special tokens that no chunk's end cuts.
    pub fn special_tokens(&self) -> &[String] {
        &self.rules.options.special_tokens
    }
}

impl Rules {
    /// The last place found at or after `from` where `text` may be cut whatever follows it, leaving special tokens whole.
    fn cut(&self, text: &str, from: usize) -> Option<usize> {
        // What a special token, or the separator, may have begun at the end is left for the next chunk.
        let margin = self.longest_special.max(self.options.separator.as_ref().map_or(0, String::len));
        let mut from = ceil_char(text, from);
        loop {
            let cut = self.splitter.chunk_boundary(text, from)?;
            if cut + margin > text.len() {
                return None;
            }
            match self.special_around(text, cut) {
                None => return Some(cut),
                Some(end) => from = end + 1,
            }
        }
    }

    /// The end of the special token that `cut` would cut in two or part from its neighbour, which may decide whether it
    /// is one: an added token can ask for white space or for no word character beside it.
    fn special_around(&self, text: &str, cut: usize) -> Option<usize> {
        let matcher = self.special_tokens.as_ref()?;
        // Matches do not overlap, so where the search begins matters: begin where no earlier match can reach.
        let start = ceil_char(text, cut.saturating_sub(8 * self.longest_special));
        let end = ceil_char(text, (cut + self.longest_special).min(text.len()));
        let mut matches = matcher.find_iter(&text[start..end]);
        matches
            .find(|found| (start + found.start()..=start + found.end()).contains(&cut))
            .map(|found| start + found.end())
    }
}

/// The first character boundary at or after `at`.
fn ceil_char(text: &str, at: usize) -> usize {
    (at..text.len()).find(|&index| text.is_char_boundary(index)).unwrap_or(text.len())
}

fn open(path: &Path, rules: &Rules, bytes_read: &Arc<AtomicU64>) -> Result<Source> {
    let (reader, inner) = decompressed(path, bytes_read)?;
    if matches!(extension(&inner).as_deref(), Some("jsonl" | "ndjson")) {
        return Ok(Source::Lines(LineSource::new(path, reader)));
    }
    if rules.options.on_error == OnError::Raise {
        return Ok(Source::Text(TextSource::new(path, reader, VecDeque::new())));
    }
    if !std::fs::metadata(path).map_err(|source| io_error(path, source))?.is_file() {
        let what = "no regular file, and text is read twice to skip what is not UTF-8";
        return Err(Error::InvalidArgument(format!("{}: {what}", path.display())));
    }
    // What is read here is read again, and counts then.
    let (reader, _) = decompressed(path, &Arc::default())?;
    Ok(Source::Scan(Utf8Scan::new(path, reader, rules.options.separator.as_deref(), rules.block_bytes)))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;
    use crate::pretokenize::SUPERWORD_PATTERN;

    pub(super) fn read(path: &Path, options: &DocumentOptions, block_bytes: usize) -> Result<(Vec<String>, usize)> {
        let mut documents = Documents::new(vec![path.to_owned()], Pretokenizer::new("cl100k")?, options.clone())?;
        documents.rules.block_bytes = block_bytes;
        let (mut texts, mut chunks) = (vec![String::new()], 0);
        while let Some(chunk) = documents.next_chunk()? {
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

    pub(super) fn write(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("a file");
        (folder, path)
    }

    proptest! {
        #[test]
        fn documents_are_the_text_between_separators(text in "([a-c]{0,9}[ |é日]{0,3}){0,60}", block_bytes in 1usize..40) {
            let (_folder, path) = write("corpus.txt", text.as_bytes());
            let whole = read(&path, &DocumentOptions::default(), block_bytes).expect("text").0;
            prop_assert_eq!(whole, vec![text.clone()]);
            let options = DocumentOptions { separator: Some("||".to_owned()), ..DocumentOptions::default() };
            let mut expected: Vec<_> = text.split("||").collect();
            if expected.len() > 1 && expected.last() == Some(&"") {
                expected.pop();
            }
            prop_assert_eq!(read(&path, &options, block_bytes).expect("text").0, expected);
        }

        /// Counting chunk by chunk must equal counting the whole, special tokens included.
        #[test]
        fn chunks_change_no_word(
            text in "([a-c]{0,6}( |<s>|<s><t>|\\n|[.!]|é){0,3}){0,60}",
            block_bytes in 1usize..60,
            pattern in prop::sample::select(vec!["cl100k", SUPERWORD_PATTERN]),
        ) {
            let special_tokens = vec!["<s>".to_owned(), "<t>".to_owned(), "s>a".to_owned(), "c <s>".to_owned()];
            let splitter = Pretokenizer::new(pattern).expect("a known pattern");
            let mut counter = crate::train::Counter::new(splitter.clone(), &special_tokens).expect("valid");
            counter.add(&text).expect("a linear pattern");
            let (_folder, path) = write("corpus.txt", text.as_bytes());
            let options = DocumentOptions { special_tokens, ..DocumentOptions::default() };
            let mut documents = Documents::new(vec![path], splitter, options).expect("a file");
            documents.rules.block_bytes = block_bytes;
            let counts = crate::train::count_files(&mut documents, 1 + block_bytes % 2, &mut |_| Ok(())).expect("text");
            let sorted = |counts: &crate::train::WordCounts| counts.most_common(usize::MAX, crate::Interrupt::NEVER).expect("not stopped");
            prop_assert_eq!(sorted(&counts), sorted(&counter.finish()));
        }
    }

    #[test]
    fn long_documents_come_in_parts() {
        let (_folder, path) = write("corpus.txt", "some words ".repeat(10_000).as_bytes());
        assert!(read(&path, &DocumentOptions::default(), 1 << 12).expect("text").1 > 10);
    }

    #[test]
    fn a_file_that_shrinks_is_an_error() {
        for name in ["corpus.txt", "corpus.jsonl"] {
            let (_folder, path) = write(name, "{\"text\": \"a line\"}\n".repeat(100_000).as_bytes());
            let splitter = Pretokenizer::new("cl100k").expect("a known name");
            let mut documents =
                Documents::new(vec![path.clone()], splitter, DocumentOptions::default()).expect("a file");
            documents.next_chunk().expect("text");
            File::options().write(true).open(&path).and_then(|file| file.set_len(1_000_000)).expect("shorter");
            let error = loop {
                match documents.next_chunk() {
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
            assert_eq!(read(&path, &DocumentOptions::default(), 16).expect(name).0, ["one", "two"]);
        }
        for (name, bytes) in [("l.txt", &lines[..]), ("l.gz", &gzip), ("l.zst", &zstd)] {
            let (_folder, path) = write(name, bytes);
            let found: Result<Vec<_>> = FileLines::open(&path).expect(name).collect();
            assert_eq!(found.expect(name), lines.split_inclusive(|&byte| byte == b'\n').collect::<Vec<_>>());
        }
        // Several compressed streams in one file are one text.
        let (_folder, path) = write("c.txt.gz", &[&gzip[..], &gzip].concat());
        assert_eq!(read(&path, &DocumentOptions::default(), 16).expect("text").0[0].len(), 2 * lines.len());
        let (_folder, path) = write("c.txt.zst", &[&zstd[..], &zstd].concat());
        assert_eq!(read(&path, &DocumentOptions::default(), 16).expect("text").0[0].len(), 2 * lines.len());
        for (name, bytes) in [("c.gz", &gzip[..gzip.len() / 2]), ("c.zst", &zstd[..zstd.len() / 2]), ("d.gz", b"plain")]
        {
            let (_folder, path) = write(name, bytes);
            let error = read(&path, &DocumentOptions::default(), 16).expect_err("damaged");
            assert!(matches!(error, Error::Format(_)) && error.to_string().contains(name), "{error}");
            let lines: Result<Vec<_>> = FileLines::open(&path).and_then(Iterator::collect);
            assert_eq!(lines.expect_err("damaged").to_string(), error.to_string());
        }
    }

    #[test]
    fn errors_name_the_place() {
        let (_folder, path) = write("bad.txt", &[&[b'a'; 50][..], b"\xff"].concat());
        for block_bytes in [3, 1000] {
            let error = read(&path, &DocumentOptions::default(), block_bytes).expect_err("not UTF-8");
            assert!(error.to_string().ends_with("bad.txt: invalid UTF-8 at byte 50"), "{error}");
        }
        let (_folder, path) = write("cut.txt", "ab日".as_bytes().split_last().expect("bytes").1);
        let error = read(&path, &DocumentOptions::default(), 3).expect_err("a character cut in two");
        assert!(error.to_string().ends_with("cut.txt: invalid UTF-8 at byte 2"), "{error}");
        for (line, what) in
            [("{}", "no field \"text\""), ("[1]", "an object"), ("{\"text\": 1}", "integer"), ("{", "EOF")]
        {
            let (_folder, path) = write("c.jsonl", format!("{{\"text\": \"\"}}\n{line}\n").as_bytes());
            let error = read(&path, &DocumentOptions::default(), 16).expect_err("a bad line").to_string();
            assert!(error.contains("c.jsonl, line 2") && error.contains(what), "{error}");
        }
    }
}

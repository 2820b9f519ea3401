//! The corpus reader: one file after another, one chunk at a time.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::boundaries::Rules;
use super::decompress::{decompressed, extension, io_error};
use super::json_lines::JsonLines;
use super::options::{CorpusOptions, OnError};
use super::skipped::Skipped;
use super::text::TextFile;
use super::utf8_scan::Utf8Scan;
use crate::Result;
use crate::pretokenize::Pretokenizer;

/// A document or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The document's index, from 0, over all files.
    pub document: u64,
    /// The text; empty for an empty document and for a [heartbeat](Chunk::is_heartbeat).
    pub text: String,
    /// Whether the document ends with this chunk.
    pub is_last: bool,
}

impl Chunk {
    /// Returns whether the chunk is no part of a document and only returns control to the caller: a block of a file was
    /// checked or skipped.
    pub fn is_heartbeat(&self) -> bool {
        self.text.is_empty() && !self.is_last
    }
}

/// Reads documents from files in order.
///
/// ```
/// use bpe_llama::corpus::{CorpusOptions, CorpusReader};
/// use bpe_llama::pretokenize::Pretokenizer;
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("corpus.txt");
/// std::fs::write(&path, "first||second")?;
/// let options = CorpusOptions { separator: Some("||".to_owned()), ..CorpusOptions::default() };
/// let mut corpus = CorpusReader::new(vec![path], Pretokenizer::new("cl100k")?, options)?;
/// assert_eq!(corpus.next_chunk()?.map(|chunk| chunk.text), Some("first".to_owned()));
/// assert_eq!(corpus.next_chunk()?.map(|chunk| (chunk.document, chunk.is_last)), Some((1, true)));
/// assert_eq!(corpus.next_chunk()?, None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct CorpusReader {
    paths: std::vec::IntoIter<PathBuf>,
    rules: Rules,
    source: Option<Source>,
    path: PathBuf,
    files_opened: usize,
    document: u64,
    skipped: Skipped,
    total_bytes: u64,
    bytes_read: Arc<AtomicU64>,
}

/// The open file.
#[derive(Debug)]
enum Source {
    /// A text file in the first of two passes, which finds the documents to skip.
    Scan(Utf8Scan),
    Text(TextFile),
    Lines(JsonLines),
}

impl CorpusReader {
    /// Returns a reader of `paths`, in the order given. Nothing is opened yet, but every file must exist.
    ///
    /// Files ending in `.gz` or `.zst` are decompressed; `.jsonl` and `.ndjson`, compressed or not, are read as JSON
    /// Lines, all others as text. A byte-order mark at the start of a file is dropped. With [`OnError::Skip`], text
    /// files are read twice.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if a file does not exist; [`crate::Error::InvalidArgument`] if the separator is empty, or a
    /// special token is empty or given twice.
    pub fn new(paths: Vec<PathBuf>, splitter: Pretokenizer, options: CorpusOptions) -> Result<Self> {
        let rules = Rules::new(options, splitter)?;
        let mut total_bytes = 0;
        for path in &paths {
            total_bytes += std::fs::metadata(path).map_err(|source| io_error(path, source))?.len();
        }
        Ok(Self {
            paths: paths.into_iter(),
            rules,
            source: None,
            path: PathBuf::new(),
            files_opened: 0,
            document: 0,
            skipped: Skipped::default(),
            total_bytes,
            bytes_read: Arc::new(AtomicU64::new(0)),
        })
    }

    /// Returns the reader with another block size than 256 KiB, so that tests divide short documents.
    #[cfg(test)]
    pub(crate) fn with_block_bytes(mut self, block_bytes: usize) -> Self {
        self.rules.block_bytes = block_bytes;
        self
    }

    /// Returns the reader with another limit on the bytes of a part than 16 or 256 MiB.
    #[cfg(test)]
    pub(crate) fn with_max_part(mut self, max_part: usize) -> Self {
        self.rules.max_part = max_part;
        self
    }

    /// Returns the next document or part of one, or `None` at the end of the last file.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if a file cannot be read, or shrinks while it is read; [`crate::Error::Format`], naming the
    /// file and the byte or line, if it is not UTF-8, not the JSON expected, or damaged compressed data.
    /// [`OnError::Skip`] skips the first two, not damaged compressed data.
    pub fn next_chunk(&mut self) -> Result<Option<Chunk>> {
        loop {
            let part = match &mut self.source {
                Some(Source::Scan(scan)) => {
                    if let Some(invalid) = scan.step()? {
                        let path = scan.path().to_owned();
                        self.skipped.add(&path, &invalid);
                        let reader = decompressed(&path, &self.bytes_read)?.0;
                        self.source = Some(Source::Text(TextFile::new(&path, reader, invalid.ranges)));
                    }
                    Some((String::new(), false))
                }
                Some(Source::Text(text)) => text.next_part(&self.rules)?,
                Some(Source::Lines(lines)) => lines.next_part(&self.rules, &mut self.skipped)?,
                None => None,
            };
            if let Some((text, is_last)) = part {
                let document = self.document;
                self.document += u64::from(is_last);
                return Ok(Some(Chunk { document, text, is_last }));
            }
            let Some(path) = self.paths.next() else { return Ok(None) };
            self.files_opened += 1;
            self.source = Some(open(&path, &self.rules, &self.bytes_read)?);
            self.path = path;
        }
    }

    /// Returns the number of files opened so far: the last chunk is of the last of them.
    pub fn files_opened(&self) -> usize {
        self.files_opened
    }

    /// Returns the path of the file that the last chunk is of; empty before the first.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the rows and documents skipped so far.
    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// Returns the total size of all files in bytes, before decompression.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Returns the bytes read so far, before decompression.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// Returns the pre-tokenizer, which decides where a document can be divided.
    pub fn splitter(&self) -> &Pretokenizer {
        &self.rules.splitter
    }

    /// Returns the special tokens, inside which no chunk ends.
    pub fn special_tokens(&self) -> &[String] {
        &self.rules.options.special_tokens
    }
}

fn open(path: &Path, rules: &Rules, bytes_read: &Arc<AtomicU64>) -> Result<Source> {
    let (reader, name) = decompressed(path, bytes_read)?;
    if matches!(extension(&name).as_deref(), Some("jsonl" | "ndjson")) {
        return Ok(Source::Lines(JsonLines::new(path, reader)));
    }
    if rules.options.on_error == OnError::Raise {
        return Ok(Source::Text(TextFile::new(path, reader, VecDeque::new())));
    }
    // Only the second pass counts as progress.
    let (reader, _) = decompressed(path, &Arc::default())?;
    Ok(Source::Scan(Utf8Scan::new(path, reader, rules.options.separator.as_deref(), rules.block_bytes)))
}

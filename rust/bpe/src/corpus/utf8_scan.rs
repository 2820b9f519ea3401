//! The first pass over a text file: which documents are not UTF-8.
//!
//! Parts of a long document are returned before its end is read, so a document to skip must be known beforehand.

use std::collections::VecDeque;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memchr::memmem;

use super::decompress::{Reader, io_error};
use crate::Result;

/// The most ranges of documents to skip, which are in memory: 64 MiB.
const MAX_RANGES: usize = 1 << 22;

/// Finds the documents of a file that are not UTF-8, one block at a time, in bounded memory.
#[derive(Debug)]
pub(super) struct Utf8Scan {
    path: PathBuf,
    reader: Reader,
    separator: Option<Vec<u8>>,
    block_bytes: usize,
    /// Bytes not yet checked, or in which a separator may begin.
    buffer: Vec<u8>,
    /// The offset of `buffer` in the file.
    offset: u64,
    /// The offset of the current document in the file.
    start: u64,
    /// The offset of the first byte of the current document that is not UTF-8.
    invalid: Option<u64>,
    found: InvalidDocuments,
}

/// The documents of a file that are not UTF-8.
#[derive(Debug, Default)]
pub(super) struct InvalidDocuments {
    /// Their byte ranges in the file, separators included; adjacent documents share a range.
    pub(super) ranges: VecDeque<Range<u64>>,
    /// The number of documents.
    pub(super) count: u64,
    /// The offset of the first invalid byte of the first of them.
    pub(super) first: Option<u64>,
}

impl Utf8Scan {
    pub(super) fn new(path: &Path, reader: Reader, separator: Option<&str>, block_bytes: usize) -> Self {
        Self {
            path: path.to_owned(),
            reader,
            separator: separator.map(|separator| separator.as_bytes().to_vec()),
            block_bytes,
            buffer: Vec::new(),
            offset: 0,
            start: 0,
            invalid: None,
            found: InvalidDocuments::default(),
        }
    }

    /// Returns the path of the file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Checks one block; at the end of the file, returns the documents found.
    pub(super) fn step(&mut self) -> Result<Option<InvalidDocuments>> {
        let kept = self.buffer.len();
        self.buffer.resize(kept + self.block_bytes, 0);
        let read = self.reader.read(&mut self.buffer[kept..]).map_err(|error| io_error(&self.path, error))?;
        self.buffer.truncate(kept + read);
        let mut from = 0;
        while let Some(separator) = &self.separator
            && let Some(at) = memmem::find(&self.buffer[from..], separator)
        {
            let (end, next) = (from + at, from + at + separator.len());
            self.check(from, end, true);
            self.end_document(next);
            from = next;
        }
        if read == 0 {
            self.check(from, self.buffer.len(), true);
            self.end_document(self.buffer.len());
            return Ok(Some(std::mem::take(&mut self.found)));
        }
        if self.found.ranges.len() > MAX_RANGES {
            let path = self.path.display();
            return Err(malformed!("{path}: more than {MAX_RANGES} separate documents are not UTF-8; expected fewer"));
        }
        // A separator may begin in the last bytes: the next block decides.
        let margin = self.separator.as_ref().map_or(0, |separator| separator.len() - 1);
        let checked = self.check(from, from.max(self.buffer.len().saturating_sub(margin)), false);
        self.buffer.drain(..checked);
        self.offset += checked as u64;
        Ok(None)
    }

    /// Checks a range of the buffer and returns the end of what is decided: before an incomplete character, unless it
    /// `is_last`.
    fn check(&mut self, from: usize, end: usize, is_last: bool) -> usize {
        let Err(error) = std::str::from_utf8(&self.buffer[from..end]) else { return end };
        let valid = from + error.valid_up_to();
        if error.error_len().is_some() || is_last {
            self.invalid.get_or_insert(self.offset + valid as u64);
            return end;
        }
        valid
    }

    /// Ends the current document at offset `next` of the buffer and records it if it is invalid.
    fn end_document(&mut self, next: usize) {
        let next = self.offset + next as u64;
        if let Some(at) = self.invalid.take() {
            self.found.first.get_or_insert(at);
            self.found.count += 1;
            match self.found.ranges.back_mut() {
                Some(last) if last.end == self.start => last.end = next,
                _ => self.found.ranges.push_back(self.start..next),
            }
        }
        self.start = next;
    }
}

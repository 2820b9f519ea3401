//! Which documents of a file are not UTF-8, found before any of them is given out.
//!
//! A long document is given out in parts before its end is known, so a file that may hold bad documents is read twice.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use memchr::memmem;

use super::io_error;
use crate::Result;

/// Finds the documents of a file that are not UTF-8, in bounded memory, a block at a time.
pub(super) struct Utf8Scan {
    path: PathBuf,
    reader: Box<dyn Read + Send + Sync>,
    separator: Option<Vec<u8>>,
    block_bytes: usize,
    /// Bytes read and not yet checked, or among which a separator may begin.
    buffer: Vec<u8>,
    /// Where in the file `buffer` begins.
    offset: u64,
    /// Where in the file this document begins.
    start: u64,
    /// Where in the file this document stops being UTF-8.
    invalid: Option<u64>,
    found: BadDocuments,
}

/// The documents of a file that are not UTF-8.
#[derive(Debug, Default)]
pub(super) struct BadDocuments {
    /// Where in the file they stand, each with the separator that ends it; neighbours are one range.
    pub(super) ranges: VecDeque<Range<u64>>,
    /// How many they are.
    pub(super) count: u64,
    /// Where in the file the first stops being UTF-8.
    pub(super) first: Option<u64>,
}

impl std::fmt::Debug for Utf8Scan {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Utf8Scan").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Utf8Scan {
    pub(super) fn new(
        path: &Path,
        reader: Box<dyn Read + Send + Sync>,
        separator: Option<&str>,
        block_bytes: usize,
    ) -> Self {
        Self {
            path: path.to_owned(),
            reader,
            separator: separator.map(|separator| separator.as_bytes().to_vec()),
            block_bytes,
            buffer: Vec::new(),
            offset: 0,
            start: 0,
            invalid: None,
            found: BadDocuments::default(),
        }
    }

    /// The file scanned.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Checks one block; returns what was found once the file is at its end.
    pub(super) fn step(&mut self) -> Result<Option<BadDocuments>> {
        let kept = self.buffer.len();
        self.buffer.resize(kept + self.block_bytes, 0);
        let read =
            read_some(&mut self.reader, &mut self.buffer[kept..]).map_err(|error| io_error(&self.path, error))?;
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
        // A separator may begin in the last bytes, so they wait for more.
        let margin = self.separator.as_ref().map_or(0, |separator| separator.len() - 1);
        let checked = self.check(from, from.max(self.buffer.len().saturating_sub(margin)), false);
        self.buffer.drain(..checked);
        self.offset += checked as u64;
        Ok(None)
    }

    /// Checks this part of the buffer, and returns up to where: a character may be cut there, unless the document ends.
    fn check(&mut self, from: usize, end: usize, is_last: bool) -> usize {
        let Err(error) = std::str::from_utf8(&self.buffer[from..end]) else { return end };
        let valid = from + error.valid_up_to();
        if error.error_len().is_some() || is_last {
            self.invalid.get_or_insert(self.offset + valid as u64);
            return end;
        }
        valid
    }

    /// Begins a document at `next` of the buffer, and keeps the last one's place if it was bad.
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

/// Reads what one call gives, however often a signal interrupts it.
pub(super) fn read_some(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

//! The lines of a file, read in blocks so that no line takes more memory than [`MAX_WHOLE`].

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::boundaries::{BLOCK_BYTES, MAX_WHOLE};
use super::decompress::{Reader, decompressed, io_error};
use crate::interrupt::Interrupt;
use crate::memory::reserve;
use crate::{Error, Result};

/// What [`LineReader::read_on`] has read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    /// The line is complete, its line end included.
    Line,
    /// The line goes on: the caller can check for an interrupt.
    Part,
    /// The file has ended before this line.
    End,
}

/// Reads lines one after another, with their line ends.
#[derive(Debug)]
pub(super) struct LineReader {
    path: PathBuf,
    reader: BufReader<Reader>,
    /// The line, or its part read so far.
    pub(super) line: Vec<u8>,
    /// The number of the line, from 1.
    pub(super) number: u64,
    /// The most bytes of a line.
    max_line: usize,
    is_complete: bool,
}

impl LineReader {
    pub(super) fn new(path: &Path, reader: Reader) -> Self {
        let reader = BufReader::with_capacity(BLOCK_BYTES, reader);
        Self { path: path.to_owned(), reader, line: Vec::new(), number: 0, max_line: MAX_WHOLE, is_complete: true }
    }

    /// Returns the path of the file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads a block of the line at most; begins the next line if this one is complete.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read; [`Error::Format`] if compressed data is damaged, or the line too long.
    pub(super) fn read_on(&mut self) -> Result<Read> {
        if self.is_complete {
            self.line.clear();
            self.number += 1;
            self.is_complete = false;
        }
        let buffer = self.reader.fill_buf().map_err(|error| io_error(&self.path, error))?;
        let newline = memchr::memchr(b'\n', buffer);
        let part = newline.map_or(buffer, |at| &buffer[..=at]);
        let read = part.len();
        if self.line.len() + read > self.max_line {
            return Err(self.too_long());
        }
        reserve(&mut self.line, read);
        self.line.extend_from_slice(part);
        self.reader.consume(read);
        self.is_complete = newline.is_some() || read == 0;
        Ok(match (self.is_complete, self.line.is_empty()) {
            (true, false) => Read::Line,
            (true, true) => Read::End,
            (false, _) => Read::Part,
        })
    }

    #[cold]
    fn too_long(&self) -> Error {
        let (path, number, max) = (self.path.display(), self.number, self.max_line);
        malformed!("{path}, line {number}: a line of more than {max} bytes; expected a shorter one")
    }
}

/// Iterates over the lines of a file as bytes, with their line ends. Memory is bounded by the longest line, which has at
/// most 256 MiB.
///
/// A file whose name ends in `.gz` or `.zst` is decompressed.
///
/// ```
/// let path = std::env::temp_dir().join(format!("bpe_llama-{}.txt", std::process::id()));
/// std::fs::write(&path, "one\ntwo")?;
/// let lines: bpe_llama::Result<Vec<_>> = bpe_llama::corpus::FileLines::open(&path)?.collect();
/// assert_eq!(lines?, [b"one\n".to_vec(), b"two".to_vec()]);
/// # std::fs::remove_file(&path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct FileLines {
    lines: LineReader,
    /// After an error or the last line.
    is_done: bool,
}

impl FileLines {
    /// Returns an iterator over the lines of this file.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if it cannot be opened. An item is the same error if the file cannot be read, or
    /// [`Error::Format`](crate::Error::Format) if compressed data is damaged or a line is too long; it is the last item.
    pub fn open(path: &Path) -> Result<Self> {
        let (reader, _) = decompressed(path, &Arc::default())?;
        Ok(Self { lines: LineReader::new(path, reader), is_done: false })
    }

    /// Returns the next line, as the iterator does, with interrupt checks within a long line.
    ///
    /// # Errors
    /// As the items; the error of the interrupt check.
    pub fn next_line(&mut self, interrupt: Interrupt<'_>) -> Result<Option<Vec<u8>>> {
        if self.is_done {
            return Ok(None);
        }
        loop {
            match self.lines.read_on() {
                Ok(Read::Line) => return Ok(Some(std::mem::take(&mut self.lines.line))),
                Ok(Read::Part) => interrupt.check()?,
                ended => {
                    self.is_done = true;
                    return ended.map(|_| None);
                }
            }
        }
    }
}

impl Iterator for FileLines {
    type Item = Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_line(Interrupt::NEVER).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::tests::write;

    #[test]
    fn a_line_longer_than_the_limit_is_an_error() {
        let (_folder, path) = write("long.txt", &[&b"short\n"[..], &vec![b'a'; 3 * BLOCK_BYTES]].concat());
        let read = |max_line| {
            let mut lines = LineReader::new(&path, decompressed(&path, &Arc::default())?.0);
            lines.max_line = max_line;
            assert_eq!((lines.read_on()?, &lines.line[..]), (Read::Line, &b"short\n"[..]));
            while lines.read_on()? == Read::Part {}
            assert_eq!((lines.line.len(), lines.read_on()?), (3 * BLOCK_BYTES, Read::End));
            Ok::<_, Error>(())
        };
        read(3 * BLOCK_BYTES).expect("just short enough");
        let error = read(3 * BLOCK_BYTES - 1).expect_err("too long").to_string();
        assert!(error.contains("long.txt, line 2: a line of more than 786431 bytes"), "{error}");
    }
}

//! The lines of a file, read in blocks so that no line takes more memory than [`MAX_WHOLE`].

use std::io::{BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};

use super::boundaries::{BLOCK_BYTES, MAX_WHOLE};
use super::decompress::{Reader, io_error};
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
        let buffer = loop {
            match self.reader.fill_buf() {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(buffer) => break buffer,
                Err(error) => return Err(io_error(&self.path, error)),
            }
        };
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::corpus::decompress::decompressed;
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

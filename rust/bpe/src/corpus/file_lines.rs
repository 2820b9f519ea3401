//! The lines of a file, unchanged.

use std::path::Path;
use std::sync::Arc;

use super::decompress::decompressed;
use super::lines::{LineReader, Read};
use crate::Result;
use crate::interrupt::Interrupt;

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

//! The lines of a file, unchanged.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::decompress::{Reader, decompressed, io_error};
use crate::Result;

/// Iterates over the lines of a file as bytes, with their line ends. Memory is bounded by the longest line.
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
    path: PathBuf,
    reader: BufReader<Reader>,
}

impl FileLines {
    /// Returns an iterator over the lines of this file.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if it cannot be opened. An item is the same error if the file cannot be read, or
    /// [`Error::Format`](crate::Error::Format) if compressed data is damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let (reader, _) = decompressed(path, &Arc::default())?;
        Ok(Self { path: path.to_owned(), reader: BufReader::new(reader) })
    }
}

impl Iterator for FileLines {
    type Item = Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut line = Vec::new();
        match self.reader.read_until(b'\n', &mut line) {
            Ok(0) => None,
            Ok(_) => Some(Ok(line)),
            Err(source) => Some(Err(io_error(&self.path, source))),
        }
    }
}

//! A file's bytes, decompressed and counted.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// Returns what reads a file, decompressing it if its name says so, and the name without that ending.
pub(super) fn decompressed(path: &Path, bytes_read: &Arc<AtomicU64>) -> Result<(Box<dyn Read + Send + Sync>, PathBuf)> {
    let file = File::open(path).map_err(|source| io_error(path, source))?;
    let size = file.metadata().map_err(|source| io_error(path, source))?.len();
    let file = CountingReader { file, size, read: 0, bytes_read: Arc::clone(bytes_read) };
    Ok(match extension(path).as_deref() {
        Some("gz") => (Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::new(file))), path.with_extension("")),
        Some("zst") => {
            let decoder = zstd::Decoder::new(file).map_err(|source| io_error(path, source))?;
            (Box::new(decoder), path.with_extension(""))
        }
        _ => (Box::new(file), path.to_owned()),
    })
}

pub(super) fn extension(path: &Path) -> Option<String> {
    Some(path.extension()?.to_str()?.to_ascii_lowercase())
}

/// An error of reading `path`: the system's own, or the decompressor's that the data is damaged.
pub(super) fn io_error(path: &Path, source: io::Error) -> Error {
    if source.raw_os_error().is_none()
        && extension(path).is_some_and(|extension| extension == "gz" || extension == "zst")
    {
        return Error::Format(format!("{}: damaged compressed data: {source}", path.display()));
    }
    Error::Io { path: path.to_owned(), source }
}

/// A file that adds to a shared count what is read from it, and refuses to end before the size that it had when it was opened.
#[derive(Debug)]
struct CountingReader {
    file: File,
    size: u64,
    read: u64,
    bytes_read: Arc<AtomicU64>,
}

impl Read for CountingReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.read += read as u64;
        self.bytes_read.fetch_add(read as u64, Ordering::Relaxed);
        // Text that somebody cut off while it was read would be missed in silence.
        if read == 0 && !buffer.is_empty() && self.read < self.size {
            let (read, size) = (self.read, self.size);
            return Err(io::Error::other(format!(
                "the file shrank while it was read: {read} of {size} bytes were there"
            )));
        }
        Ok(read)
    }
}

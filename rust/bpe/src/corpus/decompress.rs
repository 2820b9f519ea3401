//! The bytes of a file, decompressed and counted.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::files::open_regular;
use crate::{Error, Result};

type Decompressed = Box<dyn Read + Send + Sync>;

/// The most bytes of a `.gz` file in a row without text; 13,000 empty members. A read of more could not be interrupted.
#[cfg(feature = "gzip")]
const MOST_WITHOUT_TEXT: u64 = 1 << 18;

/// Any reader, decompressing or not, that reads again if a signal interrupts it.
pub(super) struct Reader(Decompressed);

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                outcome => return outcome,
            }
        }
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Reader")
    }
}

/// Returns a reader of the file, decompressing if its name ends in `.gz` or `.zst`, and its name without that ending.
///
/// Bytes read, before decompression, are added to `bytes_read`.
pub(super) fn decompressed(path: &Path, bytes_read: &Arc<AtomicU64>) -> Result<(Reader, PathBuf)> {
    let file = open_regular(path)?;
    let size = file.metadata().map_err(|source| io_error(path, source))?.len();
    let file = CountingReader { file, size, read: 0, limit: u64::MAX, bytes_read: Arc::clone(bytes_read) };
    let reader = match extension(path).as_deref() {
        Some("gz") => gzip(path, file)?,
        Some("zst") => zstd(path, file)?,
        _ => return Ok((Reader(Box::new(file)), path.to_owned())),
    };
    Ok((Reader(reader), path.with_extension("")))
}

#[cfg(feature = "gzip")]
#[expect(clippy::unnecessary_wraps, reason = "its twin without the feature fails")]
fn gzip(_: &Path, file: CountingReader) -> Result<Decompressed> {
    Ok(Box::new(Gzip(flate2::bufread::MultiGzDecoder::new(io::BufReader::new(file)))))
}

/// A decoder of gzip members, of which many may be empty.
#[cfg(feature = "gzip")]
struct Gzip(flate2::bufread::MultiGzDecoder<io::BufReader<CountingReader>>);

#[cfg(feature = "gzip")]
impl Read for Gzip {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let file = self.0.get_mut().get_mut();
        file.limit = file.read + MOST_WITHOUT_TEXT;
        self.0.read(buffer)
    }
}

#[cfg(feature = "zstd")]
fn zstd(path: &Path, file: CountingReader) -> Result<Decompressed> {
    Ok(Box::new(zstd::Decoder::new(file).map_err(|source| io_error(path, source))?))
}

#[cfg(not(feature = "gzip"))]
fn gzip(path: &Path, _: CountingReader) -> Result<Decompressed> {
    Err(invalid!("{}: reading it needs the feature `gzip` of the crate bpe-llama", path.display()))
}

#[cfg(not(feature = "zstd"))]
fn zstd(path: &Path, _: CountingReader) -> Result<Decompressed> {
    Err(invalid!("{}: reading it needs the feature `zstd` of the crate bpe-llama", path.display()))
}

/// Returns the extension in lower case.
pub(super) fn extension(path: &Path) -> Option<String> {
    Some(path.extension()?.to_str()?.to_ascii_lowercase())
}

/// Returns the error of reading `path`: an error of the system, or of the decompressor about damaged data.
pub(super) fn io_error(path: &Path, source: io::Error) -> Error {
    if source.raw_os_error().is_none()
        && extension(path).is_some_and(|extension| extension == "gz" || extension == "zst")
    {
        return malformed!("{}: damaged compressed data: {source}", path.display());
    }
    Error::Io { path: path.to_owned(), source }
}

/// A file that adds the bytes read to a shared counter and fails if it ends before the size that it had when opened.
#[derive(Debug)]
struct CountingReader {
    file: File,
    size: u64,
    read: u64,
    /// The most bytes to read.
    limit: u64,
    bytes_read: Arc<AtomicU64>,
}

impl Read for CountingReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.read += read as u64;
        self.bytes_read.fetch_add(read as u64, Ordering::Relaxed);
        // A file truncated while it is read would lose text silently.
        if read == 0 && !buffer.is_empty() && self.read < self.size {
            let (read, size) = (self.read, self.size);
            return Err(io::Error::other(format!(
                "the file shrank while it was read: {read} of {size} bytes were there"
            )));
        }
        if self.read > self.limit {
            let at = self.read;
            return Err(io::Error::other(format!("too many empty members in a row, before byte {at}")));
        }
        Ok(read)
    }
}

//! Vocabularies in files: reading and writing other people's formats.

mod gguf;
mod huggingface;
mod protobuf;
mod sentencepiece;
mod tiktoken;

pub(crate) use self::huggingface::pipeline_of;
pub(crate) use self::sentencepiece::byte_of;
pub use self::sentencepiece::{Piece, PieceKind};

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{Error, Result};

/// Reads a whole file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })
}

/// Writes a file under a temporary name beside `path` and renames it, so that nobody ever sees half of it.
///
/// # Errors
/// [`Error::Io`], with nothing left behind.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = temporary_beside(path);
    let written = File::create(&temporary)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|source| {
        let _ = std::fs::remove_file(&temporary);
        Error::Io { path: path.to_owned(), source }
    })
}

/// A name beside `path` that no other writer uses, in this process or another.
pub(crate) fn temporary_beside(path: &Path) -> PathBuf {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.{unique}.tmp", std::process::id()));
    path.with_file_name(name)
}

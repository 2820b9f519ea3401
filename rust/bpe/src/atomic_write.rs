//! Files that appear complete or not at all: written under a temporary name, flushed, then renamed.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{Error, Result};

/// Writes `bytes` to a temporary file beside `path`, flushes it and renames it to `path`.
///
/// # Errors
/// [`Error::Io`]; the temporary file is removed.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = temporary_path(path);
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

/// Returns a path in the folder of `path` that no other writer uses, in this process or another.
pub(crate) fn temporary_path(path: &Path) -> PathBuf {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.{unique}.tmp", std::process::id()));
    path.with_file_name(name)
}

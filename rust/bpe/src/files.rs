//! Files: only regular ones are read, and a written one appears complete or not at all.

use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Characters of the file's name in that of its temporary file: a file system allows 255 bytes.
const LONGEST: usize = 40;

/// Opens a file for reading.
///
/// # Errors
/// [`Error::Io`] if it cannot be opened; [`Error::Format`] for a named pipe or a device, which may never end.
pub(crate) fn open_regular(path: &Path) -> Result<File> {
    let io_error = |source| Error::Io { path: path.to_owned(), source };
    let kind = std::fs::metadata(path).map_err(io_error)?.file_type();
    if !kind.is_file() && !kind.is_dir() {
        return Err(malformed!("{}: a named pipe or a device; expected a regular file", path.display()));
    }
    File::open(path).map_err(io_error)
}

/// Returns the bytes of a file.
///
/// # Errors
/// As [`open_regular`]; [`Error::Io`] if it cannot be read.
pub(crate) fn read_regular(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = open_regular(path)?.read_to_end(&mut bytes);
    read.map_err(|source| Error::Io { path: path.to_owned(), source })?;
    Ok(bytes)
}

/// Returns the bytes of a file; only the first ones if they are not `magic`.
///
/// # Errors
/// As [`read_regular`].
pub(crate) fn read_with_magic(path: &Path, magic: &[u8]) -> Result<Vec<u8>> {
    let mut file = open_regular(path)?;
    let mut bytes = Vec::new();
    let first = Read::by_ref(&mut file).take(magic.len() as u64).read_to_end(&mut bytes);
    let read = first.and_then(|_| if bytes == magic { file.read_to_end(&mut bytes) } else { Ok(0) });
    read.map_err(|source| Error::Io { path: path.to_owned(), source })?;
    Ok(bytes)
}

/// Writes `bytes` to a temporary file beside `path`, flushes it and renames it to `path`.
///
/// # Errors
/// [`Error::Io`]; the temporary file is removed.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let written = TemporaryFile::create(path).and_then(|mut temporary| {
        temporary.file.write_all(bytes)?;
        temporary.finish(path)
    });
    written.map_err(|source| Error::Io { path: path.to_owned(), source })
}

/// A file beside the one that it becomes. Dropping it unfinished deletes it.
///
/// It is locked, so that the next writer in its folder can tell the temporary file of a killed process.
#[derive(Debug)]
pub(crate) struct TemporaryFile {
    pub(crate) file: File,
    path: PathBuf,
}

impl TemporaryFile {
    /// Creates the temporary file of `path`, and deletes those that killed processes left.
    ///
    /// # Errors
    /// Those of the operating system; a named pipe or a device, which the rename would replace by a file.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        if let Ok(kind) = std::fs::metadata(path).map(|metadata| metadata.file_type())
            && !kind.is_file()
            && !kind.is_dir()
        {
            return Err(io::Error::new(ErrorKind::InvalidInput, "a named pipe or a device; expected a regular file"));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let short: String = name.chars().take(LONGEST).collect();
        remove_abandoned(path);
        loop {
            let unique = RandomState::new().build_hasher().finish();
            let temporary = path.with_file_name(format!(".{short}.{unique:016x}.tmp"));
            let file = match File::create_new(&temporary) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                created => created?,
            };
            // Before the lock, another writer may take the file for an abandoned one: it locks and deletes it.
            let is_taken = matches!(file.try_lock(), Err(TryLockError::WouldBlock)); // other errors: no locks here
            if !is_taken && temporary.exists() {
                return Ok(Self { file, path: temporary });
            }
        }
    }

    /// Flushes the file and renames it to `path`.
    ///
    /// # Errors
    /// Those of the operating system; the temporary file is deleted.
    pub(crate) fn finish(self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.path, path)
    }
}

impl Write for TemporaryFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        // Fails after `finish`, which has renamed it.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn remove_abandoned(path: &Path) {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        // Python's temporary folders have such names, too.
        if is_temporary(&entry.file_name()) && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            let Ok(file) = File::options().write(true).open(entry.path()) else { continue };
            if file.try_lock().is_ok() {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// Returns whether a name is that of a temporary file: hidden, and 16 hexadecimal digits before `.tmp`.
fn is_temporary(name: &OsStr) -> bool {
    let stem = name.to_str().filter(|name| name.starts_with('.')).and_then(|name| name.strip_suffix(".tmp"));
    let digits = stem.and_then(|stem| stem.rsplit_once('.')).map_or("", |(_, digits)| digits);
    digits.len() == 16 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_abandoned_temporary_file_is_removed_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ids.npy");
        let abandoned = folder.path().join(".ids.npy.0123456789abcdef.tmp");
        let other = folder.path().join(".ids.npy.tmp");
        std::fs::write(&abandoned, "part").expect("a file");
        std::fs::write(&other, "mine").expect("a file");
        let live = TemporaryFile::create(&path).expect("a file");
        assert!(!abandoned.exists() && other.exists());
        write_atomically(&path, b"whole").expect("a file");
        assert!(live.path.exists(), "its lock is held");
        live.finish(&path).expect("renamed");
        assert_eq!(std::fs::read(&path).expect("a file"), b"");
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 2);
    }

    #[test]
    fn a_long_name_can_be_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ü".repeat(127));
        write_atomically(&path, b"x").expect("a file");
        assert_eq!(read_regular(&path).expect("a file"), b"x");
    }

    #[cfg(unix)]
    #[test]
    fn a_device_is_refused() {
        let error = open_regular(Path::new("/dev/zero")).expect_err("a device");
        assert!(error.to_string().contains("/dev/zero: a named pipe or a device"), "{error}");
    }
}

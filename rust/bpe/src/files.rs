//! Files: only regular ones are read.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::{Error, Result};

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

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_refused() {
        let error = open_regular(Path::new("/dev/zero")).expect_err("a device");
        assert!(error.to_string().contains("/dev/zero: a named pipe or a device"), "{error}");
    }
}

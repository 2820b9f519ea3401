//! The files that a path, a folder or a glob pattern names.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::decompress::io_error;
use crate::{Error, Result};

/// Returns the files that `path` names, sorted: the file itself, all files below a folder, or the matches of a glob
/// pattern.
///
/// Hidden files and folders below a folder are omitted. In a pattern, `**` matches any number of folders. A name that is
/// not UTF-8 matches no pattern; it is found by itself or below its folder.
///
/// # Errors
/// [`Error::Io`] of kind `NotFound`, naming the pattern, if there is no such file; [`Error::InvalidArgument`] for a bad
/// pattern.
pub fn expand_paths(path: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    // A file whose name contains `*` takes precedence over the pattern.
    if Path::new(path).exists() {
        collect(Path::new(path), &mut files)?;
    } else {
        let found = glob::glob(path).map_err(|error| invalid!("pattern {path:?}: {error}"))?;
        for entry in found {
            let entry = entry.map_err(|error| Error::Io { path: error.path().into(), source: error.into() })?;
            if entry.is_file() {
                files.push(entry);
            }
        }
    }
    if files.is_empty() {
        // 2 is ENOENT on Unix and ERROR_FILE_NOT_FOUND on Windows: the message is the system's.
        return Err(Error::Io { path: path.into(), source: io::Error::from_raw_os_error(2) });
    }
    files.sort();
    Ok(files)
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path).map_err(|error| io_error(path, error))? {
        let entry = entry.map_err(|error| io_error(path, error))?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            collect(&entry.path(), files)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_folders_and_patterns() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        fs::create_dir_all(root.join("sub/.hidden")).expect("folders");
        for name in ["b.txt", "a.txt", "sub/c.txt", "sub/d.md", "sub/.hidden/e.txt"] {
            fs::write(root.join(name), name).expect("a file");
        }
        let names = |path: &str| -> Vec<String> {
            let files = expand_paths(&root.join(path).to_string_lossy()).expect("files");
            files
                .iter()
                .map(|file| file.strip_prefix(root).expect("below").to_string_lossy().replace('\\', "/"))
                .collect()
        };
        assert_eq!(names("."), ["./a.txt", "./b.txt", "./sub/c.txt", "./sub/d.md"].map(|name| name.replace("./", "")));
        assert_eq!(names("a.txt"), ["a.txt"]);
        assert_eq!(names("*.txt"), ["a.txt", "b.txt"]);
        assert_eq!(names("**/c.*"), ["sub/c.txt"]);
        let error = expand_paths(&root.join("*.none").to_string_lossy()).expect_err("nothing matches");
        assert!(matches!(&error, Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound), "{error}");
        assert!(error.to_string().contains("*.none"));
    }
}

//! Rows without text, and documents that are not UTF-8.

use std::path::Path;

use super::options::OnError;
use super::utf8_scan::InvalidDocuments;
use crate::{Error, Result};

/// The rows and documents skipped so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Skipped {
    /// Their number.
    pub rows: u64,
    /// The error message of the first one, which names its file and line or byte.
    pub first: Option<String>,
}

impl Skipped {
    /// Counts a row with the error `message`, or returns the error, as `on_error` says.
    pub(super) fn skip_or_raise(&mut self, on_error: OnError, message: String) -> Result<()> {
        match on_error {
            OnError::Raise => Err(Error::Format(message)),
            OnError::Skip => {
                self.rows += 1;
                self.first.get_or_insert(message);
                Ok(())
            }
        }
    }

    /// Counts the invalid documents of one file.
    pub(super) fn add(&mut self, path: &Path, invalid: &InvalidDocuments) {
        self.rows += invalid.count;
        if let Some(at) = invalid.first {
            self.first.get_or_insert_with(|| invalid_utf8(path, at));
        }
    }
}

/// Returns the error message for a text file that is not UTF-8 at byte `at`.
pub(super) fn invalid_utf8(path: &Path, at: u64) -> String {
    format!("{}: invalid UTF-8 at byte {at}", path.display())
}

//! How files are read as documents, and what was left out.

use bpe_llama::documents::{DocumentOptions, OnError};
use pyo3::prelude::*;

/// How many rows were left out, and what is wrong with the first.
pub(crate) type SkippedRows = (u64, Option<String>);

/// How files are read, as the Python side passes it.
#[derive(FromPyObject)]
pub(crate) struct Reading {
    #[pyo3(item)]
    separator: Option<String>,
    #[pyo3(item)]
    field: String,
    #[pyo3(item)]
    skips_bad_rows: bool,
}

impl Reading {
    pub(crate) fn into_core(self, special_tokens: Vec<String>) -> DocumentOptions {
        let on_error = if self.skips_bad_rows { OnError::Skip } else { OnError::Raise };
        DocumentOptions { separator: self.separator, field: self.field, special_tokens, on_error }
    }
}

//! Pre-tokenization: text to pieces.

use bpe_llama::pretokenize::{Pretokenizer, SUPERWORD_PATTERN, UNICODE_VERSION};
use pyo3::prelude::*;
use pyo3::types::PyModule;

use crate::error::{detached, to_py};
use crate::named;

/// Return the pieces of `text` under a pattern's name or a regex; together they are `text`.
///
/// Example:
///     >>> from bpe_llama._core import split_pieces
///     >>> split_pieces("llama3", "low lower")
///     ['low', ' lower']
#[pyfunction]
fn split_pieces<'text>(
    py: Python<'_>,
    #[pyo3(from_py_with = named::pattern)] pattern: &str,
    #[pyo3(from_py_with = named::text)] text: &'text str,
) -> PyResult<Vec<&'text str>> {
    detached(py, || Pretokenizer::new(pattern)?.split(text))?.map_err(to_py)
}

/// Return the regex of a pattern's name, spelled as Python's `regex` and Oniguruma read it alike.
#[pyfunction]
fn pattern_regex(#[pyo3(from_py_with = named::pattern)] pattern: &str) -> PyResult<String> {
    Ok(Pretokenizer::new(pattern).map_err(to_py)?.pattern().to_owned())
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("UNICODE_VERSION", UNICODE_VERSION)?;
    module.add("SUPERWORD_PATTERN", SUPERWORD_PATTERN)?;
    module.add_function(wrap_pyfunction!(split_pieces, module)?)?;
    module.add_function(wrap_pyfunction!(pattern_regex, module)?)
}

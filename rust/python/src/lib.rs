//! `bpe_llama._core`: the bindings. They convert, release the GIL and map errors; they hold no logic.
#![allow(missing_docs, reason = "documented in python/bpe_llama/_core.pyi, where Python users look")]

use pyo3::prelude::*;

mod error;
mod pretokenize;
mod train;

#[pymodule(gil_used = false)]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    pretokenize::register(module)?;
    train::register(module)?;
    Ok(())
}

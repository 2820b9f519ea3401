//! `bpe_llama._core`: the bindings. They convert, release the GIL and map errors; they hold no logic.
//!
//! The doc comments of classes, methods and functions are their docstrings in Python. `make stubs` copies them to
//! `python/bpe_llama/_core.pyi`.
#![allow(
    clippy::doc_markdown,
    clippy::doc_link_with_quotes,
    reason = "doc comments of classes, methods and functions are Python docstrings"
)]
#![allow(clippy::needless_pass_by_value, reason = "PyO3 extracts arguments by value")]

use pyo3::prelude::*;

mod arguments;
mod attention;
mod corpus;
mod error;
mod interrupt;
mod linear;
mod named;
mod norm;
mod sampler;
mod simd;
mod text;
mod tokenizer;
mod train;
mod training;

#[pymodule(gil_used = false)]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    bpe_llama_kernels::remember_process();
    simd::register(module)?;
    module.add_function(wrap_pyfunction!(named::shown, module)?)?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    tokenizer::pretokenize::register(module)?;
    module.add_class::<sampler::PySampler>()?;
    module.add_class::<linear::PyLinear>()?;
    module.add_function(wrap_pyfunction!(linear::py_has_amx, module)?)?;
    module.add_function(wrap_pyfunction!(linear::py_has_avx512, module)?)?;
    module.add_function(wrap_pyfunction!(linear::py_has_avx512_bf16, module)?)?;
    module.add_function(wrap_pyfunction!(attention::py_attend, module)?)?;
    module.add_function(wrap_pyfunction!(norm::py_normalize, module)?)?;
    train::register(module)?;
    training::register(module)?;
    module.add_class::<tokenizer::PyTokenizer>()?;
    module.add_class::<tokenizer::decode_stream::DecodeStream>()?;
    module.add_class::<tokenizer::documents::PyDocumentEncoder>()?;
    corpus::register(module)
}

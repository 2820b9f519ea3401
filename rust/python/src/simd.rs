//! `simd_tier`, `simd_tiers`.

use bpe_llama_simd::{Tier, tier};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// Adds the functions; refuses to import with a `BPE_LLAMA_SIMD` that cannot be obeyed.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    tier::check().map_err(|error| PyValueError::new_err(error.to_string()))?;
    module.add_function(wrap_pyfunction!(simd_tier, module)?)?;
    module.add_function(wrap_pyfunction!(simd_tiers, module)?)
}

#[pyfunction]
fn simd_tier() -> &'static str {
    Tier::in_use().name()
}

#[pyfunction]
fn simd_tiers() -> Vec<&'static str> {
    Tier::of_cpu().map(Tier::name).collect()
}

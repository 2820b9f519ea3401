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

/// Return the instructions in use: the highest tier of this CPU, at most that of the variable `BPE_LLAMA_SIMD`.
///
/// The variable is read once, when the module is imported; a name that is unknown or that this CPU lacks is a
/// `ValueError`. The tiers are `portable`; on x86-64 `avx2`, `avx512`, `avx512_bf16` and `amx`; on arm64 `neon`.
/// Intel's CPUs compute the same at `avx512_bf16` as at `avx512`, which is faster there. Products of bytes (VNNI,
/// NEON's dot products) are used at every tier but `portable`, where the CPU has them.
///
/// Example:
///     >>> from bpe_llama._core import simd_tier, simd_tiers
///     >>> simd_tier() in simd_tiers()
///     True
#[pyfunction]
fn simd_tier() -> &'static str {
    Tier::in_use().name()
}

/// Return the tiers of this CPU, the slowest first, whatever `BPE_LLAMA_SIMD` says.
#[pyfunction]
fn simd_tiers() -> Vec<&'static str> {
    Tier::of_cpu().map(Tier::name).collect()
}

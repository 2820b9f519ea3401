//! What a caller gives a `Sampler`, read with errors that name it.

use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use std::num::NonZero;

/// Returns a whole number of at least 0; `None` is 0.
pub(crate) fn natural(name: &str, value: Option<&Bound<'_, PyAny>>) -> PyResult<u64> {
    let Some(value) = value else { return Ok(0) };
    value.extract::<u64>().map_err(|error| {
        if error.is_instance_of::<PyOverflowError>(value.py()) {
            PyValueError::new_err(format!("{name} must be in [0, 2**64), got {value}"))
        } else {
            PyTypeError::new_err(format!("{name} must be an int, got {}", value.get_type()))
        }
    })
}

/// Returns a number of threads, at least 1.
pub(crate) fn threads(wanted: Option<usize>) -> PyResult<Option<NonZero<usize>>> {
    wanted
        .map(|count| NonZero::new(count).ok_or_else(|| PyValueError::new_err("num_threads must be at least 1, got 0")))
        .transpose()
}

/// Returns one seed a row.
pub(crate) fn read_seeds(seeds: &Bound<'_, PyAny>) -> PyResult<Vec<u64>> {
    seeds.try_iter()?.map(|seed| natural("seeds", Some(&seed?))).collect()
}

/// Returns an id, below 2^32.
pub(crate) fn token_id(name: &str, id: &Bound<'_, PyAny>) -> PyResult<u32> {
    u32::try_from(natural(name, Some(id))?)
        .map_err(|_| PyValueError::new_err(format!("{name} holds id {id}; expected one below 2**32")))
}

/// Returns ids, each below 2^32.
pub(crate) fn read_ids(name: &str, ids: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    ids.try_iter()?.map(|id| token_id(name, &id?)).collect()
}

/// Returns one list of ids a row.
pub(crate) fn read_history(history: &Bound<'_, PyAny>, single: bool) -> PyResult<Vec<Vec<i64>>> {
    let ids = |row: &Bound<'_, PyAny>| -> PyResult<Vec<i64>> {
        let row = if row.hasattr("tolist")? { row.call_method0("tolist")? } else { row.clone() };
        row.try_iter().and_then(|ids| ids.map(|id| id?.extract::<i64>()).collect::<PyResult<Vec<i64>>>()).map_err(
            |error| {
                if error.is_instance_of::<PyOverflowError>(row.py()) {
                    PyValueError::new_err("history holds an id beyond 64 bits")
                } else {
                    PyTypeError::new_err(format!(
                        "history must be a sequence of ints for (V,) logits, one a row for (B, V): {error}"
                    ))
                }
            },
        )
    };
    if single { Ok(vec![ids(history)?]) } else { history.try_iter()?.map(|row| ids(&row?)).collect() }
}

//! What a caller gives a `Sampler`, read with errors that name it.

use crate::arguments::shown;
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyIterator};

/// Returns a whole number of at least 0; `None` is 0.
pub(crate) fn natural(name: &str, value: Option<&Bound<'_, PyAny>>) -> PyResult<u64> {
    let Some(value) = value else { return Ok(0) };
    value.extract::<u64>().map_err(|error| {
        let (got, py) = (shown(value), value.py());
        if error.is_instance_of::<PyOverflowError>(py) {
            PyValueError::new_err(format!("{name} must be in [0, 2**64), got {got}"))
        } else {
            PyTypeError::new_err(format!("{name} must be an int, got {got}"))
        }
    })
}

/// Returns one seed a row.
pub(crate) fn read_seeds(seeds: &Bound<'_, PyAny>) -> PyResult<Vec<u64>> {
    members("seeds", seeds)?.map(|seed| member("seeds", &seed?, "[0, 2**64)")).collect()
}

/// Returns ids, each below 2^32.
pub(crate) fn read_ids(name: &str, ids: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    members(name, ids)?.map(|id| member(name, &id?, "[0, 2**32)")).collect()
}

/// Returns ids, each below 2^32, and what to add to their logits.
pub(crate) fn read_biases(biases: &Bound<'_, PyAny>) -> PyResult<Vec<(u32, f32)>> {
    let Ok(biases) = biases.cast::<PyDict>() else {
        let got = shown(biases);
        return Err(PyTypeError::new_err(format!("logit_bias is {got}; expected a dict of id to number")));
    };
    let read = |(id, bias): (Bound<'_, PyAny>, Bound<'_, PyAny>)| {
        let id = member("logit_bias", &id, "[0, 2**32)")?;
        let wrong = |expected| format!("logit_bias of id {id} must be {expected}, got {}", shown(&bias));
        let wide: f64 = bias.extract().map_err(|_| PyTypeError::new_err(wrong("a number")))?;
        let narrow = wide as f32;
        if narrow.is_finite() { Ok((id, narrow)) } else { Err(PyValueError::new_err(wrong("finite in float32"))) }
    };
    biases.iter().map(read).collect()
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

fn members<'py>(name: &str, values: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyIterator>> {
    let wrong = |_| PyTypeError::new_err(format!("{name} is {}; expected a sequence of ints", shown(values)));
    values.try_iter().map_err(wrong)
}

/// Returns a member of a sequence of ints, which must lie in `range`, the integers of type `T`.
fn member<'py, T>(name: &str, value: &Bound<'py, PyAny>, range: &str) -> PyResult<T>
where
    T: for<'a> FromPyObject<'a, 'py, Error = PyErr>,
{
    value.extract().map_err(|error: PyErr| {
        let message = format!("{name} holds {}; expected ints in {range}", shown(value));
        if error.is_instance_of::<PyOverflowError>(value.py()) {
            PyValueError::new_err(message)
        } else {
            PyTypeError::new_err(message)
        }
    })
}

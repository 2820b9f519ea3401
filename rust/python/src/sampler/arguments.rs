//! Converts the arguments of `Sampler`; errors name the argument and its value.

use super::logits::Logits;
use crate::arguments::{Threads, collect, to_list};
use crate::named::shown;
use bpe_llama_sampler::BatchOptions;
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict};

const U32: &str = "ints in [0, 2**32)";
const U64: &str = "ints in [0, 2**64)";

/// The arguments of a call besides its own: logits, history, step, seeds, number of threads.
pub(super) struct Call<'py> {
    pub(super) logits: Logits<'py>,
    histories: Option<Vec<Vec<i64>>>,
    step: Option<u64>,
    seeds: Option<Vec<u64>>,
    num_threads: Option<Threads>,
}

impl<'py> Call<'py> {
    pub(super) fn read(
        logits: &Bound<'py, PyAny>,
        history: Option<&Bound<'py, PyAny>>,
        step: Option<&Bound<'py, PyAny>>,
        seeds: Option<&Bound<'py, PyAny>>,
        num_threads: Option<Threads>,
    ) -> PyResult<Self> {
        let logits = Logits::read(logits)?;
        let histories = history.map(|history| read_histories(history, &logits)).transpose()?;
        let read_seed = |seed: &Bound<'py, PyAny>| read_element("seeds", seed, U64);
        let seeds = seeds.map(|seeds| read_rows("seeds", "ints", seeds, logits.rows, read_seed)).transpose()?;
        let step = step.map(|step| read_u64("step", step)).transpose()?;
        Ok(Self { logits, histories, step, seeds, num_threads })
    }

    pub(super) fn batch_options(&self) -> BatchOptions<'_> {
        BatchOptions {
            histories: self.histories.as_deref(),
            step: self.step,
            seeds: self.seeds.as_deref(),
            num_threads: self.num_threads.map(|threads| threads.0),
            ..BatchOptions::default()
        }
    }
}

/// Returns an int in `[0, 2**64)`, such as a seed or a step.
pub(super) fn read_u64(name: &str, value: &Bound<'_, PyAny>) -> PyResult<u64> {
    read_int(value, |overflows| {
        let expected = if overflows { "in [0, 2**64)" } else { "an int" };
        format!("{name} must be {expected}, got {}", shown(value))
    })
}

/// Returns an int in `[0, 2**64)`, at most `usize::MAX`; 0 for `None`.
pub(super) fn read_count(name: &str, value: Option<&Bound<'_, PyAny>>) -> PyResult<usize> {
    let count = value.map_or(Ok(0), |value| read_u64(name, value))?;
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}

/// Returns ids in `[0, 2**32)`.
pub(super) fn read_ids(name: &str, ids: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    read_ints(name, ids, U32)
}

/// Returns ids in `[0, 2**32)` and their biases, finite in float32.
pub(super) fn read_biases(biases: &Bound<'_, PyAny>) -> PyResult<Vec<(u32, f32)>> {
    let Ok(biases) = biases.cast::<PyDict>() else {
        let got = shown(biases);
        return Err(PyTypeError::new_err(format!("logit_bias is {got}; expected a dict of id to number")));
    };
    let read = |(id, bias): (Bound<'_, PyAny>, Bound<'_, PyAny>)| {
        let id = read_element("logit_bias", &id, U32)?;
        let message = |expected| format!("logit_bias of id {id} must be {expected}, got {}", shown(&bias));
        let wide: f64 = bias.extract().map_err(|_| PyTypeError::new_err(message("a number")))?;
        let narrow = wide as f32;
        if narrow.is_finite() { Ok((id, narrow)) } else { Err(PyValueError::new_err(message("finite in float32"))) }
    };
    biases.iter().map(read).collect()
}

/// Returns one list of ids per row.
fn read_histories(history: &Bound<'_, PyAny>, logits: &Logits<'_>) -> PyResult<Vec<Vec<i64>>> {
    let read = |name, row: &Bound<'_, PyAny>| {
        // Iterating over a list is faster than over an array.
        read_ints(name, &to_list(name, "a sequence of ints", row)?, "ints of at most 64 bits")
    };
    if !logits.is_batch {
        return Ok(vec![read("history", history)?]);
    }
    read_rows("history", "rows of ints", history, logits.rows, |row| read("a row of history", row))
}

/// Returns the items of an argument that has one for each row of logits. No more are read: an iterator can be endless.
fn read_rows<'py, T>(
    name: &str,
    elements: &str,
    values: &Bound<'py, PyAny>,
    rows: usize,
    read: impl Fn(&Bound<'py, PyAny>) -> PyResult<T>,
) -> PyResult<Vec<T>> {
    let items = values.try_iter().map_err(|_| not_a_sequence(name, values, elements))?;
    let items = collect(values.py(), name, items.take(rows + 1).map(|item| read(&item?)))?;
    if items.len() > rows {
        let count = values.len().ok().filter(|&count| count > rows); // an object can claim any length
        let count = count.map_or_else(|| format!("more than {rows}"), |count| count.to_string());
        return Err(PyValueError::new_err(format!(
            "{name} holds {count} {elements} for {rows} rows of logits; expected one per row"
        )));
    }
    Ok(items)
}

/// Returns the elements of a sequence of ints that fit `T`; `expected` describes them in errors.
fn read_ints<'py, T>(name: &str, values: &Bound<'py, PyAny>, expected: &str) -> PyResult<Vec<T>>
where
    T: for<'a> FromPyObject<'a, 'py, Error = PyErr>,
{
    let elements = values.try_iter().map_err(|_| not_a_sequence(name, values, "ints"))?;
    collect(values.py(), name, elements.map(|element| read_element(name, &element?, expected)))
}

fn read_element<'py, T>(name: &str, element: &Bound<'py, PyAny>, expected: &str) -> PyResult<T>
where
    T: for<'a> FromPyObject<'a, 'py, Error = PyErr>,
{
    read_int(element, |_| format!("{name} holds {}; expected {expected}", shown(element)))
}

/// Returns an int that fits `T`.
///
/// # Errors
/// `ValueError` if the int does not fit, `TypeError` if it is no int or a bool; `message` is told whether it does not fit.
fn read_int<'py, T>(value: &Bound<'py, PyAny>, message: impl FnOnce(bool) -> String) -> PyResult<T>
where
    T: for<'a> FromPyObject<'a, 'py, Error = PyErr>,
{
    if value.is_instance_of::<PyBool>() {
        return Err(PyTypeError::new_err(message(false)));
    }
    value.extract().map_err(|error: PyErr| {
        let overflows = error.is_instance_of::<PyOverflowError>(value.py());
        let message = message(overflows);
        if overflows { PyValueError::new_err(message) } else { PyTypeError::new_err(message) }
    })
}

fn not_a_sequence(name: &str, value: &Bound<'_, PyAny>, elements: &str) -> PyErr {
    PyTypeError::new_err(format!("{name} is {}; expected a sequence of {elements}", shown(value)))
}

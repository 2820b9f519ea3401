//! `Sampler` for Python.
#![allow(clippy::doc_markdown, reason = "these are Python docstrings")]

use crate::arguments::Threads;
use crate::error::value_error;
use crate::logits::Logits;
use crate::sampler_arguments::{natural, read_biases, read_history, read_ids, read_seeds};
use bpe_llama_sampler::{Options, Preset, Request, Sampler};
use numpy::{PyArray1, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyDict, PyTuple};

/// Below this many logits a call is over before another thread could use the interpreter.
const RELEASE_LOGITS: usize = 1 << 15;

/// Draws ids from logits: exact, reproducible, without sorting the vocabulary.
///
/// Penalties, temperature, top-k, top-p and min-p act in that order, each on what the one before left, renormalised.
/// Ties go to the lower id. Each call of `sample` is one step; the id a row gets depends on its logits, the seed and the
/// step alone: not on the rest of the batch, the number of threads or the CPU. Safe to share among threads.
///
/// Args:
///     temperature: Divides the logits; 0 takes the highest, the lowest id among equals.
///     top_k: Keep the k highest; 0, or at least V, keeps all.
///     top_p: Keep the fewest highest whose mass reaches this; in (0, 1].
///     min_p: Drop what has less than this times the highest probability; in [0, 1].
///     repetition_penalty: Divides positive and multiplies negative logits of ids in the history.
///     presence_penalty: Subtracted from the logit of every id in the history.
///     frequency_penalty: Subtracted once for each time the id occurs in the history.
///     seed: Names the stream of random numbers, 0 to 2**64 - 1.
///     typical_p: Keep the ids whose surprise is nearest to the entropy until their mass reaches this; in (0, 1]. Acts
///         after min-p (arXiv:2202.00666).
///     logit_bias: Added to the logits of these ids, before any penalty: a dict of id to number.
///     banned_ids: Never drawn.
///     allowed_ids: If given, only these are drawn; one alone is forced.
///     preset: Whose boundaries and order of filters: "exact" is what is said above; "meta" lets one more id in where
///         the mass hits top_p exactly; "transformers" keeps all ids that tie with the k-th or at typical-p's
///         boundary, and of those that tie at top-p's the highest; "llama_cpp" applies top-k, typical-p, top-p, min-p at
///         temperature 1 and the temperature last.
///
/// Raises:
///     ValueError: If a parameter is out of range.
///
/// Example:
///     >>> import numpy as np
///     >>> from bpe_llama import Sampler
///     >>> Sampler(temperature=0.0).sample(np.array([0.1, 2.5, -1.0], dtype=np.float32))
///     1
#[pyclass(frozen, name = "Sampler", module = "bpe_llama")]
pub(crate) struct PySampler(Sampler);

#[pymethods]
impl PySampler {
    #[new]
    #[pyo3(signature = (temperature=0.8, top_k=None, top_p=0.95, min_p=0.0, repetition_penalty=1.0,
        presence_penalty=0.0, frequency_penalty=0.0, seed=None, *, typical_p=1.0, logit_bias=None, banned_ids=None,
        allowed_ids=None, preset="exact"),
        text_signature = "(temperature=0.8, top_k=0, top_p=0.95, min_p=0.0, repetition_penalty=1.0, presence_penalty=0.0, \
            frequency_penalty=0.0, seed=0, *, typical_p=1.0, logit_bias=None, banned_ids=None, allowed_ids=None, \
            preset='exact')")]
    #[allow(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn new(
        temperature: f64,
        top_k: Option<&Bound<'_, PyAny>>,
        top_p: f64,
        min_p: f64,
        repetition_penalty: f64,
        presence_penalty: f64,
        frequency_penalty: f64,
        seed: Option<&Bound<'_, PyAny>>,
        typical_p: f64,
        logit_bias: Option<&Bound<'_, PyAny>>,
        banned_ids: Option<&Bound<'_, PyAny>>,
        allowed_ids: Option<&Bound<'_, PyAny>>,
        preset: &str,
    ) -> PyResult<Self> {
        let options = Options {
            temperature,
            top_k: usize::try_from(natural("top_k", top_k)?).unwrap_or(usize::MAX),
            top_p,
            min_p,
            typical_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias: logit_bias.map_or(Ok(Vec::new()), read_biases)?,
            banned_ids: banned_ids.map_or(Ok(Vec::new()), |ids| read_ids("banned_ids", ids))?,
            allowed_ids: allowed_ids.map(|ids| read_ids("allowed_ids", ids)).transpose()?,
            preset: Preset::from_name(preset).map_err(value_error)?,
            seed: natural("seed", seed)?,
        };
        Sampler::new(options).map(Self).map_err(value_error)
    }

    /// Return the id drawn from one row, an int, or from each row of a batch, int64 (B,).
    ///
    /// Args:
    ///     logits: (V,) or (B, V): a NumPy array or a CPU tensor of float32, float16 or bfloat16, read where it lies;
    ///         float64 is rounded to float32 first. Any strides.
    ///     history: Ids the penalties look at: a sequence of ints for one row, one such sequence a row for a batch.
    ///     step: The number of this draw; by default the sampler's own count, which this then leaves alone.
    ///     seeds: For each row a seed in place of the sampler's. Without it all rows of a batch use the same random
    ///         number, so equal rows give equal ids; pass `range(B)` to continue one prompt in B ways.
    ///     num_threads: Threads that share the rows; by default as many as pay. The ids do not depend on it.
    ///
    /// Raises:
    ///     ValueError: If a row holds NaN or +inf or nothing finite, naming row and index; if an id of a history is
    ///         outside the vocabulary; if the shape is another.
    ///     TypeError: If the dtype or the kind of object is another.
    ///
    /// Cost: about the time of three reads of the row; no allocation once warm.
    ///
    /// Example:
    ///     >>> import numpy as np
    ///     >>> from bpe_llama import Sampler
    ///     >>> logits = np.zeros((2, 4), dtype=np.float32)
    ///     >>> logits[:, 3] = 20
    ///     >>> Sampler(seed=1).sample(logits)
    ///     array([3, 3])
    #[pyo3(signature = (logits, history=None, *, step=None, seeds=None, num_threads=None))]
    fn sample<'py>(
        &self,
        py: Python<'py>,
        logits: &Bound<'py, PyAny>,
        history: Option<&Bound<'py, PyAny>>,
        step: Option<&Bound<'py, PyAny>>,
        seeds: Option<&Bound<'py, PyAny>>,
        num_threads: Option<Threads>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let logits = Logits::of(logits)?;
        let rows = logits.rows()?;
        let histories = history.map(|history| read_history(history, logits.single)).transpose()?;
        let seeds = seeds.map(read_seeds).transpose()?;
        let request = Request {
            histories: histories.as_deref(),
            step: step.map(|step| natural("step", Some(step))).transpose()?,
            seeds: seeds.as_deref(),
            num_threads: num_threads.map(|threads| threads.0),
        };
        if logits.single {
            let mut id = [0];
            release(py, rows.vocab_size(), || self.0.sample_rows(&rows, &request, &mut id)).map_err(value_error)?;
            return Ok(id[0].into_pyobject(py)?.into_any());
        }
        let mut ids = vec![0; rows.rows()];
        let work = rows.vocab_size() * rows.rows();
        release(py, work, || self.0.sample_rows(&rows, &request, &mut ids)).map_err(value_error)?;
        Ok(PyArray1::from_vec(py, ids).into_any())
    }

    /// Return what `sample` draws, with log-probabilities: (ids, logprobs, top_ids, top_logprobs).
    ///
    /// The log-probabilities are the model's own: of the logits as given, before penalties, temperature and filters.
    ///
    /// Args:
    ///     logits: As for `sample`. ``history``, ``step`` and ``seeds`` likewise.
    ///     top_n: How many of the likeliest ids to return, likeliest first, equals by rising id.
    ///
    /// Returns:
    ///     For one row an int, a float, int64 (n,) and float64 (n,); for a batch int64 (B,), float64 (B,), int64 (B, n)
    ///     and float64 (B, n). n is top_n; a row with fewer finite logits fills up with id -1 at -inf.
    ///
    /// Raises:
    ///     ValueError: As `sample`; if top_n exceeds the vocabulary.
    ///
    /// Example:
    ///     >>> import numpy as np
    ///     >>> from bpe_llama import Sampler
    ///     >>> logits = np.log(np.array([0.5, 0.25, 0.25], dtype=np.float32))
    ///     >>> id, logprob, top_ids, top_logprobs = Sampler(temperature=0).sample_with_logprobs(logits, top_n=2)
    ///     >>> id, round(logprob, 4), top_ids.tolist(), top_logprobs.round(4).tolist()
    ///     (0, -0.6931, [0, 1], [-0.6931, -1.3863])
    #[pyo3(signature = (logits, history=None, *, top_n=None, step=None, seeds=None),
        text_signature = "($self, logits, history=None, *, top_n=0, step=None, seeds=None)")]
    fn sample_with_logprobs<'py>(
        &self,
        py: Python<'py>,
        logits: &Bound<'py, PyAny>,
        history: Option<&Bound<'py, PyAny>>,
        top_n: Option<&Bound<'py, PyAny>>,
        step: Option<&Bound<'py, PyAny>>,
        seeds: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let logits = Logits::of(logits)?;
        let rows = logits.rows()?;
        let histories = history.map(|history| read_history(history, logits.single)).transpose()?;
        let seeds = seeds.map(read_seeds).transpose()?;
        let request = Request {
            histories: histories.as_deref(),
            step: step.map(|step| natural("step", Some(step))).transpose()?,
            seeds: seeds.as_deref(),
            num_threads: None,
        };
        let top_n = usize::try_from(natural("top_n", top_n)?).unwrap_or(usize::MAX);
        let mut ids = vec![0; rows.rows()];
        let work = rows.vocab_size() * rows.rows();
        let found = release(py, work, || {
            self.0.sample_rows(&rows, &request, &mut ids)?;
            Sampler::log_probs(&rows, &ids, top_n)
        })
        .map_err(value_error)?;
        let mut top_ids = Vec::with_capacity(found.len() * top_n);
        let mut top_log_probs = Vec::with_capacity(found.len() * top_n);
        for row in &found {
            let missing = std::iter::repeat_n((-1, f64::NEG_INFINITY), top_n - row.top.len());
            for (id, log_prob) in row.top.iter().map(|&(id, log_prob)| (i64::from(id), log_prob)).chain(missing) {
                top_ids.push(id);
                top_log_probs.push(log_prob);
            }
        }
        let chosen: Vec<f64> = found.iter().map(|row| row.chosen).collect();
        let top_ids = PyArray1::from_vec(py, top_ids);
        let top_log_probs = PyArray1::from_vec(py, top_log_probs);
        if logits.single {
            return (ids[0], chosen[0], top_ids, top_log_probs).into_pyobject(py);
        }
        let shape = [rows.rows(), top_n];
        let arrays = (
            PyArray1::from_vec(py, ids),
            PyArray1::from_vec(py, chosen),
            top_ids.reshape(shape)?,
            top_log_probs.reshape(shape)?,
        );
        arrays.into_pyobject(py)
    }

    /// Return the distribution `sample` draws from, filtered and renormalised: float64, the logits' shape.
    ///
    /// Args:
    ///     logits: As for `sample`. ``history`` and ``num_threads`` likewise.
    ///
    /// Raises:
    ///     ValueError: As `sample`.
    ///
    /// Example:
    ///     >>> import numpy as np
    ///     >>> from bpe_llama import Sampler
    ///     >>> Sampler(temperature=1.0, top_k=2, top_p=1.0).probs(np.array([0, 0, -9], dtype=np.float32))
    ///     array([0.5, 0.5, 0. ])
    #[pyo3(signature = (logits, history=None, *, num_threads=None))]
    fn probs<'py>(
        &self,
        py: Python<'py>,
        logits: &Bound<'py, PyAny>,
        history: Option<&Bound<'py, PyAny>>,
        num_threads: Option<Threads>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let logits = Logits::of(logits)?;
        let rows = logits.rows()?;
        let histories = history.map(|history| read_history(history, logits.single)).transpose()?;
        let request = Request {
            histories: histories.as_deref(),
            num_threads: num_threads.map(|threads| threads.0),
            ..Request::default()
        };
        let mut probs = vec![0.0; rows.rows() * rows.vocab_size()];
        release(py, probs.len(), || self.0.probs_rows(&rows, &request, &mut probs)).map_err(value_error)?;
        let flat = PyArray1::from_vec(py, probs);
        if logits.single { Ok(flat.into_any()) } else { Ok(flat.reshape([rows.rows(), rows.vocab_size()])?.into_any()) }
    }

    /// Make `step` the number of the next draw.
    ///
    /// Example:
    ///     >>> import numpy as np
    ///     >>> from bpe_llama import Sampler
    ///     >>> sampler, logits = Sampler(), np.zeros(1000, dtype=np.float32)
    ///     >>> first = sampler.sample(logits)
    ///     >>> sampler.seek(0)
    ///     >>> sampler.sample(logits) == first
    ///     True
    fn seek(&self, step: &Bound<'_, PyAny>) -> PyResult<()> {
        self.0.set_step(natural("step", Some(step))?);
        Ok(())
    }

    /// The number of the next draw.
    #[getter]
    fn step(&self) -> u64 {
        self.0.step()
    }

    #[getter]
    fn temperature(&self) -> f64 {
        self.0.options().temperature
    }

    #[getter]
    fn top_k(&self) -> usize {
        self.0.options().top_k
    }

    #[getter]
    fn top_p(&self) -> f64 {
        self.0.options().top_p
    }

    #[getter]
    fn min_p(&self) -> f64 {
        self.0.options().min_p
    }

    #[getter]
    fn typical_p(&self) -> f64 {
        self.0.options().typical_p
    }

    #[getter]
    fn logit_bias<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.0.options().logit_bias.clone().into_py_dict(py)
    }

    #[getter]
    fn banned_ids(&self) -> Vec<u32> {
        self.0.options().banned_ids.clone()
    }

    #[getter]
    fn allowed_ids(&self) -> Option<Vec<u32>> {
        self.0.options().allowed_ids.clone()
    }

    #[getter]
    fn preset(&self) -> &'static str {
        self.0.options().preset.name()
    }

    #[getter]
    fn repetition_penalty(&self) -> f64 {
        self.0.options().repetition_penalty
    }

    #[getter]
    fn presence_penalty(&self) -> f64 {
        self.0.options().presence_penalty
    }

    #[getter]
    fn frequency_penalty(&self) -> f64 {
        self.0.options().frequency_penalty
    }

    #[getter]
    fn seed(&self) -> u64 {
        self.0.options().seed
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let arguments = slf.get().arguments(slf.py())?;
        let arguments: PyResult<Vec<String>> =
            arguments.iter().map(|(name, value)| Ok(format!("{name}={}", value.repr()?))).collect();
        Ok(format!("Sampler({})", arguments?.join(", ")))
    }

    fn __getnewargs_ex__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyTuple>, Bound<'py, PyDict>)> {
        Ok((PyTuple::empty(py), self.arguments(py)?))
    }

    fn __getstate__(&self) -> u64 {
        self.0.step()
    }

    fn __setstate__(&self, step: u64) {
        self.0.set_step(step);
    }
}

impl PySampler {
    /// Returns the arguments that make an equal sampler; of those that are seldom given only what is not the default.
    fn arguments<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let options = self.0.options();
        let arguments = PyDict::new(py);
        arguments.set_item("temperature", options.temperature)?;
        arguments.set_item("top_k", options.top_k)?;
        arguments.set_item("top_p", options.top_p)?;
        arguments.set_item("min_p", options.min_p)?;
        arguments.set_item("repetition_penalty", options.repetition_penalty)?;
        arguments.set_item("presence_penalty", options.presence_penalty)?;
        arguments.set_item("frequency_penalty", options.frequency_penalty)?;
        arguments.set_item("seed", options.seed)?;
        if options.typical_p < 1.0 {
            arguments.set_item("typical_p", options.typical_p)?;
        }
        if !options.logit_bias.is_empty() {
            arguments.set_item("logit_bias", self.logit_bias(py)?)?;
        }
        if !options.banned_ids.is_empty() {
            arguments.set_item("banned_ids", self.banned_ids())?;
        }
        if options.allowed_ids.is_some() {
            arguments.set_item("allowed_ids", self.allowed_ids())?;
        }
        if options.preset != Preset::Exact {
            arguments.set_item("preset", self.preset())?;
        }
        Ok(arguments)
    }
}

/// Runs `act`, letting other Python threads run meanwhile if it is worth it.
fn release<T: Send>(py: Python<'_>, logits: usize, act: impl FnOnce() -> T + Send) -> T {
    if logits < RELEASE_LOGITS { act() } else { py.detach(act) }
}

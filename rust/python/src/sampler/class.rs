//! The class `Sampler`.

use super::arguments::{Call, read_biases, read_count, read_ids, read_u64};
use crate::arguments::{Threads, zeros};
use crate::error::{caught, value_error};
use crate::interrupt::interruptible;
use crate::named;
use bpe_llama_sampler::{BatchOptions, Error, Interrupt, LogitsView, Options, Preset, Result, Sampler};
use numpy::{PyArray1, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

/// Calls on fewer logits than this keep the GIL: they end before another thread could use it.
const MIN_LOGITS_TO_DETACH: usize = 1 << 15;

/// Samples ids from logits: exact, reproducible, without sorting the vocabulary.
///
/// Penalties, temperature, top-k, top-p and min-p apply in that order, each to the renormalised result of the one
/// before. Ties go to the lower id. Each call of `sample` is one step. The sampled id of a row depends only on its
/// logits, the seed and the step: not on the batch, the number of threads or the CPU. Threads may share a sampler.
///
/// Args:
///     temperature: Divides the logits; 0 means argmax, the lowest id among ties.
///     top_k: Keep the k highest logits; 0, or at least V, keeps all.
///     top_p: Keep the fewest highest logits with at least this probability mass; in (0, 1].
///     min_p: Drop ids with less than this times the highest probability; in [0, 1].
///     repetition_penalty: Divides positive and multiplies negative logits of ids in the history.
///     presence_penalty: Subtracted from the logit of every id in the history.
///     frequency_penalty: Subtracted from an id's logit once per occurrence in the history.
///     seed: Selects the stream of random numbers; in [0, 2**64).
///     typical_p: Keep the ids of surprisal nearest to the entropy until they hold this mass; in (0, 1]. Applies
///         after min-p (arXiv:2202.00666).
///     logit_bias: Added to the logits of these ids, before any penalty: a dict of id to number.
///     banned_ids: Ids never sampled.
///     allowed_ids: If given, only these ids are sampled.
///     preset: The implementation to follow in the order of filters and in ties. "exact": as above. "meta": one
///         more id is kept if the mass equals top_p. "transformers": top-k and typical-p keep all ids tied at the
///         threshold, top-p the highest ids of a tie. "llama_cpp": top-k, typical-p, top-p and min-p at temperature
///         1, then the temperature.
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
pub(crate) struct PySampler(pub(super) Sampler);

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
        #[pyo3(from_py_with = named::temperature)] temperature: f64,
        top_k: Option<&Bound<'_, PyAny>>,
        #[pyo3(from_py_with = named::top_p)] top_p: f64,
        #[pyo3(from_py_with = named::min_p)] min_p: f64,
        #[pyo3(from_py_with = named::repetition_penalty)] repetition_penalty: f64,
        #[pyo3(from_py_with = named::presence_penalty)] presence_penalty: f64,
        #[pyo3(from_py_with = named::frequency_penalty)] frequency_penalty: f64,
        seed: Option<&Bound<'_, PyAny>>,
        #[pyo3(from_py_with = named::typical_p)] typical_p: f64,
        logit_bias: Option<&Bound<'_, PyAny>>,
        banned_ids: Option<&Bound<'_, PyAny>>,
        allowed_ids: Option<&Bound<'_, PyAny>>,
        #[pyo3(from_py_with = named::preset)] preset: &str,
    ) -> PyResult<Self> {
        let options = Options {
            temperature,
            top_k: read_count("top_k", top_k)?,
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
            seed: seed.map_or(Ok(0), |seed| read_u64("seed", seed))?,
        };
        Sampler::new(options).map(Self).map_err(value_error)
    }

    /// Return the id sampled from one row, an int, or from each row of a batch, int64 (B,).
    ///
    /// Args:
    ///     logits: (V,) or (B, V): a NumPy array or a CPU tensor of float32, float16 or bfloat16, read without a copy;
    ///         float64 is rounded to float32 first. Any strides.
    ///     history: The ids that penalties apply to: a sequence of ints for one row, one sequence per row for a batch.
    ///     step: The step to sample at, instead of the sampler's next, which this leaves unchanged.
    ///     seeds: A seed per row, instead of the sampler's. Without it all rows of a batch use the same random number,
    ///         so equal rows give equal ids; pass `range(B)` for B different continuations of one prompt.
    ///     num_threads: By default as many as pay off. The ids do not depend on it.
    ///
    /// Raises:
    ///     ValueError: If a row holds NaN or +inf or only -inf, naming row and index; if an id of a history is outside
    ///         the vocabulary; if the shape is wrong.
    ///     TypeError: If the dtype or the type of the object is not supported.
    ///
    /// Cost: about three reads of each row; scratch memory is kept for later calls. `typical_p` below 1 sorts the row
    /// in float64: milliseconds for 32,000 ids. Ids of a batch, `history`, `seeds` and `allowed_ids` take new memory.
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
        #[pyo3(from_py_with = named::num_threads)] num_threads: Option<Threads>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let call = Call::read(logits, history, step, seeds, num_threads)?;
        let (logits, options) = (call.logits.view()?, call.batch_options());
        if !call.logits.is_batch {
            let mut id = [0];
            detach(py, &logits, options, |options| self.0.sample_batch(&logits, options, &mut id))?;
            return Ok(id[0].into_pyobject(py)?.into_any());
        }
        let mut ids = zeros("logits", logits.rows())?;
        detach(py, &logits, options, |options| self.0.sample_batch(&logits, options, &mut ids))?;
        Ok(PyArray1::from_vec(py, ids).into_any())
    }

    /// Return the result of `sample` with log-probabilities: (ids, logprobs, top_ids, top_logprobs).
    ///
    /// The log-probabilities are those of the logits as given, before penalties, temperature and filters.
    ///
    /// Args:
    ///     logits: As in `sample`.
    ///     history: As in `sample`.
    ///     step: As in `sample`.
    ///     seeds: As in `sample`.
    ///     num_threads: As in `sample`.
    ///     top_n: How many of the most likely ids to return, most likely first, ties by rising id.
    ///
    /// Returns:
    ///     For one row an int, a float, int64 (n,) and float64 (n,); for a batch int64 (B,), float64 (B,), int64 (B, n)
    ///     and float64 (B, n). n is top_n; a row with fewer finite logits is padded with id -1 at -inf.
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
    #[pyo3(signature = (logits, history=None, *, top_n=None, step=None, seeds=None, num_threads=None),
        text_signature = "($self, logits, history=None, *, top_n=0, step=None, seeds=None, num_threads=None)")]
    #[allow(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn sample_with_logprobs<'py>(
        &self,
        py: Python<'py>,
        logits: &Bound<'py, PyAny>,
        history: Option<&Bound<'py, PyAny>>,
        top_n: Option<&Bound<'py, PyAny>>,
        step: Option<&Bound<'py, PyAny>>,
        seeds: Option<&Bound<'py, PyAny>>,
        #[pyo3(from_py_with = named::num_threads)] num_threads: Option<Threads>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let call = Call::read(logits, history, step, seeds, num_threads)?;
        let (logits, options) = (call.logits.view()?, call.batch_options());
        let top_n = read_count("top_n", top_n)?;
        let mut ids = zeros("logits", logits.rows())?;
        let rows = detach(py, &logits, options, |options| {
            self.0.sample_batch_with_log_probs(&logits, options, &mut ids, top_n)
        })?;
        let padding = (-1, f64::NEG_INFINITY);
        let (top_ids, top_log_probs): (Vec<i64>, Vec<f64>) = rows
            .iter()
            .flat_map(|row| {
                let top = row.top.iter().map(|&(id, log_prob)| (i64::from(id), log_prob));
                top.chain(std::iter::repeat(padding)).take(top_n)
            })
            .unzip();
        let sampled: Vec<f64> = rows.iter().map(|row| row.sampled).collect();
        let (top_ids, top_log_probs) = (PyArray1::from_vec(py, top_ids), PyArray1::from_vec(py, top_log_probs));
        if !call.logits.is_batch {
            return (ids[0], sampled[0], top_ids, top_log_probs).into_pyobject(py);
        }
        let shape = [rows.len(), top_n];
        let (ids, sampled) = (PyArray1::from_vec(py, ids), PyArray1::from_vec(py, sampled));
        (ids, sampled, top_ids.reshape(shape)?, top_log_probs.reshape(shape)?).into_pyobject(py)
    }

    /// Return the distribution that `sample` draws from, filtered and renormalised: float64, of the logits' shape.
    ///
    /// Args:
    ///     logits: As in `sample`.
    ///     history: As in `sample`.
    ///     num_threads: As in `sample`.
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
        #[pyo3(from_py_with = named::num_threads)] num_threads: Option<Threads>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let call = Call::read(logits, history, None, None, num_threads)?;
        let (logits, options) = (call.logits.view()?, call.batch_options());
        let shape = [logits.rows(), logits.vocab_size()];
        let mut probs = zeros("logits", shape[0].saturating_mul(shape[1]))?;
        detach(py, &logits, options, |options| self.0.probs_batch(&logits, options, &mut probs))?;
        let probs = PyArray1::from_vec(py, probs);
        if call.logits.is_batch { Ok(probs.reshape(shape)?.into_any()) } else { Ok(probs.into_any()) }
    }

    /// Set the next step.
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
        self.0.set_step(read_u64("step", step)?);
        Ok(())
    }

    /// The next step.
    #[getter]
    fn step(&self) -> u64 {
        self.0.step()
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

/// Returns the result of `sample`. Unless there are few logits, it is called without the GIL, and Ctrl-C stops it.
fn detach<T: Send>(
    py: Python<'_>,
    logits: &LogitsView<'_>,
    options: BatchOptions<'_>,
    sample: impl FnOnce(&BatchOptions<'_>) -> Result<T> + Send,
) -> PyResult<T> {
    if logits.rows() * logits.vocab_size() < MIN_LOGITS_TO_DETACH {
        return caught(|| sample(&options))?.map_err(value_error);
    }
    interruptible(py, |interrupt| {
        let check = || interrupt.check().map_err(|_| Error::Interrupted);
        let options = BatchOptions { interrupt: Interrupt::new(&check), ..options };
        sample(&options).map_err(|error| match error {
            Error::Interrupted => bpe_llama::Error::Interrupted,
            error => bpe_llama::Error::InvalidArgument(error.to_string()),
        })
    })
}

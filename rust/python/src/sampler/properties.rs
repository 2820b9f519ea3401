//! The options of a `Sampler`, one property each.

use bpe_llama_sampler::Preset;
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyDict};

use super::PySampler;

#[pymethods]
impl PySampler {
    /// The divisor of the logits.
    #[getter]
    fn temperature(&self) -> f64 {
        self.0.options().temperature
    }

    /// How many of the highest logits are kept; 0 keeps all.
    #[getter]
    fn top_k(&self) -> usize {
        self.0.options().top_k
    }

    /// The probability mass that the kept ids reach.
    #[getter]
    fn top_p(&self) -> f64 {
        self.0.options().top_p
    }

    /// The least probability that is kept, as a part of the highest one.
    #[getter]
    fn min_p(&self) -> f64 {
        self.0.options().min_p
    }

    /// The probability mass of the kept ids of typical surprisal.
    #[getter]
    fn typical_p(&self) -> f64 {
        self.0.options().typical_p
    }

    /// What is added to the logits, by id.
    #[getter]
    fn logit_bias<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.0.options().logit_bias.clone().into_py_dict(py)
    }

    /// The ids that are never sampled.
    #[getter]
    fn banned_ids(&self) -> Vec<u32> {
        self.0.options().banned_ids.clone()
    }

    /// The only ids that are sampled, or `None` for all.
    #[getter]
    fn allowed_ids(&self) -> Option<Vec<u32>> {
        self.0.options().allowed_ids.clone()
    }

    /// The name of the implementation that is followed.
    #[getter]
    fn preset(&self) -> &'static str {
        self.0.options().preset.name()
    }

    /// The divisor of positive logits, and factor of negative ones, of ids in the history.
    #[getter]
    fn repetition_penalty(&self) -> f64 {
        self.0.options().repetition_penalty
    }

    /// What is subtracted from the logit of every id in the history.
    #[getter]
    fn presence_penalty(&self) -> f64 {
        self.0.options().presence_penalty
    }

    /// What is subtracted from an id's logit once per occurrence in the history.
    #[getter]
    fn frequency_penalty(&self) -> f64 {
        self.0.options().frequency_penalty
    }

    /// The number that selects the stream of random numbers.
    #[getter]
    fn seed(&self) -> u64 {
        self.0.options().seed
    }
}

impl PySampler {
    /// Returns the arguments of an equal sampler; the keyword-only ones only if they differ from their defaults.
    pub(super) fn arguments<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
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

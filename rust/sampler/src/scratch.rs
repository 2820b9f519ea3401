//! Memory for one row, reused by the next.

use crate::threshold::{Buffers, Sample};
use bpe_llama_simd::Backend;

/// The buffers of one thread, and the backend that its passes run on.
#[derive(Debug)]
pub(crate) struct Scratch {
    pub(crate) backend: Backend,
    /// A float32 copy of the row, if it must be converted or changed.
    pub(crate) logits: Vec<f32>,
    /// Occurrences of each id in the history; all 0 between calls.
    pub(crate) counts: Vec<u32>,
    /// Unnormalised probabilities in float32, for the first `row.len()` ids.
    pub(crate) weights: Vec<f32>,
    /// Unnormalised probabilities in float64, for top-p where float32 is not exact enough.
    pub(crate) weights64: Vec<f64>,
    pub(crate) sample: Sample,
    pub(crate) buffers: Buffers<f32>,
    pub(crate) buffers64: Buffers<f64>,
    /// Ids that a filter removed though the cutoff keeps them; their weights are 0.
    pub(crate) removed: Vec<u32>,
}

impl Scratch {
    pub(crate) fn new(backend: Backend) -> Self {
        Self {
            backend,
            logits: Vec::new(),
            counts: Vec::new(),
            weights: Vec::new(),
            weights64: Vec::new(),
            sample: Sample::default(),
            buffers: Buffers::default(),
            buffers64: Buffers::default(),
            removed: Vec::new(),
        }
    }

    /// Sets the weights of the removed ids to 0.
    pub(crate) fn clear_removed_weights(&mut self) {
        for &id in &self.removed {
            self.weights[id as usize] = 0.0;
        }
    }
}

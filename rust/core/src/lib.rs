//! Byte-level BPE: training, encoding, decoding, and sampling from logits.

pub mod documents;
mod error;
pub mod pretokenize;
pub mod sampler;
pub mod train;

pub use error::{Error, Result};

//! `bpe_llama.Sampler`: the class, its arguments, and logits in `NumPy` arrays and tensors.

mod arguments;
mod class;
mod logits;
mod properties;

pub(crate) use class::PySampler;

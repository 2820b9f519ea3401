//! Samples token ids from logits: exact and reproducible, without sorting the vocabulary.
//!
//! A [`Sampler`] applies biases, bans, penalties, temperature, top-k, top-p, min-p and typical-p, in that order, and
//! draws from the result. Each filter applies to the renormalised result of the one before. Ties go to the lower id.
//! Temperature 0 is argmax. A [`Preset`] follows the order and the ties of another implementation instead.
//!
//! ```
//! use bpe_llama_sampler::{BatchOptions, Elements, LogitsView, Options, Sampler};
//!
//! let sampler = Sampler::new(Options { temperature: 0.8, top_p: 0.95, seed: 7, ..Options::default() })?;
//! let id = sampler.sample(&[0.1, 2.5, -1.0, 2.4])?;
//! assert!(id == 1 || id == 3);
//!
//! // A batch of two rows, and the distributions that they are sampled from.
//! let logits = LogitsView::contiguous(Elements::F32(&[0.0, 9.0, 0.0, 3.0, 3.0, -9.0]), 2, 3)?;
//! let (mut ids, mut probs) = ([0; 2], [0.0; 6]);
//! sampler.sample_batch(&logits, &BatchOptions::default(), &mut ids)?;
//! sampler.probs_batch(&logits, &BatchOptions::default(), &mut probs)?;
//! assert_eq!(ids[0], 1);
//! assert_eq!(probs, [0.0, 1.0, 0.0, 0.5, 0.5, 0.0]);
//! # Ok::<(), bpe_llama_sampler::Error>(())
//! ```
//!
//! # Design
//! **No sort.** Top-k, top-p and min-p keep a prefix of the ids in the order of falling logits: all logits above a
//! threshold and the lowest ids of those equal to it. Finding that threshold is a selection problem, which takes linear
//! time.
//!
//! **Threshold search.** The search starts from a bracket around the threshold, estimated from a sample of a long row
//! or from approximate sums over a short one. One pass adds the probabilities above the bracket and collects the few
//! logits inside. Bisection reduces them to a dozen, which are sorted. If the bracket was wrong, bisection continues
//! over the whole row.
//!
//! **Exact top-p.** Probabilities are float32. If their rounding errors could have moved the threshold of top-p, the
//! search is repeated in float64. A mass of at least p (1 - 2^-50) reaches p.
//!
//! **Reproducible.** The same seed, step and logits give the same id, whatever the batch, the number of threads or the
//! CPU:
//!
//! | source of differences | here |
//! |---|---|
//! | random numbers | a counter-based generator: [`uniform`]`(seed, step)` |
//! | `exp` | one fixed sequence of operations: [`bpe_llama_simd::exp`] |
//! | order of sums | sixteen lanes on every backend, added as a balanced tree |
//! | other rows of the batch | not used: all rows take the random number of the same step |
//!
//! # Modules
//! `sampler` and `batch` split a batch into rows. `row` applies `penalties` and `filters` to one row and draws from it.
//! The filters use the search in `threshold`, and all of them the vector passes in `simd`.
//!
//! # Sources
//! | method | source |
//! |---|---|
//! | top-k | Fan et al. 2018, arXiv:1805.04833 |
//! | top-p (nucleus) | Holtzman et al. 2020, arXiv:1904.09751 |
//! | min-p | Nguyen et al. 2024, arXiv:2407.01082 |
//! | typical-p | Meister et al. 2022, arXiv:2202.00666 |
//! | repetition penalty | Keskar et al. 2019, arXiv:1909.05858 |
//! | selection by a sampled bracket | Floyd and Rivest 1975, "Expected time bounds for selection" |
//! | `SplitMix64` | Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators" |

#![allow(clippy::float_cmp, reason = "a threshold is one of the row's logits, so ties are exact")]
#![allow(clippy::neg_cmp_op_on_partial_ord, reason = "`!(x < limit)` is how vector code catches NaN")]

#[macro_use]
mod error;

mod batch;
mod filters;
mod log_probs;
mod logits;
mod options;
mod penalties;
mod random;
mod row;
mod sampler;
mod scratch;
mod simd;
#[cfg(test)]
mod tests;
mod threshold;

pub use error::{Error, Interrupt, Result};
pub use log_probs::LogProbs;
pub use logits::{Elements, LogitsView};
pub use options::{Options, Preset};
pub use random::uniform;
pub use sampler::{BatchOptions, Sampler};

/// Tests the example of the crate's page on crates.io.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

//! What the tokenizer, the sampler and the CPU kernels share: CPU features, `exp`, prefetch, huge pages and scratch memory.
//!
//! | module | what it has |
//! |---|---|
//! | [`backend`] | [`Backend`]: the instruction sets of this CPU, detected at run time |
//! | [`exp`] | `exp` in float32 and float64 with the same bits on every CPU |
//! | [`prefetch`] | software prefetch |
//! | [`huge_pages`] | transparent huge pages for large tables |
//! | [`scratch`] | [`ScratchPool`]: buffers that threads reuse from call to call |
//!
//! This crate is the leaf of the workspace: it depends on none of the others.
//!
//! ```
//! use bpe_llama_simd::{Backend, exp::Scale};
//!
//! println!("this CPU runs the {:?} kernels", Backend::best().kind());
//! let scale = Scale::new(2.0, 1.0); // the highest logit, the temperature
//! let ratio = scale.weight(1.0) / scale.weight(2.0);
//! assert!((ratio - (-1.0f32).exp()).abs() < 1e-6);
//! ```

pub mod backend;
pub mod exp;
pub mod huge_pages;
pub mod prefetch;
pub mod scratch;

pub use backend::{Backend, Kind};
pub use scratch::ScratchPool;

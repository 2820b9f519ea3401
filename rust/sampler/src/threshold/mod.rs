//! The threshold search: finds the shortest prefix of a row, by falling logits, with a given count or mass.
//!
//! | file | what it has |
//! |---|---|
//! | `cutoff.rs` | [`Target`], the count or mass, and [`Cutoff`], the prefix |
//! | `bracket.rs` | estimates of a bracket around the threshold |
//! | `select.rs` | [`select()`]: the exact search from such a bracket |
//! | `midpoint.rs` | the step of its bisection |

mod bracket;
mod cutoff;
mod midpoint;
mod select;

pub(crate) use bracket::{Sample, bracket_from_sample, bracket_from_sums};
pub(crate) use cutoff::{Cutoff, Target};
pub(crate) use select::{Buffers, Search, Selection, select};

//! The threshold search: where a filter cuts off a row.
//!
//! | file | what it has |
//! |---|---|
//! | `cutoff.rs` | [`Target`] (how much to keep) and [`Cutoff`] (a threshold and how ties at it are broken) |
//! | `bracket.rs` | a first bracket around the threshold: from a sample of a long row, from approximate sums of a short one |
//! | `select.rs` | [`select`]: the exact search, which starts from that bracket |
//! | `midpoint.rs` | the bisection step, by value or by position among the floats |

mod bracket;
mod cutoff;
mod midpoint;
mod select;

pub(crate) use bracket::{Sample, bracket_from_sample, bracket_from_sums};
pub(crate) use cutoff::{Cutoff, Target};
pub(crate) use select::{Buffers, Search, Selection, select};

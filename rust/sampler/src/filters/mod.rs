//! The filters: each restricts what the one before it kept.
//!
//! Each file adds one filter as a method of [`Kept`], the ids kept so far.

mod kept;
mod min_p;
mod top_k;
mod top_p;
mod typical_p;

use crate::options::{Options, Preset};
use crate::scratch::Scratch;
use crate::simd::Extrema;
use crate::threshold::Cutoff;
use kept::Kept;

/// Returns what the filters keep of a row: a cutoff, the mass of the ids it keeps, and the logit of weight 1.
///
/// Leaves the row's weights in `scratch.weights`, and in `scratch.removed` the ids that are removed though the cutoff
/// keeps them.
pub(crate) fn apply_filters(
    row: &[f32],
    extrema: Extrema,
    options: &Options,
    scratch: &mut Scratch,
) -> (Cutoff, f64, f32) {
    let mut kept = Kept::all(row, extrema, options, scratch);
    kept.top_k(scratch);
    if options.preset == Preset::LlamaCpp {
        kept.typical_p(scratch);
        kept.top_p(scratch);
        kept.min_p(scratch);
        kept.apply_temperature(options.temperature, scratch);
    } else {
        kept.top_p(scratch);
        kept.min_p(scratch);
        kept.typical_p(scratch);
    }
    (kept.cutoff, kept.mass, kept.extrema.max)
}

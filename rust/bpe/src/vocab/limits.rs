//! Bounds on ids and ranks, and the values that mean "none".

use std::fmt::Display;

use crate::Result;

/// Ids and ranks are below this: two ids and a rank share 64 bits in the pair table.
pub(crate) const ID_BOUND: u32 = 1 << ID_BITS;
pub(super) const ID_BITS: u32 = 21;

/// The bits of a rank in the pair table.
pub(super) const RANK_BITS: u32 = 64 - 2 * ID_BITS;

/// The rank of a pair that does not merge.
pub(crate) const NO_RANK: u32 = (1 << RANK_BITS) - 1;

/// The entry for "no id" in arrays; no token has this id.
pub(crate) const NO_ID: u32 = u32::MAX;

/// Checks that an id is below [`ID_BOUND`]; `owner` is the token in the error.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if it is not.
pub(crate) fn check_id(owner: impl Display, id: u32) -> Result<()> {
    if id < ID_BOUND {
        return Ok(());
    }
    Err(invalid!("{owner} has id {id}: expected ids below {ID_BOUND}"))
}

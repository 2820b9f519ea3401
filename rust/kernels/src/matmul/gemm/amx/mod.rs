//! GEMM by AMX, the matrix unit of some Intel processors.
//!
//! `TDPBF16PS` multiplies bfloat16 and sums in float32. A float32 is the sum of three bfloat16 terms, so the product of two
//! numbers is a sum of products of their terms:
//!
//! | weights | terms | products | relative error of a product |
//! |---|---|---|---|
//! | bfloat16, int8 | 1 | 3 | 0 |
//! | int4 | 3 | 6 of 9 | 2^-25, below float32's rounding |
//!
//! An infinite number is no sum of terms and gives NaN. Subnormal numbers count as zero.
//!
//! Source: Henry, Tang and Heinecke 2019, arXiv:1904.06376.

#[cfg(test)]
mod emulated;
mod kernel;
mod terms;
mod tile_registers;

pub(crate) use kernel::run;
pub(crate) use terms::pack;

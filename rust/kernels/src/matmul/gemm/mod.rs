//! GEMM: products with more activation rows than GEMV takes.
//!
//! | file | instructions | weights | activations |
//! |---|---|---|---|
//! | `amx/` | AMX, `TDPBF16PS` | all but float32 | as three bfloat16 terms: exact |
//! | `avx512_bf16.rs` | AVX-512 BF16, `VDPBF16PS` | bfloat16 | rounded to bfloat16 |
//! | `tile.rs` | AVX-512 | packs activations, transposes tiles | |
//! | `widened.rs` | AVX2, NEON, baseline | all but int4, widened to float32 once | float32 |
//!
//! With AVX-512 alone, with float32 weights on AVX-512, and with int4 weights without AMX, such a product is several passes of
//! GEMV.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512_bf16;
#[cfg(target_arch = "x86_64")]
pub(crate) mod tile;
#[cfg(not(target_arch = "x86_64"))]
pub(crate) mod unavailable;
pub(crate) mod widened;
#[cfg(not(target_arch = "x86_64"))]
pub(crate) use unavailable as amx;
#[cfg(not(target_arch = "x86_64"))]
pub(crate) use unavailable as avx512_bf16;

//! GEMM: products with more activation rows than GEMV takes.
//!
//! | file | instructions | weights | activations |
//! |---|---|---|---|
//! | `amx/` | AMX, `TDPBF16PS` | all but float32 | as three bfloat16 terms: exact |
//! | `avx512_bf16.rs` | AVX-512 BF16, `VDPBF16PS` | bfloat16 | rounded to bfloat16 |
//! | `tile.rs` | AVX-512 | packs activations, transposes tiles | |
//! | `fma.rs` | AVX-512, AVX2, NEON, baseline | all but int4, widened to float32 | float32 |
//!
//! `fma.rs` multiplies float32 weights, and others without AMX or AVX-512 BF16, from 96 activation rows on with AVX-512 and
//! from 48 without. Fewer rows, and int4 weights without AMX, take several passes of GEMV.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512_bf16;
pub(crate) mod fma;
#[cfg(target_arch = "x86_64")]
pub(crate) mod tile;
#[cfg(not(target_arch = "x86_64"))]
pub(crate) mod unavailable;
#[cfg(not(target_arch = "x86_64"))]
pub(crate) use unavailable as amx;
#[cfg(not(target_arch = "x86_64"))]
pub(crate) use unavailable as avx512_bf16;

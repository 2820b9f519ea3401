//! [`F32x16`], a vector of 16 float32, and its backends.
//!
//! | backend | instruction set | registers that hold 16 float32 |
//! |---|---|---|
//! | [`Avx512`] | AVX-512 F, BW and VL | 32 |
//! | [`Avx2`] | AVX2 and FMA | 8 pairs |
//! | `Neon` | NEON | 8 quadruples |
//! | [`Portable`] | what the compiler targets: SSE2 on x86-64, NEON on arm64 | 8 |

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
mod vector;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub use neon::Neon;
pub use portable::Portable;
pub use vector::{CacheLine, F32x16, LANES, zero_padded};

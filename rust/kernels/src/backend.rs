//! The dispatch of matrix products: which instructions multiply how many activation rows.

use bpe_llama_simd::Backend;
#[cfg(target_arch = "x86_64")]
use bpe_llama_simd::{Tier, cpuid};
#[cfg(target_arch = "x86_64")]
use std::sync::LazyLock;

/// Activation rows that one pass of the GEMV micro-kernel multiplies with AVX-512. A product of more rows is a GEMM.
pub(crate) const GEMV_ROWS: usize = 8;
/// The same without AVX-512, whose registers are more and wider.
pub(crate) const GEMV_ROWS_WITHOUT_AVX512: usize = 6;
/// The same where AVX-512 has fewer than [`GEMV_ROWS`] rows left, and of four-bit weights without AVX-512.
pub(crate) const FEW_GEMV_ROWS: usize = 4;
/// Activation rows that one pass of AMX or AVX-512 BF16 multiplies: two tiles.
pub(crate) const GEMM_ROWS: usize = 32;

/// Whether `VDPBF16PS` is faster than float32 fused multiply-adds. On Intel's CPUs (Emerald Rapids measured) 32 rows take 1.3
/// times as long with it.
#[cfg(target_arch = "x86_64")]
static HAS_FAST_BF16: LazyLock<bool> = LazyLock::new(|| {
    let vendor = cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() != b"GenuineIntel"
});

/// The instructions that multiply more than [`GEMV_ROWS`] activation rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GemmBackend {
    /// Passes of the GEMV micro-kernel, or `gemm/fma.rs` for many rows: float32 fused multiply-adds, or integers for int4.
    Fma,
    /// AVX-512 BF16 for bfloat16 weights, [`GemmBackend::Fma`] for all others.
    Avx512Bf16,
    /// AMX for all weights but float32.
    Amx,
}

impl GemmBackend {
    /// Returns the fastest backend in use.
    pub(crate) fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if Tier::Amx.is_used() {
                return Self::Amx;
            }
            if Tier::Avx512Bf16.is_used() && *HAS_FAST_BF16 {
                return Self::Avx512Bf16;
            }
        }
        Self::Fma
    }
}

/// Returns whether [`matmul`](crate::matmul) multiplies more than 8 activation rows with AMX, by weights other than float32.
///
/// The CPU must have AMX for bfloat16, and the system must let this process use it.
pub fn has_amx() -> bool {
    GemmBackend::best() == GemmBackend::Amx
}

/// Returns whether [`matmul`](crate::matmul) multiplies more than 8 activation rows with bfloat16 weights by AVX-512 BF16.
///
/// False where [`has_amx`], which takes precedence, and on Intel's CPUs, where float32 is faster.
pub fn has_avx512_bf16() -> bool {
    GemmBackend::best() == GemmBackend::Avx512Bf16
}

/// Returns whether [`matmul`](crate::matmul) and [`attend`](crate::attend) use AVX-512.
pub fn has_avx512() -> bool {
    Backend::best().is_avx512()
}

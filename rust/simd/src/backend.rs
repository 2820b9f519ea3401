//! The instruction set that kernels are compiled for.

use crate::tier::Tier;

/// The instruction set that a kernel is compiled for. A value exists only if this process uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backend(Kind);

/// The instruction set of a [`Backend`], for a `match`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The baseline of the target: SSE2 on x86-64, NEON on arm64, by the compiler alone.
    Portable,
    /// NEON.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ and VL, and the features of `Avx2`.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Backend {
    /// Returns the fastest backend in use: that of this CPU, or of `BPE_LLAMA_SIMD` ([`Tier`]).
    pub fn best() -> Self {
        Self::available().next_back().unwrap_or(Self(Kind::Portable))
    }

    /// Returns every backend up to the fastest, the slowest first.
    pub fn available() -> impl DoubleEndedIterator<Item = Self> {
        [
            (Kind::Portable, Tier::Portable),
            #[cfg(target_arch = "aarch64")]
            (Kind::Neon, Tier::Neon),
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx2, Tier::Avx2),
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx512, Tier::Avx512),
        ]
        .into_iter()
        .filter_map(|(kind, tier)| tier.is_used().then_some(Self(kind)))
    }

    /// Returns the instruction set.
    pub fn kind(self) -> Kind {
        self.0
    }

    /// Returns whether the instruction set is AVX-512, with 32 registers of 16 float32.
    pub fn is_avx512(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.0 == Kind::Avx512;
        #[cfg(not(target_arch = "x86_64"))]
        return false;
    }
}

//! Which instruction set this CPU has.

/// The instruction set that a kernel is compiled for: only ever one that this CPU has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backend(Kind);

/// Which instruction set a [`Backend`] is, for a `match`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What every CPU of the target has: NEON on arm64, SSE2 on x86-64.
    Portable,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ and VL, and what `Avx2` has.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Backend {
    /// Returns the fastest backend of this CPU.
    pub fn best() -> Self {
        Self::available().next_back().unwrap_or(Self(Kind::Portable))
    }

    /// Returns every backend of this CPU, the slowest first.
    pub fn available() -> impl DoubleEndedIterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        [
            (Kind::Portable, true),
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx2, avx2),
            #[cfg(target_arch = "x86_64")]
            (
                Kind::Avx512,
                avx2 && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl"),
            ),
        ]
        .into_iter()
        .filter_map(|(kind, detected)| detected.then_some(Self(kind)))
    }

    /// Returns which one it is.
    pub fn kind(self) -> Kind {
        self.0
    }

    /// Returns whether it has 32 registers of 16 float32 each.
    pub fn has_wide_registers(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.0 == Kind::Avx512;
        #[cfg(not(target_arch = "x86_64"))]
        return false;
    }
}

/// Returns whether there is AVX2, and with it the instructions on single bits: BMI1, BMI2, LZCNT and POPCNT.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn has_avx2_and_bits() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("popcnt")
}

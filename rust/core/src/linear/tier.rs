//! Which instructions the kernels use.

/// A tier of instructions; only ever one this CPU has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tier(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// What every CPU of the target has: NEON on arm64, SSE2 on x86-64.
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Tier {
    /// Returns the fastest tier of this CPU.
    pub(super) fn best() -> Self {
        Self::available().next_back().unwrap_or(Self(Kind::Portable))
    }

    /// Returns every tier of this CPU, the slowest first.
    pub(super) fn available() -> impl DoubleEndedIterator<Item = Self> {
        [
            (Kind::Portable, true),
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx2, is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")),
            #[cfg(target_arch = "x86_64")]
            (
                Kind::Avx512,
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma"),
            ),
        ]
        .into_iter()
        .filter_map(|(kind, detected)| detected.then_some(Self(kind)))
    }

    pub(super) fn kind(self) -> Kind {
        self.0
    }
}

//! The CPU features that the crates dispatch on, detected at run time.

/// The instruction set that a kernel is compiled for. A value exists only if this CPU has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backend(Kind);

/// The instruction set of a [`Backend`], for a `match`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The baseline of the target: SSE2 on x86-64, NEON on arm64.
    Portable,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ and VL, and the features of `Avx2`.
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

/// Returns whether the CPU has AVX2 and the bit-manipulation instructions BMI1, BMI2, LZCNT and POPCNT.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn has_avx2_and_bits() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("popcnt")
}

/// Returns whether the CPU has AVX-512 BF16 and the AVX-512 backend.
pub fn has_avx512_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return Backend::best().is_avx512() && is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Returns whether the CPU has AMX for bfloat16 and the AVX-512 backend, and the system lets this process use AMX.
///
/// Linux alone is asked: a process requests the state of the tile registers before it uses them.
pub fn has_amx() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        use std::arch::x86_64::__cpuid_count;
        use std::sync::LazyLock;

        /// AMX-BF16 and AMX-TILE, in `edx` of CPUID leaf 7.
        const AMX: u32 = 1 << 22 | 1 << 24;
        /// Requests a part of the processor state.
        const ARCH_REQ_XCOMP_PERM: i32 = 0x1023;
        /// The state of the tile registers.
        const XFEATURE_XTILEDATA: i32 = 18;
        static HAS_AMX: LazyLock<bool> = LazyLock::new(|| {
            // SAFETY: the system call accesses no memory; a kernel or sandbox that does not know it returns an error.
            Backend::best().is_avx512()
                && __cpuid_count(7, 0).edx & AMX == AMX
                && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) } == 0
        });
        *HAS_AMX
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    false
}

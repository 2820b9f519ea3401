//! The tier of instructions that this process uses: the best of the CPU, or the tier that `BPE_LLAMA_SIMD` names.
//!
//! The variable is read once. It serves to measure how fast the crates are on an older CPU, and to test every tier on one
//! machine. It caps the kernels of these crates; dependencies, such as memchr, detect the CPU by themselves.

use std::fmt;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// The environment variable that caps the tier.
pub const VARIABLE: &str = "BPE_LLAMA_SIMD";

/// Returns a leaf of `CPUID`, its subleaf 0.
#[cfg(target_arch = "x86_64")]
pub fn cpuid(leaf: u32) -> std::arch::x86_64::CpuidResult {
    // SAFETY: every 64-bit x86 CPU has the instruction. Newer versions of Rust know that.
    #[allow(unused_unsafe)]
    unsafe {
        std::arch::x86_64::__cpuid_count(leaf, 0)
    }
}

/// A set of instructions. Each tier includes the tiers before it, except that [`Tier::Amx`] needs no AVX-512 BF16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// The baseline of the target: SSE2 on x86-64, NEON on arm64, where the compiler may use it but no intrinsics do.
    Portable,
    /// NEON.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// AVX2, FMA, BMI1, BMI2, LZCNT and POPCNT.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512 BF16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// AMX for bfloat16. CPUs with AMX have AVX-512 BF16 too, but only AVX-512 is checked.
    #[cfg(target_arch = "x86_64")]
    Amx,
}

/// Why `BPE_LLAMA_SIMD` is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TierError {
    /// No tier of this target has this name.
    Unknown(String),
    /// The CPU lacks the instructions of this tier.
    Missing(Tier),
}

impl Tier {
    /// All tiers of this target, the slowest first.
    pub const ALL: &[Self] = &[
        Self::Portable,
        #[cfg(target_arch = "aarch64")]
        Self::Neon,
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512Bf16,
        #[cfg(target_arch = "x86_64")]
        Self::Amx,
    ];

    /// Returns the name, as `BPE_LLAMA_SIMD` spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            #[cfg(target_arch = "aarch64")]
            Self::Neon => "neon",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => "avx512_bf16",
            #[cfg(target_arch = "x86_64")]
            Self::Amx => "amx",
        }
    }

    /// Returns the highest tier that this process uses.
    pub fn in_use() -> Self {
        Self::ALL.iter().copied().rev().find(|tier| tier.is_used()).unwrap_or(Self::Portable)
    }

    /// Returns the tiers of this CPU, the slowest first, whatever `BPE_LLAMA_SIMD` says.
    pub fn of_cpu() -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied().filter(|tier| tier.is_detected())
    }

    /// Returns whether this process uses the tier: the CPU has it, and the cap is not below it.
    ///
    /// # Panics
    /// If `BPE_LLAMA_SIMD` is refused. Call [`check`] first to get the error instead.
    #[inline(always)]
    pub fn is_used(self) -> bool {
        // The number of the highest tier below AMX that is used, plus one; 0 until it is detected.
        static KNOWN: AtomicU8 = AtomicU8::new(0);

        #[cold]
        fn detect() -> u8 {
            let cap = cap().unwrap_or_else(|error| panic!("{error}"));
            let below_amx = Tier::ALL.iter().filter(|tier| !tier.is_amx() && **tier <= cap);
            let best = below_amx.copied().rfind(|tier| tier.is_detected()).unwrap_or(Tier::Portable);
            KNOWN.store(best as u8 + 1, Ordering::Relaxed);
            best as u8 + 1
        }

        if self.is_amx() {
            return cap() == Ok(self) && self.is_detected();
        }
        let known = KNOWN.load(Ordering::Relaxed);
        let known = if known == 0 { detect() } else { known };
        (self as u8) < known
    }

    /// Returns whether the CPU has the tier and the tiers before it; for AMX see `HAS_AMX`.
    fn is_detected(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("bmi1")
                    && is_x86_feature_detected!("bmi2")
                    && is_x86_feature_detected!("lzcnt")
                    && is_x86_feature_detected!("popcnt")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_detected()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => Self::Avx512.is_detected() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "x86_64")]
            Self::Amx => *HAS_AMX,
        }
    }

    #[inline(always)]
    fn is_amx(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => true,
            _ => false,
        }
    }
}

/// Checks `BPE_LLAMA_SIMD`.
///
/// # Errors
/// If it names no tier of this target, or one that this CPU lacks.
pub fn check() -> Result<(), TierError> {
    cap().map(|_| ())
}

/// Returns the highest tier that `BPE_LLAMA_SIMD` allows; the last tier if the variable is not set or empty.
fn cap() -> Result<Tier, TierError> {
    static CAP: LazyLock<Result<Tier, TierError>> = LazyLock::new(|| match std::env::var_os(VARIABLE) {
        Some(name) if !name.is_empty() => parse(&name.to_string_lossy()),
        _ => Ok(*Tier::ALL.last().unwrap_or(&Tier::Portable)),
    });
    CAP.clone()
}

fn parse(name: &str) -> Result<Tier, TierError> {
    let found = Tier::ALL.iter().copied().find(|tier| tier.name() == name);
    let tier = found.ok_or_else(|| TierError::Unknown(name.to_owned()))?;
    if tier.is_detected() { Ok(tier) } else { Err(TierError::Missing(tier)) }
}

/// Whether the CPU has AMX for bfloat16 and AVX-512, and the system lets this process use AMX.
///
/// False on systems other than Linux. On Linux a process must request the state of the tile registers before it uses them.
#[cfg(target_arch = "x86_64")]
static HAS_AMX: LazyLock<bool> = LazyLock::new(|| {
    #[cfg(target_os = "linux")]
    {
        /// AMX-BF16 and AMX-TILE, in `edx` of CPUID leaf 7.
        const AMX: u32 = 1 << 22 | 1 << 24;
        /// Requests a part of the processor state.
        const ARCH_REQ_XCOMP_PERM: i32 = 0x1023;
        /// The state of the tile registers.
        const XFEATURE_XTILEDATA: i32 = 18;
        // SAFETY: the system call accesses no memory; a kernel or sandbox that does not know it returns an error.
        Tier::Avx512.is_detected()
            && cpuid(7).edx & AMX == AMX
            && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) } == 0
    }
    #[cfg(not(target_os = "linux"))]
    false
});

impl fmt::Display for TierError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (given, why) = match self {
            Self::Unknown(name) => (name.as_str(), "expected"),
            Self::Missing(tier) => (tier.name(), "which this CPU lacks; it has"),
        };
        let known = match self {
            Self::Unknown(_) => Tier::ALL.iter().map(|tier| tier.name()).collect::<Vec<_>>(),
            Self::Missing(_) => Tier::of_cpu().map(Tier::name).collect(),
        };
        write!(formatter, "{VARIABLE} is {given:?}, {why} {}", known.join(", "))
    }
}

impl std::error::Error for TierError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_of_the_cpu_include_those_before_them() {
        let tiers: Vec<_> = Tier::of_cpu().collect();
        assert_eq!(tiers[0], Tier::Portable);
        assert!(tiers.is_sorted());
        assert!(tiers.contains(&Tier::in_use()));
    }

    #[test]
    fn names_are_read_back_and_others_refused() {
        for tier in Tier::of_cpu() {
            assert_eq!(parse(tier.name()), Ok(tier));
        }
        assert_eq!(parse("sse9"), Err(TierError::Unknown("sse9".into())));
        assert!(
            TierError::Unknown("sse9".into())
                .to_string()
                .starts_with("BPE_LLAMA_SIMD is \"sse9\", expected portable, ")
        );
        for tier in Tier::ALL.iter().filter(|tier| !tier.is_detected()) {
            assert_eq!(parse(tier.name()), Err(TierError::Missing(*tier)));
            let shown = TierError::Missing(*tier).to_string();
            assert!(shown.contains("which this CPU lacks; it has portable"), "{shown}");
        }
    }
}

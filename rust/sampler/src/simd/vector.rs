//! The trait that every backend implements.

use bpe_llama_simd::f32x16::{F32x16, LANES};

/// What the passes need of a vector of sixteen float32 besides [`F32x16`].
///
/// The instructions named are those of AVX2.
///
/// # Safety
/// Each function needs the CPU features of its backend.
#[allow(clippy::missing_safety_doc, reason = "the trait states the one requirement of all functions")]
pub(super) trait Vector: F32x16 {
    /// A flag for each lane.
    type Mask: Copy;
    /// The number of flags seen.
    type Counts: Copy;
    /// A float64 sum for each lane.
    type Sums: Copy;

    /// Returns sixteen integers as the bits of the lanes. `VMOVDQU`.
    unsafe fn load_bits(from: &[u32; LANES]) -> Self;

    /// Returns the integers from `start` on as the bits of the lanes. `VPADDD`.
    unsafe fn indices_from(start: u32) -> Self;

    /// Returns `self - other`. `VSUBPS`.
    #[must_use]
    unsafe fn sub(self, other: Self) -> Self;

    /// Returns the greater value of each lane; any value where one is NaN. `VMAXPS`.
    #[must_use]
    unsafe fn max(self, other: Self) -> Self;

    /// Returns the smaller value of each lane; any value where one is NaN. `VMINPS`.
    #[must_use]
    unsafe fn min(self, other: Self) -> Self;

    /// Returns whether each lane is at least `limit`; false for NaN. `VCMPPS`.
    unsafe fn at_least(self, limit: Self) -> Self::Mask;

    /// Returns whether each lane is below `limit`; false for NaN. `VCMPPS`.
    unsafe fn below(self, limit: Self) -> Self::Mask;

    /// Returns no flag. `VXORPS`.
    unsafe fn no_flags() -> Self::Mask;

    /// Returns the flags that are set in either. `VORPS`.
    unsafe fn either(a: Self::Mask, b: Self::Mask) -> Self::Mask;

    /// Returns the flags that are set in both. `VANDPS`.
    unsafe fn both(a: Self::Mask, b: Self::Mask) -> Self::Mask;

    /// Returns the flags of `mask` that are not set in `other`. `VANDNPS`.
    unsafe fn and_not(mask: Self::Mask, other: Self::Mask) -> Self::Mask;

    /// Returns whether any flag is set. `VMOVMSKPS`.
    unsafe fn any(mask: Self::Mask) -> bool;

    /// Returns whether all flags are set. `VMOVMSKPS`.
    unsafe fn all(mask: Self::Mask) -> bool;

    /// Returns the lanes with a flag; 0 in the others. `VANDPS`.
    #[must_use]
    unsafe fn keep(self, mask: Self::Mask) -> Self;

    /// Returns `self + other` in the lanes with a flag, `self` in the others. `VANDPS`, `VADDPS`.
    #[must_use]
    unsafe fn add_where(self, mask: Self::Mask, other: Self) -> Self;

    /// Adds `(bits(rounded) - bias) << 23` to the bits of each lane. `VPSUBD`, `VPSLLD`, `VPADDD`.
    #[must_use]
    unsafe fn add_exponent(self, rounded: Self, bias: i32) -> Self;

    /// Returns counts of 0.
    unsafe fn no_counts() -> Self::Counts;

    /// Adds the number of flags. `VPSUBD`, as a flag is an integer of -1.
    unsafe fn count(counts: &mut Self::Counts, mask: Self::Mask);

    /// Returns the sum of all counts.
    unsafe fn total(counts: Self::Counts) -> usize;

    /// Returns a float64 sum of 0 for each lane.
    unsafe fn no_sums() -> Self::Sums;

    /// Adds each weight to the sum of its lane. `VCVTPS2PD`, `VADDPD`.
    unsafe fn add_to_sums(sums: &mut Self::Sums, weights: &[f32; LANES]);

    /// Adds the weights of the lanes with a flag. `VANDPS`, `VCVTPS2PD`, `VADDPD`.
    unsafe fn add_selected_to_sums(sums: &mut Self::Sums, mask: Self::Mask, weights: &[f32; LANES]);

    /// Returns the sums of the lanes.
    unsafe fn sums_of_lanes(sums: Self::Sums) -> [f64; LANES];

    /// Writes the lanes with a flag of each column next to each other, and returns their number.
    ///
    /// AVX2 looks the shuffle up in a table by the flags of eight lanes. `VMOVMSKPS`, `VPMOVZXBD`, `VPERMD`.
    ///
    /// # Safety
    /// Each target has room for sixteen elements, all of which may be overwritten.
    unsafe fn compress(mask: Self::Mask, columns: [Self; 3], to: [*mut u32; 3]) -> usize;
}

//! SIMD search: the smallest of some keys, and an entry by key, without unpredictable branches.

/// The entries of a bucket of the pair table.
pub(crate) const ENTRIES: usize = 8;

/// An instruction set that this CPU has.
pub(crate) trait SimdSearch: Copy {
    /// Returns the smallest key; their number is a multiple of 16.
    fn smallest<const KEYS: usize>(self, keys: &[i32; KEYS]) -> i32;

    /// Returns the entry with `entry >> SHIFT == key`, or all ones if there is none.
    fn find<const SHIFT: u32>(self, entries: &[u64; ENTRIES], key: u64) -> u64;
}

/// Plain loops over arrays, for every CPU: the safe twin of the others.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

impl SimdSearch for Portable {
    #[inline(always)]
    /// Returns the smallest key.
    fn smallest<const KEYS: usize>(self, keys: &[i32; KEYS]) -> i32 {
        keys.iter().fold(i32::MAX, |smallest, &key| smallest.min(key))
    }

    #[inline(always)]
    fn find<const SHIFT: u32>(self, entries: &[u64; ENTRIES], key: u64) -> u64 {
        entries.iter().fold(u64::MAX, |found, &entry| found & if entry >> SHIFT == key { entry } else { u64::MAX })
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    #[allow(clippy::wildcard_imports, reason = "the intrinsics are the language of this module")]
    use std::arch::x86_64::*;

    use bpe_llama_simd::Tier;

    use super::{ENTRIES, SimdSearch};

    /// AVX2 and the bit-manipulation instructions.
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Avx2(());

    impl Avx2 {
        #[inline(always)]
        pub(crate) fn detect() -> Option<Self> {
            Tier::Avx2.is_used().then_some(Self(()))
        }
    }

    impl SimdSearch for Avx2 {
        #[inline(always)]
        /// Returns the smallest key.
        fn smallest<const KEYS: usize>(self, keys: &[i32; KEYS]) -> i32 {
            // SAFETY: the vectors of the array are read, and the CPU has the instructions.
            unsafe {
                let mut eight = _mm256_set1_epi32(i32::MAX);
                for keys in keys.as_chunks::<8>().0 {
                    eight = _mm256_min_epi32(eight, _mm256_loadu_si256(keys.as_ptr().cast()));
                }
                let four = _mm_min_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
                let two = _mm_min_epi32(four, _mm_shuffle_epi32::<0b1110>(four));
                _mm_cvtsi128_si32(_mm_min_epi32(two, _mm_shuffle_epi32::<0b01>(two)))
            }
        }

        #[inline(always)]
        fn find<const SHIFT: u32>(self, entries: &[u64; ENTRIES], key: u64) -> u64 {
            // SAFETY: as above, of two vectors.
            unsafe {
                let low = _mm256_loadu_si256(entries.as_ptr().cast());
                let high = _mm256_loadu_si256(entries[4..].as_ptr().cast());
                let (key, shift) = (_mm256_set1_epi64x(key.cast_signed()), _mm_cvtsi32_si128(SHIFT.cast_signed()));
                let low = _mm256_andnot_si256(low, _mm256_cmpeq_epi64(_mm256_srl_epi64(low, shift), key));
                let high = _mm256_andnot_si256(high, _mm256_cmpeq_epi64(_mm256_srl_epi64(high, shift), key));
                // The complement of the entry that matches; zeros for all others.
                let four = _mm256_or_si256(low, high);
                let two = _mm_or_si128(_mm256_castsi256_si128(four), _mm256_extracti128_si256::<1>(four));
                let one = _mm_or_si128(two, _mm_unpackhi_epi64(two, two));
                !_mm_cvtsi128_si64(one).cast_unsigned()
            }
        }
    }

    /// AVX-512F and all of [`Avx2`].
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Avx512(());

    impl Avx512 {
        #[inline(always)]
        pub(crate) fn detect() -> Option<Self> {
            Tier::Avx512.is_used().then_some(Self(()))
        }
    }

    impl SimdSearch for Avx512 {
        #[inline(always)]
        /// Returns the smallest key.
        fn smallest<const KEYS: usize>(self, keys: &[i32; KEYS]) -> i32 {
            // SAFETY: the vectors of the array are read, and the CPU has the instructions.
            unsafe {
                let mut sixteen = _mm512_set1_epi32(i32::MAX);
                for keys in keys.as_chunks::<16>().0 {
                    sixteen = _mm512_min_epi32(sixteen, _mm512_loadu_epi32(keys.as_ptr()));
                }
                _mm512_reduce_min_epi32(sixteen)
            }
        }

        #[inline(always)]
        fn find<const SHIFT: u32>(self, entries: &[u64; ENTRIES], key: u64) -> u64 {
            // SAFETY: as above, of one vector.
            unsafe {
                let eight = _mm512_loadu_epi64(entries.as_ptr().cast());
                let keys = _mm512_srl_epi64(eight, _mm_cvtsi32_si128(SHIFT.cast_signed()));
                let is_here = _mm512_cmpeq_epi64_mask(keys, _mm512_set1_epi64(key.cast_signed()));
                let first = _mm512_mask_compress_epi64(_mm512_set1_epi64(-1), is_here, eight);
                _mm_cvtsi128_si64(_mm512_castsi512_si128(first)).cast_unsigned()
            }
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn assert_finds(search: impl SimdSearch, keys: &[i32; 64], entries: &[u64; ENTRIES], key: u64) {
        assert_eq!(search.smallest(keys), Portable.smallest(keys));
        for keys in keys.as_chunks::<16>().0 {
            assert_eq!(search.smallest(keys), Portable.smallest(keys));
        }
        assert_eq!(search.find::<22>(entries, key), Portable.find::<22>(entries, key));
    }

    proptest! {
        #[test]
        fn all_backends_find_the_same(
            keys in prop::collection::vec(any::<i32>(), 64),
            mut entries in prop::array::uniform8(any::<u64>()),
            at in 0..2 * ENTRIES,
            key in any::<u64>(),
        ) {
            let key = key >> 22;
            if let Some(entry) = entries.get_mut(at) {
                *entry = key << 22 | *entry & 0x3f_ffff;
            }
            let keys = keys.try_into().expect("as many");
            prop_assert_eq!(Portable.find::<22>(&entries, key), entries.get(at).copied().unwrap_or(u64::MAX));
            if let Some(avx2) = Avx2::detect() {
                assert_finds(avx2, &keys, &entries, key);
            }
            if let Some(avx512) = Avx512::detect() {
                assert_finds(avx512, &keys, &entries, key);
            }
        }
    }
}

//! Software prefetch of weights.

use bpe_llama_simd::prefetch::{prefetch, prefetch_l2};

/// How far ahead of their use weights are prefetched.
///
/// A micro-kernel reads several rows at a time, an access pattern that hardware prefetchers do not recognize.
#[derive(Clone, Copy)]
pub(crate) struct PrefetchDistance {
    bytes: usize,
    /// Whether to prefetch into the second-level cache, because the distance exceeds the first level.
    into_l2: bool,
    /// Passes over the same weights share the prefetches: each issues those of every `passes`th step.
    passes: usize,
    /// Steps before the next prefetch of this pass.
    skip: usize,
}

impl PrefetchDistance {
    /// No prefetch.
    #[cfg(target_arch = "x86_64")]
    pub(crate) const NONE: Self = Self { bytes: 0, into_l2: true, passes: 1, skip: usize::MAX };

    /// Returns the distance in the `pass`th of `passes` over the same chunk of weights: 8 KiB for one pass, the next chunk
    /// for several.
    pub(crate) fn of_pass(pass: usize, passes: usize, chunk_bytes: usize) -> Self {
        if passes > 1 {
            Self::next_chunk(pass, passes, chunk_bytes)
        } else {
            Self { bytes: 8192, into_l2: false, passes: 1, skip: 0 }
        }
    }

    /// Returns the distance of one chunk.
    pub(crate) fn next_chunk(pass: usize, passes: usize, chunk_bytes: usize) -> Self {
        Self { bytes: chunk_bytes, into_l2: true, passes, skip: pass }
    }

    /// Prefetches as many weights as a step of `R` rows reads.
    ///
    /// `step` counts the steps of `N` elements a row since `start`, where the first row begins.
    #[inline(always)]
    pub(crate) fn prefetch<T, const R: usize, const N: usize>(&mut self, weights: &[T], start: usize, step: usize) {
        if self.skip == 0 {
            let first = weights.as_ptr().wrapping_add(start + step * R * N).wrapping_byte_add(self.bytes);
            for line in 0..(R * N * size_of::<T>()).div_ceil(64) {
                let line = first.wrapping_byte_add(64 * line);
                if self.into_l2 { prefetch_l2(line) } else { prefetch(line) }
            }
            self.skip = self.passes;
        }
        self.skip -= 1;
    }
}

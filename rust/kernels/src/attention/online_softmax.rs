//! Online softmax of a block of queries, one SIMD lane a query.
//!
//! Source: Milakov and Gimelshein 2018, arXiv:1805.02867.

use bpe_llama_simd::exp::POLYNOMIAL;
use bpe_llama_simd::f32x16::CacheLine;
use std::arch::x86_64::*;

/// The running maximum of the scores of `T` tiles of queries, and the running sum of their weights relative to it.
pub(super) struct OnlineSoftmax<const T: usize> {
    /// `log2(e) / temperature`.
    factor: __m512,
    maximum: [__m512; T],
    sum: [__m512; T],
}

impl<const T: usize> OnlineSoftmax<T> {
    /// Returns the state before the first key.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, as for the other functions.
    #[inline(always)]
    pub(super) unsafe fn new(temperature: f64) -> Self {
        let factor = std::f64::consts::LOG2_E / temperature;
        // SAFETY: the caller's promise.
        unsafe {
            let (lowest, zero) = (_mm512_set1_ps(f32::MIN), _mm512_setzero_ps());
            Self { factor: _mm512_set1_ps(factor as f32), maximum: [lowest; T], sum: [zero; T] }
        }
    }

    /// Replaces the scores of the first `count` keys by weights relative to the new running maximum.
    ///
    /// Row `i` then holds the weights of keys `2 i` and `2 i + 1` as pairs of bfloat16. Returns the factor that rescales
    /// earlier outputs to the new maximum.
    #[inline(always)]
    pub(super) unsafe fn weights<const N: usize>(
        &mut self,
        scores: &mut [[CacheLine; N]; T],
        count: usize,
    ) -> [__m512; T] {
        // SAFETY: the caller's promise.
        unsafe {
            let mut rescale = self.maximum;
            for tile in 0..T {
                let mut maximum = self.maximum[tile];
                let scores = &mut scores[tile];
                for scores in &scores[..count] {
                    // VMAXPS returns its second operand if one is NaN, so NaN does not become the maximum.
                    maximum = _mm512_max_ps(_mm512_load_ps(scores.0.as_ptr()), maximum);
                }
                rescale[tile] = self.weight(self.maximum[tile], maximum);
                let mut sum = _mm512_mul_ps(self.sum[tile], rescale[tile]);
                for pair in 0..count.div_ceil(2) {
                    let first = self.weight(_mm512_load_ps(scores[2 * pair].0.as_ptr()), maximum);
                    let second = if 2 * pair + 1 < count {
                        self.weight(_mm512_load_ps(scores[2 * pair + 1].0.as_ptr()), maximum)
                    } else {
                        _mm512_setzero_ps()
                    };
                    sum = _mm512_add_ps(sum, _mm512_add_ps(first, second));
                    // Ties round away from zero, as weights are not negative; NaN stays NaN.
                    let [first, second] = [first, second]
                        .map(|weight| _mm512_add_epi32(_mm512_castps_si512(weight), _mm512_set1_epi32(1 << 15)));
                    let high = _mm512_and_si512(second, _mm512_set1_epi32(-1 << 16));
                    let weights = _mm512_or_si512(high, _mm512_srli_epi32::<16>(first));
                    _mm512_store_si512(scores[pair].0.as_mut_ptr().cast(), weights);
                }
                self.sum[tile] = sum;
                self.maximum[tile] = maximum;
            }
            rescale
        }
    }

    /// Returns `2^((score - maximum) * factor)`; NaN stays NaN.
    #[inline(always)]
    unsafe fn weight(&self, scores: __m512, maximum: __m512) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let exponent = _mm512_mul_ps(_mm512_sub_ps(scores, maximum), self.factor);
            let exponent = _mm512_max_ps(_mm512_set1_ps(-150.0), exponent); // 2^-150 rounds to 0
            let whole = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(exponent);
            let rest = _mm512_sub_ps(exponent, whole);
            let mut power = _mm512_set1_ps(POLYNOMIAL[0]);
            for index in 1..POLYNOMIAL.len() {
                power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(POLYNOMIAL[index]));
            }
            _mm512_scalef_ps(_mm512_fmadd_ps(power, rest, _mm512_set1_ps(1.0)), whole)
        }
    }

    /// Returns the factor that normalizes the output of each query of a tile: 1 / the sum of its weights.
    #[inline(always)]
    pub(super) unsafe fn normalizer(&self, tile: usize) -> CacheLine {
        let mut normalizer = CacheLine::ZERO;
        // SAFETY: the caller's promise.
        unsafe {
            _mm512_store_ps(normalizer.0.as_mut_ptr(), _mm512_div_ps(_mm512_set1_ps(1.0), self.sum[tile]));
        }
        normalizer
    }
}

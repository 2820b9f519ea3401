//! The one float32 pass of `passes.rs` that the compiler does not vectorize for AVX2.

use super::lanes::{Cumulative, LANES, tree_sum};
use std::arch::x86_64::{
    _CMP_GE_OQ, _mm256_add_pd, _mm256_and_ps, _mm256_castps256_ps128, _mm256_cmp_ps, _mm256_cvtps_pd,
    _mm256_extractf128_ps, _mm256_loadu_ps, _mm256_movemask_ps, _mm256_set1_ps, _mm256_setzero_pd, _mm256_storeu_pd,
};

#[target_feature(enable = "avx2,popcnt")]
pub(crate) fn cumulative(row: &[f32], weights: &[f32], threshold: f32) -> Cumulative {
    let limit = _mm256_set1_ps(threshold);
    let mut quarters = [_mm256_setzero_pd(); 4];
    let mut count = 0;
    let (chunks, tail) = row.as_chunks::<LANES>();
    let (weight_chunks, weight_tail) = weights.as_chunks::<LANES>();
    for (chunk, weight) in chunks.iter().zip(weight_chunks) {
        for half in 0..2 {
            // SAFETY: each load reads one half, eight floats, of a chunk of sixteen.
            let (values, weight) = unsafe {
                (_mm256_loadu_ps(chunk.as_ptr().add(8 * half)), _mm256_loadu_ps(weight.as_ptr().add(8 * half)))
            };
            let selected = _mm256_cmp_ps::<_CMP_GE_OQ>(values, limit);
            count += _mm256_movemask_ps(selected).count_ones() as usize;
            let masked = _mm256_and_ps(selected, weight);
            let (low, high) = (_mm256_castps256_ps128(masked), _mm256_extractf128_ps::<1>(masked));
            quarters[2 * half] = _mm256_add_pd(quarters[2 * half], _mm256_cvtps_pd(low));
            quarters[2 * half + 1] = _mm256_add_pd(quarters[2 * half + 1], _mm256_cvtps_pd(high));
        }
    }
    let mut sums = [0f64; LANES];
    for (quarter, lanes) in quarters.iter().zip(sums.as_chunks_mut::<4>().0) {
        // SAFETY: `lanes` has room for the four doubles that are written.
        unsafe { _mm256_storeu_pd(lanes.as_mut_ptr(), *quarter) };
    }
    for (lane, (&value, &weight)) in tail.iter().zip(weight_tail).enumerate() {
        if value >= threshold {
            count += 1;
            sums[lane] += f64::from(weight);
        }
    }
    Cumulative { count, mass: tree_sum(sums) }
}

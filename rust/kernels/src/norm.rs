//! `rms_norm`: `RMSNorm` in place, of whole rows or of the heads in them.

use crate::{Error, Result, thread_pool};
use bpe_llama_simd::f32x16::{F32x16, LANES, Portable};
use bpe_llama_simd::{Backend, Kind, bf16};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Elements that are worth another thread.
const ELEMENTS_PER_THREAD: usize = 1 << 15;

/// The weights of an `RMSNorm`, one for each feature.
#[derive(Debug, Clone, Copy)]
pub enum NormWeights<'a> {
    /// Float32.
    F32(&'a [f32]),
    /// The bits of bfloat16.
    Bf16(&'a [u16]),
}

impl NormWeights<'_> {
    pub(crate) fn len(self) -> usize {
        match self {
            Self::F32(weights) => weights.len(),
            Self::Bf16(weights) => weights.len(),
        }
    }
}

/// Replaces some columns of each row by `x / sqrt(mean(x^2) + eps) * weights`, in groups of as many columns as there are
/// weights: the heads of queries or keys, or all columns at once.
///
/// # Arguments
/// `rows` are `(M, width)`. Up to `threads` threads take part; the result depends neither on them nor on other rows.
///
/// # Errors
/// [`Error::InvalidArgument`] if shapes do not fit.
///
/// # Source
/// Zhang and Sennrich 2019, arXiv:1910.07467; of heads: Dehghani et al. 2023, arXiv:2302.05442, section 2.
pub fn rms_norm(
    rows: &mut [f32],
    width: usize,
    columns: Range<usize>,
    weights: NormWeights<'_>,
    eps: f32,
    threads: usize,
) -> Result<()> {
    rms_norm_with(Backend::best(), rows, width, columns, weights, eps, threads)
}

fn rms_norm_with(
    backend: Backend,
    rows: &mut [f32],
    width: usize,
    columns: Range<usize>,
    weights: NormWeights<'_>,
    eps: f32,
    threads: usize,
) -> Result<()> {
    let size = weights.len();
    let whole_groups = size > 0 && columns.start <= columns.end && columns.len().is_multiple_of(size);
    if width == 0 || columns.end > width || !rows.len().is_multiple_of(width) || !whole_groups {
        return Err(Error::InvalidArgument(format!(
            "{size} weights for columns {} to {} of {} elements in rows of {width}; expected whole groups of columns",
            columns.start,
            columns.end,
            rows.len(),
        )));
    }
    let count = rows.len() / width;
    let threads = threads.min(count * columns.len() / ELEMENTS_PER_THREAD + 1);
    let parts = Mutex::new(rows.chunks_mut(count.div_ceil(threads).max(1) * width));
    thread_pool::run(threads, &|| {
        loop {
            let Some(part) = parts.lock().unwrap_or_else(PoisonError::into_inner).next() else { break };
            match backend.kind() {
                Kind::Portable => normalize(part, width, &columns, weights, eps),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: a `Backend` exists only if the CPU has it; AVX-512's includes AVX2's.
                Kind::Avx2 | Kind::Avx512 => unsafe { normalize_avx2(part, width, &columns, weights, eps) },
            }
        }
    });
    Ok(())
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn normalize_avx2(rows: &mut [f32], width: usize, columns: &Range<usize>, weights: NormWeights<'_>, eps: f32) {
    normalize(rows, width, columns, weights, eps);
}

#[inline(always)]
fn normalize(rows: &mut [f32], width: usize, columns: &Range<usize>, weights: NormWeights<'_>, eps: f32) {
    for row in rows.chunks_exact_mut(width) {
        for group in row[columns.clone()].chunks_exact_mut(weights.len()) {
            let scale = inverse_root_mean_square(group, eps);
            write_scaled(group.iter_mut().map(|x| (*x, x)), scale, weights);
        }
    }
}

/// Returns `1 / sqrt(mean(x^2) + eps)`; every backend computes the same bits.
#[inline(always)]
pub(crate) fn inverse_root_mean_square(x: &[f32], eps: f32) -> f32 {
    1.0 / (sum_of_squares(x) / x.len() as f32 + eps).sqrt()
}

/// Writes each element, times `scale` and times its weight, to the place beside it.
#[inline(always)]
pub(crate) fn write_scaled<'x>(
    elements: impl Iterator<Item = (f32, &'x mut f32)>,
    scale: f32,
    weights: NormWeights<'_>,
) {
    match weights {
        NormWeights::F32(weights) => {
            for ((x, out), weight) in elements.zip(weights) {
                *out = x * scale * weight;
            }
        }
        NormWeights::Bf16(weights) => {
            for ((x, out), weight) in elements.zip(weights) {
                *out = x * scale * bf16::to_f32(*weight);
            }
        }
    }
}

#[inline(always)]
fn sum_of_squares(x: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] = chunk[lane].mul_add(chunk[lane], sums[lane]);
        }
    }
    for (sum, x) in sums.iter_mut().zip(tail) {
        *sum = x.mul_add(*x, *sum);
    }
    // SAFETY: the portable backend needs no CPU feature.
    unsafe { Portable::load(&sums).sum() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that fails")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_backend_agrees_with_the_definition_and_gives_the_same_bits(
            size in prop_oneof![Just(64), Just(128), 1_usize..70],
            groups in 0_usize..5,
            before in 0_usize..9,
            after in 1_usize..9,
            count in prop_oneof![Just(1), Just(300), 0_usize..5],
            is_bf16 in any::<bool>(),
            seed in 1_u32..9999,
        ) {
            let (columns, width) = (before..before + groups * size, before + groups * size + after);
            let numbers = |count: usize, seed: u32| -> Vec<f32> {
                (0..count as u32).map(|i| (i.wrapping_mul(2_654_435_761) ^ seed) as f32 / (1_u64 << 31) as f32 - 1.0).collect()
            };
            let (rows, wide) = (numbers(count * width, seed), numbers(size, seed + 1));
            let narrow: Vec<u16> = wide.iter().copied().map(bf16::from_f32).collect();
            let weights = if is_bf16 { NormWeights::Bf16(&narrow) } else { NormWeights::F32(&wide) };
            let mut first: Option<Vec<u32>> = None;
            for backend in Backend::available() {
                for threads in [1, 3] {
                    let mut found = rows.clone();
                    rms_norm_with(backend, &mut found, width, columns.clone(), weights, 1e-3, threads).unwrap();
                    for (found, row) in found.chunks(width).zip(rows.chunks(width)) {
                        for at in 0..width {
                            let mut exact = f64::from(row[at]);
                            if columns.contains(&at) {
                                let at = at - before;
                                let group = &row[before + at / size * size..][..size];
                                let mean = group.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / size as f64;
                                let weight = if is_bf16 { bf16::to_f32(narrow[at % size]) } else { wide[at % size] };
                                exact = exact / (mean + 1e-3).sqrt() * f64::from(weight);
                            }
                            prop_assert!((f64::from(found[at]) - exact).abs() < 1e-5);
                        }
                    }
                    let bits: Vec<u32> = found.iter().map(|x| x.to_bits()).collect();
                    prop_assert!(*first.get_or_insert_with(|| bits.clone()) == bits);
                }
            }
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_named() {
        let refused = |elements: usize, width, columns, size: usize| {
            let weights = vec![1.0; size];
            let error = rms_norm(&mut vec![0.0; elements], width, columns, NormWeights::F32(&weights), 0.0, 1);
            error.unwrap_err().to_string()
        };
        assert!(refused(6, 6, 0..4, 3).contains("3 weights for columns 0 to 4 of 6 elements in rows of 6"));
        assert!(refused(6, 6, 0..8, 4).contains("columns 0 to 8"));
        assert!(refused(7, 6, 0..4, 4).contains("7 elements"));
        assert!(refused(0, 0, 0..0, 1).contains("rows of 0"));
        assert!(refused(6, 6, 0..4, 0).contains("0 weights"));
        #[allow(clippy::reversed_empty_ranges, reason = "refused")]
        let reversed = refused(6, 6, 4..2, 1);
        assert!(reversed.contains("columns 4 to 2"));
    }
}

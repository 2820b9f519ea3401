//! `normalize`: `RMSNorm` or `LayerNorm` in place, of whole rows or of the heads in them.

use crate::{Error, Result, thread_pool};
use bpe_llama_simd::f32x16::{F32x16, LANES, Portable};
use bpe_llama_simd::{Backend, Kind, bf16};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Elements that are worth another thread.
const ELEMENTS_PER_THREAD: usize = 1 << 15;

/// A norm, and its weights for each feature.
#[derive(Debug, Clone, Copy)]
pub enum NormWeights<'a> {
    /// `RMSNorm`: factors, float32.
    F32(&'a [f32]),
    /// `RMSNorm`: the bits of bfloat16 factors.
    Bf16(&'a [u16]),
    /// `LayerNorm`: a factor, and a bias that is added last.
    Layer(&'a [[f32; 2]]),
}

impl NormWeights<'_> {
    pub(crate) fn len(self) -> usize {
        match self {
            Self::F32(weights) => weights.len(),
            Self::Bf16(weights) => weights.len(),
            Self::Layer(weights) => weights.len(),
        }
    }
}

/// Normalizes some columns of each row, in groups of as many columns as there are weights: the heads of queries or keys, or
/// all columns at once.
///
/// `RMSNorm` is `x / sqrt(mean(x^2) + eps) * factors`. `LayerNorm` subtracts the mean first, and adds the biases last.
///
/// # Arguments
/// `rows` are `(M, width)`. Up to `threads` threads take part; the result depends neither on them nor on other rows.
///
/// # Errors
/// [`Error::InvalidArgument`] if shapes do not fit.
///
/// # Source
/// Zhang and Sennrich 2019, arXiv:1910.07467; Ba et al. 2016, arXiv:1607.06450; of heads: Dehghani et al. 2023,
/// arXiv:2302.05442, section 2.
pub fn normalize(
    rows: &mut [f32],
    width: usize,
    columns: Range<usize>,
    weights: NormWeights<'_>,
    eps: f32,
    threads: usize,
) -> Result<()> {
    normalize_with(Backend::best(), rows, width, columns, weights, eps, threads)
}

fn normalize_with(
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
                Kind::Portable => normalize_rows(part, width, &columns, weights, eps),
                #[cfg(target_arch = "aarch64")]
                Kind::Neon => normalize_rows(part, width, &columns, weights, eps),
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
    normalize_rows(rows, width, columns, weights, eps);
}

#[inline(always)]
fn normalize_rows(rows: &mut [f32], width: usize, columns: &Range<usize>, weights: NormWeights<'_>, eps: f32) {
    for row in rows.chunks_exact_mut(width) {
        for group in row[columns.clone()].chunks_exact_mut(weights.len()) {
            let statistics = Statistics::of(group, weights, eps);
            write_normalized(group.iter_mut().map(|x| (*x, x)), statistics, weights);
        }
    }
}

/// What a norm computes from a vector first; every backend computes the same bits.
#[derive(Clone, Copy)]
pub(crate) struct Statistics {
    /// The mean of `LayerNorm`; 0 for `RMSNorm`.
    mean: f32,
    /// `1 / sqrt(mean((x - self.mean)^2) + eps)`.
    pub(crate) scale: f32,
}

impl Statistics {
    #[inline(always)]
    pub(crate) fn of(x: &[f32], weights: NormWeights<'_>, eps: f32) -> Self {
        let size = x.len() as f32;
        let (mean, squares) = if let NormWeights::Layer(_) = weights {
            let mean = sum(x, |sum, x| sum + x) / size;
            (mean, sum(x, |sum, x| (x - mean).mul_add(x - mean, sum)))
        } else {
            (0.0, sum(x, |sum, x| x.mul_add(x, sum)))
        };
        Self { mean, scale: 1.0 / (squares / size + eps).sqrt() }
    }
}

/// Writes each element, normalized, to the place beside it.
#[inline(always)]
pub(crate) fn write_normalized<'x>(
    elements: impl Iterator<Item = (f32, &'x mut f32)>,
    Statistics { mean, scale }: Statistics,
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
        NormWeights::Layer(weights) => {
            for ((x, out), [factor, bias]) in elements.zip(weights) {
                *out = ((x - mean) * scale).mul_add(*factor, *bias);
            }
        }
    }
}

/// Adds up the elements by `add`, in as many sums as there are lanes.
#[inline(always)]
fn sum(x: &[f32], add: impl Fn(f32, f32) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] = add(sums[lane], chunk[lane]);
        }
    }
    for (sum, x) in sums.iter_mut().zip(tail) {
        *sum = add(*sum, *x);
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
            form in 0..3,
            seed in 1_u32..9999,
        ) {
            let (columns, width) = (before..before + groups * size, before + groups * size + after);
            let numbers = |count: usize, seed: u32| -> Vec<f32> {
                (0..count as u32).map(|i| (i.wrapping_mul(2_654_435_761) ^ seed) as f32 / (1_u64 << 31) as f32 - 1.0).collect()
            };
            let (rows, wide, bias) = (numbers(count * width, seed), numbers(size, seed + 1), numbers(size, seed + 2));
            let narrow: Vec<u16> = wide.iter().copied().map(bf16::from_f32).collect();
            let pairs: Vec<[f32; 2]> = wide.iter().zip(&bias).map(|(factor, bias)| [*factor, *bias]).collect();
            let weights = match form {
                0 => NormWeights::F32(&wide),
                1 => NormWeights::Bf16(&narrow),
                _ => NormWeights::Layer(&pairs),
            };
            let mut first: Option<Vec<u32>> = None;
            for backend in Backend::available() {
                for threads in [1, 3] {
                    let mut found = rows.clone();
                    normalize_with(backend, &mut found, width, columns.clone(), weights, 1e-3, threads).unwrap();
                    for (found, row) in found.chunks(width).zip(rows.chunks(width)) {
                        for at in 0..width {
                            let mut exact = f64::from(row[at]);
                            if columns.contains(&at) {
                                let at = at - before;
                                let group = &row[before + at / size * size..][..size];
                                let mean_of = |numbers: &dyn Fn(f64) -> f64| {
                                    group.iter().map(|x| numbers(f64::from(*x))).sum::<f64>() / size as f64
                                };
                                let mean = if form == 2 { mean_of(&|x| x) } else { 0.0 };
                                let weight = if form == 1 { bf16::to_f32(narrow[at % size]) } else { wide[at % size] };
                                let scale = 1.0 / (mean_of(&|x| (x - mean).powi(2)) + 1e-3).sqrt();
                                exact = (exact - mean) * scale * f64::from(weight);
                                exact += if form == 2 { f64::from(bias[at % size]) } else { 0.0 };
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
            let error = normalize(&mut vec![0.0; elements], width, columns, NormWeights::F32(&weights), 0.0, 1);
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

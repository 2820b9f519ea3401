//! The float32 passes of `passes.rs` in AVX-512 intrinsics: the compiler prefers 256-bit vectors.

use super::lanes::{Candidates, Cumulative, Extrema, LANES, WIDE_LANES, tree_sum};
use bpe_llama_simd::exp::{MAGIC, POLYNOMIAL, Scale};
#[allow(clippy::wildcard_imports, reason = "the intrinsics are the language of this file")]
use std::arch::x86_64::*;

#[inline]
#[target_feature(enable = "avx512f")]
fn load(chunk: &[f32; LANES]) -> __m512 {
    // SAFETY: the chunk has the sixteen floats that are read.
    unsafe { _mm512_loadu_ps(chunk.as_ptr()) }
}

/// Returns the tail as a full vector, its missing lanes set to `filler`.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_tail(tail: &[f32], filler: f32) -> __m512 {
    let mut chunk = [filler; LANES];
    chunk[..tail.len()].copy_from_slice(tail);
    load(&chunk)
}

/// One float64 sum per lane.
#[derive(Clone, Copy)]
struct Sums(__m512d, __m512d);

impl Sums {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new() -> Self {
        Self(_mm512_setzero_pd(), _mm512_setzero_pd())
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    fn add(&mut self, weights: __m512) {
        self.0 = _mm512_add_pd(self.0, _mm512_cvtps_pd(_mm512_castps512_ps256(weights)));
        self.1 = _mm512_add_pd(self.1, _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(weights)));
    }

    /// Adds the weights of the lanes in `mask` from memory, where the conversion needs no shuffle.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn add_masked(&mut self, mask: __mmask16, weights: &[f32; LANES]) {
        // SAFETY: each load reads one half, eight floats, of sixteen.
        let (low, high) =
            unsafe { (_mm256_loadu_ps(weights.as_ptr()), _mm256_loadu_ps(weights.as_ptr().add(LANES / 2))) };
        self.0 = _mm512_mask_add_pd(self.0, mask as __mmask8, self.0, _mm512_cvtps_pd(low));
        self.1 = _mm512_mask_add_pd(self.1, (mask >> 8) as __mmask8, self.1, _mm512_cvtps_pd(high));
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn tree_sum(self) -> f64 {
        let mut lanes = [0f64; LANES];
        // SAFETY: `lanes` has room for the sixteen doubles that are written.
        unsafe {
            _mm512_storeu_pd(lanes.as_mut_ptr(), self.0);
            _mm512_storeu_pd(lanes.as_mut_ptr().add(8), self.1);
        }
        tree_sum(lanes)
    }
}

#[target_feature(enable = "avx512f,avx512dq")]
pub(crate) fn extrema(row: &[f32]) -> Extrema {
    let infinity = _mm512_set1_ps(f32::INFINITY);
    // Two accumulators hide the latency of the maximum.
    let mut max = [_mm512_set1_ps(f32::NEG_INFINITY); 2];
    let mut min = [infinity; 2];
    let mut valid = 0xffff;
    let mut add = |half: usize, values: __m512| {
        max[half] = _mm512_max_ps(max[half], values);
        min[half] = _mm512_min_ps(min[half], values);
        valid &= _mm512_cmp_ps_mask::<_CMP_LT_OQ>(values, infinity);
    };
    let (chunks, tail) = row.as_chunks::<LANES>();
    let (pairs, last) = chunks.as_chunks::<2>();
    for pair in pairs {
        add(0, load(&pair[0]));
        add(1, load(&pair[1]));
    }
    for chunk in last {
        add(0, load(chunk));
    }
    if !tail.is_empty() {
        // Repeating the last value changes neither extremum.
        add(0, load_tail(tail, tail[tail.len() - 1]));
    }
    Extrema {
        max: _mm512_reduce_max_ps(_mm512_max_ps(max[0], max[1])),
        min: _mm512_reduce_min_ps(_mm512_min_ps(min[0], min[1])),
        valid: valid == 0xffff,
    }
}

#[target_feature(enable = "avx512f,avx512dq")]
pub(crate) fn compute_weights(row: &[f32], scale: &Scale, weights: &mut [f32]) -> f64 {
    let mut sums = Sums::new();
    let (chunks, tail) = row.as_chunks::<LANES>();
    let (weight_chunks, weight_tail) = weights.as_chunks_mut::<LANES>();
    // A block of weights is stored first and then read back: see `add_masked`.
    for (chunks, outs) in chunks.chunks(LANES).zip(weight_chunks.chunks_mut(LANES)) {
        for (chunk, out) in chunks.iter().zip(outs.iter_mut()) {
            // SAFETY: the target has room for the sixteen floats that are written.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), weight(load(chunk), scale)) };
        }
        for out in outs {
            sums.add_masked(0xffff, out);
        }
    }
    let weight = weight(load_tail(tail, f32::NEG_INFINITY), scale);
    sums.add(weight);
    let mut out = [0f32; LANES];
    // SAFETY: the target has room for the sixteen floats that are written.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), weight) };
    weight_tail[..tail.len()].copy_from_slice(&out[..tail.len()]);
    sums.tree_sum()
}

/// Returns [`Scale::weight`] of sixteen logits.
#[inline]
#[target_feature(enable = "avx512f")]
fn weight(logits: __m512, scale: &Scale) -> __m512 {
    let magic = _mm512_set1_ps(MAGIC);
    let factor = _mm512_set1_ps(scale.factor);
    let x = _mm512_sub_ps(logits, _mm512_set1_ps(scale.shift));
    let rounded = _mm512_fmadd_ps(x, factor, magic);
    let r = _mm512_fmadd_ps(x, factor, _mm512_sub_ps(magic, rounded));
    let r = _mm512_fmadd_ps(x, _mm512_set1_ps(scale.factor_low), r);
    let mut q = _mm512_set1_ps(POLYNOMIAL[0]);
    for coefficient in &POLYNOMIAL[1..] {
        q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(*coefficient));
    }
    let power = _mm512_castps_si512(_mm512_fmadd_ps(q, r, _mm512_set1_ps(1.0)));
    let exponent = _mm512_sub_epi32(_mm512_castps_si512(rounded), _mm512_set1_epi32(scale.exponent));
    let nonzero = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(rounded, _mm512_set1_ps(scale.lowest));
    let weight = _mm512_maskz_add_epi32(nonzero, power, _mm512_slli_epi32::<23>(exponent));
    _mm512_castsi512_ps(weight)
}

#[target_feature(enable = "avx512f,avx512dq,popcnt")]
pub(crate) fn cumulative(row: &[f32], weights: &[f32], threshold: f32) -> Cumulative {
    let limit = _mm512_set1_ps(threshold);
    let mut sums = Sums::new();
    let mut count = 0;
    let (chunks, tail) = row.as_chunks::<LANES>();
    let (weight_chunks, weight_tail) = weights.as_chunks::<LANES>();
    for (chunk, weight) in chunks.iter().zip(weight_chunks) {
        let selected = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(load(chunk), limit);
        count += selected.count_ones() as usize;
        sums.add_masked(selected, weight);
    }
    if !tail.is_empty() {
        let selected = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(load_tail(tail, f32::NAN), limit);
        count += selected.count_ones() as usize;
        sums.add(_mm512_maskz_mov_ps(selected, load_tail(&weight_tail[..tail.len()], 0.0)));
    }
    Cumulative { count, mass: sums.tree_sum() }
}

#[target_feature(enable = "avx512f,popcnt")]
pub(crate) fn approximate_cumulative(row: &[f32], weights: &[f32], threshold: f32) -> (usize, f32) {
    let limit = _mm512_set1_ps(threshold);
    let mut halves = [_mm512_setzero_ps(); WIDE_LANES / LANES];
    let mut count = 0;
    let (chunks, tail) = row.as_chunks::<WIDE_LANES>();
    let (weight_chunks, weight_tail) = weights.as_chunks::<WIDE_LANES>();
    for (chunk, weight) in chunks.iter().zip(weight_chunks) {
        let (values, weights) = (chunk.as_chunks::<LANES>().0, weight.as_chunks::<LANES>().0);
        for (half, (values, weights)) in halves.iter_mut().zip(values.iter().zip(weights)) {
            let selected = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(load(values), limit);
            count += selected.count_ones() as usize;
            *half = _mm512_mask_add_ps(*half, selected, *half, load(weights));
        }
    }
    for (half, (values, weights)) in halves.iter_mut().zip(tail.chunks(LANES).zip(weight_tail.chunks(LANES))) {
        let selected = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(load_tail(values, f32::NAN), limit);
        count += selected.count_ones() as usize;
        *half = _mm512_mask_add_ps(*half, selected, *half, load_tail(weights, 0.0));
    }
    let mut lanes = [0f32; WIDE_LANES];
    for (lanes, half) in lanes.as_chunks_mut::<LANES>().0.iter_mut().zip(halves) {
        // SAFETY: the target has room for the sixteen floats that are written.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), half) };
    }
    (count, tree_sum(lanes))
}

#[target_feature(enable = "avx512f,avx512dq,popcnt")]
pub(crate) fn collect_bracket(
    row: &[f32],
    weights: &[f32],
    ids: Option<&[u32]>,
    (low, high): (f32, f32),
    candidates: &mut Candidates<f32>,
) -> Cumulative {
    let (low_limit, high_limit) = (_mm512_set1_ps(low), _mm512_set1_ps(high));
    let mut sums = Sums::new();
    let mut count = 0;
    let mut out = CandidateWriter::new(candidates, row.len());
    let (chunks, tail) = row.as_chunks::<LANES>();
    let (weight_chunks, weight_tail) = weights.as_chunks::<LANES>();
    let iota = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (index, (chunk, weight)) in chunks.iter().zip(weight_chunks).enumerate() {
        let values = load(chunk);
        let above = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(values, high_limit);
        count += above.count_ones() as usize;
        sums.add_masked(above, weight);
        let inside = _mm512_mask_cmp_ps_mask::<_CMP_GE_OQ>(!above, values, low_limit);
        if inside != 0 {
            let start = index * LANES;
            let ids = match ids {
                // SAFETY: the slice has the sixteen ids that are read.
                Some(ids) => unsafe { _mm512_loadu_si512(ids[start..start + LANES].as_ptr().cast()) },
                None => _mm512_add_epi32(iota, _mm512_set1_epi32(start as i32)),
            };
            out.push(inside, values, load(weight), ids);
        }
    }
    if !tail.is_empty() {
        let (values, weight) = (load_tail(tail, f32::NAN), load_tail(&weight_tail[..tail.len()], 0.0));
        let above = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(values, high_limit);
        count += above.count_ones() as usize;
        sums.add(_mm512_maskz_mov_ps(above, weight));
        let inside = _mm512_mask_cmp_ps_mask::<_CMP_GE_OQ>(!above, values, low_limit);
        let start = chunks.len() * LANES;
        let mut tail_ids: [u32; LANES] = std::array::from_fn(|lane| (start + lane) as u32);
        if let Some(ids) = ids {
            tail_ids[..tail.len()].copy_from_slice(&ids[start..start + tail.len()]);
        }
        // SAFETY: the array has the sixteen ids that are read.
        out.push(inside, values, weight, unsafe { _mm512_loadu_si512(tail_ids.as_ptr().cast()) });
    }
    Cumulative { count, mass: sums.tree_sum() }
}

/// Appends to [`Candidates`] with compressed stores of whole vectors.
struct CandidateWriter<'a> {
    candidates: &'a mut Candidates<f32>,
    length: usize,
}

impl<'a> CandidateWriter<'a> {
    /// Clears the candidates and reserves room for `capacity` of them and one more vector, as stores write all lanes.
    fn new(candidates: &'a mut Candidates<f32>, capacity: usize) -> Self {
        candidates.logits.clear();
        candidates.weights.clear();
        candidates.ids.clear();
        candidates.logits.reserve(capacity + LANES);
        candidates.weights.reserve(capacity + LANES);
        candidates.ids.reserve(capacity + LANES);
        Self { candidates, length: 0 }
    }

    #[inline]
    #[target_feature(enable = "avx512f,popcnt")]
    fn push(&mut self, mask: __mmask16, logits: __m512, weights: __m512, ids: __m512i) {
        // SAFETY: each logit is pushed at most once, so `length` does not exceed the capacity given to `new`, which
        // reserved sixteen more. Elements past `length` are overwritten or never exposed.
        unsafe {
            _mm512_storeu_ps(
                self.candidates.logits.as_mut_ptr().add(self.length),
                _mm512_maskz_compress_ps(mask, logits),
            );
            _mm512_storeu_ps(
                self.candidates.weights.as_mut_ptr().add(self.length),
                _mm512_maskz_compress_ps(mask, weights),
            );
            _mm512_storeu_si512(
                self.candidates.ids.as_mut_ptr().add(self.length).cast(),
                _mm512_maskz_compress_epi32(mask, ids),
            );
        }
        self.length += mask.count_ones() as usize;
    }
}

impl Drop for CandidateWriter<'_> {
    fn drop(&mut self) {
        // SAFETY: `push` initialised the first `length` elements of each vector.
        unsafe {
            self.candidates.logits.set_len(self.length);
            self.candidates.weights.set_len(self.length);
            self.candidates.ids.set_len(self.length);
        }
    }
}

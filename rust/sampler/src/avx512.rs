//! The float32 passes of `kernels.rs` in AVX-512, which the compiler does not use by itself.
//!
//! Lane for lane the same operations in the same order, so the same bits: the tests hold all backends equal.

use super::kernels::{Candidates, Extent, LANES, Measure, ROUGH_LANES, total};
use bpe_llama_simd::exp::{MAGIC, POLYNOMIAL, Scale};
#[allow(clippy::wildcard_imports, reason = "the intrinsics are the language of this file")]
use std::arch::x86_64::*;

#[inline]
#[target_feature(enable = "avx512f")]
fn load(chunk: &[f32; LANES]) -> __m512 {
    // SAFETY: sixteen floats are read from sixteen floats.
    unsafe { _mm512_loadu_ps(chunk.as_ptr()) }
}

/// Returns the tail as a full vector, `filler` in the lanes it lacks.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_tail(tail: &[f32], filler: f32) -> __m512 {
    let mut chunk = [filler; LANES];
    chunk[..tail.len()].copy_from_slice(tail);
    load(&chunk)
}

/// Sixteen float64 sums, one a lane.
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

    /// Adds weights read from memory, where widening them costs least.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn add_stored(&mut self, weights: &[f32; LANES]) {
        self.add_chosen(0xffff, weights);
    }

    /// Adds the weights of the chosen lanes, read from memory, where widening them costs least.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn add_chosen(&mut self, chosen: __mmask16, weights: &[f32; LANES]) {
        // SAFETY: eight floats are read from either half of sixteen.
        let (low, high) =
            unsafe { (_mm256_loadu_ps(weights.as_ptr()), _mm256_loadu_ps(weights.as_ptr().add(LANES / 2))) };
        self.0 = _mm512_mask_add_pd(self.0, chosen as __mmask8, self.0, _mm512_cvtps_pd(low));
        self.1 = _mm512_mask_add_pd(self.1, (chosen >> 8) as __mmask8, self.1, _mm512_cvtps_pd(high));
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn total(self) -> f64 {
        let mut lanes = [0f64; LANES];
        // SAFETY: sixteen doubles are written to sixteen doubles.
        unsafe {
            _mm512_storeu_pd(lanes.as_mut_ptr(), self.0);
            _mm512_storeu_pd(lanes.as_mut_ptr().add(8), self.1);
        }
        total(lanes)
    }
}

#[target_feature(enable = "avx512f,avx512dq")]
pub(crate) fn extent(row: &[f32]) -> Extent {
    let infinity = _mm512_set1_ps(f32::INFINITY);
    // Each maximum waits for the one before: two at once.
    let mut highest = [_mm512_set1_ps(f32::NEG_INFINITY); 2];
    let mut lowest = [infinity; 2];
    let mut valid = 0xffff;
    let mut add = |half: usize, values: __m512| {
        highest[half] = _mm512_max_ps(highest[half], values);
        lowest[half] = _mm512_min_ps(lowest[half], values);
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
        // The last value again where there is none changes nothing.
        add(0, load_tail(tail, tail[tail.len() - 1]));
    }
    Extent {
        highest: _mm512_reduce_max_ps(_mm512_max_ps(highest[0], highest[1])),
        lowest: _mm512_reduce_min_ps(_mm512_min_ps(lowest[0], lowest[1])),
        valid: valid == 0xffff,
    }
}

#[target_feature(enable = "avx512f,avx512dq")]
pub(crate) fn weigh(row: &[f32], scale: &Scale, weights: &mut [f32]) -> f64 {
    let mut sums = Sums::new();
    let (chunks, tail) = row.as_chunks::<LANES>();
    let (weight_chunks, weight_tail) = weights.as_chunks_mut::<LANES>();
    // Summed once a few are written: read back from the cache, weights are widened by half as many instructions.
    for (chunks, outs) in chunks.chunks(LANES).zip(weight_chunks.chunks_mut(LANES)) {
        for (chunk, out) in chunks.iter().zip(outs.iter_mut()) {
            // SAFETY: sixteen floats are written to sixteen floats.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), weight(load(chunk), scale)) };
        }
        for out in outs {
            sums.add_stored(out);
        }
    }
    let weight = weight(load_tail(tail, f32::NEG_INFINITY), scale);
    sums.add(weight);
    let mut out = [0f32; LANES];
    // SAFETY: sixteen floats are written to sixteen floats.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), weight) };
    weight_tail[..tail.len()].copy_from_slice(&out[..tail.len()]);
    sums.total()
}

/// [`Scale::weight`] of sixteen logits.
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
    let counts = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(rounded, _mm512_set1_ps(scale.lowest));
    let weight = _mm512_maskz_add_epi32(counts, power, _mm512_slli_epi32::<23>(exponent));
    _mm512_castsi512_ps(weight)
}

#[target_feature(enable = "avx512f,avx512dq,popcnt")]
pub(crate) fn measure(row: &[f32], weights: &[f32], threshold: f32) -> Measure {
    let limit = _mm512_set1_ps(threshold);
    let mut sums = Sums::new();
    let mut count = 0;
    let (chunks, tail) = row.as_chunks::<LANES>();
    let (weight_chunks, weight_tail) = weights.as_chunks::<LANES>();
    for (chunk, weight) in chunks.iter().zip(weight_chunks) {
        let above = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(load(chunk), limit);
        count += above.count_ones() as usize;
        sums.add_chosen(above, weight);
    }
    if !tail.is_empty() {
        let above = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(load_tail(tail, f32::NAN), limit);
        count += above.count_ones() as usize;
        sums.add(_mm512_maskz_mov_ps(above, load_tail(&weight_tail[..tail.len()], 0.0)));
    }
    Measure { count, mass: sums.total() }
}

#[target_feature(enable = "avx512f,popcnt")]
pub(crate) fn rough(row: &[f32], weights: &[f32], threshold: f32) -> (usize, f32) {
    let limit = _mm512_set1_ps(threshold);
    let mut halves = [_mm512_setzero_ps(); ROUGH_LANES / LANES];
    let mut count = 0;
    let (chunks, tail) = row.as_chunks::<ROUGH_LANES>();
    let (weight_chunks, weight_tail) = weights.as_chunks::<ROUGH_LANES>();
    for (chunk, weight) in chunks.iter().zip(weight_chunks) {
        let (values, weights) = (chunk.as_chunks::<LANES>().0, weight.as_chunks::<LANES>().0);
        for (half, (values, weights)) in halves.iter_mut().zip(values.iter().zip(weights)) {
            let above = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(load(values), limit);
            count += above.count_ones() as usize;
            *half = _mm512_mask_add_ps(*half, above, *half, load(weights));
        }
    }
    for (half, (values, weights)) in halves.iter_mut().zip(tail.chunks(LANES).zip(weight_tail.chunks(LANES))) {
        let above = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(load_tail(values, f32::NAN), limit);
        count += above.count_ones() as usize;
        *half = _mm512_mask_add_ps(*half, above, *half, load_tail(weights, 0.0));
    }
    let mut lanes = [0f32; ROUGH_LANES];
    for (lanes, half) in lanes.as_chunks_mut::<LANES>().0.iter_mut().zip(halves) {
        // SAFETY: sixteen floats are written to sixteen floats.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), half) };
    }
    (count, total(lanes))
}

#[target_feature(enable = "avx512f,avx512dq,popcnt")]
pub(crate) fn split(
    row: &[f32],
    weights: &[f32],
    ids: Option<&[u32]>,
    (low, high): (f32, f32),
    found: &mut Candidates<f32>,
) -> Measure {
    let (low_limit, high_limit) = (_mm512_set1_ps(low), _mm512_set1_ps(high));
    let mut sums = Sums::new();
    let mut count = 0;
    let mut out = Compressed::new(found, row.len());
    let (chunks, tail) = row.as_chunks::<LANES>();
    let (weight_chunks, weight_tail) = weights.as_chunks::<LANES>();
    let iota = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (index, (chunk, weight)) in chunks.iter().zip(weight_chunks).enumerate() {
        let values = load(chunk);
        let above = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(values, high_limit);
        count += above.count_ones() as usize;
        sums.add_chosen(above, weight);
        let inside = _mm512_mask_cmp_ps_mask::<_CMP_GE_OQ>(!above, values, low_limit);
        if inside != 0 {
            let start = index * LANES;
            let ids = match ids {
                // SAFETY: the slice bounds the sixteen ids read.
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
        // SAFETY: sixteen ids are read from sixteen.
        out.push(inside, values, weight, unsafe { _mm512_loadu_si512(tail_ids.as_ptr().cast()) });
    }
    Measure { count, mass: sums.total() }
}

/// Candidates being written, whole vectors at a time.
struct Compressed<'a> {
    found: &'a mut Candidates<f32>,
    length: usize,
}

impl<'a> Compressed<'a> {
    /// Returns an empty list with room for `capacity` candidates and the lanes that a last vector writes too many.
    fn new(found: &'a mut Candidates<f32>, capacity: usize) -> Self {
        found.logits.clear();
        found.weights.clear();
        found.ids.clear();
        found.logits.reserve(capacity + LANES);
        found.weights.reserve(capacity + LANES);
        found.ids.reserve(capacity + LANES);
        Self { found, length: 0 }
    }

    #[inline]
    #[target_feature(enable = "avx512f,popcnt")]
    fn push(&mut self, chosen: __mmask16, logits: __m512, weights: __m512, ids: __m512i) {
        // SAFETY: at most one candidate a logit is pushed, so `length` stays within the capacity that `new` was given, and
        // sixteen more were reserved. What lies past `length` is overwritten or cut off.
        unsafe {
            _mm512_storeu_ps(self.found.logits.as_mut_ptr().add(self.length), _mm512_maskz_compress_ps(chosen, logits));
            _mm512_storeu_ps(
                self.found.weights.as_mut_ptr().add(self.length),
                _mm512_maskz_compress_ps(chosen, weights),
            );
            _mm512_storeu_si512(
                self.found.ids.as_mut_ptr().add(self.length).cast(),
                _mm512_maskz_compress_epi32(chosen, ids),
            );
        }
        self.length += chosen.count_ones() as usize;
    }
}

impl Drop for Compressed<'_> {
    fn drop(&mut self) {
        // SAFETY: `push` wrote the first `length` of each.
        unsafe {
            self.found.logits.set_len(self.length);
            self.found.weights.set_len(self.length);
            self.found.ids.set_len(self.length);
        }
    }
}

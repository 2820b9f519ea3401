//! The passes over a row: each sixteen lanes wide, each lane summed in its own order.
//!
//! A pass is written once, as a loop over sixteen lanes that the compiler turns into vector code, and compiled for each
//! backend of instructions. The lanes are summed in one fixed order at the end, so every backend returns the same bits.

#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use bpe_llama_simd::exp::{Scale, exp64};
use bpe_llama_simd::{Backend, Kind};
use std::ops::AddAssign;

pub(crate) const LANES: usize = 16;
/// Lanes of [`rough`], which is bound by how fast one sum follows another.
pub(crate) const ROUGH_LANES: usize = 32;

/// Compiles one pass for each backend behind a function that picks by its first argument. `$avx512` is the same pass by hand.
macro_rules! pass {
    ($(#[$attribute:meta])* $name:ident as $avx512:path, ($($argument:ident: $type:ty),*) -> $result:ty $body:block) => {
        $(#[$attribute])*
        #[inline]
        pub(crate) fn $name(backend: Backend, $($argument: $type),*) -> $result {
            #[inline(always)]
            fn portable($($argument: $type),*) -> $result $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($argument: $type),*) -> $result {
                portable($($argument),*)
            }

            match backend.kind() {
                Kind::Portable => portable($($argument),*),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `Backend` is only ever `Avx2` where AVX2 and FMA were detected.
                Kind::Avx2 => unsafe { avx2($($argument),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `Backend` is only ever `Avx512` where AVX-512 F, BW and DQ, AVX2 and FMA were detected.
                Kind::Avx512 => unsafe { $avx512($($argument),*) },
            }
        }
    };
    ($(#[$attribute:meta])* $name:ident, ($($argument:ident: $type:ty),*) -> $result:ty $body:block) => {
        pass! { $(#[$attribute])* $name as avx2, ($($argument: $type),*) -> $result $body }
    };
}

/// The highest and lowest number of a row, and whether a row is free of NaN and +inf.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Extent {
    pub(crate) highest: f32,
    pub(crate) lowest: f32,
    pub(crate) valid: bool,
}

/// How many numbers were counted, and the sum of their weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Measure {
    pub(crate) count: usize,
    pub(crate) mass: f64,
}

/// Logits picked out of a row, each with its weight and id, in id order.
#[derive(Debug, Default)]
pub(crate) struct Candidates<W> {
    pub(crate) logits: Vec<f32>,
    pub(crate) weights: Vec<W>,
    pub(crate) ids: Vec<u32>,
}

impl<W: Weight> Candidates<W> {
    fn clear(&mut self) {
        self.logits.clear();
        self.weights.clear();
        self.ids.clear();
    }

    #[inline(always)]
    fn push(&mut self, logit: f32, weight: W, id: u32) {
        self.logits.push(logit);
        self.weights.push(weight);
        self.ids.push(id);
    }
}

/// A weight that sums in float64: float32 for speed, float64 where the last digit decides.
pub(crate) trait Weight: Copy + Default + Send + Sync {
    fn wide(self) -> f64;

    /// Returns how many logits are at least `threshold`, and their weight.
    fn measure(backend: Backend, row: &[f32], weights: &[Self], threshold: f32) -> Measure;

    /// Returns the measure of logits at least `high`, and puts those in `low..high` into `found`.
    ///
    /// `ids` are the logits' ids; none if they are their places.
    fn split(
        backend: Backend,
        row: &[f32],
        weights: &[Self],
        ids: Option<&[u32]>,
        range: (f32, f32),
        found: &mut Candidates<Self>,
    ) -> Measure;
}

impl Weight for f32 {
    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }

    fn measure(backend: Backend, row: &[f32], weights: &[Self], threshold: f32) -> Measure {
        measure(backend, row, weights, threshold)
    }

    fn split(
        backend: Backend,
        row: &[f32],
        weights: &[Self],
        ids: Option<&[u32]>,
        range: (f32, f32),
        found: &mut Candidates<Self>,
    ) -> Measure {
        split(backend, row, weights, ids, range, found)
    }
}

impl Weight for f64 {
    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }

    fn measure(backend: Backend, row: &[f32], weights: &[Self], threshold: f32) -> Measure {
        measure64(backend, row, weights, threshold)
    }

    fn split(
        backend: Backend,
        row: &[f32],
        weights: &[Self],
        ids: Option<&[u32]>,
        range: (f32, f32),
        found: &mut Candidates<Self>,
    ) -> Measure {
        split64(backend, row, weights, ids, range, found)
    }
}

pass! {
    /// Returns the extent of a row; `highest` and `lowest` mean nothing unless `valid`.
    extent as avx512::extent, (row: &[f32]) -> Extent {
        let mut highest = [f32::NEG_INFINITY; LANES];
        let mut lowest = [f32::INFINITY; LANES];
        let mut invalid = [0u32; LANES];
        let (chunks, tail) = row.as_chunks::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                let value = chunk[lane];
                highest[lane] = if value > highest[lane] { value } else { highest[lane] };
                lowest[lane] = if value < lowest[lane] { value } else { lowest[lane] };
                // False for NaN too.
                invalid[lane] |= u32::from(!(value < f32::INFINITY));
            }
        }
        for (lane, &value) in tail.iter().enumerate() {
            highest[lane] = highest[lane].max(value);
            lowest[lane] = lowest[lane].min(value);
            invalid[lane] |= u32::from(!(value < f32::INFINITY));
        }
        Extent {
            highest: highest.iter().copied().fold(f32::NEG_INFINITY, f32::max),
            lowest: lowest.iter().copied().fold(f32::INFINITY, f32::min),
            valid: invalid.iter().all(|&flag| flag == 0),
        }
    }
}

pass! {
    /// Writes the float32 weight of every logit and returns their sum.
    weigh as avx512::weigh, (row: &[f32], scale: &Scale, weights: &mut [f32]) -> f64 {
        let scale = *scale;
        let mut sums = [0f64; LANES];
        let (chunks, tail) = row.as_chunks::<LANES>();
        let (weight_chunks, weight_tail) = weights.as_chunks_mut::<LANES>();
        for (chunk, out) in chunks.iter().zip(weight_chunks) {
            for lane in 0..LANES {
                out[lane] = scale.weight(chunk[lane]);
            }
            for lane in 0..LANES {
                sums[lane] += f64::from(out[lane]);
            }
        }
        for (lane, (&value, out)) in tail.iter().zip(weight_tail).enumerate() {
            *out = scale.weight(value);
            sums[lane] += f64::from(*out);
        }
        total(sums)
    }
}

pass! {
    /// Writes the float64 weight of every logit, 1 for the highest, and returns their sum.
    weigh64, (row: &[f32], highest: f32, temperature: f64, weights: &mut [f64]) -> f64 {
        let mut sums = [0f64; LANES];
        for (chunk, out) in row.chunks(LANES).zip(weights.chunks_mut(LANES)) {
            for (lane, (&value, out)) in chunk.iter().zip(out).enumerate() {
                *out = exp64((f64::from(value) - f64::from(highest)) / temperature);
                sums[lane] += *out;
            }
        }
        total(sums)
    }
}

/// See [`Weight::measure`].
#[inline]
pub(crate) fn measure(backend: Backend, row: &[f32], weights: &[f32], threshold: f32) -> Measure {
    match backend.kind() {
        Kind::Portable => measure_any(row, weights, threshold),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Backend` is only ever `Avx2` where AVX2 was detected; every such CPU has POPCNT.
        Kind::Avx2 => unsafe { avx2::measure(row, weights, threshold) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Backend` is only ever `Avx512` where AVX-512 F, BW and DQ were detected; every such CPU has POPCNT.
        Kind::Avx512 => unsafe { avx512::measure(row, weights, threshold) },
    }
}

pass! {
    /// See [`Weight::measure`].
    measure64, (row: &[f32], weights: &[f64], threshold: f32) -> Measure {
        measure_any(row, weights, threshold)
    }
}

pass! {
    /// See [`Weight::split`].
    split as avx512::split,
    (row: &[f32], weights: &[f32], ids: Option<&[u32]>, range: (f32, f32), found: &mut Candidates<f32>) -> Measure {
        split_any(row, weights, ids, range, found)
    }
}

pass! {
    /// See [`Weight::split`].
    split64,
    (row: &[f32], weights: &[f64], ids: Option<&[u32]>, range: (f32, f32), found: &mut Candidates<f64>) -> Measure {
        split_any(row, weights, ids, range, found)
    }
}

pass! {
    /// Returns the sums of the weights, and of their squares, of logits below `threshold`, and how many there are: float32,
    /// for estimates only.
    below, (row: &[f32], weights: &[f32], threshold: f32) -> (f32, f32, f32) {
        let mut sums = [0f32; LANES];
        let mut squares = [0f32; LANES];
        let mut counts = [0f32; LANES];
        for (chunk, weight) in row.as_chunks::<LANES>().0.iter().zip(weights.as_chunks::<LANES>().0) {
            for lane in 0..LANES {
                counts[lane] += if chunk[lane] < threshold { 1.0 } else { 0.0 };
                let weight = if chunk[lane] < threshold { weight[lane] } else { 0.0 };
                sums[lane] += weight;
                squares[lane] += weight * weight;
            }
        }
        (sums.iter().sum(), squares.iter().sum(), counts.iter().sum())
    }
}

pass! {
    /// Returns how many logits are at least `threshold`, and their weight summed in float32: for estimates only.
    rough as avx512::rough, (row: &[f32], weights: &[f32], threshold: f32) -> (usize, f32) {
        let mut counts = [0u32; ROUGH_LANES];
        let mut sums = [0f32; ROUGH_LANES];
        let (chunks, tail) = row.as_chunks::<ROUGH_LANES>();
        let (weight_chunks, weight_tail) = weights.as_chunks::<ROUGH_LANES>();
        for (chunk, weight) in chunks.iter().zip(weight_chunks) {
            for lane in 0..ROUGH_LANES {
                counts[lane] += u32::from(chunk[lane] >= threshold);
                sums[lane] += if chunk[lane] >= threshold { weight[lane] } else { 0.0 };
            }
        }
        for (lane, (&value, &weight)) in tail.iter().zip(weight_tail).enumerate() {
            counts[lane] += u32::from(value >= threshold);
            sums[lane] += if value >= threshold { weight } else { 0.0 };
        }
        (counts.iter().map(|&count| count as usize).sum(), total(sums))
    }
}

#[inline(always)]
fn measure_any<W: Weight>(row: &[f32], weights: &[W], threshold: f32) -> Measure {
    let mut counts = [0u32; LANES];
    let mut sums = [0f64; LANES];
    let (chunks, tail) = row.as_chunks::<LANES>();
    let (weight_chunks, weight_tail) = weights.as_chunks::<LANES>();
    for (chunk, weight) in chunks.iter().zip(weight_chunks) {
        for lane in 0..LANES {
            let above = chunk[lane] >= threshold;
            counts[lane] += u32::from(above);
            sums[lane] += if above { weight[lane] } else { W::default() }.wide();
        }
    }
    for (lane, (&value, &weight)) in tail.iter().zip(weight_tail).enumerate() {
        let above = value >= threshold;
        counts[lane] += u32::from(above);
        sums[lane] += if above { weight } else { W::default() }.wide();
    }
    Measure { count: counts.iter().map(|&count| count as usize).sum(), mass: total(sums) }
}

#[inline(always)]
fn split_any<W: Weight>(
    row: &[f32],
    weights: &[W],
    ids: Option<&[u32]>,
    (low, high): (f32, f32),
    found: &mut Candidates<W>,
) -> Measure {
    found.clear();
    for (start, chunk) in row.chunks(LANES).enumerate().map(|(index, chunk)| (index * LANES, chunk)) {
        let inside = chunk.iter().fold(0u32, |count, &value| count + u32::from(value >= low && value < high));
        if inside > 0 {
            for (place, &value) in (start..).zip(chunk) {
                if value >= low && value < high {
                    found.push(value, weights[place], ids.map_or(place as u32, |ids| ids[place]));
                }
            }
        }
    }
    measure_any(row, weights, high)
}

/// Returns the sum of the lanes, as a tree.
#[inline(always)]
pub(crate) fn total<T: Copy + AddAssign, const LANES: usize>(mut sums: [T; LANES]) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            let other = sums[lane + width];
            sums[lane] += other;
        }
        width /= 2;
    }
    sums[0]
}

//! The passes over a row: each sixteen lanes wide, each lane summed in its own order.
//!
//! A pass is written once, as a loop over sixteen lanes that the compiler turns into vector code, and compiled for each
//! tier of instructions. The lanes are summed in one fixed order at the end, so every tier returns the same bits.

use super::exponential::{Scale, exp64};

const LANES: usize = 16;

/// Which instructions the passes use; only ever one this CPU has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tier(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// What every CPU of the target has: NEON on arm64, SSE2 on x86-64.
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Tier {
    /// Returns the fastest tier of this CPU.
    pub(super) fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Self(Kind::Avx2);
        }
        Self(Kind::Portable)
    }

    /// Returns every tier of this CPU.
    #[cfg(test)]
    pub(super) fn all() -> Vec<Self> {
        let mut tiers = vec![Self(Kind::Portable)];
        if Self::best() != tiers[0] {
            tiers.push(Self::best());
        }
        tiers
    }
}

/// Compiles one pass for each tier behind a function that picks by its first argument.
macro_rules! pass {
    ($(#[$attribute:meta])* $name:ident $(<$generic:ident: $bound:ident>)? ($($argument:ident: $type:ty),*) -> $result:ty $body:block) => {
        $(#[$attribute])*
        #[inline]
        pub(super) fn $name $(<$generic: $bound>)? (tier: Tier, $($argument: $type),*) -> $result {
            #[inline(always)]
            fn portable $(<$generic: $bound>)? ($($argument: $type),*) -> $result $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2 $(<$generic: $bound>)? ($($argument: $type),*) -> $result {
                portable($($argument),*)
            }

            match tier.0 {
                Kind::Portable => portable($($argument),*),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `Tier` is only ever `Avx2` where AVX2 and FMA were detected.
                Kind::Avx2 => unsafe { avx2($($argument),*) },
            }
        }
    };
}

/// The highest and lowest number of a row, and whether a row is free of NaN and +inf.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Extent {
    pub(super) highest: f32,
    pub(super) lowest: f32,
    pub(super) valid: bool,
}

/// How many numbers were counted, and the sum of their weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Measure {
    pub(super) count: usize,
    pub(super) mass: f64,
}

/// A weight that sums in float64: float32 for speed, float64 where the last digit decides.
pub(super) trait Weight: Copy + Default + Send + Sync {
    fn wide(self) -> f64;
}

impl Weight for f32 {
    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }
}

impl Weight for f64 {
    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }
}

pass! {
    /// Returns the extent of a row; `highest` and `lowest` mean nothing unless `valid`.
    extent(row: &[f32]) -> Extent {
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
    weigh(row: &[f32], scale: &Scale, weights: &mut [f32]) -> f64 {
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
        total(&sums)
    }
}

pass! {
    /// Writes the float64 weight of every logit, 1 for the highest, and returns their sum.
    weigh64(row: &[f32], highest: f32, temperature: f64, weights: &mut [f64]) -> f64 {
        let mut sums = [0f64; LANES];
        for (chunk, out) in row.chunks(LANES).zip(weights.chunks_mut(LANES)) {
            for (lane, (&value, out)) in chunk.iter().zip(out).enumerate() {
                *out = exp64((f64::from(value) - f64::from(highest)) / temperature);
                sums[lane] += *out;
            }
        }
        total(&sums)
    }
}

pass! {
    /// Returns how many logits are at least `threshold`, and their weight.
    measure<W: Weight>(row: &[f32], weights: &[W], threshold: f32) -> Measure {
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
        Measure { count: counts.iter().map(|&count| count as usize).sum(), mass: total(&sums) }
    }
}

pass! {
    /// Returns the measure of logits at least `high`, and appends the places of those in `low..high` to `places`.
    split<W: Weight>(row: &[f32], weights: &[W], low: f32, high: f32, places: &mut Vec<u32>) -> Measure {
        places.clear();
        for (chunk_index, chunk) in row.chunks(LANES).enumerate() {
            let mut buffer = [0u32; LANES];
            let mut found = 0;
            for (lane, &value) in chunk.iter().enumerate() {
                buffer[found] = (chunk_index * LANES + lane) as u32;
                found += usize::from(value >= low && value < high);
                if found == LANES {
                    break;
                }
            }
            places.extend_from_slice(&buffer[..found]);
        }
        let mut counts = [0u32; LANES];
        let mut sums = [0f64; LANES];
        for (chunk, weight) in row.chunks(LANES).zip(weights.chunks(LANES)) {
            for (lane, (&value, &weight)) in chunk.iter().zip(weight).enumerate() {
                let above = value >= high;
                counts[lane] += u32::from(above);
                sums[lane] += if above { weight } else { W::default() }.wide();
            }
        }
        Measure { count: counts.iter().map(|&count| count as usize).sum(), mass: total(&sums) }
    }
}

/// Returns the sum of the lanes, as a tree.
#[inline(always)]
fn total(sums: &[f64; LANES]) -> f64 {
    let mut sums = *sums;
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

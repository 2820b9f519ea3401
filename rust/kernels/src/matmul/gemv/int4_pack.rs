//! Packs activations for four-bit weights: rounds them to integers, and writes these as bytes or words. See `int4.rs`.

use super::int4_vector::{BLOCK, BYTES_VECTORS, Products, WORDS_VECTORS};
use bpe_llama_simd::Backend;
use bpe_llama_simd::f32x16::{CacheLine, LANES, zero_padded};

/// Appends the activation rows `x`: each block of columns, then the sums of each `group` of columns.
pub(in crate::matmul) fn append(
    x: &[f32],
    columns: usize,
    group: usize,
    backend: Backend,
    packed: &mut Vec<CacheLine>,
) {
    match Products::of(backend) {
        Products::Words => append_blocks(x, columns, packed, write_words),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: products of bytes exist only if the CPU has AVX2.
        Products::Bytes | Products::Dot => unsafe { append_with_avx2(x, columns, packed) },
        #[cfg(not(target_arch = "x86_64"))]
        Products::Bytes | Products::Dot => append_blocks(x, columns, packed, write_bytes),
    }
    append_group_sums(x, columns, group, packed);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn append_with_avx2(x: &[f32], columns: usize, packed: &mut Vec<CacheLine>) {
    append_blocks(x, columns, packed, write_bytes);
}

/// Appends, for each block, `N` vectors a row: the first of each row, then the second of each, and so on. `write(block,
/// vectors)` fills those of one row. Zeros pad the last block.
#[inline(always)]
fn append_blocks<const N: usize>(
    x: &[f32],
    columns: usize,
    packed: &mut Vec<CacheLine>,
    write: impl Fn(&Rounded, [&mut CacheLine; N]),
) {
    let rows = x.len() / columns;
    for column in (0..columns).step_by(BLOCK) {
        let first = packed.len();
        packed.resize(first + N * rows, CacheLine::ZERO);
        for (row, x) in x.chunks_exact(columns).enumerate() {
            let rest = &x[column..];
            let rounded = rest.first_chunk().map_or_else(|| Rounded::new(&zero_padded(rest)), Rounded::new);
            let mut vectors = packed[first + row..].iter_mut().step_by(rows);
            write(&rounded, std::array::from_fn(|_| vectors.next().expect("a vector of each row")));
        }
    }
}

/// Appends the sums of each group, 16 groups a vector: the first vector of each row, then the second of each, and so on.
fn append_group_sums(x: &[f32], columns: usize, group: usize, packed: &mut Vec<CacheLine>) {
    for start in (0..columns).step_by(LANES * group) {
        packed.extend(x.chunks_exact(columns).map(|row| {
            let mut sums = CacheLine::ZERO;
            for (sum, x) in sums.0.iter_mut().zip(row[start..].chunks_exact(group)) {
                let mut lanes = [0.0; LANES];
                for x in x.as_chunks::<LANES>().0 {
                    for lane in 0..LANES {
                        lanes[lane] += x[lane];
                    }
                }
                *sum = lanes.iter().sum();
            }
            sums
        }));
    }
}

/// The activations of a block, rounded to `integers * step`.
struct Rounded {
    /// From -2^22 to 2^22.
    integers: [i32; BLOCK],
    /// A power of two for each lane; NaN if one of its activations is infinite or NaN.
    steps: [f32; LANES],
}

impl Rounded {
    /// 1.5 * 2^23: adding it rounds to an integer, ties to even, which the lower bits then hold.
    const ROUND: f32 = 12_582_912.0;

    #[inline(always)]
    fn new(x: &[f32; BLOCK]) -> Self {
        let (mut integers, mut steps) = ([0; BLOCK], [f32::NAN; LANES]);
        for (lane, x) in x.as_chunks::<8>().0.iter().enumerate() {
            // As integers, the bits of magnitudes are ordered as their values.
            let largest = x.iter().fold(0, |largest, x| largest.max(x.to_bits() & 0x7fff_ffff));
            if largest >= f32::INFINITY.to_bits() {
                continue;
            }
            // 2^21 divided by the power of two not above the largest magnitude; at most 2^126, as the step is a normal number.
            let factor = f32::from_bits((275 - (largest >> 23)).min(253) << 23);
            for (integer, x) in integers[8 * lane..].iter_mut().zip(x) {
                *integer = (x * factor + Self::ROUND).to_bits() as i32 - Self::ROUND.to_bits() as i32;
            }
            steps[lane] = 1.0 / factor;
        }
        Self { integers, steps }
    }

    /// Returns the last two vectors: `-8 * sum(integers)` of each lane, and the steps.
    #[inline(always)]
    fn last_vectors(&self) -> [CacheLine; 2] {
        let of_lane = |lane: usize| -8 * self.integers[8 * lane..][..8].iter().sum::<i32>();
        [CacheLine(std::array::from_fn(|lane| word(of_lane(lane)))), CacheLine(self.steps)]
    }
}

/// Returns the float32 with the same bits, as vectors of integers are packed beside those of float32.
#[inline(always)]
fn word(integer: i32) -> f32 {
    f32::from_bits(integer as u32)
}

#[inline(always)]
fn write_words(rounded: &Rounded, vectors: [&mut CacheLine; WORDS_VECTORS]) {
    let [codes @ .., start, step] = vectors;
    for (code, vector) in codes.into_iter().enumerate() {
        vector.0 = std::array::from_fn(|lane| word(rounded.integers[8 * lane + code]));
    }
    [*start, *step] = rounded.last_vectors();
}

#[inline(always)]
fn write_bytes(rounded: &Rounded, vectors: [&mut CacheLine; BYTES_VECTORS]) {
    let [even_2, even_1, even_0, odd_2, odd_1, odd_0, start, step] = vectors;
    for (parity, vectors) in [[even_2, even_1, even_0], [odd_2, odd_1, odd_0]].into_iter().enumerate() {
        // Signed bytes are from -128 to 127; 128 more, and they are the bytes of an unsigned number.
        let biased: [i32; BLOCK / 2] = std::array::from_fn(|index| rounded.integers[2 * index + parity] + 0x80_8080);
        for (vector, shift) in vectors.into_iter().zip([16, 8, 0]) {
            let bytes = biased.map(|biased| ((biased >> shift) as u8) ^ 0x80);
            vector.0 = std::array::from_fn(|word| f32::from_bits(u32::from_le_bytes(bytes.as_chunks().0[word])));
        }
    }
    [*start, *step] = rounded.last_vectors();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::gemv::int4_vector::Int4Dot;
    use bpe_llama_simd::f32x16::Portable;

    /// Returns the bits of the lanes.
    ///
    /// # Safety
    /// The CPU has the features of `V`, and with `DOT` its dot products.
    #[inline(always)]
    unsafe fn bits<V: Int4Dot<N>, const DOT: bool, const N: usize>(codes: &[u8], packed: &[CacheLine]) -> [u32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: the caller's promise.
        unsafe { V::dot::<DOT, 1>(V::load_codes(codes), &packed.as_chunks().0.as_chunks().0[0], 0).store(&mut lanes) };
        lanes.map(f32::to_bits)
    }

    /// Returns a function that calls another with the CPU features enabled.
    macro_rules! with_features {
        ($features:literal, $call:expr) => {{
            #[target_feature(enable = $features)]
            fn call(codes: &[u8], bytes: &[CacheLine]) -> [u32; LANES] {
                // SAFETY: the features are enabled here.
                unsafe { $call(codes, bytes) }
            }
            call
        }};
    }

    #[test]
    fn every_instruction_returns_the_sums_of_rounded_activations() {
        for seed in 0..500_u32 {
            let hash = |index: usize| (index as u32 + 1).wrapping_mul(seed.wrapping_mul(0x9E37_79B9) | 1);
            let codes: [u8; BLOCK / 2] = std::array::from_fn(|index| (hash(index) >> 24) as u8);
            let x: [f32; BLOCK] = match seed {
                0 => [f32::MAX; BLOCK],
                1 => [-1.0; BLOCK],
                _ => std::array::from_fn(|index| (hash(index + 64) as i32) as f32 / 3e9),
            };
            let (mut words, mut bytes) = (Vec::new(), Vec::new());
            append_blocks(&x, BLOCK, &mut words, write_words);
            append_blocks(&x, BLOCK, &mut bytes, write_bytes);
            let Rounded { integers, steps } = Rounded::new(&x);
            for (lane, x) in x.as_chunks::<8>().0.iter().enumerate() {
                let (step, largest) =
                    (f64::from(steps[lane]), x.iter().fold(0.0, |largest: f64, x| largest.max(f64::from(x.abs()))));
                for (x, integer) in x.iter().zip(&integers[8 * lane..]) {
                    assert!((f64::from(*x) - f64::from(*integer) * step).abs() <= largest / f64::from(1 << 22));
                }
            }
            let code = |column: usize| i64::from(codes[column / 2] >> (4 * (column % 2)) & 15) - 8;
            let product = |column: usize| code(column) * i64::from(integers[column]);
            let sums: [i64; LANES] = std::array::from_fn(|lane| (8 * lane..8 * lane + 8).map(product).sum());
            let expected = sums.map(|sum| (sum as f32).to_bits());
            // SAFETY: the portable backend needs no CPU feature; the others are there where their features are.
            unsafe {
                assert_eq!(bits::<Portable, false, WORDS_VECTORS>(&codes, &words), expected);
                #[cfg(target_arch = "x86_64")]
                {
                    use bpe_llama_simd::f32x16::{Avx2, Avx512};
                    if is_x86_feature_detected!("avx2") {
                        let call = with_features!("avx2,fma", bits::<Avx2, false, BYTES_VECTORS>);
                        assert_eq!(call(&codes, &bytes), expected);
                    }
                    if is_x86_feature_detected!("avxvnni") {
                        let call = with_features!("avx2,fma,avxvnni", bits::<Avx2, true, BYTES_VECTORS>);
                        assert_eq!(call(&codes, &bytes), expected);
                    }
                    if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl") {
                        let call = with_features!("avx512f,avx512bw,avx512vl", bits::<Avx512, false, BYTES_VECTORS>);
                        assert_eq!(call(&codes, &bytes), expected);
                    }
                    if is_x86_feature_detected!("avx512vnni") {
                        let call =
                            with_features!("avx512f,avx512bw,avx512vl,avx512vnni", bits::<Avx512, true, BYTES_VECTORS>);
                        assert_eq!(call(&codes, &bytes), expected);
                    }
                }
                #[cfg(target_arch = "aarch64")]
                {
                    use bpe_llama_simd::f32x16::Neon;
                    assert_eq!(bits::<Neon, false, WORDS_VECTORS>(&codes, &words), expected);
                    if std::arch::is_aarch64_feature_detected!("dotprod") {
                        let call = with_features!("neon,dotprod", bits::<Neon, true, BYTES_VECTORS>);
                        assert_eq!(call(&codes, &bytes), expected);
                    }
                }
            }
        }
    }
}

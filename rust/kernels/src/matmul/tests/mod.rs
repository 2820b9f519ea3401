//! Every backend and weight format against a float64 oracle, and every backend against the portable one bit by bit.

mod values;

use super::activations::{Activations, Gate};
use super::weights::{GROUP_SIZES, Matrix, Weights};
use super::{matmul, matmul_with};
use crate::Result;
use crate::backend::GemmBackend;
use crate::norm::{NormWeights, normalize};
use bpe_llama_simd::{Backend, bf16};
use proptest::prelude::*;
use std::cmp::Ordering;

/// Weights that own their memory.
#[derive(Debug, Clone)]
enum Owned {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
    Int8(Vec<i8>, Vec<f32>),
    Int4(Vec<u8>, Vec<[u16; 2]>),
}

impl Owned {
    /// Returns weights in a format, derived from one number each.
    fn new(format: usize, numbers: &[f32], rows: usize, columns: usize, group: usize) -> Self {
        let bits = |x: f32| (x.to_bits() >> 16) as u16;
        match format {
            0 => Self::F32(numbers.to_vec()),
            1 => Self::Bf16(numbers.iter().copied().map(bits).collect()),
            2 => Self::Int8(
                numbers.iter().map(|x| (x * 100.0) as i8).collect(),
                (0..rows).map(|row| 0.01 + row as f32 / 64.0).collect(),
            ),
            _ => {
                let scales = (0..rows * columns / group).map(|g| [bits(0.1 + g as f32 / 8.0), bits(3.0 - g as f32)]);
                let codes = numbers.as_chunks::<2>().0.iter().map(|pair| (pair[0].to_bits() >> 15) as u8);
                Self::Int4(codes.collect(), scales.collect())
            }
        }
    }

    /// Returns weights for each format and number of rows.
    fn of_formats(formats: &[(usize, usize)], columns: usize, group: usize, seed: u64) -> Vec<(usize, Self)> {
        let parts = formats.iter().enumerate();
        parts
            .map(|(part, &(format, rows))| {
                (rows, Self::new(format, &numbers(rows * columns, seed ^ part as u64), rows, columns, group))
            })
            .collect()
    }

    fn matrices(owned: &[(usize, Self)], columns: usize) -> Vec<Matrix<'_>> {
        let parts = owned.iter();
        parts.map(|(rows, owned)| Matrix::new(*rows, columns, owned.weights()).expect("a fitting shape")).collect()
    }

    fn weights(&self) -> Weights<'_> {
        match self {
            Self::F32(weights) => Weights::F32(weights),
            Self::Bf16(bits) => Weights::Bf16(bits),
            Self::Int8(codes, scales) => Weights::Int8(codes, scales),
            Self::Int4(codes, scales) => Weights::Int4(codes, scales),
        }
    }

    /// Returns one dequantized weight.
    fn weight(&self, row: usize, column: usize, columns: usize) -> f64 {
        let index = row * columns + column;
        f64::from(match self {
            Self::F32(weights) => weights[index],
            Self::Bf16(bits) => bf16::to_f32(bits[index]),
            Self::Int8(codes, scales) => f32::from(codes[index]) * scales[row],
            Self::Int4(codes, scales) => {
                let code = codes[index / 2] >> (4 * (index % 2)) & 15;
                let [scale, offset] = scales[index / (2 * codes.len() / scales.len())].map(bf16::to_f32);
                (f32::from(code) - 8.0) * scale + offset
            }
        })
    }
}

/// Returns the GEMM backends that this CPU has or can emulate.
fn gemm_backends() -> impl Iterator<Item = GemmBackend> {
    let avx512 = Backend::best().is_avx512();
    [(GemmBackend::Fma, true), (GemmBackend::Avx512Bf16, avx512), (GemmBackend::Amx, avx512)]
        .into_iter()
        .filter_map(|(gemm, available)| available.then_some(gemm))
}

/// Returns the nearest bfloat16, ties to even.
fn rounded(x: f32) -> f32 {
    let below = f32::from_bits(x.to_bits() & 0xffff_0000);
    let above = f32::from_bits((x.to_bits() & 0xffff_0000).wrapping_add(1 << 16)); // away from zero
    match (x - below).abs().total_cmp(&(above - x).abs()) {
        Ordering::Less => below,
        Ordering::Equal if below.to_bits() & (1 << 16) == 0 => below,
        Ordering::Equal | Ordering::Greater => above,
    }
}

fn activated(activation: Gate, x: f64) -> f64 {
    match activation {
        Gate::Silu => x / (1.0 + (-x).exp()),
        Gate::GeluTanh => 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh()),
    }
}

/// Returns the activations by definition, in float64.
fn oracle(activations: Activations<'_>, columns: usize) -> Vec<f64> {
    let wide = |x: &[f32]| x.iter().copied().map(f64::from).collect::<Vec<_>>();
    match activations {
        Activations::Plain(x) => wide(x),
        Activations::Normalized { x, weights, eps } => {
            let mut rows = x.to_vec(); // `normalize` has an oracle of its own
            normalize(&mut rows, columns, 0..columns, weights, eps, 1).expect("a fitting shape");
            wide(&rows)
        }
        Activations::Gated(activation, x) => wide(x)
            .chunks(2 * columns)
            .flat_map(|x| {
                let (gate, up) = x.split_at(columns);
                gate.iter().zip(up).map(|(gate, up)| activated(activation, *gate) * up).collect::<Vec<_>>()
            })
            .collect(),
    }
}

/// Returns numbers in [-1, 1), fixed by the seed: the high bits of a multiplicative hash of (seed, index).
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    (0..count as u64)
        .map(|index| {
            let hash = (index + 1).wrapping_mul(seed.wrapping_add(0x9E37_79B9_7F4A_7C15) | 1);
            ((hash ^ (hash >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Checks the bits of products against float64 sums: of `rounded` for bfloat16 weights, of `x` for others.
fn check(
    found: &[u32],
    owned: &[(usize, Owned)],
    (start, add): (&[f32], bool),
    x: &[f64],
    rounded: &[f64],
    tolerance: f64,
    columns: usize,
) -> std::result::Result<(), TestCaseError> {
    let width: usize = owned.iter().map(|(rows, _)| rows).sum();
    for (row, (x, rounded)) in x.chunks(columns).zip(rounded.chunks(columns)).enumerate() {
        let mut index = row * width;
        for (rows, owned) in owned {
            let (x, tolerance) = match owned {
                Owned::Bf16(_) => (rounded, tolerance),
                // Sums of codes and of offsets may be larger than their total.
                Owned::Int4(..) => (x, 64.0),
                Owned::F32(_) | Owned::Int8(..) => (x, 1.0),
            };
            for row in 0..*rows {
                let products = (0..columns).map(|column| owned.weight(row, column, columns) * x[column]);
                let (sum, size) =
                    products.fold((0.0, 1e-3), |(sum, size), product| (sum + product, size + product.abs()));
                let expected = sum + if add { f64::from(start[index]) } else { 0.0 };
                let off = (f64::from(f32::from_bits(found[index])) - expected).abs();
                prop_assert!(off <= tolerance * size * 1e-5, "{} off in {}", off, expected);
                index += 1;
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_backend_agrees_with_the_oracle_and_gives_the_same_bits(
        formats in prop::collection::vec((0_usize..4, 0_usize..14), 1..4),
        (group, groups, rest) in (prop::sample::select(vec![32_usize, 64, 128, 256]), 1_usize..4, 0_usize..33),
        batch in prop::sample::select(vec![0_usize, 1, 2, 3, 4, 5, 7, 8, 9, 10, 17, 19, 22]),
        fused in 0_usize..6,
        add in any::<bool>(),
        threads in 1_usize..4,
        seed in any::<u64>(),
    ) {
        let has_int4 = formats.iter().any(|&(format, _)| format == 3);
        let columns = if has_int4 { groups * group } else { 31 * groups + rest };
        let owned = Owned::of_formats(&formats, columns, group, seed);
        let matrices = Owned::matrices(&owned, columns);
        let (x, norm) = (numbers(2 * columns * batch, seed ^ 8), numbers(columns, seed ^ 9));
        let norm_bits: Vec<u16> = norm.iter().map(|x| (x.to_bits() >> 16) as u16).collect();
        let pairs: Vec<[f32; 2]> = norm.iter().map(|factor| [*factor, 0.5 - factor]).collect();
        let single = &x[..columns * batch];
        let input = match fused {
            0 => Activations::Plain(single),
            1 => Activations::Normalized { x: single, weights: NormWeights::F32(&norm), eps: 1e-5 },
            2 => Activations::Normalized { x: single, weights: NormWeights::Bf16(&norm_bits), eps: 1e-2 },
            3 => Activations::Normalized { x: single, weights: NormWeights::Layer(&pairs), eps: 1e-2 },
            _ => Activations::Gated([Gate::Silu, Gate::GeluTanh][fused - 4], &x),
        };
        let width: usize = owned.iter().map(|(rows, _)| rows).sum();
        let start = numbers(width * batch, seed ^ 0xa);

        let mut portable = None;
        for backend in Backend::available() {
            let mut out = start.clone();
            matmul_with(backend, GemmBackend::Fma, &matrices, input, &mut out, add, threads).expect("fitting shapes");
            let bits: Vec<u32> = out.iter().map(|x| x.to_bits()).collect();
            prop_assert_eq!(portable.get_or_insert_with(|| bits.clone()), &bits, "{:?}", backend);
        }
        let found = portable.unwrap_or_default();

        let exact = oracle(input, columns);
        check(&found, &owned, (&start, add), &exact, &exact, 1.0, columns)?;
    }

    #[test]
    fn every_gemm_backend_agrees_with_the_oracle_and_is_batch_invariant(
        formats in prop::collection::vec((0_usize..4, 0_usize..100), 1..4),
        (groups, rest) in (1_usize..6, 0_usize..33),
        batch in 9_usize..150,
        (normed, add) in any::<(bool, bool)>(),
        threads in 1_usize..4,
        seed in any::<u64>(),
    ) {
        let columns = if formats.iter().any(|&(format, _)| format == 3) { 64 * groups } else { 31 * groups + rest };
        let owned = Owned::of_formats(&formats, columns, 64, seed);
        let matrices = Owned::matrices(&owned, columns);
        let (x, norm) = (numbers(columns * batch, seed ^ 8), numbers(columns, seed ^ 9));
        let input = |x| {
            if normed { Activations::Normalized { x, weights: NormWeights::F32(&norm), eps: 1e-5 } } else { Activations::Plain(x) }
        };
        let width: usize = owned.iter().map(|(rows, _)| rows).sum();
        let start = numbers(width * batch, seed ^ 0xa);
        let exact = oracle(input(&x), columns);
        let rounded: Vec<f64> = x.iter().map(|&x| f64::from(rounded(x))).collect();
        for gemm in gemm_backends() {
            let multiply = |x, out: &mut [f32], threads| {
                matmul_with(Backend::best(), gemm, &matrices, input(x), out, add, threads).expect("fitting shapes");
                out.iter().map(|x| x.to_bits()).collect::<Vec<u32>>()
            };
            let bits = multiply(&x, &mut start.clone(), threads);
            // After a norm a float64 oracle may round to another bfloat16: half a step off, at most.
            let (rounded, tolerance) = match (gemm, normed) {
                (GemmBackend::Avx512Bf16, false) => (&rounded, 1.0),
                (GemmBackend::Avx512Bf16, true) => (&exact, 1e5 / 256.0),
                _ => (&exact, 1.0),
            };
            check(&bits, &owned, (&start, add), &exact, rounded, tolerance, columns)?;

            // The last rows get the same bits in a smaller batch.
            let first = batch - 9;
            let fewer = multiply(&x[first * columns..], &mut start[first * width..].to_vec(), 1);
            prop_assert_eq!(&fewer, &bits[first * width..]);
        }
    }

    #[test]
    fn a_row_has_the_same_bits_in_every_batch(
        format in 0_usize..4, rows in 1_usize..100, batch in 2_usize..150, threads in 1_usize..4, seed in any::<u64>(),
    ) {
        let columns = 192;
        let owned = Owned::new(format, &numbers(rows * columns, seed), rows, columns, 64);
        let matrix = Matrix::new(rows, columns, owned.weights()).expect("a fitting shape");
        let x = numbers(columns * batch, seed ^ 1);
        let others = gemm_backends().filter(|_| matches!(matrix.weights, Weights::F32(_))).map(|gemm| (Backend::best(), gemm));
        for (backend, gemm) in Backend::available().map(|backend| (backend, GemmBackend::Fma)).chain(others) {
            let multiply = |x: &[f32], threads| {
                let mut out = vec![0.0; rows * (x.len() / columns)];
                matmul_with(backend, gemm, &[matrix], Activations::Plain(x), &mut out, false, threads)
                    .expect("fitting shapes");
                out
            };
            for (x, together) in x.chunks(columns).zip(multiply(&x, threads).chunks(rows)) {
                prop_assert_eq!(&multiply(x, 1), together, "{:?}, {:?}", backend, gemm);
            }
        }
    }
}

//! Chosen values: rounding, infinities, extremes, and arguments that are refused.

use super::*;

#[test]
fn three_bfloat16_terms_keep_every_digit_of_a_float32() {
    let x: Vec<f32> = numbers(500, 3).into_iter().zip(-60..).map(|(x, power)| x * 2_f32.powi(power / 5)).collect();
    let mut out = vec![0.0; x.len()];
    let mut multiply = |weights: Weights<'_>| {
        let matrix = Matrix::new(1, 1, weights).expect("a fitting shape");
        let gemm = gemm_backends().find(|gemm| *gemm == GemmBackend::Amx).unwrap_or(GemmBackend::Fma);
        matmul_with(Backend::best(), gemm, &[matrix], Activations::Plain(&x), &mut out, false, 1)
            .expect("fitting shapes");
        out.clone()
    };
    for weights in [Weights::Bf16(&[0x3f80]), Weights::Int8(&[1], &[1.0])] {
        assert_eq!(multiply(weights), x);
    }
}

#[test]
fn avx512_bf16_rounds_activations_to_the_nearest_bfloat16() {
    if !gemm_backends().any(|gemm| gemm == GemmBackend::Avx512Bf16) {
        return;
    }
    let mut x: Vec<f32> = numbers(500, 5).into_iter().zip(-60..).map(|(x, power)| x * 2_f32.powi(power / 5)).collect();
    let bits = [0x3f80_8000, 0x3f81_8000, 0x3f81_7fff, 0x3f80_8001, 0x7f80_0000, 0xff80_0000, 0x8000_0000, 0x7f7f_7fff];
    x.extend(bits.map(f32::from_bits));
    let multiply = |x: &[f32]| {
        let matrix = Matrix::new(1, 1, Weights::Bf16(&[0x3f80])).expect("a fitting shape");
        let mut out = vec![0.0; x.len()];
        matmul_with(Backend::best(), GemmBackend::Avx512Bf16, &[matrix], Activations::Plain(x), &mut out, false, 1)
            .expect("fitting shapes");
        out
    };
    let expected: Vec<f32> = x.iter().map(|&x| if x.is_infinite() { x } else { rounded(x) }).collect();
    assert_eq!(multiply(&x), expected);
    for bits in [0x7fc0_0000, 0x7f80_0001, 0xffff_ffff, 0x7fff_ffff] {
        assert!(multiply(&[f32::from_bits(bits); 9]).iter().all(|x| x.is_nan()));
    }
}

#[test]
fn an_infinite_row_does_not_change_its_neighbours() {
    let (rows, infinite) = (3, 0x7f80);
    for columns in [32_usize, 96, 160, 192, 256] {
        for group in GROUP_SIZES.into_iter().filter(|&group| columns.is_multiple_of(group)) {
            let (codes, mut scales) = (vec![0x99; rows * columns / 2], vec![[0x3f80; 2]; rows * columns / group]);
            scales[columns / group..2 * columns / group].fill([infinite; 2]);
            let matrix = Matrix::new(rows, columns, Weights::Int4(&codes, &scales)).expect("a fitting shape");
            for backend in Backend::available() {
                let mut out = [0.0; 3];
                matmul_with(
                    backend,
                    GemmBackend::Fma,
                    &[matrix],
                    Activations::Plain(&vec![1.0; columns]),
                    &mut out,
                    false,
                    1,
                )
                .expect("one row");
                let expected = 2.0 * columns as f32;
                assert_eq!((out[0], out[2]), (expected, expected), "{columns} columns in {group}, {backend:?}");
                assert!(!out[1].is_finite());
            }
        }
    }
}

#[test]
fn activations_of_int4_of_any_size_are_rounded_to_23_bits() {
    let (columns, group) = (160, 32); // a block of 128, and the rest
    let owned = Owned::new(3, &numbers(3 * columns, 1), 3, columns, group);
    let matrix = Matrix::new(3, columns, owned.weights()).expect("a fitting shape");
    for power in -149_i32..=127 {
        let x: Vec<f32> = numbers(columns, 2).iter().map(|x| (f64::from(*x) * 2_f64.powi(power)) as f32).collect();
        let mut portable = None;
        for (backend, batch) in Backend::available().flat_map(|it| [1, 5, 19].map(|batch| (it, batch))) {
            let mut out = vec![0.0; 3 * batch];
            matmul_with(backend, GemmBackend::Fma, &[matrix], Activations::Plain(&x.repeat(batch)), &mut out, false, 1)
                .expect("fitting shapes");
            let bits =
                |row: &[f32]| row.iter().map(|x| if x.is_nan() { f32::NAN } else { *x }.to_bits()).collect::<Vec<_>>();
            let expected = portable.get_or_insert_with(|| bits(&out)).clone();
            assert!(out.chunks(3).all(|row| bits(row) == expected), "2^{power}, {backend:?}, {batch} rows");
            if power > 110 {
                continue; // products may be infinite
            }
            for (row, found) in out.into_iter().take(3).enumerate() {
                let (mut expected, mut size) = (0.0, 0.0);
                for (column, x) in x.iter().enumerate() {
                    let weight = owned.weight(row, column, columns);
                    expected += weight * f64::from(*x);
                    size += weight.abs();
                }
                // Rounding is off by half a step, 2^-22 of the largest activation. Steps are at least 2^-126.
                let off = (f64::from(found) - expected).abs();
                assert!(
                    off <= 2_f64.powi((power - 22).max(-126)) * size,
                    "2^{power}, row {row}: {found} for {expected}"
                );
            }
        }
    }
}

#[test]
fn activations_that_are_no_numbers_change_their_own_row_alone() {
    let (columns, rows) = (160, 3);
    for (format, large) in (0..4).flat_map(|it| [(it, f32::INFINITY), (it, f32::NEG_INFINITY), (it, f32::NAN)]) {
        let owned = Owned::new(format, &numbers(rows * columns, 1), rows, columns, 32);
        let matrix = Matrix::new(rows, columns, owned.weights()).expect("a fitting shape");
        for (backend, batch) in Backend::available().flat_map(|it| [2, 5, 8, 22].map(|batch| (it, batch))) {
            let mut x = numbers(columns * batch, 2);
            x[columns + 7] = large;
            let mut out = vec![0.0; rows * batch];
            matmul_with(backend, GemmBackend::Fma, &[matrix], Activations::Plain(&x), &mut out, false, 1)
                .expect("fitting shapes");
            for (row, products) in out.chunks(rows).enumerate() {
                assert!(
                    products.iter().all(|x| x.is_finite() == (row != 1)),
                    "{large}, {backend:?}, row {row} of {batch}: {products:?}"
                );
            }
        }
    }
}

#[test]
fn a_row_of_a_long_prompt_has_its_own_bits() {
    // More columns and more rows than `gemm/fma.rs` takes at a time.
    let (rows, columns, batch) = (50, 2_100, 530);
    let x = numbers(batch * columns, 1);
    for format in 0..3 {
        let owned = Owned::new(format, &numbers(rows * columns, 2), rows, columns, 64);
        let matrix = Matrix::new(rows, columns, owned.weights()).expect("a fitting shape");
        for backend in Backend::available() {
            let multiply = |x: &[f32]| {
                let mut out = vec![0.0; x.len() / columns * rows];
                matmul_with(backend, GemmBackend::Fma, &[matrix], Activations::Plain(x), &mut out, false, 2)
                    .expect("fitting shapes");
                out
            };
            let together = multiply(&x);
            for row in [0, 15, 16, 511, 512, 529] {
                let alone = multiply(&x[row * columns..][..columns]);
                assert_eq!(alone, together[row * rows..][..rows], "format {format}, row {row}, {backend:?}");
            }
        }
    }
}

#[test]
fn extreme_gates_are_finite() {
    let matrix = Matrix::new(1, 1, Weights::F32(&[1.0])).expect("a fitting shape");
    for (gate, expected) in [(0.0, 0.0), (100.0, 100.0), (1e30, 1e30), (-100.0, 0.0), (-87.5, 0.0), (-1e4, 0.0)] {
        for (backend, kind) in Backend::available().flat_map(|it| [(it, Gate::Silu), (it, Gate::GeluTanh)]) {
            let (mut out, input) = ([0.0], Activations::Gated(kind, &[gate, 1.0]));
            matmul_with(backend, GemmBackend::Fma, &[matrix], input, &mut out, false, 1).expect("fitting shapes");
            assert!((out[0] - expected).abs() <= 1e-6 * expected + 1e-30, "{kind:?} of {gate}: {}", out[0]);
        }
    }
}

#[test]
fn invalid_arguments_are_named() {
    fn new(rows: usize, columns: usize, weights: Weights<'_>) -> Result<()> {
        Matrix::new(rows, columns, weights).map(drop)
    }
    let says = |result: Result<()>, expected: &str| {
        let message = result.expect_err("refused").to_string();
        assert!(message.contains(expected), "{message}");
    };
    let (numbers, scales) = ([0.0; 64], [1.0]);
    says(new(2, 3, Weights::F32(&numbers[..5])), "5 weights for a matrix of 2 rows and 3 columns");
    says(new(usize::MAX, 2, Weights::F32(&numbers[..5])), "5 weights");
    says(new(0, 0, Weights::F32(&[])), "0 columns");
    says(new(0, usize::MAX / 4 + 1, Weights::Int8(&[], &[])), "expected 1 to");
    says(new(2, 1, Weights::Int8(&[1, 2], &scales)), "scales do not fit");
    for (rows, columns) in [(1, 48), (2, 48), (3, 32), (1, 16), (1, 1024)] {
        let codes = vec![0; rows * columns / 2];
        says(new(rows, columns, Weights::Int4(&codes, &[[0; 2]; 2])), "scales do not fit");
    }
    assert!(Matrix::new(0, 64, Weights::Int4(&[], &[])).is_ok());

    let matrix = |columns| Matrix::new(1, columns, Weights::F32(&numbers[..columns])).expect("a fitting shape");
    let mut out = [0.0; 2];
    says(matmul(&[], Activations::Plain(&[]), &mut out, false, 1), "no matrix");
    says(matmul(&[matrix(2), matrix(3)], Activations::Plain(&[]), &mut out, false, 1), "matrices of 2 and 3 columns");
    says(
        matmul(&[matrix(3)], Activations::Plain(&[0.0; 4]), &mut out, false, 1),
        "4 activations and 2 outputs; expected 3 and 1",
    );
    says(matmul(&[matrix(3)], Activations::Plain(&[0.0; 3]), &mut out, false, 1), "3 activations and 2 outputs");
    says(
        matmul(&[matrix(2)], Activations::Gated(Gate::Silu, &[0.0; 6]), &mut out, false, 1),
        "6 activations and 2 outputs; expected 4",
    );
    let normed = Activations::Normalized { x: &[0.0; 2], weights: NormWeights::F32(&[1.0]), eps: 0.0 };
    says(matmul(&[matrix(2)], normed, &mut out[..1], false, 1), "a norm of 1 weights for 2 columns");
}

//! Every backend and number of threads against definitions in float64, and against each other bit by bit.

#![allow(clippy::unwrap_used, reason = "a test that fails")]

use super::*;
use proptest::prelude::*;

fn numbers(count: usize, seed: u32) -> Vec<f32> {
    (0..count as u32).map(|i| ((i ^ seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 22) as f32 - 2.0).collect()
}

/// Returns what `compute` writes to outputs of these lengths.
fn same_everywhere<const N: usize>(
    lengths: [usize; N],
    compute: impl Fn(ElementWise, [&mut [f32]; N]) -> Result<()>,
) -> [Vec<f64>; N] {
    let mut first: Option<Vec<u32>> = None;
    let mut outputs = lengths.map(|_| Vec::new());
    for backend in Backend::available() {
        for threads in [1, 3] {
            outputs = lengths.map(|length| vec![7.0; length]);
            compute(ElementWise { backend, threads }, outputs.each_mut().map(Vec::as_mut_slice)).unwrap();
            let bits: Vec<u32> = outputs.iter().flatten().map(|x| x.to_bits()).collect();
            assert!(*first.get_or_insert_with(|| bits.clone()) == bits, "{backend:?}, {threads} threads");
        }
    }
    outputs.map(|output| output.into_iter().map(f64::from).collect())
}

fn close(found: &[f64], exact: &[f64], tolerance: f64) {
    assert_eq!(found.len(), exact.len());
    for (at, (found, exact)) in found.iter().zip(exact).enumerate() {
        assert!((found - exact).abs() <= tolerance * exact.abs().max(1.0), "{at}: {found}, exactly {exact}");
    }
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().copied().map(f64::from).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn rms_norm_and_its_gradients(
        rows in prop_oneof![0_usize..5, Just(700)],
        width in prop_oneof![1_usize..70, Just(192)],
        seed in 0_u32..9999,
    ) {
        let (x, weights, gradient) = (numbers(rows * width, seed), numbers(width, !seed), numbers(rows * width, seed + 9));
        let (eps, lengths) = (1e-3, [rows * width, rows]);
        let [out, scales] = same_everywhere(lengths, |on, [out, scales]| on.rms_norm(&x, &weights, eps, out, scales));
        let (x64, weights64, gradient64) = (wide(&x), wide(&weights), wide(&gradient));
        let (mut exact, mut for_x, mut for_weights) = (Vec::new(), Vec::new(), vec![0.0; width]);
        for (row, (x, gradient)) in x64.chunks(width).zip(gradient64.chunks(width)).enumerate() {
            let mean = |numbers: &dyn Fn(usize) -> f64| (0..width).map(numbers).sum::<f64>() / width as f64;
            let scale = 1.0 / (mean(&|at| x[at] * x[at]) + f64::from(eps)).sqrt();
            prop_assert!((scales[row] - scale).abs() < 1e-5 * scale);
            let slope = mean(&|at| gradient[at] * weights64[at] * x[at] * scale);
            for at in 0..width {
                exact.push(x[at] * scale * weights64[at]);
                for_x.push(scale * (gradient[at] * weights64[at] - x[at] * scale * slope));
                for_weights[at] += gradient[at] * x[at] * scale;
            }
        }
        close(&out, &exact, 1e-5);
        let scales: Vec<f32> = scales.iter().map(|scale| *scale as f32).collect();
        let found = same_everywhere([rows * width, width], |on, [for_x, for_weights]| {
            on.rms_norm_backward(&gradient, &x, &weights, &scales, for_x, for_weights)
        });
        close(&found[0], &for_x, 1e-4);
        close(&found[1], &for_weights, 1e-4);
    }

    #[test]
    fn swiglu_and_its_gradients(count in prop_oneof![0_usize..70, Just(3 * PART + 5)], seed in 0_u32..9999) {
        let scaled = |seed| numbers(count, seed).iter().map(|x| x * 20.0).collect::<Vec<_>>();
        let (gate, up, gradient) = (scaled(seed), numbers(count, !seed), numbers(count, seed + 9));
        let [out] = same_everywhere([count], |on, [out]| on.swiglu(&gate, &up, out));
        let [for_gate, for_up] = same_everywhere([count, count], |on, [for_gate, for_up]| {
            on.swiglu_backward(&gradient, &gate, &up, for_gate, for_up)
        });
        for at in 0..count {
            let (gate, up, gradient) = (f64::from(gate[at]), f64::from(up[at]), f64::from(gradient[at]));
            let sigmoid = 1.0 / (1.0 + (-gate).exp());
            close(&out[at..=at], &[gate * sigmoid * up], 1e-6);
            close(&for_gate[at..=at], &[gradient * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))], 1e-5);
            close(&for_up[at..=at], &[gradient * gate * sigmoid], 1e-6);
        }
    }

    #[test]
    fn rotation_and_back(
        periods in 1_usize..5,
        repeats in prop_oneof![0_usize..3, Just(200)],
        heads in 1_usize..4,
        pairs in prop_oneof![1_usize..20, Just(32)],
        rest in 0_usize..3,
        seed in 0_u32..9999,
    ) {
        let (rows, head_dim) = (periods * repeats, 2 * pairs + rest);
        let (cos, sin): (Vec<f32>, Vec<f32>) =
            numbers(periods * pairs, seed).iter().map(|angle| (angle.cos(), angle.sin())).unzip();
        let (angles, x) = (Angles { cos: &cos, sin: &sin, pairs }, numbers(rows * heads * head_dim, seed + 9));
        let [out] = same_everywhere([x.len()], |on, [out]| on.rotate(&x, angles, heads, head_dim, false, out));
        for (at, found) in out.iter().enumerate() {
            let (row, feature) = (at / (heads * head_dim) % periods, at % head_dim);
            let angle = row * pairs + feature % pairs;
            let exact = match feature {
                _ if feature >= 2 * pairs => x[at],
                _ if feature < pairs => x[at] * cos[angle] - x[at + pairs] * sin[angle],
                _ => x[at] * cos[angle] + x[at - pairs] * sin[angle],
            };
            prop_assert!((found - f64::from(exact)).abs() < 1e-5);
        }
        let out: Vec<f32> = out.iter().map(|x| *x as f32).collect();
        let [back] = same_everywhere([x.len()], |on, [back]| on.rotate(&out, angles, heads, head_dim, true, back));
        close(&back, &wide(&x), 1e-5);
    }

    #[test]
    fn cross_entropy_and_its_gradient(
        rows in prop_oneof![0_usize..5, Just(90)],
        classes in prop_oneof![1_usize..70, Just(1000)],
        label_smoothing in prop_oneof![Just(0.0_f32), Just(0.1)],
        z_loss in prop_oneof![Just(0.0_f32), Just(0.01)],
        scale in prop_oneof![Just(1.0_f32), Just(40.0), Just(1e7)],
        seed in 0_u32..9999,
    ) {
        let logits: Vec<f32> = numbers(rows * classes, seed).iter().map(|x| x * scale).collect();
        let labels: Vec<i64> = (0..rows as i64).map(|row| row * 7 % classes as i64).collect();
        let factors: Vec<f32> = (0..rows).map(|row| row as f32 % 3.0).collect();
        let loss = Loss { label_smoothing, z_loss, gradient: true };
        let [gradient, losses] = same_everywhere([rows * classes, rows], |on, [given, losses]| {
            given.copy_from_slice(&logits);
            on.cross_entropy(given, &labels, &factors, loss, losses)
        });
        let [kept, again] = same_everywhere([rows * classes, rows], |on, [given, losses]| {
            given.copy_from_slice(&logits);
            on.cross_entropy(given, &labels, &factors, Loss { gradient: false, ..loss }, losses)
        });
        prop_assert_eq!((&again, &kept), (&losses, &wide(&logits)));
        let (smoothing, z_loss) = (f64::from(label_smoothing), f64::from(z_loss));
        for (row, logits) in wide(&logits).chunks(classes).enumerate() {
            let (label, factor) = (labels[row] as usize, f64::from(factors[row]));
            let highest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = logits.iter().map(|x| (x - highest).exp()).sum();
            let (log_sum, mean) = (highest + sum.ln(), logits.iter().sum::<f64>() / classes as f64);
            let exact = log_sum - (1.0 - smoothing) * logits[label] - smoothing * mean + z_loss * log_sum * log_sum;
            close(&losses[row..=row], &[factor * exact], 2e-6 * f64::from(scale));
            let exact: Vec<f64> = (0..classes)
                .map(|at| {
                    let probability = (logits[at] - highest).exp() / sum;
                    let target = smoothing / classes as f64 + if at == label { 1.0 - smoothing } else { 0.0 };
                    factor * (probability * (1.0 + 2.0 * z_loss * log_sum) - target)
                })
                .collect();
            close(&gradient[row * classes..][..classes], &exact, 2e-5);
        }
    }
}

#[test]
fn not_a_number_stays() {
    let nan_of = |logit: f32, factor: f32, label: i64| {
        let [gradient, losses] = same_everywhere([20, 1], |on, [logits, losses]| {
            logits[17] = logit;
            let loss = Loss { label_smoothing: 0.0, z_loss: 0.0, gradient: true };
            on.cross_entropy(logits, &[label], &[factor], loss, losses)
        });
        assert_eq!(gradient.iter().all(|x| x.is_nan()), losses[0].is_nan());
        losses[0].is_nan()
    };
    assert!(nan_of(f32::NAN, 1.0, 0) && nan_of(f32::INFINITY, 1.0, 0) && nan_of(1.0, f32::NAN, -100));
    assert!(!nan_of(f32::NEG_INFINITY, 1.0, 0) && !nan_of(f32::NAN, 0.0, -100));
    let [out] = same_everywhere([20], |on, [out]| on.swiglu(&[f32::NAN; 20], &[1.0; 20], out));
    assert!(out.iter().all(|x| x.is_nan()));
    let [out, _] =
        same_everywhere([20, 1], |on, [out, scales]| on.rms_norm(&[f32::NAN; 20], &[1.0; 20], 1.0, out, scales));
    assert!(out.iter().all(|x| x.is_nan()));
}

#[test]
fn lengths_that_do_not_fit_are_named() {
    let on = ElementWise::new(1);
    let (mut two, mut three) = ([0.0; 2], [0.0; 3]);
    let named = |result: Result<()>, part: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    named(on.rms_norm(&[0.0; 3], &[0.0; 2], 0.0, &mut [0.0; 2], &mut [0.0]), "x has 3 elements; expected 2");
    named(on.rms_norm(&[], &[], 0.0, &mut [], &mut two), "0 weights");
    named(on.rms_norm_backward(&[], &[], &[], &[0.0; 2], &mut [], &mut []), "0 weights");
    named(on.rms_norm_backward(&[0.0; 2], &[0.0; 2], &[0.0; 2], &[0.0], &mut two, &mut three), "for_weights has 3");
    named(on.swiglu(&[0.0; 2], &[0.0; 3], &mut [0.0; 2]), "up has 3");
    named(on.swiglu_backward(&[0.0; 2], &[0.0; 2], &[0.0; 2], &mut two, &mut three), "for_up has 3");
    let angles = |cos, sin, pairs| Angles { cos, sin, pairs };
    named(on.rotate(&[0.0; 4], angles(&[0.0; 3], &[0.0; 3], 1), 1, 2, false, &mut [0.0; 4]), "as many as the angles");
    named(on.rotate(&[0.0; 4], angles(&[0.0; 2], &[0.0; 2], 2), 1, 2, false, &mut [0.0; 4]), "in rows of 2");
    named(on.rotate(&[0.0; 4], angles(&[], &[], 0), 1, 2, false, &mut [0.0; 4]), "in rows of 0");
    named(on.rotate(&[0.0; 4], angles(&[0.0], &[0.0], 1), 0, 2, false, &mut [0.0; 4]), "0 heads");
    let loss = Loss { label_smoothing: 0.0, z_loss: 0.0, gradient: false };
    named(on.cross_entropy(&mut [0.0; 3], &[0, 0], &[1.0; 2], loss, &mut two), "logits has 3");
    named(on.cross_entropy(&mut [0.0; 4], &[0, 2], &[1.0; 2], loss, &mut two), "label 2 is not one of 2 classes");
    named(on.cross_entropy(&mut [0.0; 4], &[-1, 0], &[1.0; 2], loss, &mut two), "label -1");
}

//! The sampler against its definition: sort the whole row, add in float64.

use crate::error::{Error, Interrupt};
use crate::logits::{Elements, LogitsView};
use crate::options::Options;
use crate::random::uniform;
use crate::row::{row_probs, sample_row};
use crate::sampler::{BatchOptions, Sampler};
use crate::scratch::Scratch;
use crate::simd::{
    Candidates, Extrema, Weight, approximate_cumulative, compute_weights, cumulative, extrema, moments_below,
};
use bpe_llama_simd::Backend;
use bpe_llama_simd::exp::{Scale, exp64};
use proptest::prelude::*;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Returns the filtered distribution by definition, or `None` if a mass is so near to p that float64's rounding
/// decides.
fn definition(row: &[f32], options: &Options) -> Option<Vec<f64>> {
    let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |x: f32| exp64((f64::from(x) - f64::from(highest)) / options.temperature);
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[b].partial_cmp(&row[a]).expect("no NaN").then(a.cmp(&b)));
    if 0 < options.top_k && options.top_k < row.len() {
        order.truncate(options.top_k);
    }
    if options.top_p < 1.0 {
        let target = options.top_p * order.iter().map(|&id| weight(row[id])).sum::<f64>();
        let mut mass = 0.0;
        let mut kept = 0;
        while mass < target && kept < order.len() {
            mass += weight(row[order[kept]]);
            kept += 1;
            if (mass - target).abs() < 1e-11 * target {
                return None;
            }
        }
        order.truncate(kept);
    }
    order.retain(|&id| (f64::from(row[id]) - f64::from(highest)) / options.temperature >= options.min_p.ln());
    let mass: f64 = order.iter().map(|&id| weight(row[id])).sum();
    let mut probs = vec![0.0; row.len()];
    for id in order {
        probs[id] = weight(row[id]) / mass;
    }
    Some(probs)
}

fn assert_follows_definition(row: &[f32], options: &Options) -> Result<(), TestCaseError> {
    let Some(expected) = definition(row, options) else { return Ok(()) };
    let logits = LogitsView::contiguous(Elements::F32(row), 1, row.len()).expect("contiguous");
    let mut ids = Vec::new();
    for backend in Backend::available() {
        let mut scratch = Scratch::new(backend);
        let mut probs = vec![0.0; row.len()];
        row_probs(&logits, 0, None, options, &mut scratch, &mut probs).expect("valid");
        for (id, (&got, &want)) in probs.iter().zip(&expected).enumerate() {
            prop_assert!((got - want).abs() <= 1e-12 * want, "{backend:?} id {id}: {got} for {want}, {options:?}");
        }
        for step in 0..8 {
            let u = uniform(options.seed, step);
            let id = sample_row(&logits, 0, None, options, u, &mut scratch).expect("valid") as usize;
            let below: f64 = expected[..id].iter().sum();
            prop_assert!(expected[id] > 0.0, "{backend:?} drew {id}, which is filtered out");
            prop_assert!(below - 1e-6 <= u && u <= below + expected[id] + 1e-6, "{backend:?} {u} drew {id}");
            ids.push(id);
        }
    }
    let (first, others) = ids.split_at(8);
    for other in others.chunks(8) {
        prop_assert_eq!(first, other, "backends differ");
    }
    Ok(())
}

fn rows() -> impl Strategy<Value = Vec<f32>> {
    let length = prop_oneof![1usize..40, 40usize..3000];
    let kind = 0u8..7;
    (length, kind, any::<u64>())
        .prop_map(|(length, kind, seed)| {
            let noise = |i: usize| uniform(seed, i as u64) as f32;
            (0..length)
                .map(|i| match kind {
                    0 => noise(i) * 8.0,
                    1 => (noise(i) * 6.0 - 3.0).round() * 0.5,
                    2 => 3.5,
                    3 if noise(i) < 0.1 => 2.0,
                    3 => -1.0,
                    4 if i == length / 2 => 1.0,
                    4 => f32::NEG_INFINITY,
                    5 => noise(i) * 1e-40,
                    _ => -(noise(i).ln()) * 4.0 - if noise(i + length) < 0.3 { f32::INFINITY } else { 0.0 },
                })
                .map(|x| if x.is_finite() || x == f32::NEG_INFINITY { x } else { 0.0 })
                .collect::<Vec<f32>>()
        })
        .prop_map(|mut row| {
            if row.iter().all(|x| !x.is_finite()) {
                row[0] = 0.0;
            }
            row
        })
}

fn options() -> impl Strategy<Value = Options> {
    (
        prop_oneof![Just(1.0), 0.05f64..3.0],
        prop_oneof![Just(0usize), 1usize..60],
        prop_oneof![Just(1.0), Just(0.5), 1e-6f64..1.0],
        prop_oneof![Just(0.0), Just(1.0), 0.0f64..0.5],
        any::<u64>(),
    )
        .prop_map(|(temperature, top_k, top_p, min_p, seed)| Options {
            temperature,
            top_k,
            top_p,
            min_p,
            seed,
            ..Options::default()
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn follows_the_definition(row in rows(), options in options()) {
        assert_follows_definition(&row, &options)?;
    }
}

#[test]
fn follows_the_definition_on_a_large_row() {
    for spread in [1.0, 3.0, 0.01] {
        let row: Vec<f32> = (0..50_000)
            .map(|i| {
                let (u, v) = (uniform(1, 2 * i), uniform(1, 2 * i + 1));
                ((-2.0 * (1.0 - u).ln()).sqrt() * (v * std::f64::consts::TAU).cos() * spread) as f32
            })
            .collect();
        for (top_p, top_k) in [(0.9, 0), (0.1, 0), (0.999, 0), (0.9, 40), (1.0, 1000)] {
            let options = Options { temperature: 0.8, top_p, top_k, seed: 3, ..Options::default() };
            assert_follows_definition(&row, &options).unwrap_or_else(|error| panic!("{spread} {top_p}: {error}"));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Float32 weights leave a p undecided that is so near to the mass of the highest logits.
    #[test]
    fn follows_the_definition_where_a_mass_is_nearly_p(row in rows(), options in options(), last in 0usize..3000, gap in -1.0f64..1.0) {
        let all = definition(&row, &Options { top_p: 1.0, min_p: 0.0, ..options.clone() }).expect("no p to reach");
        let mut probs: Vec<f64> = all.into_iter().filter(|&prob| prob > 0.0).collect();
        probs.sort_by(|a, b| b.total_cmp(a));
        let mass: f64 = probs[..=last % probs.len()].iter().sum();
        let top_p = mass * (1.0 + gap.signum() * 1e-10 * 1e4f64.powf(gap.abs()));
        prop_assume!(top_p < 1.0);
        assert_follows_definition(&row, &Options { top_p, ..options })?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn every_pass_follows_its_definition_on_every_backend(row in rows(), low in 0usize..3000, high in 0usize..3000) {
        let (low, high) = (row[low % row.len()], row[high % row.len()]);
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let min = row.iter().copied().fold(f32::INFINITY, f32::min);
        let scale = Scale::new(max, 0.8);
        let weights: Vec<f32> = row.iter().map(|&logit| scale.weight(logit)).collect();
        let ids: Vec<u32> = (0..row.len() as u32).map(|id| 7 * id + 3).collect();
        let above = || row.iter().zip(&weights).filter(|(logit, _)| **logit >= high);
        let mass: f64 = above().map(|(_, &weight)| f64::from(weight)).sum();
        let inside = (0..row.len()).filter(|&id| row[id] >= low && !(row[id] >= high));
        let inside: Vec<_> = inside.map(|id| (row[id], weights[id].to_bits(), id as u32)).collect();
        let mut first = None;
        for backend in Backend::available() {
            prop_assert_eq!(extrema(backend, &row), Extrema { max, min, valid: true });
            let mut got = vec![0.0; row.len()];
            let total = compute_weights(backend, &row, &scale, &mut got);
            let same = got.iter().zip(&weights).all(|(a, b)| a.to_bits() == b.to_bits());
            prop_assert!(same, "{backend:?} computes other weights");

            let mut found = Candidates::default();
            let at_high = f32::collect_bracket(backend, &row, &weights, None, (low, high), &mut found);
            prop_assert_eq!(at_high, cumulative(backend, &row, &weights, high));
            prop_assert_eq!(at_high.count, above().count());
            prop_assert!((at_high.mass - mass).abs() <= 1e-12 * mass, "{} for {mass}", at_high.mass);
            let columns = found.logits.iter().zip(&found.weights).zip(&found.ids);
            let columns: Vec<_> = columns.map(|((&logit, weight), &id)| (logit, weight.to_bits(), id)).collect();
            prop_assert_eq!(&columns, &inside, "{:?}", backend);
            f32::collect_bracket(backend, &row, &weights, Some(&ids), (low, high), &mut found);
            prop_assert!(found.ids.iter().eq(inside.iter().map(|(.., id)| &ids[*id as usize])), "{backend:?}");

            let (count, approximate) = approximate_cumulative(backend, &row, &weights, high);
            prop_assert_eq!(count, at_high.count);
            prop_assert!((f64::from(approximate) - mass).abs() <= 1e-5 * mass, "{approximate} for {mass}");
            let moments = moments_below(backend, &row, &weights, high);
            let sums = (total.to_bits(), at_high.mass.to_bits(), approximate.to_bits(), moments);
            prop_assert_eq!(*first.get_or_insert(sums), sums, "backends differ");
        }
    }
}

#[test]
fn a_mass_equal_to_p_needs_no_further_id() {
    for count in [4usize, 10, 100] {
        let row = vec![0.7f32; count];
        for kept in 1..count {
            let options = Options { temperature: 0.8, top_p: kept as f64 / count as f64, ..Options::default() };
            let sampler = Sampler::new(options).expect("in range");
            let logits = LogitsView::contiguous(Elements::F32(&row), 1, count).expect("contiguous");
            let mut probs = vec![0.0; count];
            sampler.probs_batch(&logits, &BatchOptions::default(), &mut probs).expect("valid");
            let (head, tail) = probs.split_at(kept);
            assert!(head.iter().all(|&p| p > 0.0) && tail.iter().all(|&p| p == 0.0), "{kept} of {count}");
        }
    }
}

#[test]
fn argmax_takes_the_lowest_id_of_a_tie() {
    let sampler = Sampler::new(Options { temperature: 0.0, ..Options::default() }).expect("in range");
    assert_eq!(sampler.sample(&[1.0, 3.0, 3.0, -1.0]).expect("valid"), 1);
    assert_eq!(sampler.sample(&[f32::NEG_INFINITY, -5.0]).expect("valid"), 1);
}

#[test]
fn errors_name_the_row_and_the_logit() {
    let sampler = Sampler::new(Options::default()).expect("in range");
    let data = [0.0, 1.0, 0.0, f32::NAN, f32::INFINITY, 0.0, f32::NEG_INFINITY, f32::NEG_INFINITY];
    for (row, message) in [
        (1, "row 0: logit 1 is NaN; expected a finite number or -inf"),
        (2, "row 0: logit 0 is inf; expected a finite number or -inf"),
        (3, "row 0: every logit is -inf; at least one must be finite"),
    ] {
        let error = sampler.sample(&data[2 * row..2 * row + 2]).expect_err("invalid").to_string();
        assert_eq!(error, message);
    }
    let logits = LogitsView::contiguous(Elements::F32(&data), 4, 2).expect("contiguous");
    for threads in [1, 2, 4] {
        let batch_options = BatchOptions { num_threads: std::num::NonZero::new(threads), ..BatchOptions::default() };
        let error = sampler.sample_batch(&logits, &batch_options, &mut [0; 4]).expect_err("invalid").to_string();
        assert!(error.starts_with("row 1: logit 1 is NaN"), "{error}");
    }
    assert!(sampler.sample(&[]).is_err());
    assert_eq!(sampler.step(), 0, "a failed call takes no step");
}

#[test]
fn an_interrupt_ends_a_call_which_then_takes_no_step() {
    let (data, vocab_size) = (vec![0.0; 50 * (1 << 14)], 1 << 14);
    let logits = LogitsView::contiguous(Elements::F32(&data), 50, vocab_size).expect("contiguous");
    let sampler = Sampler::new(Options::default()).expect("in range");
    for threads in [1, 2, 4] {
        let checks = AtomicUsize::new(0);
        let check = || if checks.fetch_add(1, Ordering::Relaxed) == 1 { Err(Error::Interrupted) } else { Ok(()) };
        let interrupt = Interrupt::new(&check);
        let batch_options = BatchOptions { num_threads: NonZero::new(threads), interrupt, ..BatchOptions::default() };
        // With threads, others may take all parts before this one takes its second.
        let result = sampler.sample_batch(&logits, &batch_options, &mut [0; 50]);
        let stopped = checks.into_inner() == 2;
        assert!(matches!(result, Err(Error::Interrupted)) == stopped && (stopped || threads > 1), "{result:?}");
        assert_eq!(sampler.step(), u64::from(!stopped));
        sampler.set_step(0);
    }

    // One row is one check: the second is before its log-probability.
    let row = LogitsView::contiguous(Elements::F32(&data[..vocab_size]), 1, vocab_size).expect("contiguous");
    let checks = AtomicUsize::new(0);
    let check = || if checks.fetch_add(1, Ordering::Relaxed) == 1 { Err(Error::Interrupted) } else { Ok(()) };
    let interrupt = Interrupt::new(&check);
    let batch_options = BatchOptions { num_threads: NonZero::new(1), interrupt, ..BatchOptions::default() };
    let result = sampler.sample_batch_with_log_probs(&row, &batch_options, &mut [0], 1);
    assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
    assert_eq!((checks.into_inner(), sampler.step()), (2, 0));
}

#[test]
fn ids_do_not_depend_on_the_batch() {
    let vocab_size = 700;
    let data: Vec<f32> = (0..12 * vocab_size).map(|i| uniform(5, i as u64) as f32 * 4.0).collect();
    let logits = LogitsView::contiguous(Elements::F32(&data), 12, vocab_size).expect("contiguous");
    let sampler = Sampler::new(Options { seed: 11, top_p: 0.9, ..Options::default() }).expect("in range");
    let mut together = [0; 12];
    for threads in [1, 2, 5, 12, 40] {
        let batch_options =
            BatchOptions { step: Some(4), num_threads: std::num::NonZero::new(threads), ..BatchOptions::default() };
        sampler.sample_batch(&logits, &batch_options, &mut together).expect("valid");
        for (row, &id) in data.chunks(vocab_size).zip(&together) {
            let one = LogitsView::contiguous(Elements::F32(row), 1, vocab_size).expect("contiguous");
            let mut alone = [0];
            sampler
                .sample_batch(&one, &BatchOptions { step: Some(4), ..BatchOptions::default() }, &mut alone)
                .expect("valid");
            assert_eq!(alone[0], id);
        }
    }
    assert_eq!(sampler.step(), 0, "an explicit step does not count");
}

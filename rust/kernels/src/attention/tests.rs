//! Every backend and number of threads against a float64 oracle, and against each other bit by bit.

#![allow(clippy::unwrap_used, reason = "a test that fails")]
#![allow(clippy::float_cmp, reason = "these are exact")]

use super::{AttentionShape, KvCache, NewTokens, attend, attend_with};
use crate::backend::GemmBackend;
use bpe_llama_simd::{Backend, bf16};
use proptest::prelude::*;

/// Returns the attention output by definition in float64, and extends the cache.
fn oracle(
    shape: AttentionShape,
    tokens: NewTokens<'_>,
    keys: &mut [f64],
    values: &mut [f64],
    is_bf16: bool,
) -> Vec<f64> {
    let AttentionShape { heads, kv_heads, head_dim: size, capacity, window, softcap, interleaved } = shape;
    let half = tokens.cos.len() / tokens.positions.len();
    let cached = |x: f64| if is_bf16 { f64::from(bf16::to_f32(bf16::from_f32(x as f32))) } else { x };
    let head = |row: usize, head: usize, rotate: bool| -> Vec<f64> {
        let x = &tokens.qkv[(row * (heads + 2 * kv_heads) + head) * size..][..size];
        let angle = |i: usize| [tokens.cos, tokens.sin].map(|part| f64::from(part[row * half + i % half]));
        (0..size)
            .map(|i| match i {
                _ if !rotate || i >= 2 * half => f64::from(x[i]),
                _ if interleaved && i % 2 == 0 => {
                    f64::from(x[i]) * angle(i / 2)[0] - f64::from(x[i + 1]) * angle(i / 2)[1]
                }
                _ if interleaved => f64::from(x[i]) * angle(i / 2)[0] + f64::from(x[i - 1]) * angle(i / 2)[1],
                _ if i < half => f64::from(x[i]) * angle(i)[0] - f64::from(x[i + half]) * angle(i)[1],
                _ => f64::from(x[i]) * angle(i)[0] + f64::from(x[i - half]) * angle(i)[1],
            })
            .collect()
    };
    for (row, position) in tokens.positions.iter().enumerate() {
        let Some((slot, position)) = *position else { continue };
        for k in 0..kv_heads {
            let at = ((slot * kv_heads + k) * capacity + position) * size;
            for (i, x) in head(row, heads + k, true).into_iter().enumerate() {
                keys[at + i] = cached(x);
            }
            for (i, x) in head(row, heads + kv_heads + k, false).into_iter().enumerate() {
                values[at + i] = cached(x);
            }
        }
    }
    let mut out = vec![0.0; tokens.positions.len() * heads * size];
    for (row, position) in tokens.positions.iter().enumerate() {
        let Some((slot, position)) = *position else { continue };
        for n in 0..heads {
            let query = head(row, n, true);
            let first = if window == 0 { 0 } else { (position + 1).saturating_sub(window) };
            let at = |s: usize| ((slot * kv_heads + n * kv_heads / heads) * capacity + s) * size;
            let product = |s: usize| (0..size).map(|i| query[i] * keys[at(s) + i]).sum::<f64>();
            let cap = f64::from(softcap);
            let bounded = |score: f64| if cap == 0.0 { score } else { cap * (score / cap).tanh() };
            let score = |s: usize| bounded(product(s) / (size as f64).sqrt());
            let weights: Vec<f64> = (first..=position).map(|s| score(s).exp()).collect();
            let total: f64 = weights.iter().sum();
            for i in 0..size {
                out[(row * heads + n) * size + i] =
                    (first..=position).zip(&weights).map(|(s, weight)| weight / total * values[at(s) + i]).sum();
            }
        }
    }
    out
}

fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_backend_agrees_with_the_oracle_and_gives_the_same_bits(
        kv_heads in 1_usize..4,
        group in 1_usize..5,
        size in prop_oneof![Just(64), Just(16), Just(128), 2_usize..50],
        rotated in 0_usize..=10,
        window in prop_oneof![Just(0_usize), 1_usize..40],
        softcap in prop_oneof![Just(0.0_f32), Just(50.0), Just(0.4)],
        interleaved in any::<bool>(),
        last_positions in prop::collection::vec(prop_oneof![3 => (0_usize..70).prop_map(Some), 1 => Just(None)], 1..4),
        following in 0_usize..40,
        is_bf16 in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let heads = kv_heads * group;
        let shape = AttentionShape { heads, kv_heads, head_dim: size, capacity: 70, window, softcap, interleaved };
        let half = size / 2 * rotated / 10;
        // One token in each slot, and more tokens that follow the last one in its slot.
        let mut positions: Vec<_> =
            last_positions.iter().enumerate().map(|(slot, position)| position.map(|p| (slot, p))).collect();
        if let Some(Some((slot, position))) = positions.last().copied() {
            positions.extend((position + 1..70).take(following).map(|position| Some((slot, position))));
        }
        let rows = positions.len();
        let qkv = numbers(rows * (heads + 2 * kv_heads) * size, seed);
        let angles = numbers(rows * half, seed ^ 1);
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|angle| (angle.cos(), angle.sin())).unzip();
        let tokens = NewTokens { qkv: &qkv, cos: &cos, sin: &sin, positions: &positions };
        let elements = 2 * last_positions.len() * kv_heads * 70 * size;
        let narrow: Vec<u16> = numbers(elements, seed ^ 2).into_iter().map(bf16::from_f32).collect();
        let wide: Vec<f32> = narrow.iter().map(|bits| bf16::to_f32(*bits)).collect();
        let mut exact: Vec<f64> = wide.iter().copied().map(f64::from).collect();
        let (exact_keys, exact_values) = exact.split_at_mut(elements / 2);
        let expected = oracle(shape, tokens, exact_keys, exact_values, is_bf16);

        let run = |backend, gemm, threads| {
            let mut out = vec![0.0; rows * heads * size];
            let (mut narrow, mut wide) = (narrow.clone(), wide.clone());
            let cache = if is_bf16 {
                let (keys, values) = narrow.split_at_mut(elements / 2);
                KvCache::Bf16(keys, values)
            } else {
                let (keys, values) = wide.split_at_mut(elements / 2);
                KvCache::F32(keys, values)
            };
            attend_with(backend, gemm, shape, tokens, cache, &mut out, threads).unwrap();
            (if is_bf16 { narrow.iter().map(|bits| bf16::to_f32(*bits)).collect() } else { wide }, out)
        };
        let near = |found: &[f32], exact: &[f64]| {
            let tolerance = if is_bf16 { 2e-2 } else { 1e-5 };
            found.iter().zip(exact).all(|(found, exact)| (f64::from(*found) - exact).abs() < tolerance)
        };
        for gemm in [GemmBackend::Fma, GemmBackend::Avx512Bf16] {
            let mut first: Option<(Vec<f32>, Vec<f32>)> = None;
            for backend in Backend::available().filter(|backend| gemm == GemmBackend::Fma || backend.is_avx512()) {
                for threads in [1, 3] {
                    let (cache, output) = run(backend, gemm, threads);
                    prop_assert!(near(&cache, &exact));
                    prop_assert!(near(&output, &expected), "{:?}", gemm);
                    let (first_cache, first_output) = first.get_or_insert((cache.clone(), output.clone()));
                    prop_assert_eq!(&*first_cache, &cache);
                    prop_assert_eq!(&*first_output, &output);
                }
            }
        }
    }
}

#[test]
fn a_prompt_by_avx512_bf16_differs_from_float32_by_rounding_alone() {
    let backend = Backend::best();
    if !backend.is_avx512() {
        return;
    }
    let (kv_heads, group, size, rows, before) = (2, 3, 64, 100, 30);
    for window in [0, 7, 33] {
        let shape = AttentionShape {
            heads: kv_heads * group,
            kv_heads,
            head_dim: size,
            capacity: rows + before,
            window,
            softcap: 0.0,
            interleaved: false,
        };
        let width = (shape.heads + 2 * kv_heads) * size;
        for broken in [f32::NAN, f32::INFINITY] {
            let mut qkv = numbers(rows * width, 5);
            qkv[(rows - 1) * width..].fill(broken); // the last token, which the others do not attend to
            let positions: Vec<_> = (0..rows).map(|row| Some((0, before + row))).collect();
            let tokens = NewTokens { qkv: &qkv, cos: &[], sin: &[], positions: &positions };
            let run = |gemm: GemmBackend| {
                let count = kv_heads * shape.capacity * size;
                let mut cache: Vec<u16> = numbers(2 * count, 6).into_iter().map(bf16::from_f32).collect();
                let (keys, values) = cache.split_at_mut(count);
                let mut out = vec![0.0; rows * shape.heads * size];
                attend_with(backend, gemm, shape, tokens, KvCache::Bf16(keys, values), &mut out, 1).unwrap();
                let last = out.split_off((rows - 1) * shape.heads * size);
                assert!(last.iter().all(|x| x.is_nan()), "{gemm:?}");
                out
            };
            let (exact, rounded) = (run(GemmBackend::Fma), run(GemmBackend::Avx512Bf16));
            assert!(exact != rounded, "AVX-512 BF16 rounds");
            for (at, (one, other)) in exact.iter().zip(&rounded).enumerate() {
                assert!((one - other).abs() < 1e-2, "{one} {other} at {at}, a window of {window}");
            }
        }
    }
}

#[test]
fn avx512_bf16_attends_to_the_highest_score_and_keeps_nan() {
    let backend = Backend::best();
    if !backend.is_avx512() {
        return;
    }
    let (rows, size) = (70, 2);
    let shape = AttentionShape {
        heads: 1,
        kv_heads: 1,
        head_dim: size,
        capacity: rows,
        window: 0,
        softcap: 0.0,
        interleaved: false,
    };
    let positions: Vec<_> = (0..rows).map(|row| Some((0, row))).collect();
    // Keys grow, so each score is the highest so far or the lowest, by the sign of the query.
    for (query, broken) in [(1e10, None), (-1e10, None), (1e10, Some(3)), (1e38, None), (0.0, Some(65))] {
        let qkv: Vec<f32> = (0..rows)
            .flat_map(|row| {
                let key = if broken == Some(row) { f32::NAN } else { row as f32 * 1e20 };
                [query, 0.0, key, 0.0, row as f32, 1.0]
            })
            .collect();
        let tokens = NewTokens { qkv: &qkv, cos: &[], sin: &[], positions: &positions };
        let (mut keys, mut values, mut out) = (vec![0; rows * size], vec![0; rows * size], vec![0.0; rows * size]);
        let cache = KvCache::Bf16(&mut keys, &mut values);
        attend_with(backend, GemmBackend::Avx512Bf16, shape, tokens, cache, &mut out, 1).unwrap();
        for (row, out) in out.chunks(2).enumerate() {
            if broken.is_some_and(|broken| broken <= row) || (query == 1e38 && row > 0) {
                assert!(out.iter().all(|x| x.is_nan()), "{query} {row}: {out:?}");
            } else if query != 0.0 {
                assert_eq!(out, [if query > 0.0 { row as f32 } else { 0.0 }, 1.0], "{query} {row}");
            }
        }
    }
}

#[test]
fn float32_attention_is_batch_invariant() {
    let (kv_heads, group, size, rows, before) = (2, 3, 64, 40, 30);
    for window in [0, 7, 33] {
        let shape = AttentionShape {
            heads: kv_heads * group,
            kv_heads,
            head_dim: size,
            capacity: rows + before,
            window,
            softcap: 0.0,
            interleaved: false,
        };
        let width = (shape.heads + 2 * kv_heads) * size;
        let mut qkv = numbers(rows * width, 5);
        qkv[(rows - 1) * width..].fill(f32::NAN); // the last token, which the others do not attend to
        let cache = numbers(2 * kv_heads * shape.capacity * size, 6);
        let run = |chunk: usize| {
            let mut cache = cache.clone();
            let mut out = Vec::new();
            for start in (0..rows).step_by(chunk) {
                let end = (start + chunk).min(rows);
                let positions: Vec<_> = (start..end).map(|row| Some((0, before + row))).collect();
                let qkv = &qkv[start * width..end * width];
                let tokens = NewTokens { qkv, cos: &[], sin: &[], positions: &positions };
                let (keys, values) = cache.split_at_mut(kv_heads * shape.capacity * size);
                let mut found = vec![0.0; (end - start) * shape.heads * size];
                attend(shape, tokens, KvCache::F32(keys, values), &mut found, 1).unwrap();
                out.extend(found.into_iter().map(f32::to_bits));
            }
            let last = out.split_off((rows - 1) * shape.heads * size);
            assert!(last.iter().all(|bits| f32::from_bits(*bits).is_nan()));
            out
        };
        let alone = run(1);
        assert!(alone.iter().all(|bits| !f32::from_bits(*bits).is_nan()));
        for chunk in [2, 5, 17, rows] {
            assert!(run(chunk) == alone, "{chunk} tokens at a time, a window of {window}");
        }
    }
}

#[test]
fn large_scores_attend_to_the_highest_and_nan_stays_nan() {
    let shape =
        AttentionShape { heads: 1, kv_heads: 1, head_dim: 2, capacity: 3, window: 0, softcap: 0.0, interleaved: false };
    let run = |query: f32| {
        let (mut keys, mut values) = ([1e20, 0.0, 2e20, 0.0, 0.0, 0.0], [5.0, 1.0, 7.0, 2.0, 0.0, 0.0]);
        let qkv = [query, 0.0, -3e20, 0.0, 9.0, 9.0];
        let tokens = NewTokens { qkv: &qkv, cos: &[], sin: &[], positions: &[Some((0, 2))] };
        let mut out = [0.0; 2];
        attend(shape, tokens, KvCache::F32(&mut keys, &mut values), &mut out, 1).unwrap();
        out
    };
    assert_eq!(run(1e10), [7.0, 2.0]);
    assert_eq!(run(-1e10), [9.0, 9.0]);
    assert!(run(f32::NAN).iter().all(|x| x.is_nan()));
    assert!(run(1e30).iter().all(|x| x.is_nan()));
    for broken in 0..20 {
        let (mut keys, mut values) = ([1.0; 40], [1.0; 40]);
        keys[2 * broken] = f32::NAN;
        let tokens = NewTokens { qkv: &[1.0; 6], cos: &[], sin: &[], positions: &[Some((0, 20))] };
        let (mut keys, mut values) =
            ([keys.as_slice(), &[1.0; 2]].concat(), [values.as_mut_slice(), &mut [1.0; 2]].concat());
        let mut out = [0.0; 2];
        attend(AttentionShape { capacity: 21, ..shape }, tokens, KvCache::F32(&mut keys, &mut values), &mut out, 1)
            .unwrap();
        assert!(out.iter().all(|x| x.is_nan()), "{broken}");
    }
}

#[test]
fn invalid_shapes_and_positions_are_named() {
    let shape =
        AttentionShape { heads: 2, kv_heads: 1, head_dim: 2, capacity: 3, window: 0, softcap: 0.0, interleaved: false };
    let refused = |shape: AttentionShape, qkv: usize, half: usize, position: (usize, usize), cached: usize| {
        let (mut keys, mut values) = (vec![0.0; cached], vec![0.0; cached]);
        let (qkv, angles) = (vec![0.0; qkv], vec![0.0; half]);
        let tokens = NewTokens { qkv: &qkv, cos: &angles, sin: &angles, positions: &[Some(position)] };
        let cache = KvCache::F32(&mut keys, &mut values);
        attend(shape, tokens, cache, &mut [0.0; 4], 1).unwrap_err().to_string()
    };
    assert!(refused(shape, 7, 1, (0, 0), 6).contains("7 elements in qkv"));
    assert!(refused(shape, 8, 2, (0, 0), 6).contains("2 cosines"));
    assert!(refused(shape, 8, 1, (0, 3), 6).contains("position 3 of slot 0"));
    assert!(refused(shape, 8, 1, (1, 0), 6).contains("position 0 of slot 1"));
    assert!(refused(shape, 8, 1, (0, 0), 7).contains("7 keys"));
    assert!(refused(AttentionShape { kv_heads: 0, ..shape }, 8, 1, (0, 0), 6).contains("2 heads of size 2 for 0 KV"));
    for softcap in [-1.0, f32::NAN, f32::INFINITY] {
        let named = refused(AttentionShape { softcap, ..shape }, 8, 1, (0, 0), 6);
        assert!(named.contains(&format!("a soft cap of {softcap}")), "{named}");
    }
    let huge = AttentionShape { heads: 1 << 32, head_dim: 1 << 32, ..shape };
    assert!(refused(huge, 8, 1, (0, 0), 6).contains("do not fit"));
    let none = NewTokens { qkv: &[], cos: &[], sin: &[], positions: &[] };
    assert!(attend(huge, none, KvCache::F32(&mut [], &mut []), &mut [], 1).is_err());
}

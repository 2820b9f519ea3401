//! Every backend and number of threads against the definition in float64, and against each other bit by bit.

#![allow(clippy::unwrap_used, reason = "a test that fails")]
#![allow(clippy::float_cmp, reason = "these are exact")]

use super::super::lanes::from_bf16;
use super::*;
use proptest::prelude::*;

/// Returns what each row gathers and what the cache holds then, by definition in float64.
fn naive(shape: Shape, tokens: Tokens<'_>, keys: &mut [f64], values: &mut [f64], bf16: bool) -> Vec<f64> {
    let Shape { heads, kv_heads, size, capacity, window } = shape;
    let half = tokens.cos.len() / tokens.places.len();
    let stored = |x: f64| if bf16 { f64::from(from_bf16(u16::of(x as f32))) } else { x };
    let head = |row: usize, head: usize, turn: bool| -> Vec<f64> {
        let x = &tokens.qkv[(row * (heads + 2 * kv_heads) + head) * size..][..size];
        let angle = |i: usize| [tokens.cos, tokens.sin].map(|part| f64::from(part[row * half + i % half]));
        (0..size)
            .map(|i| match i {
                _ if !turn || i >= 2 * half => f64::from(x[i]),
                _ if i < half => f64::from(x[i]) * angle(i)[0] - f64::from(x[i + half]) * angle(i)[1],
                _ => f64::from(x[i]) * angle(i)[0] + f64::from(x[i - half]) * angle(i)[1],
            })
            .collect()
    };
    for (row, place) in tokens.places.iter().enumerate() {
        let Some((slot, column)) = *place else { continue };
        for k in 0..kv_heads {
            let at = ((slot * kv_heads + k) * capacity + column) * size;
            for (i, x) in head(row, heads + k, true).into_iter().enumerate() {
                keys[at + i] = stored(x);
            }
            for (i, x) in head(row, heads + kv_heads + k, false).into_iter().enumerate() {
                values[at + i] = stored(x);
            }
        }
    }
    let mut out = vec![0.0; tokens.places.len() * heads * size];
    for (row, place) in tokens.places.iter().enumerate() {
        let Some((slot, column)) = *place else { continue };
        for n in 0..heads {
            let query = head(row, n, true);
            let first = if window == 0 { 0 } else { (column + 1).saturating_sub(window) };
            let at = |s: usize| ((slot * kv_heads + n * kv_heads / heads) * capacity + s) * size;
            let product = |s: usize| (0..size).map(|i| query[i] * keys[at(s) + i]).sum::<f64>();
            let shares: Vec<f64> = (first..=column).map(|s| (product(s) / (size as f64).sqrt()).exp()).collect();
            let total: f64 = shares.iter().sum();
            for i in 0..size {
                out[(row * heads + n) * size + i] =
                    (first..=column).zip(&shares).map(|(s, share)| share / total * values[at(s) + i]).sum();
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
    fn every_tier_gathers_the_same_bits_and_what_the_definition_says(
        kv_heads in 1_usize..4,
        group in 1_usize..5,
        size in prop_oneof![Just(64), Just(16), Just(128), 2_usize..50],
        rotated in 0_usize..=10,
        window in prop_oneof![Just(0_usize), 1_usize..40],
        columns in prop::collection::vec(prop_oneof![3 => (0_usize..70).prop_map(Some), 1 => Just(None)], 1..4),
        following in 0_usize..40,
        bf16 in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let heads = kv_heads * group;
        let shape = Shape { heads, kv_heads, size, capacity: 70, window };
        let half = size / 2 * rotated / 10;
        // Rows in slots of their own, and more that follow the last one in its slot.
        let mut places: Vec<_> = columns.iter().enumerate().map(|(slot, column)| column.map(|c| (slot, c))).collect();
        if let Some(Some((slot, column))) = places.last().copied() {
            places.extend((column + 1..70).take(following).map(|column| Some((slot, column))));
        }
        let rows = places.len();
        let qkv = numbers(rows * (heads + 2 * kv_heads) * size, seed);
        let angles = numbers(rows * half, seed ^ 1);
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|angle| (angle.cos(), angle.sin())).unzip();
        let tokens = Tokens { qkv: &qkv, cos: &cos, sin: &sin, places: &places };
        let held = 2 * columns.len() * kv_heads * 70 * size;
        let narrow: Vec<u16> = numbers(held, seed ^ 2).into_iter().map(u16::of).collect();
        let wide: Vec<f32> = narrow.iter().map(|bits| from_bf16(*bits)).collect();
        let mut exact: Vec<f64> = wide.iter().copied().map(f64::from).collect();
        let (exact_keys, exact_values) = exact.split_at_mut(held / 2);
        let expected = naive(shape, tokens, exact_keys, exact_values, bf16);

        let gather = |backend, many, threads| {
            let mut out = vec![0.0; rows * heads * size];
            let (mut narrow, mut wide) = (narrow.clone(), wide.clone());
            let store = if bf16 {
                let (keys, values) = narrow.split_at_mut(held / 2);
                Store::Bf16(keys, values)
            } else {
                let (keys, values) = wide.split_at_mut(held / 2);
                Store::F32(keys, values)
            };
            attend_with(backend, many, shape, tokens, store, &mut out, threads).unwrap();
            (if bf16 { narrow.iter().map(|bits| from_bf16(*bits)).collect() } else { wide }, out)
        };
        let near = |found: &[f32], exact: &[f64]| {
            let tolerance = if bf16 { 2e-2 } else { 1e-5 };
            found.iter().zip(exact).all(|(found, exact)| (f64::from(*found) - exact).abs() < tolerance)
        };
        for many in [Many::Passes, Many::Pairs] {
            let mut first: Option<(Vec<f32>, Vec<f32>)> = None;
            for backend in Backend::available().filter(|backend| many == Many::Passes || backend.has_wide_registers()) {
                for threads in [1, 3] {
                    let (held, gathered) = gather(backend, many, threads);
                    prop_assert!(near(&held, &exact));
                    prop_assert!(near(&gathered, &expected), "{:?}", many);
                    let (held_first, gathered_first) = first.get_or_insert((held.clone(), gathered.clone()));
                    prop_assert_eq!(&*held_first, &held);
                    prop_assert_eq!(&*gathered_first, &gathered);
                }
            }
        }
    }
}

#[test]
fn rows_of_a_prompt_by_pairs_gather_what_each_gathers_alone_but_for_rounding() {
    let backend = Backend::best();
    if !backend.has_wide_registers() {
        return;
    }
    let (kv_heads, group, size, rows, before) = (2, 3, 64, 100, 30);
    for window in [0, 7, 33] {
        let shape = Shape { heads: kv_heads * group, kv_heads, size, capacity: rows + before, window };
        let width = (shape.heads + 2 * kv_heads) * size;
        for broken in [f32::NAN, f32::INFINITY] {
            let mut qkv = numbers(rows * width, 5);
            qkv[(rows - 1) * width..].fill(broken); // the last one, which the others do not look at
            let places: Vec<_> = (0..rows).map(|row| Some((0, before + row))).collect();
            let tokens = Tokens { qkv: &qkv, cos: &[], sin: &[], places: &places };
            let gather = |many: Many| {
                let count = kv_heads * shape.capacity * size;
                let mut held: Vec<u16> = numbers(2 * count, 6).into_iter().map(u16::of).collect();
                let (keys, values) = held.split_at_mut(count);
                let mut out = vec![0.0; rows * shape.heads * size];
                attend_with(backend, many, shape, tokens, Store::Bf16(keys, values), &mut out, 1).unwrap();
                let last = out.split_off((rows - 1) * shape.heads * size);
                assert!(last.iter().all(|x| x.is_nan()), "{many:?}");
                out
            };
            let (alone, by_pairs) = (gather(Many::Passes), gather(Many::Pairs));
            assert!(alone != by_pairs, "pairs were at work");
            for (at, (one, other)) in alone.iter().zip(&by_pairs).enumerate() {
                assert!((one - other).abs() < 1e-2, "{one} {other} at {at}, a window of {window}");
            }
        }
    }
}

#[test]
fn pairs_give_all_to_the_highest_score_and_leave_broken_numbers_broken() {
    let backend = Backend::best();
    if !backend.has_wide_registers() {
        return;
    }
    let (rows, size) = (70, 2);
    let shape = Shape { heads: 1, kv_heads: 1, size, capacity: rows, window: 0 };
    let places: Vec<_> = (0..rows).map(|row| Some((0, row))).collect();
    // Each key is higher than those before, or is not.
    for (query, broken) in [(1e10, None), (-1e10, None), (1e10, Some(3)), (1e38, None), (0.0, Some(65))] {
        let qkv: Vec<f32> = (0..rows)
            .flat_map(|row| {
                let key = if broken == Some(row) { f32::NAN } else { row as f32 * 1e20 };
                [query, 0.0, key, 0.0, row as f32, 1.0]
            })
            .collect();
        let tokens = Tokens { qkv: &qkv, cos: &[], sin: &[], places: &places };
        let (mut keys, mut values, mut out) = (vec![0; rows * size], vec![0; rows * size], vec![0.0; rows * size]);
        attend_with(backend, Many::Pairs, shape, tokens, Store::Bf16(&mut keys, &mut values), &mut out, 1).unwrap();
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
fn rows_that_follow_one_another_gather_what_each_gathers_alone() {
    let (kv_heads, group, size, rows, before) = (2, 3, 64, 40, 30);
    for window in [0, 7, 33] {
        let shape = Shape { heads: kv_heads * group, kv_heads, size, capacity: rows + before, window };
        let width = (shape.heads + 2 * kv_heads) * size;
        let mut qkv = numbers(rows * width, 5);
        qkv[(rows - 1) * width..].fill(f32::NAN); // the last one, which the others do not look at
        let held = numbers(2 * kv_heads * shape.capacity * size, 6);
        let gather = |chunk: usize| {
            let mut held = held.clone();
            let mut out = Vec::new();
            for start in (0..rows).step_by(chunk) {
                let end = (start + chunk).min(rows);
                let places: Vec<_> = (start..end).map(|row| Some((0, before + row))).collect();
                let tokens = Tokens { qkv: &qkv[start * width..end * width], cos: &[], sin: &[], places: &places };
                let (keys, values) = held.split_at_mut(kv_heads * shape.capacity * size);
                let mut found = vec![0.0; (end - start) * shape.heads * size];
                attend(shape, tokens, Store::F32(keys, values), &mut found, 1).unwrap();
                out.extend(found.into_iter().map(f32::to_bits));
            }
            let last = out.split_off((rows - 1) * shape.heads * size);
            assert!(last.iter().all(|bits| f32::from_bits(*bits).is_nan()));
            out
        };
        let alone = gather(1);
        assert!(alone.iter().all(|bits| !f32::from_bits(*bits).is_nan()));
        for chunk in [2, 5, 17, rows] {
            assert!(gather(chunk) == alone, "{chunk} at once, a window of {window}");
        }
    }
}

#[test]
fn large_scores_give_all_to_the_highest_and_broken_numbers_stay_broken() {
    let shape = Shape { heads: 1, kv_heads: 1, size: 2, capacity: 3, window: 0 };
    let gather = |query: f32| {
        let (mut keys, mut values) = ([1e20, 0.0, 2e20, 0.0, 0.0, 0.0], [5.0, 1.0, 7.0, 2.0, 0.0, 0.0]);
        let qkv = [query, 0.0, -3e20, 0.0, 9.0, 9.0];
        let tokens = Tokens { qkv: &qkv, cos: &[], sin: &[], places: &[Some((0, 2))] };
        let mut out = [0.0; 2];
        attend(shape, tokens, Store::F32(&mut keys, &mut values), &mut out, 1).unwrap();
        out
    };
    assert_eq!(gather(1e10), [7.0, 2.0]);
    assert_eq!(gather(-1e10), [9.0, 9.0]);
    assert!(gather(f32::NAN).iter().all(|x| x.is_nan()));
    assert!(gather(1e30).iter().all(|x| x.is_nan()));
    for broken in 0..20 {
        let (mut keys, mut values) = ([1.0; 40], [1.0; 40]);
        keys[2 * broken] = f32::NAN;
        let tokens = Tokens { qkv: &[1.0; 6], cos: &[], sin: &[], places: &[Some((0, 20))] };
        let (mut keys, mut values) =
            ([keys.as_slice(), &[1.0; 2]].concat(), [values.as_mut_slice(), &mut [1.0; 2]].concat());
        let mut out = [0.0; 2];
        attend(Shape { capacity: 21, ..shape }, tokens, Store::F32(&mut keys, &mut values), &mut out, 1).unwrap();
        assert!(out.iter().all(|x| x.is_nan()), "{broken}");
    }
}

#[test]
fn wrong_shapes_and_places_are_refused() {
    let shape = Shape { heads: 2, kv_heads: 1, size: 2, capacity: 3, window: 0 };
    let refused = |shape: Shape, qkv: usize, half: usize, place: (usize, usize), held: usize| {
        let (mut keys, mut values) = (vec![0.0; held], vec![0.0; held]);
        let (qkv, angles) = (vec![0.0; qkv], vec![0.0; half]);
        let tokens = Tokens { qkv: &qkv, cos: &angles, sin: &angles, places: &[Some(place)] };
        let store = Store::F32(&mut keys, &mut values);
        attend(shape, tokens, store, &mut [0.0; 4], 1).unwrap_err().to_string()
    };
    assert!(refused(shape, 7, 1, (0, 0), 6).contains("7 numbers in"));
    assert!(refused(shape, 8, 2, (0, 0), 6).contains("2 cosines"));
    assert!(refused(shape, 8, 1, (0, 3), 6).contains("column 3 of slot 0"));
    assert!(refused(shape, 8, 1, (1, 0), 6).contains("column 0 of slot 1"));
    assert!(refused(shape, 8, 1, (0, 0), 7).contains("7 keys"));
    assert!(refused(Shape { kv_heads: 0, ..shape }, 8, 1, (0, 0), 6).contains("2 heads of 2 numbers on 0"));
    let huge = Shape { heads: 1 << 32, size: 1 << 32, ..shape };
    assert!(refused(huge, 8, 1, (0, 0), 6).contains("do not fit"));
    let none = Tokens { qkv: &[], cos: &[], sin: &[], places: &[] };
    assert!(attend(huge, none, Store::F32(&mut [], &mut []), &mut [], 1).is_err());
}

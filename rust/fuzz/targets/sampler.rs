//! Logits to ids: the target of the sampler's crate.

use std::num::NonZero;

use bpe_llama_sampler::{BatchOptions, Elements, LogitsView, Options, Preset, Sampler, uniform};

const PRESETS: [Preset; 4] = [Preset::Exact, Preset::Meta, Preset::Transformers, Preset::LlamaCpp];
/// Below 1e-38 float32 weights cannot tell subnormal logits apart, which probabilities in float64 do.
const TEMPERATURES: [f64; 8] = [1.0, 0.0, 0.7, 2.0, 0.01, 1e-30, 1e300, 1e-3];
/// The logits of the inputs that are not their own bits: ties, extremes, and what is no logit.
const LOGITS: [f32; 16] = [
    0.0,
    -0.0,
    1.0,
    1.5,
    2.0,
    -1.0,
    3.0,
    -8.0,
    88.0,
    1e-40,
    -1e-40,
    f32::MAX,
    f32::MIN,
    f32::NEG_INFINITY,
    f32::NAN,
    f32::INFINITY,
];

/// Takes an input apart from the front; past its end every byte is 0.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    /// Returns a number in [0, 1].
    fn share(&mut self) -> f64 {
        f64::from(self.byte()) / 255.0
    }
}

/// Any row with any options is sampled by its distribution, the same alone and in a batch, or is an error.
///
/// The input: the preset and the logits' form, the temperature, the filters, penalties, biases, bans, the seed, then
/// the logits, a byte or four bytes each.
pub(crate) fn sampler(input: &[u8]) {
    let mut input = Input(input);
    let kind = input.byte();
    let options = Options {
        preset: PRESETS[kind as usize % 4],
        temperature: TEMPERATURES[input.byte() as usize % 8],
        top_k: usize::from(input.byte() % 16),
        top_p: 1.0 - input.share(),
        min_p: input.share(),
        typical_p: if kind & 4 == 0 { 1.0 } else { 1.0 - input.share() },
        repetition_penalty: if kind & 8 == 0 { 1.0 } else { 0.1 + 2.0 * input.share() },
        presence_penalty: if kind & 8 == 0 { 0.0 } else { input.share() - 0.5 },
        frequency_penalty: if kind & 8 == 0 { 0.0 } else { input.share() - 0.5 },
        logit_bias: if kind & 16 == 0 { vec![] } else { vec![(u32::from(input.byte() % 8), LOGITS[2])] },
        banned_ids: if kind & 32 == 0 { vec![] } else { vec![u32::from(input.byte() % 8)] },
        allowed_ids: if kind & 64 == 0 { None } else { Some(vec![u32::from(input.byte() % 8), 1]) },
        seed: u64::from(input.byte()),
    };
    let row: Vec<f32> = if kind & 128 == 0 {
        input.0.iter().flat_map(|&byte| vec![LOGITS[byte as usize % 16]; if byte < 240 { 1 } else { 200 }]).collect()
    } else {
        input.0.chunks_exact(4).map(|bits| f32::from_le_bytes([bits[0], bits[1], bits[2], bits[3]])).collect()
    };
    let row = &row[..row.len().min(4000)];
    let Ok(sampler) = Sampler::new(options.clone()) else {
        assert!(options.top_p <= 0.0 || options.typical_p <= 0.0, "{options:?} are in range");
        return;
    };
    check(&sampler, row);
}

fn check(sampler: &Sampler, row: &[f32]) {
    let options = sampler.options();
    let Ok(logits) = LogitsView::contiguous(Elements::F32(row), 1, row.len()) else { return };
    let history = [(0..row.len() as i64).filter(|id| id % 3 == 1).take(20).collect::<Vec<i64>>()];
    let batch_options = BatchOptions { histories: Some(&history), step: Some(3), ..BatchOptions::default() };
    let (mut id, mut probs) = ([0], vec![0.0; row.len()]);
    let drawn = sampler.sample_batch(&logits, &batch_options, &mut id).map_err(|error| error.to_string());
    let computed = sampler.probs_batch(&logits, &batch_options, &mut probs).map_err(|error| error.to_string());
    assert_eq!(drawn, computed);
    if drawn.is_err() {
        return;
    }
    let id = id[0] as usize;
    assert!(probs.iter().all(|&prob| (0.0..=1.0).contains(&prob)), "{probs:?}");
    assert!((probs.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{probs:?}");
    let in_reach = |id: usize| {
        let number = id as u32;
        row[id] != f32::NEG_INFINITY
            && !options.banned_ids.contains(&number)
            && options.allowed_ids.as_ref().is_none_or(|allowed| allowed.contains(&number))
    };
    assert!((0..row.len()).all(|id| probs[id] == 0.0 || in_reach(id)));
    let kept = probs.iter().filter(|&&prob| prob > 0.0).count();
    // transformers keeps all ids that tie with the last.
    assert!(options.top_k == 0 || options.preset == Preset::Transformers || kept <= options.top_k, "{kept} are kept");
    assert!(probs[id] > 0.0, "id {id} is filtered out");
    if options.temperature > 0.0 {
        let (u, below) = (uniform(options.seed, 3), probs[..id].iter().sum::<f64>());
        assert!(below - 1e-5 <= u && u <= below + probs[id] + 1e-5, "{u} drew id {id} of {below} + {}", probs[id]);
    }

    // In a batch, on other threads, in rows that are not next to each other.
    let three = [row, row, row].concat();
    let logits = LogitsView::contiguous(Elements::F32(&three), 3, row.len()).expect("three rows");
    let histories = [history[0].clone(), vec![], history[0].clone()];
    for threads in [1, 3] {
        let num_threads = NonZero::new(threads);
        let batch_options = BatchOptions { histories: Some(&histories), num_threads, ..batch_options };
        let mut ids = [0; 3];
        if sampler.sample_batch(&logits, &batch_options, &mut ids).is_ok() {
            assert_eq!([ids[0], ids[2]], [id as i64; 2]);
        }
    }
    let batch_options = BatchOptions { histories: None, ..batch_options };
    let scores = sampler
        .sample_batch_with_log_probs(&logits, &batch_options, &mut [0; 3], row.len().min(5))
        .expect("logits that were sampled");
    assert!(scores.iter().all(|score| score == &scores[0] && score.sampled <= 0.0));
    assert!(scores[0].top.windows(2).all(|pair| pair[0].1 >= pair[1].1));
}

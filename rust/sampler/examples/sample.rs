//! Prints the time to sample from one row, the best of 50 rounds:
//! `cargo run --release -p bpe-llama-sampler --example sample -- [VOCAB_SIZE] [flat|real] [TOP_P] [CALLS]`.

use bpe_llama_sampler::{Options, Sampler, uniform};
use std::time::Instant;

fn main() -> bpe_llama_sampler::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let vocab_size = arguments.first().and_then(|size| size.parse().ok()).unwrap_or(1024);
    let real = arguments.get(1).is_some_and(|kind| kind == "real");
    let top_p = arguments.get(2).and_then(|top_p| top_p.parse().ok()).unwrap_or(0.9);
    let calls = arguments.get(3).and_then(|calls| calls.parse::<u32>().ok()).unwrap_or(2000);
    let row: Vec<f32> = (0..vocab_size as u64)
        .map(|id| {
            // Box-Muller; a real row has a wide bulk and a few ids far above it.
            let (u, v) = (uniform(1, 2 * id), uniform(1, 2 * id + 1));
            let normal = (-2.0 * (1.0 - u).ln()).sqrt() * (v * std::f64::consts::TAU).cos();
            let peak = if id % (vocab_size as u64 / 20).max(1) == 7 { 6.0 + 8.0 * u } else { 0.0 };
            (if real { 2.2 * normal + peak } else { normal }) as f32
        })
        .collect();
    let sampler = Sampler::new(Options { temperature: 0.8, top_p, ..Options::default() })?;
    let mut best = f64::INFINITY;
    let mut sum = 0u64;
    for _ in 0..50 {
        let start = Instant::now();
        for _ in 0..calls {
            sum += u64::from(sampler.sample(&row)?);
        }
        best = best.min(start.elapsed().as_secs_f64() / f64::from(calls));
    }
    println!("{:.3} us per draw from {vocab_size} logits (sum of ids {sum})", best * 1e6);
    Ok(())
}

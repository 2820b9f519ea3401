//! Prints how fast each named pattern splits the given files, in MB/s of UTF-8 on one thread: the best of nine rounds.
//!
//! `cargo run --release -p bpe-llama --example split_speed -- FILE...`

use std::time::{Duration, Instant};

use bpe_llama::pretokenize::Pretokenizer;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let named = ["r50k", "cl100k", "llama3", "o200k", "qwen2", "deepseek_v3", "smollm", "smollm_digits"];
    let splitters = named.map(Pretokenizer::new).into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut files = Vec::new();
    for path in std::env::args().skip(1) {
        files.push((path.clone(), std::fs::read_to_string(&path)?));
    }
    let mut best = vec![vec![Duration::MAX; files.len()]; splitters.len()];
    // Interleaved, so that a slow second of a shared machine hits all alike.
    for _ in 0..9 {
        for (splitter, best) in splitters.iter().zip(&mut best) {
            for ((_, text), best) in files.iter().zip(best) {
                let began = Instant::now();
                std::hint::black_box(count(splitter, text)?);
                *best = began.elapsed().min(*best);
            }
        }
    }
    println!("| MB/s | {} |", files.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>().join(" | "));
    println!("|---|{}", "---|".repeat(files.len()));
    for (splitter, best) in splitters.iter().zip(best) {
        let speed = |(best, (_, text)): (Duration, &(_, String))| {
            format!("{:.0}", text.len() as f64 / 1e6 / best.as_secs_f64())
        };
        let row: Vec<_> = best.into_iter().zip(&files).map(speed).collect();
        println!("| {} | {} |", splitter.name().unwrap_or("custom"), row.join(" | "));
    }
    Ok(())
}

/// Walks all pieces as an encoder does, a few hundred at a time.
fn count(splitter: &Pretokenizer, text: &str) -> bpe_llama::Result<usize> {
    let mut ends = Vec::with_capacity(512);
    let (mut start, mut pieces) = (0, 0);
    while start < text.len() {
        ends.clear();
        splitter.fill_ends(text, start, &mut ends)?;
        pieces += ends.len();
        start = ends.last().copied().unwrap_or(text.len());
    }
    Ok(pieces)
}

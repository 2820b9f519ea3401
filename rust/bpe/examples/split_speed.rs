//! Prints how fast each named pattern splits the given files, in MB/s of UTF-8 on one thread: the best of many rounds.
//!
//! ```sh
//! cargo run --release -p bpe-llama --example split_speed -- [--rounds=9] [--patterns=cl100k,o200k] FILE...
//! ```

use std::time::{Duration, Instant};

use bpe_llama::pretokenize::Pretokenizer;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut rounds = 9;
    let mut patterns = "r50k,cl100k,llama3,o200k,qwen2,deepseek_v3,smollm,smollm_digits".to_owned();
    let mut files = Vec::new();
    for argument in std::env::args().skip(1) {
        if let Some(value) = argument.strip_prefix("--rounds=") {
            rounds = value.parse()?;
        } else if let Some(value) = argument.strip_prefix("--patterns=") {
            value.clone_into(&mut patterns);
        } else {
            files.push((argument.clone(), std::fs::read_to_string(&argument)?));
        }
    }
    let splitters = patterns.split(',').map(Pretokenizer::new).collect::<Result<Vec<_>, _>>()?;
    let mut best = vec![vec![Duration::MAX; files.len()]; splitters.len()];
    // Interleaved, so that a slow second of a shared machine hits all alike.
    for _ in 0..rounds {
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

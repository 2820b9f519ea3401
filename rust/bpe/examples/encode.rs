//! Times encoding a file: `cargo run --release --example encode -- VOCAB.tiktoken PATTERN TEXT [ROUNDS]`.
//!
//! Prints the best of the rounds in MB/s. Under callgrind, one round counts instructions.

use std::path::Path;
use std::time::Instant;

use bpe_llama::{EncodeOptions, Pretokenizer, Tokenizer, Vocab};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, vocab, pattern, text, rest @ ..] = &arguments[..] else {
        return Err("usage: encode VOCAB.tiktoken PATTERN TEXT [ROUNDS]".into());
    };
    let rounds = rest.first().map_or(Ok(9), |rounds| rounds.parse())?;
    let start = Instant::now();
    let vocab = Vocab::from_tiktoken_file(Path::new(vocab))?;
    let tokenizer = Tokenizer::new(vocab, Pretokenizer::new(pattern)?, vec![], false)?;
    println!("load {:?}", start.elapsed());
    let text = std::fs::read_to_string(text)?;
    let mut ids = Vec::with_capacity(text.len());
    let mut best = f64::INFINITY;
    for _ in 0..rounds {
        ids.clear();
        let start = Instant::now();
        tokenizer.encode_into(&text, EncodeOptions::default(), &mut ids)?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    println!("{} ids, {:.0} MB/s", ids.len(), text.len() as f64 / 1e6 / best);
    Ok(())
}

//! Trains a vocabulary from files and says how long each stage took.
//!
//! `cargo run --release --example train -- 32000 cl100k 2 corpus/*.txt`

use std::path::PathBuf;
use std::time::Instant;

use bpe_llama::corpus::{CorpusOptions, CorpusReader};
use bpe_llama::pretokenize::Pretokenizer;
use bpe_llama::train::{TrainOptions, count_files, train};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [vocab_size, pattern, num_threads, paths @ ..] = &arguments[..] else {
        return Err("usage: train VOCAB_SIZE PATTERN THREADS FILES".into());
    };
    let paths = paths.iter().map(PathBuf::from).collect();
    let start = Instant::now();
    let mut corpus = CorpusReader::new(paths, Pretokenizer::new(pattern)?, CorpusOptions::default())?;
    let counts = count_files(&mut corpus, num_threads.parse()?, &mut |_| Ok(()))?;
    let (words, counted) = (counts.len(), start.elapsed());
    let options = TrainOptions { vocab_size: vocab_size.parse()?, ..TrainOptions::default() };
    let trained = train(counts, &options, &mut |_| Ok(()))?;
    let merged = start.elapsed().saturating_sub(counted);
    println!("{} bytes, {words} distinct words: counted in {counted:.2?}", corpus.total_bytes());
    println!("{} merges in {merged:.2?}", trained.merges.len());
    Ok(())
}

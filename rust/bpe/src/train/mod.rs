//! Training: text to word counts ([`WordCounts`]), word counts to merges ([`train`]).
//!
//! A word is a pre-token of the text. The merges equal those of `BpeTrainer` in Hugging Face's `tokenizers` for the
//! same documents and options: the pair with the highest count first, ties to the smaller `(left id, right id)`. They
//! do not depend on the number of threads, nor on the order or the chunking of the text.
//!
//! ```
//! use bpe_llama::pretokenize::Pretokenizer;
//! use bpe_llama::train::{Counter, TrainOptions, train};
//!
//! let mut counter = Counter::new(Pretokenizer::new("cl100k")?, &["<|end|>".to_owned()])?;
//! counter.add("low lower lowest<|end|>low")?;
//! let options = TrainOptions { vocab_size: 260, ..TrainOptions::default() };
//! let trained = train(counter.finish(), &options, &mut |_| Ok(()))?;
//! assert_eq!(trained.tokens[256..259], [b"lo".to_vec(), b"low".to_vec(), b" low".to_vec()]);
//! # Ok::<(), bpe_llama::Error>(())
//! ```
//!
//! | file | |
//! |---|---|
//! | `counter.rs`, `parallel.rs` | text to word counts, on one thread or several |
//! | `counts/` | word counts: the hash map, the file format |
//! | `options.rs`, `trainer.rs` | what to train, and the loop over merges |
//! | `symbols.rs`, `merger.rs`, `neighbours.rs` | all words in one array of symbols, and the merge of the most frequent pair |
//! | `extend.rs` | training that continues from a tokenizer |
//! | `progress.rs` | progress reports |

mod counter;
mod counts;
mod extend;
mod merger;
mod neighbours;
mod options;
mod parallel;
mod progress;
mod symbols;
#[cfg(test)]
mod tests;
mod trainer;

pub use self::counter::{Batch, Counter};
pub use self::counts::WordCounts;
pub use self::options::{TieOrder, TrainOptions, Trained};
pub use self::parallel::{count_batches, count_files};
pub use self::progress::{OnProgress, Progress};
pub use self::trainer::train;
pub use crate::byte_alphabet::byte_order;

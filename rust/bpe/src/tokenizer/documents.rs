//! The documents of files to ids, a few megabytes of text at a time.

use std::sync::Arc;

use bpe_llama_simd::threads::bounded;

use super::definition::Tokenizer;
use crate::corpus::{Chunk, CorpusReader};
use crate::encode::EncodeOptions;
use crate::memory::with_capacity;
use crate::{Error, Result};

/// Bytes of text encoded at a time, and the least for each thread.
const BATCH_BYTES: usize = 1 << 22;
const BATCH_BYTES_PER_THREAD: usize = 1 << 20;

/// Bytes that a chunk takes beside its text.
const PER_CHUNK: usize = 64;

/// The ids of consecutive documents. The first may have begun before, and the last may not have ended.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct EncodedDocuments {
    /// The ids, those before and after each document included.
    pub ids: Vec<u32>,
    /// For each document that ends here: where it ends in `ids`.
    pub ends: Vec<i64>,
    /// For each document that ends here: the bytes of its text in this batch; then those of the document that goes on.
    pub bytes: Vec<i64>,
    /// For each document that ends here: the index of its file.
    pub files: Vec<i64>,
}

/// Encodes the documents of files, each alone, with the same ids before and after it. Special tokens in them are
/// ordinary text unless they are allowed and the reader knows them.
///
/// ```
/// use std::sync::Arc;
/// use bpe_llama::corpus::{CorpusOptions, CorpusReader};
/// use bpe_llama::{DocumentEncoder, EncodeOptions, Pretokenizer, Tokenizer, Vocab};
///
/// let tokens = (0..=255u8).map(|byte| (vec![byte], u32::from(byte))).collect();
/// let vocab = Vocab::from_merges(tokens, vec![], false)?;
/// let tokenizer = Tokenizer::new(vocab, Pretokenizer::new("cl100k")?, vec![], false)?;
/// let path = std::env::temp_dir().join(format!("bpe_llama-documents-{}.txt", std::process::id()));
/// std::fs::write(&path, "ab|c")?;
/// let options = CorpusOptions { separator: Some("|".to_owned()), ..CorpusOptions::default() };
/// let corpus = CorpusReader::new(vec![path.clone()], tokenizer.pretokenizer().clone(), options)?;
/// let mut documents = DocumentEncoder::new(Arc::new(tokenizer), corpus, vec![], vec![10], 1);
/// let encoded = documents.next_batch(EncodeOptions::default())?.expect("two documents");
/// assert_eq!((encoded.ids, encoded.ends), (vec![97, 98, 10, 99, 10], vec![3, 5]));
/// # std::fs::remove_file(&path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct DocumentEncoder {
    tokenizer: Arc<Tokenizer>,
    corpus: CorpusReader,
    before: Vec<u32>,
    after: Vec<u32>,
    threads: usize,
    /// What was read while the last batch was encoded.
    read_ahead: Option<Result<Vec<FileChunk>>>,
    /// Whether the last batch ended inside a document.
    is_inside_document: bool,
}

/// A chunk and the index of its file.
type FileChunk = (Chunk, i64);

impl DocumentEncoder {
    /// Returns an encoder of the documents that `corpus` reads, with the ids `before` and `after` each.
    ///
    /// With two or more `threads`, one more thread reads ahead. The ids do not depend on their number.
    pub fn new(
        tokenizer: Arc<Tokenizer>,
        corpus: CorpusReader,
        before: Vec<u32>,
        after: Vec<u32>,
        threads: usize,
    ) -> Self {
        Self {
            tokenizer,
            corpus,
            before,
            after,
            threads: bounded(threads),
            read_ahead: None,
            is_inside_document: false,
        }
    }

    /// Returns the reader of the files.
    pub fn corpus(&self) -> &CorpusReader {
        &self.corpus
    }

    /// Returns the ids of the next documents, or `None` after the last. A batch may be empty. `bos`, `eos` and `after` of
    /// the options are ignored.
    ///
    /// # Errors
    /// As [`CorpusReader::next_chunk`] and [`Tokenizer::encode_batch`]. An error of the reader comes after the ids of
    /// all batches before it.
    pub fn next_batch(&mut self, options: EncodeOptions<'_>) -> Result<Option<EncodedDocuments>> {
        let limit = BATCH_BYTES.max(self.threads * BATCH_BYTES_PER_THREAD);
        let corpus = &mut self.corpus;
        let chunks = self.read_ahead.take().unwrap_or_else(|| read(corpus, limit))?;
        if chunks.is_empty() {
            return Ok(None);
        }
        let texts: Vec<&str> = chunks.iter().map(|(chunk, _)| chunk.text.as_str()).collect();
        let encode = || self.tokenizer.encode_batch(&texts, options.without_ends(), self.threads);
        let encoded = if self.threads < 2 {
            encode()
        } else {
            std::thread::scope(|scope| {
                // Where no thread can be started, the next call reads.
                let reader = std::thread::Builder::new().spawn_scoped(scope, || read(corpus, limit));
                let encoded = encode();
                self.read_ahead =
                    reader.ok().map(|reader| reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
                encoded
            })
        };
        let (ids, offsets) = encoded?;
        Ok(Some(self.join(&chunks, &ids, &offsets)))
    }

    /// Returns the ids of whole documents that the caller has, as of a file 0, with the options of [`Self::next_batch`].
    ///
    /// # Errors
    /// As [`Tokenizer::encode_batch`].
    pub fn encode_texts(&mut self, texts: Vec<String>, options: EncodeOptions<'_>) -> Result<EncodedDocuments> {
        let chunks: Vec<_> = texts.into_iter().map(|text| (Chunk { document: 0, text, is_last: true }, 0)).collect();
        let texts: Vec<&str> = chunks.iter().map(|(chunk, _)| chunk.text.as_str()).collect();
        let (ids, offsets) = self.tokenizer.encode_batch(&texts, options.without_ends(), self.threads)?;
        Ok(self.join(&chunks, &ids, &offsets))
    }

    /// Reads some of the next `documents` documents without encoding them, and returns how many are left to skip: fewer
    /// at each call, which reads a few megabytes, until 0. Call it before the first batch.
    ///
    /// # Errors
    /// As [`CorpusReader::next_chunk`]; [`Error::Format`] if the files hold fewer documents.
    pub fn skip(&mut self, documents: u64) -> Result<u64> {
        let (mut left, mut bytes) = (documents, 0);
        while left > 0 && bytes < BATCH_BYTES {
            let Some(chunk) = self.corpus.next_chunk()? else {
                return Err(Error::Format(format!("the files hold {left} documents fewer than were read before")));
            };
            bytes += chunk.text.len() + PER_CHUNK;
            left -= u64::from(chunk.is_last);
        }
        Ok(left)
    }

    /// Returns the ids of chunks with those before and after each document.
    fn join(&mut self, chunks: &[FileChunk], ids: &[u32], offsets: &[i64]) -> EncodedDocuments {
        let count = chunks.iter().filter(|(chunk, _)| chunk.is_last).count();
        let mut joined = EncodedDocuments {
            ids: with_capacity(ids.len() + (count + 1) * (self.before.len() + self.after.len())),
            ends: with_capacity(count),
            bytes: with_capacity(count + 1),
            files: with_capacity(count),
        };
        let mut bytes = 0;
        for ((chunk, file), row) in chunks.iter().zip(offsets.windows(2)) {
            if chunk.is_heartbeat() {
                continue;
            }
            if !self.is_inside_document {
                joined.ids.extend_from_slice(&self.before);
            }
            joined.ids.extend_from_slice(&ids[row[0] as usize..row[1] as usize]);
            bytes += chunk.text.len() as i64;
            self.is_inside_document = !chunk.is_last;
            if chunk.is_last {
                joined.ids.extend_from_slice(&self.after);
                joined.ends.push(joined.ids.len() as i64);
                joined.bytes.push(std::mem::take(&mut bytes));
                joined.files.push(*file);
            }
        }
        joined.bytes.push(bytes);
        joined
    }
}

/// Returns the next chunks, of about `limit` bytes; none at the end, and fewer where the reader returns control.
fn read(corpus: &mut CorpusReader, limit: usize) -> Result<Vec<FileChunk>> {
    let (mut chunks, mut bytes) = (Vec::new(), 0);
    while bytes < limit {
        let Some(chunk) = corpus.next_chunk()? else { break };
        bytes += chunk.text.len() + PER_CHUNK;
        let is_pause = chunk.is_heartbeat();
        chunks.push((chunk, corpus.files_opened() as i64 - 1));
        if is_pause {
            break;
        }
    }
    Ok(chunks)
}

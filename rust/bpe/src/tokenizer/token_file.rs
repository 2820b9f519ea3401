//! Files of ids: a `.npy` file that grows as documents are encoded, in bounded memory.

use std::io::{BufWriter, Seek, Write};
use std::path::{Path, PathBuf};

use super::definition::Tokenizer;
use crate::corpus::{Chunk, CorpusReader};
use crate::encode::EncodeOptions;
use crate::files::TemporaryFile;
use crate::{Error, Result};

/// Bytes of text encoded at a time.
const BATCH_BYTES: usize = 1 << 22;

/// Ids written at a time.
const WRITE_IDS: usize = 1 << 20;

/// The length of the header in bytes, padded so that the final count can overwrite it.
const HEADER: usize = 128;

/// A one-dimensional `.npy` file of ids: uint16 if the vocabulary has at most 65,536 ids, otherwise uint32.
///
/// It is written under a temporary name; [`TokenFile::finish`] renames it. Dropping it before deletes the temporary file.
///
/// # Source
/// `numpy/lib/format.py`, version 1.0.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    file: BufWriter<TemporaryFile>,
    is_narrow: bool,
    len: u64,
    bytes: Vec<u8>,
}

impl TokenFile {
    /// Creates the file for ids below `vocab_size` that will be at `path`.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn create(path: &Path, vocab_size: usize) -> Result<Self> {
        let is_narrow = vocab_size <= 1 << 16;
        let file = TemporaryFile::create(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        let file = BufWriter::with_capacity(1 << 20, file);
        let mut this = Self { path: path.to_owned(), file, is_narrow, len: 0, bytes: Vec::new() };
        this.write(&this.header())?;
        Ok(this)
    }

    /// Appends ids.
    ///
    /// # Errors
    /// [`Error::Io`], for example on a full disk.
    pub fn push(&mut self, ids: &[u32]) -> Result<()> {
        let mut bytes = std::mem::take(&mut self.bytes);
        for ids in ids.chunks(WRITE_IDS) {
            bytes.clear();
            if self.is_narrow {
                bytes.extend(ids.iter().flat_map(|&id| (id as u16).to_le_bytes()));
            } else {
                bytes.extend(ids.iter().flat_map(|&id| id.to_le_bytes()));
            }
            self.write(&bytes)?;
            self.len += ids.len() as u64;
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Completes the file at its path and returns the number of ids.
    ///
    /// # Errors
    /// [`Error::Io`]; the temporary file is deleted.
    pub fn finish(self) -> Result<u64> {
        let header = self.header();
        let Self { path, file, len, .. } = self;
        let done = file.into_inner().map_err(std::io::IntoInnerError::into_error).and_then(|mut temporary| {
            temporary.file.rewind()?;
            temporary.file.write_all(&header)?;
            temporary.finish(&path)
        });
        done.map_err(|source| Error::Io { path, source })?;
        Ok(len)
    }

    fn header(&self) -> Vec<u8> {
        let kind = if self.is_narrow { "<u2" } else { "<u4" };
        let description = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({},), }}", self.len);
        let mut header = b"\x93NUMPY\x01\x00".to_vec();
        header.extend(((HEADER - 10) as u16).to_le_bytes());
        header.extend(description.bytes());
        header.resize(HEADER - 1, b' ');
        header.push(b'\n');
        header
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|source| Error::Io { path: self.path.clone(), source })
    }
}

impl Tokenizer {
    /// Appends the ids of the next documents, a few megabytes of text, and returns whether there may be more.
    ///
    /// Every document is encoded alone, with `options.eos` after it; `options.bos` is ignored. Special tokens are ordinary
    /// text unless they are allowed and the reader knows them.
    ///
    /// # Errors
    /// As [`CorpusReader::next_chunk`], [`Tokenizer::encode_batch`] and [`TokenFile::push`].
    pub fn encode_documents(
        &self,
        corpus: &mut CorpusReader,
        options: EncodeOptions<'_>,
        threads: usize,
        out: &mut TokenFile,
    ) -> Result<bool> {
        let (mut chunks, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH_BYTES {
            let Some(chunk) = corpus.next_chunk()? else { break };
            bytes += chunk.text.len() + 64;
            let is_pause = chunk.is_heartbeat();
            chunks.push(chunk);
            if is_pause {
                break;
            }
        }
        self.encode_chunks(&chunks, options, threads, out)?;
        Ok(!chunks.is_empty())
    }

    /// Appends the ids of these chunks of documents.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_documents`].
    pub fn encode_chunks(
        &self,
        chunks: &[Chunk],
        options: EncodeOptions<'_>,
        threads: usize,
        out: &mut TokenFile,
    ) -> Result<()> {
        let texts: Vec<&str> = chunks.iter().map(|chunk| chunk.text.as_str()).collect();
        let (ids, offsets) = self.encode_batch(&texts, options.without_ends(), threads)?;
        for (chunk, row) in chunks.iter().zip(offsets.windows(2)) {
            out.push(&ids[row[0] as usize..row[1] as usize])?;
            if let (true, Some(eos)) = (chunk.is_last, options.eos) {
                out.push(&[eos])?;
            }
        }
        Ok(())
    }
}

//! One text file, read in blocks.

use std::collections::VecDeque;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memchr::memmem;

use super::boundaries::{HEARTBEAT_BLOCKS, Rules, ceil_char};
use super::decompress::{Reader, io_error};
use super::options::BYTE_ORDER_MARK;
use super::skipped::invalid_utf8;
use crate::{Error, Result, memory};

/// A chunk boundary is searched first in this many bytes at the end, so that little text is carried over to the next
/// block.
const BOUNDARY_WINDOW: usize = 1 << 12;

/// Reads the documents of a text file in parts.
#[derive(Debug)]
pub(super) struct TextFile {
    path: PathBuf,
    reader: Reader,
    /// Text read, of which what begins at `begin` is not yet returned.
    text: String,
    begin: usize,
    /// The first bytes of a character that the last block ends in.
    partial: Vec<u8>,
    /// Scratch for one block.
    block: Vec<u8>,
    /// The offset of `partial` in the file.
    offset: u64,
    /// The byte ranges to skip, in order: documents with their separators.
    to_skip: VecDeque<Range<u64>>,
    /// `text` has no separator and no chunk boundary before this offset.
    searched: usize,
    at_end: bool,
    is_done: bool,
    /// Whether a separator ended the last part returned.
    after_separator: bool,
}

impl TextFile {
    /// Returns a reader of the bytes outside the ranges `to_skip`.
    pub(super) fn new(path: &Path, reader: Reader, to_skip: VecDeque<Range<u64>>) -> Self {
        Self {
            path: path.to_owned(),
            reader,
            text: String::new(),
            begin: 0,
            partial: Vec::new(),
            block: Vec::new(),
            offset: 0,
            searched: 0,
            at_end: false,
            is_done: false,
            // A file whose documents are all skipped has no empty document.
            after_separator: !to_skip.is_empty(),
            to_skip,
        }
    }

    /// Returns the next part of the current document, and whether it is the last; `None` at the end of the file.
    ///
    /// After a skipped block, and after some blocks without the end of a part, it returns an empty part that is not the
    /// last, so that the caller can check for an interrupt.
    pub(super) fn next_part(&mut self, rules: &Rules) -> Result<Option<(String, bool)>> {
        let mut blocks = 0;
        while !self.is_done {
            let separator = rules.options.separator.as_deref().unwrap_or_default();
            let found = if separator.is_empty() {
                None
            } else {
                memmem::find(&self.text.as_bytes()[self.searched..], separator.as_bytes())
            };
            let rest = self.at_end.then_some(self.text.len());
            let end = found.map(|at| self.searched + at).or(rest);
            let left = &self.text[self.begin..end.unwrap_or(self.text.len())];
            if let Some(end) = end
                && left.len() <= rules.max_part
            {
                if found.is_some() {
                    let part = memory::copy(left);
                    self.begin = end + separator.len();
                    self.searched = self.begin;
                    self.after_separator = true;
                    return Ok(Some((part, true)));
                }
                self.is_done = true;
                self.text.drain(..self.begin);
                let part = std::mem::take(&mut self.text);
                // An empty rest after the last separator is no document; an empty file is one.
                return Ok((!(part.is_empty() && self.after_separator)).then_some((part, true)));
            }
            if left.len() >= rules.block_bytes {
                let from = (self.searched - self.begin).max(left.len().saturating_sub(BOUNDARY_WINDOW));
                if let Some(boundary) = rules.part_end(left, from) {
                    let part = memory::copy(&left[..boundary]);
                    self.begin += boundary;
                    self.searched = self.begin;
                    self.after_separator = false;
                    return Ok(Some((part, false)));
                }
            }
            if left.len() > rules.max_part {
                let start = self.offset - (self.text.len() - self.begin) as u64;
                return Err(rules.too_long(format_args!("{}, from byte {start}", self.path.display())));
            }
            if blocks == HEARTBEAT_BLOCKS {
                return Ok(Some((String::new(), false)));
            }
            blocks += 1;
            // A separator or a chunk boundary may span the end of this block.
            let margin = rules.options.separator.as_ref().map_or(0, String::len) + rules.longest_special + 256;
            self.searched = self.searched.max(ceil_char(&self.text, self.text.len().saturating_sub(margin)));
            if self.skip_block(rules.block_bytes)? {
                return Ok(Some((String::new(), false)));
            }
            self.read_block(rules.block_bytes)?;
        }
        Ok(None)
    }

    /// Reads past one block of the range to skip that begins here; returns whether there is one.
    fn skip_block(&mut self, block_bytes: usize) -> Result<bool> {
        let Some(range) = self.to_skip.front() else { return Ok(false) };
        if self.offset < range.start {
            return Ok(false);
        }
        self.block.resize(up_to(range.end - self.offset, block_bytes), 0);
        let read = self.reader.read(&mut self.block).map_err(|error| io_error(&self.path, error))?;
        self.offset += read as u64;
        if read == 0 || self.offset == range.end {
            self.to_skip.pop_front();
        }
        Ok(true)
    }

    /// Appends one block of the file to `text`.
    fn read_block(&mut self, block_bytes: usize) -> Result<()> {
        self.text.drain(..self.begin);
        self.searched -= self.begin;
        self.begin = 0;
        self.block.clear();
        self.block.append(&mut self.partial);
        let carried = self.block.len();
        let position = self.offset + carried as u64;
        // A skipped range begins after a separator, so inside no character, unless the file changed since the first
        // pass.
        let most = self
            .to_skip
            .front()
            .map_or(block_bytes, |range| up_to(range.start.saturating_sub(position), block_bytes).max(1));
        self.block.resize(carried + most, 0);
        let read = self.reader.read(&mut self.block[carried..]).map_err(|error| io_error(&self.path, error))?;
        self.at_end = read == 0;
        self.block.truncate(carried + read);
        let valid = match std::str::from_utf8(&self.block) {
            Ok(text) => text,
            Err(error) => {
                let (valid, rest) = self.block.split_at(error.valid_up_to());
                if error.error_len().is_some() || self.at_end {
                    let at = self.offset + error.valid_up_to() as u64;
                    let hint = if self.block.contains(&0) {
                        ". It holds zero bytes, as binary files and UTF-16 do; name the files of text alone, such as \
                         'folder/*.txt', or skip such documents (on_error)"
                    } else {
                        ""
                    };
                    return Err(Error::Format(invalid_utf8(&self.path, at) + hint));
                }
                self.partial.extend_from_slice(rest);
                std::str::from_utf8(valid).unwrap_or_default()
            }
        };
        let is_start = self.offset == 0;
        self.offset += valid.len() as u64;
        let new = if is_start { valid.strip_prefix(BYTE_ORDER_MARK).unwrap_or(valid) } else { valid };
        memory::push_str(&mut self.text, new);
        Ok(())
    }
}

/// Returns `bytes`, limited to `limit`.
fn up_to(bytes: u64, limit: usize) -> usize {
    usize::try_from(bytes).map_or(limit, |bytes| bytes.min(limit))
}

//! One file of text, read in blocks.

use std::collections::VecDeque;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memchr::memmem;

use super::bad_rows::invalid_utf8;
use super::utf8_scan::read_some;
use super::{BYTE_ORDER_MARK, Rules, ceil_char, io_error};
use crate::{Error, Result};

/// How far from the end of what was read a cut is looked for first: little is carried over.
const CUT_WINDOW: usize = 1 << 12;

/// Gives a file's documents in parts.
pub(super) struct TextSource {
    path: PathBuf,
    reader: Box<dyn Read + Send + Sync>,
    /// Text read and not yet given out.
    text: String,
    /// The bytes of a character that the last block cut.
    partial: Vec<u8>,
    /// Scratch for one block.
    block: Vec<u8>,
    /// Where in the file `partial` begins.
    offset: u64,
    /// What of the file is left out, in order: documents with their separators.
    left_out: VecDeque<Range<u64>>,
    /// `text` up to here holds no separator and no place to cut.
    searched: usize,
    is_read: bool,
    is_done: bool,
    /// Whether the last part given out ended with a separator.
    after_separator: bool,
}

impl std::fmt::Debug for TextSource {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("TextSource").field("path", &self.path).finish_non_exhaustive()
    }
}

impl TextSource {
    /// Reads what a file holds outside `left_out`.
    pub(super) fn new(path: &Path, reader: Box<dyn Read + Send + Sync>, left_out: VecDeque<Range<u64>>) -> Self {
        Self {
            path: path.to_owned(),
            reader,
            text: String::new(),
            partial: Vec::new(),
            block: Vec::new(),
            offset: 0,
            searched: 0,
            is_read: false,
            is_done: false,
            // Where all documents are left out, there is no empty one.
            after_separator: !left_out.is_empty(),
            left_out,
        }
    }

    /// The next part of the current document, and whether it is the last; `None` at the end of the file.
    ///
    /// A part is empty, and not the last, after a block of what is left out, so that the caller can be stopped.
    pub(super) fn next_part(&mut self, rules: &Rules) -> Result<Option<(String, bool)>> {
        while !self.is_done {
            if let Some(separator) = &rules.options.separator
                && let Some(at) = memmem::find(&self.text.as_bytes()[self.searched..], separator.as_bytes())
            {
                let rest = self.text.split_off(self.searched + at + separator.len());
                let mut part = std::mem::replace(&mut self.text, rest);
                part.truncate(self.searched + at);
                self.searched = 0;
                self.after_separator = true;
                return Ok(Some((part, true)));
            }
            if self.is_read {
                self.is_done = true;
                let part = std::mem::take(&mut self.text);
                // Nothing after the last separator is no document; an empty file is one.
                return Ok((!(part.is_empty() && self.after_separator)).then_some((part, true)));
            }
            if self.text.len() >= rules.block_bytes {
                let from = self.searched.max(self.text.len().saturating_sub(CUT_WINDOW));
                if let Some(cut) = rules.cut(&self.text, from) {
                    let rest = self.text.split_off(cut);
                    self.searched = 0;
                    self.after_separator = false;
                    return Ok(Some((std::mem::replace(&mut self.text, rest), false)));
                }
            }
            // A separator or a place to cut may lie across the end of what was read.
            let margin = rules.options.separator.as_ref().map_or(0, String::len) + rules.longest_special + 256;
            self.searched = self.searched.max(ceil_char(&self.text, self.text.len().saturating_sub(margin)));
            if self.leave_out_block(rules.block_bytes)? {
                return Ok(Some((String::new(), false)));
            }
            self.read_block(rules.block_bytes)?;
        }
        Ok(None)
    }

    /// Reads past one block of what is left out here, if anything is.
    fn leave_out_block(&mut self, block_bytes: usize) -> Result<bool> {
        let Some(range) = self.left_out.front() else { return Ok(false) };
        if self.offset < range.start {
            return Ok(false);
        }
        self.block.resize(up_to(range.end - self.offset, block_bytes), 0);
        let read = read_some(&mut self.reader, &mut self.block).map_err(|error| io_error(&self.path, error))?;
        self.offset += read as u64;
        if read == 0 || self.offset == range.end {
            self.left_out.pop_front();
        }
        Ok(true)
    }

    /// Appends one block of the file to `text`.
    fn read_block(&mut self, block_bytes: usize) -> Result<()> {
        self.block.clear();
        self.block.append(&mut self.partial);
        let carried = self.block.len();
        let position = self.offset + carried as u64;
        // What is left out begins after a separator, where no character is cut, unless the file was changed meanwhile.
        let most = self
            .left_out
            .front()
            .map_or(block_bytes, |range| up_to(range.start.saturating_sub(position), block_bytes).max(1));
        self.block.resize(carried + most, 0);
        let read =
            read_some(&mut self.reader, &mut self.block[carried..]).map_err(|error| io_error(&self.path, error))?;
        self.is_read = read == 0;
        self.block.truncate(carried + read);
        let valid = match std::str::from_utf8(&self.block) {
            Ok(text) => text,
            Err(error) => {
                let (valid, rest) = self.block.split_at(error.valid_up_to());
                if error.error_len().is_some() || self.is_read {
                    let at = self.offset + error.valid_up_to() as u64;
                    return Err(Error::Format(invalid_utf8(&self.path, at)));
                }
                self.partial.extend_from_slice(rest);
                std::str::from_utf8(valid).unwrap_or_default()
            }
        };
        let is_start = self.offset == 0;
        self.offset += valid.len() as u64;
        self.text.push_str(if is_start { valid.strip_prefix(BYTE_ORDER_MARK).unwrap_or(valid) } else { valid });
        Ok(())
    }
}

/// `bytes`, but at most `limit`.
fn up_to(bytes: u64, limit: usize) -> usize {
    usize::try_from(bytes).map_or(limit, |bytes| bytes.min(limit))
}

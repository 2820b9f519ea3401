//! One file of text, read in blocks.

use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use memchr::memmem;

use super::{Rules, ceil_char, io_error};
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
    pub(super) fn new(path: &Path, reader: Box<dyn Read + Send + Sync>) -> Self {
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
            after_separator: false,
        }
    }

    /// The next part of the current document, and whether it is the last; `None` at the end of the file.
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
            self.read_block(rules.block_bytes)?;
        }
        Ok(None)
    }

    /// Appends one block of the file to `text`.
    fn read_block(&mut self, block_bytes: usize) -> Result<()> {
        self.block.clear();
        self.block.append(&mut self.partial);
        let carried = self.block.len();
        self.block.resize(carried + block_bytes, 0);
        let read = loop {
            match self.reader.read(&mut self.block[carried..]) {
                Ok(read) => break read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(io_error(&self.path, error)),
            }
        };
        self.is_read = read == 0;
        self.block.truncate(carried + read);
        let valid = match std::str::from_utf8(&self.block) {
            Ok(text) => text,
            Err(error) => {
                let (valid, rest) = self.block.split_at(error.valid_up_to());
                if error.error_len().is_some() || self.is_read {
                    let at = self.offset + error.valid_up_to() as u64;
                    return Err(Error::Format(format!("{}: invalid UTF-8 at byte {at}", self.path.display())));
                }
                self.partial.extend_from_slice(rest);
                std::str::from_utf8(valid).unwrap_or_default()
            }
        };
        self.offset += valid.len() as u64;
        self.text.push_str(valid);
        Ok(())
    }
}

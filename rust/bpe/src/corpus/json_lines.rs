//! One file of JSON Lines: each line is an object with the text in one field.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::boundaries::{HEARTBEAT_BLOCKS, Rules};
use super::decompress::Reader;
use super::lines::{LineReader, Read};
use super::options::BYTE_ORDER_MARK;
use super::skipped::Skipped;
use crate::{Result, memory};

/// Reads the texts of a file's lines. A long text is returned in parts.
#[derive(Debug)]
pub(super) struct JsonLines {
    lines: LineReader,
    /// The text of the line, of which what begins at `begin` is not yet returned; empty if all is.
    text: String,
    begin: usize,
}

impl JsonLines {
    pub(super) fn new(path: &Path, reader: Reader) -> Self {
        Self { lines: LineReader::new(path, reader), text: String::new(), begin: 0 }
    }

    /// Returns the next part of the text of a line that is not blank, and whether it is the last; `None` at the end of the
    /// file.
    ///
    /// After a block of lines without text, or many blocks of one line, it returns an empty part that is not the last, so
    /// that the caller can check for an interrupt.
    pub(super) fn next_part(&mut self, rules: &Rules, skipped: &mut Skipped) -> Result<Option<(String, bool)>> {
        if !self.text.is_empty() {
            return self.divide(rules).map(Some);
        }
        let (mut bytes, mut parts) = (0, 0);
        while bytes < rules.block_bytes && parts < HEARTBEAT_BLOCKS {
            match self.lines.read_on()? {
                Read::End => return Ok(None),
                Read::Part => {
                    parts += 1;
                    continue;
                }
                Read::Line => bytes += self.lines.line.len(),
            }
            let line = &self.lines.line;
            let mut line = line.strip_suffix(b"\n").unwrap_or(line);
            let number = self.lines.number;
            if number == 1 {
                line = line.strip_prefix(BYTE_ORDER_MARK.as_bytes()).unwrap_or(line);
            }
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            match text_of(line, &rules.options.field) {
                Ok(text) if text.len() <= rules.block_bytes => return Ok(Some((text, true))),
                Ok(text) => {
                    (self.text, self.begin) = (text, 0);
                    return self.divide(rules).map(Some);
                }
                Err(what) => {
                    let what = format!("{}, line {number}: {what}", self.lines.path().display());
                    skipped.skip_or_raise(rules.options.on_error, what)?;
                }
            }
        }
        Ok(Some((String::new(), false)))
    }

    /// Returns the next part of a long text, and whether it is the last.
    fn divide(&mut self, rules: &Rules) -> Result<(String, bool)> {
        let left = &self.text[self.begin..];
        let boundary = if left.len() > rules.block_bytes { rules.part_end(left, rules.block_bytes) } else { None };
        if boundary.is_none() && left.len() > rules.max_part {
            let (path, number) = (self.lines.path().display(), self.lines.number);
            return Err(rules.too_long(format_args!("{path}, line {number}, from byte {} of its text", self.begin)));
        }
        if let Some(boundary) = boundary {
            let part = memory::copy(&left[..boundary]);
            self.begin += boundary;
            return Ok((part, false));
        }
        let mut part = std::mem::take(&mut self.text);
        part.drain(..self.begin);
        Ok((part, true))
    }
}

/// Returns the text in the field of a line, or an error message.
fn text_of(line: &[u8], field: &str) -> std::result::Result<String, String> {
    let line = std::str::from_utf8(line)
        .map_err(|error| format!("invalid UTF-8 at byte {} of the line", error.valid_up_to()))?;
    let mut json = serde_json::Deserializer::from_str(line);
    let found = Field(field).deserialize(&mut json).and_then(|found| json.end().map(|()| found));
    match found {
        Ok(Found::Text(text)) => Ok(text),
        Ok(Found::Null) => Err(format!("field {field:?} is null, where a string was expected")),
        Ok(Found::Missing) => Err(format!("no field {field:?}")),
        Err(error) => Err(in_line(&error, field)),
    }
}

/// Returns the message of a JSON error without its line number, which is always 1 here.
fn in_line(error: &serde_json::Error, field: &str) -> String {
    let (what, column) = (error.to_string(), error.column());
    // serde_json words a lone surrogate differently if no escape follows it.
    if what.starts_with("lone leading surrogate") || what.starts_with("unexpected end of hex escape") {
        return format!("lone surrogate at column {column}");
    }
    let what = what.split(" at line ").next().unwrap_or_default();
    let what = what.split(", expected").next().unwrap_or_default();
    format!("{what} at column {column}, where an object with the string field {field:?} was expected")
}

/// The value of the field.
enum Found {
    Missing,
    Null,
    Text(String),
}

/// Deserializes one string field of an object and ignores the others.
struct Field<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Field<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Field<'_> {
    type Value = Found;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "an object with the string field {:?}", self.0)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
        let mut found = Found::Missing;
        while let Some(key) = map.next_key::<Cow<'_, str>>()? {
            if key == self.0 {
                found = map.next_value::<Option<String>>()?.map_or(Found::Null, Found::Text);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

//! One file of JSON lines: each line an object, one of its fields the text.

use std::borrow::Cow;
use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::{BYTE_ORDER_MARK, Rules, Skipped, io_error};
use crate::Result;

/// Gives a file's lines.
pub(super) struct LineSource {
    path: PathBuf,
    reader: BufReader<Box<dyn Read + Send + Sync>>,
    line: Vec<u8>,
    number: u64,
}

impl fmt::Debug for LineSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("LineSource").field("path", &self.path).finish_non_exhaustive()
    }
}

impl LineSource {
    pub(super) fn new(path: &Path, reader: Box<dyn Read + Send + Sync>) -> Self {
        Self { path: path.to_owned(), reader: BufReader::with_capacity(1 << 18, reader), line: Vec::new(), number: 0 }
    }

    /// The text of the next line that is not blank, and true; `None` at the end of the file.
    ///
    /// After a block of lines without text it is nothing, and false, so that the caller can be stopped.
    pub(super) fn next_line(&mut self, rules: &Rules, skipped: &mut Skipped) -> Result<Option<(String, bool)>> {
        let mut passed_over = 0;
        while passed_over < rules.block_bytes {
            self.line.clear();
            self.number += 1;
            let read = self.reader.read_until(b'\n', &mut self.line).map_err(|error| io_error(&self.path, error))?;
            if read == 0 {
                return Ok(None);
            }
            passed_over += read;
            let mut line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
            if self.number == 1 {
                line = line.strip_prefix(BYTE_ORDER_MARK.as_bytes()).unwrap_or(line);
            }
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            match text_of(line, &rules.options.field) {
                Ok(text) => return Ok(Some((text, true))),
                Err(what) => {
                    let what = format!("{}, line {}: {what}", self.path.display(), self.number);
                    skipped.skip_or_raise(rules.options.on_error, what)?;
                }
            }
        }
        Ok(Some((String::new(), false)))
    }
}

/// The text in the field of a line, or what is wrong with the line.
fn text_of(line: &[u8], field: &str) -> std::result::Result<String, String> {
    let line = std::str::from_utf8(line)
        .map_err(|error| format!("invalid UTF-8 at byte {} of the line", error.valid_up_to()))?;
    let mut json = serde_json::Deserializer::from_str(line);
    let found = Field(field).deserialize(&mut json).and_then(|found| json.end().map(|()| found));
    match found {
        Ok(Found::Text(text)) => Ok(text),
        Ok(Found::Null) => Err(format!("field {field:?} is null, where a string was expected")),
        Ok(Found::Nothing) => Err(format!("no field {field:?}")),
        Err(error) => Err(in_line(&error, field)),
    }
}

/// What is wrong with a line; JSON's own count of lines would begin at this one.
fn in_line(error: &serde_json::Error, field: &str) -> String {
    let (what, column) = (error.to_string(), error.column());
    // Half of a surrogate pair alone; the second wording is for one that no escape follows.
    if what.starts_with("lone leading surrogate") || what.starts_with("unexpected end of hex escape") {
        return format!("lone surrogate at column {column}");
    }
    let what = what.split(" at line ").next().unwrap_or_default();
    let what = what.split(", expected").next().unwrap_or_default();
    format!("{what} at column {column}, where an object with the string field {field:?} was expected")
}

/// What a line's object has in the field.
enum Found {
    Nothing,
    Null,
    Text(String),
}

/// Reads an object for one field of it, a string; skips the others unread.
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
        let mut found = Found::Nothing;
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

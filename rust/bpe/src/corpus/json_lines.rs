//! One file of JSON Lines: each line is an object with the text in one field.

use std::borrow::Cow;
use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::boundaries::Rules;
use super::decompress::{Reader, io_error};
use super::options::BYTE_ORDER_MARK;
use super::skipped::Skipped;
use crate::Result;

/// Reads the texts of a file's lines.
#[derive(Debug)]
pub(super) struct JsonLines {
    path: PathBuf,
    reader: BufReader<Reader>,
    line: Vec<u8>,
    number: u64,
}

impl JsonLines {
    pub(super) fn new(path: &Path, reader: Reader) -> Self {
        Self { path: path.to_owned(), reader: BufReader::with_capacity(1 << 18, reader), line: Vec::new(), number: 0 }
    }

    /// Returns the text of the next line that is not blank, and true; `None` at the end of the file.
    ///
    /// After a block of lines without text it returns no text, and false, so that the caller can check for an
    /// interrupt.
    pub(super) fn next_text(&mut self, rules: &Rules, skipped: &mut Skipped) -> Result<Option<(String, bool)>> {
        let mut skipped_bytes = 0;
        while skipped_bytes < rules.block_bytes {
            self.line.clear();
            self.number += 1;
            let read = self.reader.read_until(b'\n', &mut self.line).map_err(|error| io_error(&self.path, error))?;
            if read == 0 {
                return Ok(None);
            }
            skipped_bytes += read;
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

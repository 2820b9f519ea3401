//! One file of JSON lines: each line an object, one of its fields the text.

use std::borrow::Cow;
use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::io_error;
use crate::{Error, Result};

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

    /// The text of the next line that is not blank; `None` at the end of the file.
    pub(super) fn next_line(&mut self, field: &str) -> Result<Option<String>> {
        loop {
            self.line.clear();
            self.number += 1;
            let read = self.reader.read_until(b'\n', &mut self.line).map_err(|error| io_error(&self.path, error))?;
            if read == 0 {
                return Ok(None);
            }
            if self.line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let mut json = serde_json::Deserializer::from_slice(&self.line);
            let text = Field(field).deserialize(&mut json).and_then(|text| json.end().map(|()| text));
            return match text {
                Ok(Some(text)) => Ok(Some(text)),
                Ok(None) => Err(self.format_error(&format!("no field {field:?}"))),
                Err(error) => Err(self.format_error(&in_line(&error, field))),
            };
        }
    }

    fn format_error(&self, what: &str) -> Error {
        Error::Format(format!("{}, line {}: {what}", self.path.display(), self.number))
    }
}

/// What is wrong with a line; JSON's own count of lines would begin at this one.
fn in_line(error: &serde_json::Error, field: &str) -> String {
    let (what, column) = (error.to_string(), error.column());
    let what = what.split(" at line ").next().unwrap_or_default();
    format!("{what} at column {column}, where an object with the string field {field:?} was expected")
}

/// Reads an object for one field of it, a string; skips the others unread.
struct Field<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Field<'_> {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Field<'_> {
    type Value = Option<String>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "an object with the string field {:?}", self.0)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
        let mut text = None;
        while let Some(key) = map.next_key::<Cow<'_, str>>()? {
            if key == self.0 {
                text = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(text)
    }
}

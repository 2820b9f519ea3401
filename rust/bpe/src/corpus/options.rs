//! How files are read as documents.

/// A byte-order mark at the start of a file marks it as UTF-8 and is no part of the text.
pub(super) const BYTE_ORDER_MARK: &str = "\u{feff}";

/// How files are read as documents.
#[derive(Debug, Clone)]
pub struct CorpusOptions {
    /// The text that ends a document within a text file; no document includes it. Ignored for JSON Lines.
    pub separator: Option<String>,
    /// The field of each JSON line that holds the text.
    pub field: String,
    /// No chunk ends inside a special token.
    pub special_tokens: Vec<String>,
    /// Whether a JSON line without text, or a document of a text file that is not UTF-8, is an error or is skipped.
    pub on_error: OnError,
}

impl Default for CorpusOptions {
    fn default() -> Self {
        Self { separator: None, field: "text".to_owned(), special_tokens: Vec::new(), on_error: OnError::Raise }
    }
}

/// What happens to a JSON line without text, or to a document that is not UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnError {
    /// The first one is an error.
    #[default]
    Raise,
    /// Each is skipped and counted in [`Skipped`](super::Skipped).
    Skip,
}

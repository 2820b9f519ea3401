//! [`Pretokenizer`]: a pattern and the splitter that implements it.

use super::chunk_boundary;
use super::grammars::{spaced_words, superwords};
use super::named::{self, Named, WHOLE};
use super::regex::{FancyRegex, Oniguruma, Patience};
use crate::Result;
use crate::interrupt::Interrupt;

/// The prefix of a pattern that Oniguruma matches.
const ONIGURUMA_MARK: &str = "(?#oniguruma)";

/// The prefix of a pattern whose matches alone are pieces, as in tiktoken: text between them is dropped.
const MATCHES_MARK: &str = "(?#matches)";

/// Splits text into pieces, which byte-pair encoding encodes one by one.
///
/// Cheap to clone, and safe to share between threads.
#[derive(Debug, Clone)]
pub struct Pretokenizer {
    pub(super) splitter: Splitter,
    pub(super) pattern: String,
}

#[derive(Debug, Clone)]
pub(super) enum Splitter {
    Named(Named),
    SpacedWords,
    Superwords,
    Fancy(FancyRegex),
    Matches(FancyRegex),
    Oniguruma(Oniguruma),
    Sequence(Vec<Pretokenizer>),
}

impl Pretokenizer {
    /// Returns the pre-tokenizer of a pattern's name (`"cl100k"`) or of a regex.
    ///
    /// Names: `r50k` (also `gpt2`, `p50k`), `cl100k`, `llama3`, `o200k` (also `llama4`), `qwen2`, `deepseek_v3`,
    /// `smollm`, `smollm_digits`. The published regex of a named pattern, in any of its usual spellings, is that pattern.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if the argument is neither a known name nor a valid regex. A single word is
    /// always a name: as a regex it would match only itself.
    pub fn new(name_or_regex: &str) -> Result<Self> {
        if let Some(named) = Named::find(name_or_regex) {
            return Ok(named.into());
        }
        for (pattern, splitter) in
            [(spaced_words::PATTERN, Splitter::SpacedWords), (superwords::PATTERN, Splitter::Superwords)]
        {
            if name_or_regex == pattern {
                return Ok(Self { splitter, pattern: pattern.to_owned() });
            }
        }
        if let Some(regex) = name_or_regex.strip_prefix(MATCHES_MARK) {
            return Self::matches(regex);
        }
        let is_word = |character: char| character.is_alphanumeric() || matches!(character, '_' | '-');
        if name_or_regex.chars().all(is_word) && name_or_regex != "-" {
            let known: Vec<_> = named::ALL.into_iter().map(Named::name).collect();
            let name: String = name_or_regex.chars().take(80).collect();
            return Err(invalid!("no pattern is called {name:?}: expected a regex or one of {}", known.join(", ")));
        }
        if let Some(regex) = name_or_regex.strip_prefix(ONIGURUMA_MARK) {
            return Self::oniguruma(regex);
        }
        let splitter = Splitter::Fancy(FancyRegex::new(name_or_regex)?);
        Ok(Self { splitter, pattern: name_or_regex.to_owned() })
    }

    /// Returns the pre-tokenizer that makes a text one piece.
    pub(crate) fn whole() -> Result<Self> {
        Self::new(WHOLE)
    }

    /// Returns the pre-tokenizer of a regex in Oniguruma's syntax, as in a `tokenizer.json`.
    ///
    /// Its [`pattern`](Self::pattern) begins with the comment `(?#oniguruma)`, which [`Pretokenizer::new`] recognizes, unless
    /// it is the spelling of a named pattern.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if it is not a regex in Oniguruma's syntax.
    ///
    /// ```
    /// use bpe_llama::pretokenize::Pretokenizer;
    ///
    /// let lines = Pretokenizer::oniguruma(r"\s+$|\s|\S+")?;
    /// assert_eq!(lines.split("a  \nb")?, ["a", "  ", "\n", "b"]); // `$` matches at the end of a line
    /// # Ok::<(), bpe_llama::Error>(())
    /// ```
    pub fn oniguruma(regex: &str) -> Result<Self> {
        if let Some(named) = Named::find_oniguruma(regex) {
            return Ok(named.into());
        }
        if regex == superwords::PATTERN {
            return Self::new(regex);
        }
        let pattern = format!("{ONIGURUMA_MARK}{regex}");
        Ok(Self { splitter: Splitter::Oniguruma(Oniguruma::new(regex)?), pattern })
    }

    /// Returns the pre-tokenizer whose pieces are the matches of a regex, as in tiktoken: text between them is dropped.
    ///
    /// Its [`pattern`](Self::pattern) begins with the comment `(?#matches)`, which [`Pretokenizer::new`] recognizes, unless it
    /// is the spelling of a named pattern. A name is a regex here.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if it is not a regex.
    ///
    /// ```
    /// use bpe_llama::pretokenize::Pretokenizer;
    ///
    /// assert_eq!(Pretokenizer::matches(r"\w+")?.split("a, b")?, ["a", "b"]);
    /// # Ok::<(), bpe_llama::Error>(())
    /// ```
    pub fn matches(regex: &str) -> Result<Self> {
        if let Some(named) = Named::find_spelling(regex) {
            return Ok(named.into());
        }
        let pattern = format!("{MATCHES_MARK}{regex}");
        Ok(Self { splitter: Splitter::Matches(FancyRegex::new(regex)?), pattern })
    }

    /// Returns whether text between matches is dropped.
    pub(crate) fn drops_unmatched(&self) -> bool {
        matches!(self.splitter, Splitter::Matches(_))
    }

    /// Returns the regex given to [`Pretokenizer::oniguruma`], if Oniguruma matches it.
    pub(crate) fn oniguruma_regex(&self) -> Option<&str> {
        if let Splitter::Oniguruma(regex) = &self.splitter { Some(regex.pattern()) } else { None }
    }

    /// Returns the pre-tokenizer that applies each of `steps` to the pieces of the step before: `Sequence` in `tokenizer.json`.
    ///
    /// The sequences of `deepseek_v3` (three regexes), `smollm` (`\p{N}`, then `r50k`) and `smollm_digits` (the same with
    /// `Digits`) are those named patterns, and a sequence of one step is that step. The [`pattern`](Self::pattern) of any
    /// other sequence is not a regex: it is the patterns of its steps, one a line.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if there is no step.
    ///
    /// ```
    /// use bpe_llama::pretokenize::Pretokenizer;
    ///
    /// let steps = vec![Pretokenizer::new(r"\d")?, Pretokenizer::new("r50k")?];
    /// assert_eq!(Pretokenizer::sequence(steps)?.split("in 1987")?, ["in", " ", "1", "9", "8", "7"]);
    /// # Ok::<(), bpe_llama::Error>(())
    /// ```
    pub fn sequence(mut steps: Vec<Self>) -> Result<Self> {
        let patterns: Vec<&str> = steps.iter().map(Self::pattern).collect();
        let regexes: Vec<&str> = steps.iter().map(|step| step.oniguruma_regex().unwrap_or(step.pattern())).collect();
        if let Some(named) = Named::find_sequence(&regexes) {
            return Ok(named.into());
        }
        let pattern = patterns.join("\n");
        match steps.len() {
            0 => Err(invalid!("a sequence of patterns needs at least one")),
            1 => Ok(steps.swap_remove(0)),
            _ => Ok(Self { splitter: Splitter::Sequence(steps), pattern }),
        }
    }

    /// Returns the name of the pattern, such as `"cl100k"`, if it has one.
    pub fn name(&self) -> Option<&'static str> {
        match self.splitter {
            Splitter::Named(named) => Some(named.name()),
            _ => None,
        }
    }

    /// Returns the regex. Its matches, and the text between matches, are the pieces.
    ///
    /// The spelling of a named pattern has the same pieces in Rust's `fancy-regex`, Python's `regex` and Oniguruma (Hugging
    /// Face `tokenizers`).
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// Returns the steps of a sequence, otherwise this pre-tokenizer alone.
    pub fn steps(&self) -> &[Self] {
        match &self.splitter {
            Splitter::Sequence(steps) => steps,
            _ => std::slice::from_ref(self),
        }
    }

    /// Appends the ends, in bytes, of the next pieces of `text` from byte `start` on to `ends`.
    ///
    /// Fills at most the spare capacity of `ends`, except that a [`sequence`](Self::sequence) always completes a piece of its
    /// first step. If `ends` is unchanged, `start` is `text.len()` (or there is no spare capacity). `start` must be 0 or an
    /// end that this method returned for the same `text`.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if a custom regex backtracks beyond its bound.
    ///
    /// # Cost
    /// Linear in the text for named patterns.
    ///
    /// ```
    /// use bpe_llama::pretokenize::Pretokenizer;
    ///
    /// let pretokenizer = Pretokenizer::new("llama3")?;
    /// let mut ends = Vec::with_capacity(2);
    /// pretokenizer.fill_ends("one two three", 0, &mut ends)?;
    /// assert_eq!(ends, [3, 7]);
    /// ends.clear();
    /// pretokenizer.fill_ends("one two three", 7, &mut ends)?;
    /// assert_eq!(ends, [13]);
    /// # Ok::<(), bpe_llama::Error>(())
    /// ```
    pub fn fill_ends(&self, text: &str, start: usize, ends: &mut Vec<usize>) -> Result<()> {
        self.fill_ends_patiently(text, start, ends, &Patience::new(text, Interrupt::NEVER))
    }

    /// As [`Pretokenizer::fill_ends`], with the patience of the whole text for regex engines; grammars are fast enough
    /// without.
    pub(crate) fn fill_ends_patiently(
        &self,
        text: &str,
        start: usize,
        ends: &mut Vec<usize>,
        patience: &Patience<'_>,
    ) -> Result<()> {
        match &self.splitter {
            Splitter::Named(named) => named.fill_ends(text, start, ends),
            Splitter::SpacedWords => spaced_words::fill_ends(text.as_bytes(), start, ends),
            Splitter::Superwords => superwords::fill_ends(text.as_bytes(), start, ends),
            Splitter::Fancy(regex) | Splitter::Matches(regex) => regex.fill_ends(text, start, ends, patience)?,
            Splitter::Oniguruma(regex) => regex.fill_ends(text, start, ends, patience)?,
            Splitter::Sequence(steps) => fill_sequence(steps, text, start, ends, patience)?,
        }
        Ok(())
    }

    /// Returns all pieces of `text`; they concatenate to `text`, except for [`matches`](Self::matches).
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if a custom regex backtracks beyond its bound.
    pub fn split<'text>(&self, text: &'text str) -> Result<Vec<&'text str>> {
        let mut pieces = Vec::new();
        self.each_piece(text, Interrupt::NEVER, |start, end| pieces.push(&text[start..end]))?;
        Ok(pieces)
    }

    /// Calls `each` with the start and end of each piece.
    pub(crate) fn each_piece(
        &self,
        text: &str,
        interrupt: Interrupt<'_>,
        mut each: impl FnMut(usize, usize),
    ) -> Result<()> {
        let patience = Patience::new(text, interrupt);
        if let Splitter::Matches(regex) = &self.splitter {
            return regex.each_match(text, &patience, each);
        }
        let mut ends = Vec::with_capacity(256);
        let mut start = 0;
        while start < text.len() {
            interrupt.check()?;
            ends.clear();
            self.fill_ends_patiently(text, start, &mut ends, &patience)?;
            patience.pause();
            for &end in &ends {
                each(start, end);
                start = end;
            }
        }
        Ok(())
    }

    /// Returns whether [`Pretokenizer::chunk_boundary`] can find any: the pattern has a grammar.
    pub(crate) fn has_chunk_boundaries(&self) -> bool {
        matches!(self.splitter, Splitter::Named(_) | Splitter::Superwords)
    }

    /// Returns a chunk boundary at or after `from`: an offset where `text` can be split so that the pieces of both chunks are
    /// those of `text`. `None` if none is found, or the pattern has no grammar.
    ///
    /// # Cost
    /// Linear in the distance to the offset, usually a few words.
    ///
    /// ```
    /// use bpe_llama::pretokenize::Pretokenizer;
    ///
    /// assert_eq!(Pretokenizer::new("cl100k")?.chunk_boundary("several words", 3), Some(7));
    /// # Ok::<(), bpe_llama::Error>(())
    /// ```
    pub fn chunk_boundary(&self, text: &str, from: usize) -> Option<usize> {
        match self.splitter {
            Splitter::Named(_) => chunk_boundary::chunk_boundary(text.as_bytes(), from),
            Splitter::Superwords => superwords::chunk_boundary(text.as_bytes(), from),
            _ => None,
        }
    }
}

impl From<Named> for Pretokenizer {
    fn from(named: Named) -> Self {
        Self { splitter: Splitter::Named(named), pattern: named.pattern().to_owned() }
    }
}

fn fill_sequence(
    steps: &[Pretokenizer],
    text: &str,
    start: usize,
    ends: &mut Vec<usize>,
    patience: &Patience<'_>,
) -> Result<()> {
    let Some((first, rest)) = steps.split_first() else {
        ends.push(text.len());
        return Ok(());
    };
    if rest.is_empty() {
        return first.fill_ends_patiently(text, start, ends, patience);
    }
    let capacity = ends.capacity();
    let mut parts = Vec::with_capacity(64);
    let mut part_start = start;
    while part_start < text.len() && ends.len() < capacity {
        parts.clear();
        first.fill_ends_patiently(text, part_start, &mut parts, patience)?;
        for &part_end in &parts {
            if ends.len() >= capacity {
                break;
            }
            fill_part(rest, text, part_start..part_end, ends, patience)?;
            part_start = part_end;
        }
    }
    Ok(())
}

/// Appends the ends of all pieces that `steps` yield in one part of `text`.
fn fill_part(
    steps: &[Pretokenizer],
    text: &str,
    part: std::ops::Range<usize>,
    ends: &mut Vec<usize>,
    patience: &Patience<'_>,
) -> Result<()> {
    let part_text = &text[part.clone()];
    let mut piece_start = 0;
    while piece_start < part_text.len() {
        let known = ends.len();
        ends.reserve(16);
        fill_sequence(steps, part_text, piece_start, ends, patience)?;
        for end in &mut ends[known..] {
            piece_start = *end;
            *end += part.start;
        }
    }
    Ok(())
}

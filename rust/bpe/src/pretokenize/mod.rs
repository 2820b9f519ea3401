//! Text to pieces: the first step of encoding and of training.
//!
//! Byte-pair encoding never merges across the ends of a piece, so a vocabulary belongs with the pattern that cut the
//! text it was trained on. The patterns in common use are known by name and split by hand-written grammars, a file
//! each; any other regex goes through `fancy-regex`. Both give the same pieces: tests hold every grammar to its regex.
//!
//! ```
//! use bpe_llama::pretokenize::Pretokenizer;
//!
//! let cl100k = Pretokenizer::new("cl100k")?;
//! assert_eq!(cl100k.split("It's 12345 o'clock.")?, ["It", "'s", " ", "123", "45", " o", "'clock", "."]);
//!
//! let words = Pretokenizer::new(r"\w+")?;
//! assert_eq!(words.split("a, b")?, ["a", ", ", "b"]); // what lies between matches is a piece too
//! # Ok::<(), bpe_llama::Error>(())
//! ```
//!
//! # How the fast path works
//! A piece depends only on the text from its start on, so a grammar is a function from a start to an end (`scan.rs`),
//! with one look-up of a class (`unicode.rs`) a character. That is the whole of a splitter, and the twin that the fast
//! path is tested against: the classes of 64 bytes as bit masks, and from them where pieces start, without a branch a
//! piece (`block.rs`). A vector unit makes the masks (`simd.rs`: AVX-512, AVX2, NEON, or eight bytes in a register),
//! and each grammar's file says how starts follow from classes.

mod block;
mod cl100k;
mod custom;
mod cut;
mod deepseek_v3;
pub(crate) mod dialect;
mod llama3;
mod named;
mod o200k;
pub(crate) mod oniguruma;
#[cfg(test)]
mod oracle;
mod qwen2;
mod r50k;
mod scan;
mod simd;
mod smollm;
mod superwords;
mod unicode;
mod unicode_tables;
mod words;

pub use self::superwords::PATTERN as SUPERWORD_PATTERN;

use self::custom::Custom;
use self::named::Named;
use self::oniguruma::Oniguruma;
use crate::interrupt::Interrupt;
use crate::{Error, Result};

/// The Unicode version of the classes (`\p{L}`, `\s` …) that named patterns and regexes match.
///
/// It is that of `regex-syntax`, the crate that `fancy-regex` and tiktoken match with. Characters assigned or
/// reclassified later are treated as this version has them.
pub use self::unicode_tables::UNICODE_VERSION;

/// The pattern that splits nowhere: a text is one piece.
pub(crate) const WHOLE: &str = "(?s:.+)";

/// A number as `tokenizers` sees it in `Digits`: by Unicode 17, twelve more than Oniguruma's `\p{N}`, of Unicode 16.
pub(crate) const DIGIT: &str = r"[\p{N}\x{11DE0}-\x{11DE9}\x{16FF4}\x{16FF5}]";

/// Begins a regex that is read as Oniguruma reads it.
const ONIGURUMA_MARK: &str = "(?#oniguruma)";

/// Splits text into the pieces that byte-pair encoding then treats one by one.
///
/// Cheap to clone and safe to share between threads.
#[derive(Debug, Clone)]
pub struct Pretokenizer {
    splitter: Splitter,
    pattern: String,
}

#[derive(Debug, Clone)]
enum Splitter {
    Named(Named),
    Words,
    Superwords,
    Custom(Custom),
    Oniguruma(Oniguruma),
    Sequence(Vec<Pretokenizer>),
}

impl Pretokenizer {
    /// Returns the splitter of a pattern's name (`"cl100k"`) or of a regex.
    ///
    /// Names: `r50k` (also `gpt2`, `p50k`), `cl100k`, `llama3`, `o200k` (also `llama4`), `qwen2`, `deepseek_v3`,
    /// `smollm`. The published regex of a named pattern, in any of its usual spellings, gives that pattern.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the text is neither a known name nor a valid regex. A single word that is no known
    /// name is taken for a misspelt one: as a regex it would match itself only.
    pub fn new(name_or_regex: &str) -> Result<Self> {
        if let Some(named) = Named::find(name_or_regex) {
            return Ok(named.into());
        }
        for (pattern, splitter) in [(words::PATTERN, Splitter::Words), (superwords::PATTERN, Splitter::Superwords)] {
            if name_or_regex == pattern {
                return Ok(Self { splitter, pattern: pattern.to_owned() });
            }
        }
        let is_word = |character: char| character.is_alphanumeric() || matches!(character, '_' | '-');
        if name_or_regex.chars().all(is_word) && name_or_regex != "-" {
            let known: Vec<_> = named::ALL.into_iter().map(Named::name).collect();
            return Err(Error::InvalidArgument(format!(
                "no pattern is called {name_or_regex:?}: expected a regex or one of {}",
                known.join(", ")
            )));
        }
        if let Some(regex) = name_or_regex.strip_prefix(ONIGURUMA_MARK) {
            return Self::oniguruma(regex);
        }
        let splitter = Splitter::Custom(Custom::new(name_or_regex)?);
        Ok(Self { splitter, pattern: name_or_regex.to_owned() })
    }

    /// Returns the splitter that splits nowhere.
    ///
    /// # Errors
    /// None in fact: its pattern is valid.
    pub(crate) fn whole() -> Result<Self> {
        Self::new(WHOLE)
    }

    /// Returns the splitter of a regex as Oniguruma reads it, as in a `tokenizer.json`.
    ///
    /// Its [`pattern`](Self::pattern) begins with the comment `(?#oniguruma)`, by which [`Pretokenizer::new`] knows it
    /// again, unless it is the spelling of a named pattern.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if Oniguruma cannot read it.
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

    /// The regex of [`Pretokenizer::oniguruma`], if this is such a splitter.
    pub(crate) fn oniguruma_regex(&self) -> Option<&str> {
        if let Splitter::Oniguruma(regex) = &self.splitter { Some(regex.pattern()) } else { None }
    }

    /// Returns a splitter that applies each of `steps` to the pieces of the step before.
    ///
    /// A tokenizer.json asks for it by a `Sequence` of `Split`s. The sequences of `deepseek_v3` (three regexes) and
    /// `smollm` (`\p{N}`, then `r50k`) give those named patterns, one step gives that step.
    /// The [`pattern`](Self::pattern) of any other sequence joins those of its steps by line breaks; it is no regex.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no step.
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
            0 => Err(Error::InvalidArgument("a sequence of patterns needs at least one".to_owned())),
            1 => Ok(steps.swap_remove(0)),
            _ => Ok(Self { splitter: Splitter::Sequence(steps), pattern }),
        }
    }

    /// The name of the pattern, where it has one: `"cl100k"`.
    pub fn name(&self) -> Option<&'static str> {
        match self.splitter {
            Splitter::Named(named) => Some(named.name()),
            _ => None,
        }
    }

    /// The regex whose matches, and what lies between them, are the pieces.
    ///
    /// For named patterns it is spelled so that Rust's `fancy-regex`, Python's `regex` and Oniguruma (Hugging Face
    /// `tokenizers`) read it alike.
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// Returns the splitters that are applied one after another: the steps of a sequence, else this one alone.
    pub fn steps(&self) -> &[Self] {
        match &self.splitter {
            Splitter::Sequence(steps) => steps,
            _ => std::slice::from_ref(self),
        }
    }

    /// Appends to `ends` the end offsets (in bytes) of the next pieces of `text` from byte `start` on.
    ///
    /// Fills at most the spare capacity of `ends`, never reallocating it; an unchanged `ends` means
    /// `start == text.len()` (or no spare capacity). `start` must be 0 or an end that this method returned for the same
    /// `text`. One exception: a [`sequence`](Self::sequence) can only stop where a piece of its first step ends, and so
    /// may let `ends` grow.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a custom regex backtracks beyond its bound.
    ///
    /// # Cost
    /// Linear in the text for named patterns, whatever the text.
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
        self.fill_ends_interruptible(text, start, ends, Interrupt::NEVER)
    }

    /// The same with a interrupt, where regexes split: hand-written splitters need none.
    pub(crate) fn fill_ends_interruptible(
        &self,
        text: &str,
        start: usize,
        ends: &mut Vec<usize>,
        interrupt: Interrupt<'_>,
    ) -> Result<()> {
        match &self.splitter {
            Splitter::Named(named) => named.fill_ends(text, start, ends),
            Splitter::Words => words::fill_ends(text.as_bytes(), start, ends),
            Splitter::Superwords => superwords::fill_ends(text.as_bytes(), start, ends),
            Splitter::Custom(custom) => custom.fill_ends(text, start, ends, interrupt)?,
            Splitter::Oniguruma(regex) => regex.fill_ends(text, start, ends, interrupt)?,
            Splitter::Sequence(steps) => fill_sequence(steps, text, start, ends, interrupt)?,
        }
        Ok(())
    }

    /// Returns all pieces of `text`, which together are `text`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a custom regex backtracks beyond its bound.
    pub fn split<'text>(&self, text: &'text str) -> Result<Vec<&'text str>> {
        let mut pieces = Vec::new();
        self.each_piece(text, Interrupt::NEVER, |start, end| pieces.push(&text[start..end]))?;
        Ok(pieces)
    }

    /// Calls back with where each piece begins and ends.
    ///
    /// # Errors
    /// As [`Pretokenizer::split`], and what the interrupt check returns.
    pub(crate) fn each_piece(
        &self,
        text: &str,
        interrupt: Interrupt<'_>,
        mut each: impl FnMut(usize, usize),
    ) -> Result<()> {
        let mut ends = Vec::with_capacity(256);
        let mut start = 0;
        while start < text.len() {
            interrupt.check()?;
            ends.clear();
            self.fill_ends_interruptible(text, start, &mut ends, interrupt)?;
            for &end in &ends {
                each(start, end);
                start = end;
            }
        }
        Ok(())
    }

    /// Returns a byte offset of at least `from` where `text` may be cut so that the pieces of both sides are those of
    /// `text`; `None` if there is none that is easy to see, or if the pattern is one of no hand-written splitter.
    ///
    /// # Cost
    /// Linear in the distance to the offset; in usual text it is a few words off.
    ///
    /// ```
    /// use bpe_llama::pretokenize::Pretokenizer;
    ///
    /// assert_eq!(Pretokenizer::new("cl100k")?.chunk_boundary("several words", 3), Some(7));
    /// # Ok::<(), bpe_llama::Error>(())
    /// ```
    pub fn chunk_boundary(&self, text: &str, from: usize) -> Option<usize> {
        match self.splitter {
            Splitter::Named(_) => cut::chunk_boundary(text.as_bytes(), from),
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

impl Named {
    fn fill_ends(self, text: &str, start: usize, ends: &mut Vec<usize>) {
        let text = text.as_bytes();
        match self {
            Self::R50k => simd::fill_ends::<r50k::R50k>(text, start, ends),
            Self::Cl100k => simd::fill_ends::<cl100k::Cl100k>(text, start, ends),
            Self::Llama3 => simd::fill_ends::<llama3::Llama3>(text, start, ends),
            Self::O200k => simd::fill_ends::<o200k::O200k>(text, start, ends),
            Self::Qwen2 => simd::fill_ends::<qwen2::Qwen2>(text, start, ends),
            Self::DeepSeekV3 => simd::fill_ends::<deepseek_v3::DeepSeekV3>(text, start, ends),
            Self::SmolLm => simd::fill_ends::<smollm::SmolLm>(text, start, ends),
        }
    }
}

fn fill_sequence(
    steps: &[Pretokenizer],
    text: &str,
    start: usize,
    ends: &mut Vec<usize>,
    interrupt: Interrupt<'_>,
) -> Result<()> {
    let Some((first, rest)) = steps.split_first() else {
        ends.push(text.len());
        return Ok(());
    };
    if rest.is_empty() {
        return first.fill_ends_interruptible(text, start, ends, interrupt);
    }
    let capacity = ends.capacity();
    let mut parts = Vec::with_capacity(64);
    let mut part_start = start;
    while part_start < text.len() && ends.len() < capacity {
        parts.clear();
        first.fill_ends_interruptible(text, part_start, &mut parts, interrupt)?;
        for &part_end in &parts {
            if ends.len() >= capacity {
                break;
            }
            fill_part(rest, text, part_start..part_end, ends, interrupt)?;
            part_start = part_end;
        }
    }
    Ok(())
}

/// Appends the ends of all pieces that `steps` make of one part of `text`.
fn fill_part(
    steps: &[Pretokenizer],
    text: &str,
    part: std::ops::Range<usize>,
    ends: &mut Vec<usize>,
    interrupt: Interrupt<'_>,
) -> Result<()> {
    let part_text = &text[part.clone()];
    let mut piece_start = 0;
    while piece_start < part_text.len() {
        let known = ends.len();
        ends.reserve(16);
        fill_sequence(steps, part_text, piece_start, ends, interrupt)?;
        for end in &mut ends[known..] {
            piece_start = *end;
            *end += part.start;
        }
    }
    Ok(())
}

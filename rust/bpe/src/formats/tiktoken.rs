//! `.tiktoken` files, and Llama 3's `tokenizer.model`: each line is a token in base64, a space, and its rank.

use std::fmt::Write;
use std::ops::Range;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::files::read_regular;
use crate::{AddedToken, Result, Tokenizer, Vocab};

impl Tokenizer {
    /// Returns the text of a `.tiktoken` file that holds this tokenizer's vocabulary.
    ///
    /// # Errors
    /// As [`Vocab::to_tiktoken`]; [`crate::Error::InvalidArgument`] naming what the format cannot express: normalization, a
    /// post-processor, or added tokens with flags other than `special`.
    pub fn to_tiktoken(&self) -> Result<String> {
        let more = |token: &&AddedToken| {
            !token.special || token.single_word || token.lstrip || token.rstrip || token.normalized
        };
        let what = if let Some(because) = self.general_because() {
            because.to_owned()
        } else if self.normalizes() {
            "normalization (NFC)".to_owned()
        } else if self.post_processor.is_some() {
            "a post-processor".to_owned()
        } else if let Some(token) = self.added_tokens().iter().find(more) {
            format!("the added token {:?}, which is not special or has flags,", token.content)
        } else {
            return self.vocab().to_tiktoken();
        };
        Err(invalid!(
            "this tokenizer cannot be saved as .tiktoken, where {what} has no place; save it as tokenizer.json"
        ))
    }

    /// Checks that tiktoken's `Encoding`, made of this tokenizer's tokens, pattern and special tokens, gives the same ids.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] naming what tiktoken cannot express.
    pub fn check_tiktoken(&self) -> Result<()> {
        let more = |token: &&AddedToken| {
            let is_normalized = token.normalized && self.normalizes();
            !token.special || token.single_word || token.lstrip || token.rstrip || is_normalized
        };
        let what = if let Some(because) = self.general_because() {
            because.to_owned()
        } else if self.sentencepiece_model().is_some() || self.vocab().byte_fallback().is_some() {
            "SentencePiece's merging, which begins with characters,".to_owned()
        } else if self.normalizes() {
            "normalization (NFC)".to_owned()
        } else if self.pretokenizer().oniguruma_regex().is_some() || self.pretokenizer().steps().len() > 1 {
            format!("the pattern {:?}", self.pretokenizer().pattern())
        } else if let Some(token) = self.added_tokens().iter().find(more) {
            format!("the added token {:?}, which is not special or has flags,", token.content)
        } else if !self.vocab().ids_are_ranks()? {
            "an order of merges other than that of the ids".to_owned()
        } else {
            return Ok(());
        };
        Err(invalid!("tiktoken cannot express this tokenizer: {what} has no place there"))
    }
}

impl Vocab {
    /// Returns the vocabulary of the text of a `.tiktoken` file.
    ///
    /// # Errors
    /// [`crate::Error::Format`] naming the line that is not `base64 rank`; [`crate::Error::InvalidArgument`] as
    /// [`Vocab::from_ranks`].
    ///
    /// # Source
    /// `tiktoken.load.load_tiktoken_bpe` reads the same.
    pub fn from_tiktoken(text: &[u8]) -> Result<Self> {
        // The concatenated tokens, and the range of each.
        let mut arena = Vec::with_capacity(text.len() / 2);
        let mut tokens: Vec<(Range<usize>, u32)> = Vec::with_capacity(text.len() / 12);
        for (number, line) in text.split(|&byte| byte == b'\n').enumerate() {
            let line = line.trim_ascii();
            if line.is_empty() {
                continue;
            }
            let token = parse_line(line, &mut arena).ok_or_else(|| {
                let shown = String::from_utf8_lossy(&line[..line.len().min(40)]);
                malformed!("line {}: expected a token in base64, a space and its rank, got {shown:?}", number + 1)
            })?;
            tokens.push(token);
        }
        if tokens.is_empty() {
            return Err(malformed!("no token in it: expected lines of a token in base64, a space and its rank"));
        }
        if !text.ends_with(b"\n") && tokens.len() > 1 {
            // A last line without a line end can be truncated within its rank.
            let mut seen: Vec<u32> = tokens.iter().map(|&(_, rank)| rank).collect();
            seen.sort_unstable();
            let last = tokens[tokens.len() - 1].1;
            if seen.windows(2).any(|pair| pair[0] == pair[1]) || last != seen[seen.len() - 1] {
                return Err(malformed!("the file ends in the middle of line {}: it is truncated", tokens.len()));
            }
        }
        Self::from_ranks(tokens.into_iter().map(|(range, rank)| (&arena[range], rank)).collect())
    }

    /// Returns the vocabulary of a `.tiktoken` file.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if it cannot be read; else as [`Vocab::from_tiktoken`], naming the file.
    pub fn from_tiktoken_file(path: &Path) -> Result<Self> {
        let text = read_regular(path)?;
        Self::from_tiktoken(&text).map_err(|error| malformed!("{}: {error}", path.display()))
    }

    /// Returns the text of a `.tiktoken` file that holds this vocabulary.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if the ids are not the ranks, so that the file would give other ids: merges whose
    /// order is not that of their results' ids, or tokens that merges do not reach.
    pub fn to_tiktoken(&self) -> Result<String> {
        if self.byte_fallback().is_some() || !self.ids_are_ranks()? {
            return Err(invalid!(
                "this vocabulary cannot be saved as .tiktoken, where ids are ranks: its merges are in another order or not of bytes; \
                 save it as tokenizer.json"
            ));
        }
        let mut text = String::with_capacity(self.len() * 14);
        for (bytes, id) in self.tokens() {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{} {id}", STANDARD.encode(bytes));
        }
        Ok(text)
    }

    /// Returns whether a vocabulary of the same tokens by rank gives the same ids.
    fn ids_are_ranks(&self) -> Result<bool> {
        let by_rank = Self::from_ranks(self.tokens().collect())?;
        let whole_piece_alike = self.whole_piece_first() || by_rank.merges().len() + 256 >= by_rank.len();
        Ok(by_rank.merges() == self.merges() && whole_piece_alike)
    }
}

/// Appends the token of a line to `arena`, and returns its range there and its rank.
fn parse_line(line: &[u8], arena: &mut Vec<u8>) -> Option<(Range<usize>, u32)> {
    let (token, digits) = line.split_at(memchr::memchr(b' ', line)?);
    let digits = digits.trim_ascii();
    // At most ten digits, and no sign, which `parse` would accept.
    if token.is_empty() || digits.is_empty() || digits.len() > 10 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let rank =
        digits.iter().try_fold(0u32, |rank, digit| rank.checked_mul(10)?.checked_add(u32::from(digit - b'0')))?;
    let start = arena.len();
    arena.resize(start + token.len(), 0);
    let length = STANDARD.decode_slice_unchecked(token, &mut arena[start..]).ok()?;
    arena.truncate(start + length);
    Some((start..arena.len(), rank))
}

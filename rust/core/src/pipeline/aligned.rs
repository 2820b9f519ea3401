//! Text that remembers where in the original each byte of it came from.

use crate::{Error, Result};

/// A range of bytes of the original text.
pub(crate) type Span = (u32, u32);

/// A stretch of text, changed or not, and for each of its bytes the range of the original that it stands for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Aligned {
    pub(crate) text: String,
    pub(crate) spans: Vec<Span>,
    /// Where the stretch begins in the original.
    start: u32,
    /// Whether text that stands for nothing was put at the very beginning.
    has_rootless_start: bool,
}

impl Aligned {
    /// Returns a stretch of the original as it stands.
    pub(crate) fn new(text: &str, start: u32) -> Self {
        let mut spans = Vec::with_capacity(text.len());
        push_spans(&mut spans, text, start);
        Self { text: text.to_owned(), spans, start, has_rootless_start: false }
    }

    /// Replaces the text by characters, each with what it takes the place of.
    ///
    /// `change` is 0 for a character that replaces the next one, positive for one that is put in after it, and `-n` for
    /// one that replaces the next and swallows `n` more. The first `skipped` characters are gone.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if text that stands for nothing was put at the beginning before; `tokenizers` fails
    /// there, too.
    ///
    /// # Source
    /// `NormalizedString::transform` of Hugging Face `tokenizers` defines these rules, and so the offsets.
    pub(crate) fn transform(&mut self, skipped: usize, changes: impl Iterator<Item = (char, isize)>) -> Result<()> {
        let mut text = String::with_capacity(self.text.len());
        let mut spans = Vec::with_capacity(self.spans.len());
        let mut old = self.text.chars();
        let mut at: usize = old.by_ref().take(skipped).map(char::len_utf8).sum();
        if self.has_rootless_start {
            return Err(rootless());
        }
        for (character, change) in changes {
            let span = if change <= 0 {
                *self.spans.get(at).ok_or_else(rootless)?
            } else if at == 0 {
                self.has_rootless_start = true;
                (self.start, self.start)
            } else {
                self.spans[at - 1]
            };
            if change <= 0 {
                at += old.by_ref().take(1 + change.unsigned_abs()).map(char::len_utf8).sum::<usize>();
            }
            text.push(character);
            spans.resize(text.len(), span);
        }
        (self.text, self.spans) = (text, spans);
        Ok(())
    }

    /// Keeps the characters that `keep` wants.
    pub(crate) fn filter(&mut self, keep: impl Fn(char) -> bool) -> Result<()> {
        let skipped = self.text.chars().take_while(|&c| !keep(c)).count();
        let mut changes: Vec<(char, isize)> = Vec::with_capacity(self.text.len());
        for character in self.text.chars().skip(skipped) {
            if keep(character) {
                changes.push((character, 0));
            } else if let Some((_, change)) = changes.last_mut() {
                *change -= 1;
            }
        }
        let skipped = if changes.is_empty() { 0 } else { skipped };
        self.transform(skipped, changes.into_iter())
    }

    /// Replaces each character by another.
    pub(crate) fn map(&mut self, map: impl Fn(char) -> char) -> Result<()> {
        let changes: Vec<_> = self.text.chars().map(|c| (map(c), 0)).collect();
        self.transform(0, changes.into_iter())
    }

    /// Removes white space at the ends.
    pub(crate) fn strip(&mut self, left: bool, right: bool) -> Result<()> {
        let kept = if left { self.text.trim_start() } else { &self.text };
        let skipped = self.text[..self.text.len() - kept.len()].chars().count();
        let kept = if right { kept.trim_end() } else { kept };
        if kept.len() == self.text.len() {
            return Ok(());
        }
        let changes: Vec<_> = kept.chars().map(|c| (c, 0)).collect();
        self.transform(skipped, changes.into_iter())
    }

    /// Puts text first: it stands for what the first character stands for.
    pub(crate) fn prepend(&mut self, prefix: &str) {
        if let Some(&span) = self.spans.first() {
            self.text.insert_str(0, prefix);
            self.spans.splice(0..0, std::iter::repeat_n(span, prefix.len()));
        }
    }

    /// Puts `content` in the place of each of these ranges, which follow one another.
    ///
    /// It stands for what the last byte of the range stood for; where the range is empty, for what came before.
    pub(crate) fn replace(&mut self, ranges: &[(usize, usize)], content: &str) {
        if ranges.is_empty() {
            return;
        }
        let mut text = String::with_capacity(self.text.len());
        let mut spans = Vec::with_capacity(self.spans.len());
        let mut done = 0;
        for &(start, end) in ranges {
            text.push_str(&self.text[done..start]);
            spans.extend_from_slice(&self.spans[done..start]);
            let span = if end == 0 { (self.start, self.start) } else { self.spans[end - 1] };
            self.has_rootless_start |= end == 0 && !content.is_empty();
            text.push_str(content);
            spans.resize(text.len(), span);
            done = end;
        }
        text.push_str(&self.text[done..]);
        spans.extend_from_slice(&self.spans[done..]);
        (self.text, self.spans) = (text, spans);
    }
}

/// Appends the spans of unchanged text that begins at byte `start` of the original.
pub(crate) fn push_spans(spans: &mut Vec<Span>, text: &str, start: u32) {
    let mut at = start;
    for character in text.chars() {
        let end = at + character.len_utf8() as u32;
        spans.extend(std::iter::repeat_n((at, end), character.len_utf8()));
        at = end;
    }
}

fn rootless() -> Error {
    Error::InvalidArgument(
        "a normalizer put text before the first character, and the next normalizer cannot follow it there".to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::Aligned;

    #[test]
    fn spans_follow_every_change() {
        let mut text = Aligned::new(" aé b ", 10);
        text.strip(true, true).expect("nothing stands before");
        assert_eq!(
            (text.text.as_str(), &text.spans[..]),
            ("aé b", &[(11, 12), (12, 14), (12, 14), (14, 15), (15, 16)][..])
        );
        text.prepend("__");
        assert_eq!(text.spans[..3], [(11, 12), (11, 12), (11, 12)]);
        text.filter(|c| c != 'é').expect("nothing stands before");
        assert_eq!((text.text.as_str(), &text.spans[2..]), ("__a b", &[(11, 12), (14, 15), (15, 16)][..]));
        text.replace(&[(3, 4)], "▁");
        assert_eq!((text.text.as_str(), text.spans[3]), ("__a▁b", (14, 15)));
    }
}

//! Text that records which bytes of the original each of its bytes comes from.

use crate::interrupt::Interrupt;
use crate::{Error, Result, memory};

/// A range of bytes of the original text.
pub(crate) type Span = (u32, u32);

/// A segment of text, changed or not, and for each of its bytes the range of the original that it comes from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Aligned {
    pub(crate) text: String,
    pub(crate) spans: Vec<Span>,
    /// The offset of the segment in the original.
    start: u32,
    /// Whether text was inserted before the first character: it comes from no byte.
    pub(crate) has_unaligned_start: bool,
}

impl Aligned {
    /// Returns an unchanged segment of the original.
    ///
    /// # Errors
    /// The error of the interrupt check, as for all methods.
    pub(crate) fn new(text: &str, start: u32, interrupt: Interrupt<'_>) -> Result<Self> {
        let mut spans = memory::with_capacity(text.len());
        push_spans(&mut spans, text, start, interrupt)?;
        Ok(Self { text: memory::copy(text), spans, start, has_unaligned_start: false })
    }

    /// Returns the text with its characters replaced by `changes`, after removal of the first `skipped` characters.
    ///
    /// The change of a character is 0 if it replaces the next one, positive if it is inserted after it, and `-n` if it
    /// replaces the next one and the `n` characters that follow.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if text was inserted before the first character earlier; `tokenizers` fails, too.
    ///
    /// # Source
    /// `NormalizedString::transform` of Hugging Face `tokenizers` defines these rules, and so the offsets.
    pub(crate) fn transform(
        &self,
        skipped: usize,
        changes: impl Iterator<Item = (char, isize)>,
        interrupt: Interrupt<'_>,
    ) -> Result<Self> {
        let mut new = Self {
            text: String::with_capacity(self.text.len()),
            spans: memory::with_capacity(self.spans.len()),
            start: self.start,
            has_unaligned_start: false,
        };
        let mut old = self.text.chars();
        let mut at: usize = old.by_ref().take(skipped).map(char::len_utf8).sum();
        if self.has_unaligned_start {
            return Err(unaligned());
        }
        for (index, (character, change)) in changes.enumerate() {
            interrupt.check_at(index)?;
            let span = if change <= 0 {
                *self.spans.get(at).ok_or_else(unaligned)?
            } else if at == 0 {
                new.has_unaligned_start = true;
                (self.start, self.start)
            } else {
                self.spans[at - 1]
            };
            if change <= 0 {
                at += old.by_ref().take(1 + change.unsigned_abs()).map(char::len_utf8).sum::<usize>();
            }
            new.push(character, span);
        }
        Ok(new)
    }

    /// Removes the characters for which `keep` is false.
    pub(crate) fn filter(&mut self, keep: impl Fn(char) -> bool, interrupt: Interrupt<'_>) -> Result<()> {
        let skipped = self.text.chars().take_while(|&c| !keep(c)).count();
        let mut rest = self.text.chars().skip(skipped).peekable();
        let changes = std::iter::from_fn(|| {
            let kept = rest.next()?;
            let dropped = std::iter::from_fn(|| rest.next_if(|&c| !keep(c))).count();
            Some((kept, -(dropped as isize)))
        });
        *self = self.transform(skipped, changes, interrupt)?;
        Ok(())
    }

    /// Maps each character to another.
    pub(crate) fn map(&mut self, map: impl Fn(char) -> char, interrupt: Interrupt<'_>) -> Result<()> {
        *self = self.transform(0, self.text.chars().map(|c| (map(c), 0)), interrupt)?;
        Ok(())
    }

    /// Removes white space at the ends.
    pub(crate) fn strip(&mut self, left: bool, right: bool, interrupt: Interrupt<'_>) -> Result<()> {
        let kept = if left { self.text.trim_start() } else { &self.text };
        let skipped = self.text[..self.text.len() - kept.len()].chars().count();
        let kept = if right { kept.trim_end() } else { kept };
        if kept.len() == self.text.len() {
            return Ok(());
        }
        *self = self.transform(skipped, kept.chars().map(|c| (c, 0)), interrupt)?;
        Ok(())
    }

    /// Appends a character of this range.
    pub(crate) fn push(&mut self, character: char, span: Span) {
        self.text.push(character);
        memory::reserve(&mut self.spans, character.len_utf8());
        self.spans.resize(self.text.len(), span);
    }

    /// Removes what comes after this many bytes.
    pub(crate) fn truncate(&mut self, length: usize) {
        self.text.truncate(length);
        self.spans.truncate(length);
    }

    /// Prepends text, with the range of the first character.
    pub(crate) fn prepend(&mut self, prefix: &str) {
        if let Some(&span) = self.spans.first() {
            self.text.insert_str(0, prefix);
            self.spans.splice(0..0, std::iter::repeat_n(span, prefix.len()));
        }
    }

    /// Replaces each of these ascending ranges by `content`, with the original range of the last byte before its end.
    pub(crate) fn replace(&mut self, ranges: &[(usize, usize)], content: &str, interrupt: Interrupt<'_>) -> Result<()> {
        if ranges.is_empty() {
            return Ok(());
        }
        let mut text = String::with_capacity(self.text.len());
        let mut spans = Vec::with_capacity(self.spans.len());
        let mut done = 0;
        for (index, &(start, end)) in ranges.iter().enumerate() {
            interrupt.check_at(index)?;
            text.push_str(&self.text[done..start]);
            spans.extend_from_slice(&self.spans[done..start]);
            let span = if end == 0 { (self.start, self.start) } else { self.spans[end - 1] };
            self.has_unaligned_start |= end == 0 && !content.is_empty();
            text.push_str(content);
            spans.resize(text.len(), span);
            done = end;
        }
        text.push_str(&self.text[done..]);
        spans.extend_from_slice(&self.spans[done..]);
        (self.text, self.spans) = (text, spans);
        Ok(())
    }
}

/// Appends the spans of unchanged text at byte `start` of the original.
pub(crate) fn push_spans(spans: &mut Vec<Span>, text: &str, start: u32, interrupt: Interrupt<'_>) -> Result<()> {
    let mut at = start;
    for (index, character) in text.chars().enumerate() {
        interrupt.check_at(index)?;
        let end = at + character.len_utf8() as u32;
        spans.extend(std::iter::repeat_n((at, end), character.len_utf8()));
        at = end;
    }
    Ok(())
}

/// Returns the error for text that comes from no byte of the original.
pub(crate) fn unaligned() -> Error {
    invalid!("a normalizer put text before the first character, and the next step cannot follow it there")
}

#[cfg(test)]
mod tests {
    use super::Aligned;
    use crate::interrupt::Interrupt;

    #[test]
    fn spans_follow_every_change() {
        let go_on = Interrupt::NEVER;
        let mut text = Aligned::new(" aé b ", 10, go_on).expect("no interrupt");
        text.strip(true, true, go_on).expect("nothing inserted before");
        assert_eq!(
            (text.text.as_str(), &text.spans[..]),
            ("aé b", &[(11, 12), (12, 14), (12, 14), (14, 15), (15, 16)][..])
        );
        text.prepend("__");
        assert_eq!(text.spans[..3], [(11, 12), (11, 12), (11, 12)]);
        text.filter(|c| c != 'é', go_on).expect("nothing inserted before");
        assert_eq!((text.text.as_str(), &text.spans[2..]), ("__a b", &[(11, 12), (14, 15), (15, 16)][..]));
        text.replace(&[(3, 4)], "▁", go_on).expect("no interrupt");
        assert_eq!((text.text.as_str(), text.spans[3]), ("__a▁b", (14, 15)));
    }
}

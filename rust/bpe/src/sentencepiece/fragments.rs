//! User-defined symbols by llama.cpp's rules: they divide a text before anything else, the longest first.

use std::ops::Range;

use memchr::memmem::Finder;

use crate::Result;
use crate::interrupt::Interrupt;

/// The user-defined symbols of a GGUF vocabulary.
#[derive(Debug, Clone)]
pub(super) struct Fragments {
    /// A matcher and the id of each symbol, the longest first.
    symbols: Vec<(Finder<'static>, u32)>,
}

impl Fragments {
    /// Returns the matcher of these symbols, or `None` without any.
    pub(super) fn new<'a>(symbols: impl Iterator<Item = (&'a str, u32)>) -> Option<Self> {
        let mut symbols: Vec<_> = symbols.map(|(text, id)| (Finder::new(text.as_bytes()).into_owned(), id)).collect();
        symbols.sort_by_key(|(finder, id)| (std::cmp::Reverse(finder.needle().len()), *id));
        (!symbols.is_empty()).then_some(Self { symbols })
    }

    /// Splits a text into symbols, with their ids, and the text between them.
    ///
    /// # Source
    /// `tokenizer_st_partition` in `src/llama-vocab.cpp` of llama.cpp, which leaves the order of symbols of equal
    /// length undefined; here the smaller id comes first.
    pub(super) fn split(&self, text: &[u8], interrupt: Interrupt<'_>) -> Result<Vec<(Option<u32>, Range<usize>)>> {
        let mut found: Vec<(u32, Range<usize>)> = Vec::new();
        let mut is_taken = Vec::new();
        for (finder, id) in &self.symbols {
            let length = finder.needle().len();
            interrupt.check()?;
            let (mut at, mut iteration) = (0, 0);
            while let Some(begin) = text.get(at..).and_then(|rest| finder.find(rest)).map(|begin| at + begin) {
                let end = begin + length;
                interrupt.check_at(iteration)?;
                iteration += 1;
                is_taken.resize(text.len(), false);
                // Earlier matches are not shorter, so one that overlaps covers an end of this one.
                if is_taken[begin] || is_taken[end - 1] {
                    at = begin + 1;
                    continue;
                }
                is_taken[begin..end].fill(true);
                found.push((*id, begin..end));
                at = end;
            }
        }
        found.sort_by_key(|(_, range)| range.start);
        let (mut parts, mut done) = (Vec::with_capacity(found.len() * 2 + 1), 0);
        for (id, range) in found {
            if range.start > done {
                parts.push((None, done..range.start));
            }
            done = range.end;
            parts.push((Some(id), range));
        }
        if done < text.len() {
            parts.push((None, done..text.len()));
        }
        Ok(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::Fragments;
    use crate::interrupt::Interrupt;

    #[test]
    fn the_longest_symbol_comes_first() {
        let fragments = Fragments::new([("ab", 1), ("bcd", 2), ("\n", 3), ("\n\n", 4)].into_iter()).expect("symbols");
        let split = |text: &str| fragments.split(text.as_bytes(), Interrupt::NEVER).expect("no interrupt");
        assert_eq!(split("xabcdab"), [(None, 0..2), (Some(2), 2..5), (Some(1), 5..7)]);
        assert_eq!(split("\n\n\n"), [(Some(4), 0..2), (Some(3), 2..3)]);
        assert_eq!(split("x"), [(None, 0..1)]);
        assert_eq!(split(""), []);
        assert!(Fragments::new(std::iter::empty()).is_none());
    }
}

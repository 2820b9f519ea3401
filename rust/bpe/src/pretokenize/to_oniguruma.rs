//! Translation of a regex from Rust's syntax (`fancy-regex`) to Oniguruma's, for saving it in a `tokenizer.json`.
//!
//! | Rust | Oniguruma |
//! |---|---|
//! | `^`, `$` outside `(?m)` | `\A`, `\z`: `^` and `$` match at the ends of lines |
//! | `(?s)` | `(?m)` |
//! | `x{2,3}+`, possessive | `(?>x{2,3})`: `x{2,3}+` is a repeated repetition |
//! | `\w`, `\d`, `\b` | classes: `\w` excludes join controls |
//! | `[[:alpha:]]`, ASCII | ranges: `[[:alpha:]]` is Unicode |
//! | `\x80`, `\u{80}` | `\x{80}`: `\x80` is a byte |
//!
//! Other syntax that may differ is an error that names it.

use std::fmt::Write;
use std::iter::Peekable;
use std::str::Chars;

use super::pretokenizer::{Pretokenizer, Splitter};
use crate::Result;

/// Rust's `\w`, as the inside of a class.
const WORD: &str = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200C}\x{200D}";

/// Pairs of letters that Oniguruma folds with one character if case is ignored, such as `ss` with `ß`.
const FOLDED: [&str; 5] = ["ss", "ff", "fi", "fl", "st"];

/// Returns the regex in Oniguruma's syntax that has the same pieces as `step`.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] with the part of the regex that has no known equivalent, or a text that the two
/// regexes split differently.
pub(crate) fn to_oniguruma(step: &Pretokenizer) -> Result<String> {
    let pattern = step.pattern();
    let refused = |why: String| {
        invalid!("pattern {pattern:?} cannot be saved: a tokenizer.json is read by Oniguruma, to which {why}")
    };
    let mut translation = Translation {
        rest: pattern.chars().peekable(),
        out: String::new(),
        atom: 0,
        groups: Vec::new(),
        multi_line: false,
        look_behind: false,
    };
    translation.run().map_err(|part| refused(format!("{part} means something else, or nothing")))?;
    let regex = translation.out;
    let translated =
        Pretokenizer::oniguruma(&regex).map_err(|error| refused(format!("it cannot be translated: {error}")))?;
    let translated = match translated.splitter {
        // The tests of named patterns cover this case.
        Splitter::Named(_) => return Ok(regex),
        _ => translated,
    };
    for sample in samples() {
        if step.split(&sample).ok() != translated.split(&sample).ok() {
            return Err(refused(format!("it splits {sample:?} differently, written as {regex:?}")));
        }
    }
    Ok(regex)
}

struct Translation<'a> {
    rest: Peekable<Chars<'a>>,
    out: String,
    /// The start in `out` of the last atom, which a quantifier would repeat.
    atom: usize,
    /// For each open group, its start and the values of the two fields below before it.
    groups: Vec<(usize, bool, bool)>,
    /// Whether `^` and `$` match at line ends.
    multi_line: bool,
    look_behind: bool,
}

/// The part of a regex that cannot be translated.
type Refused = String;

impl Translation<'_> {
    fn run(&mut self) -> std::result::Result<(), Refused> {
        while let Some(c) = self.rest.next() {
            match c {
                '\\' => self.escape()?,
                '[' => self.class()?,
                '(' => self.open()?,
                ')' => {
                    let group = self.groups.pop().ok_or("an unmatched parenthesis")?;
                    self.out.push(')');
                    (self.atom, self.multi_line, self.look_behind) = group;
                }
                '^' => self.atom(if self.multi_line { "^" } else { r"\A" }),
                '$' => self.atom(if self.multi_line { "$" } else { r"\z" }),
                '{' => self.repeat()?,
                '*' | '+' | '?' if self.look_behind && self.rest.peek() == Some(&'+') => {
                    return Err(format!("{c}+ in a look-behind"));
                }
                '*' | '+' | '?' | '|' => self.out.push(c),
                other => self.atom(other.encode_utf8(&mut [0; 4])),
            }
        }
        Ok(())
    }

    fn atom(&mut self, text: &str) {
        self.atom = self.out.len();
        self.out.push_str(text);
    }

    /// Translates the head of a group, after its parenthesis.
    fn open(&mut self) -> std::result::Result<(), Refused> {
        let start = self.out.len();
        let outer = (self.multi_line, self.look_behind);
        self.out.push('(');
        if self.rest.next_if_eq(&'?').is_some() {
            let mut head: String = String::new();
            while let Some(c) = self.rest.next_if(|c| c.is_ascii_lowercase() || matches!(c, 'P' | '-')) {
                head.push(c);
            }
            let sign = self.rest.next().unwrap_or(' ');
            let is_flags = !head.is_empty() && head.chars().all(|flag| "ims".contains(flag));
            match (head.as_str(), sign) {
                ("", ':' | '=' | '!' | '>') => write!(self.out, "?{sign}"),
                ("" | "P", '<') => {
                    self.look_behind |= matches!(self.rest.peek(), Some('=' | '!'));
                    self.out.push_str("?<");
                    Ok(())
                }
                (_, ':' | ')') if is_flags => {
                    if head.contains('i') {
                        self.require_simple_folding()?;
                    }
                    self.multi_line |= head.contains('m');
                    let flags = head.replace('m', "").replace('s', "m");
                    match (flags.is_empty(), sign) {
                        (true, ')') => {
                            // No flag is left: remove the group.
                            self.out.truncate(start);
                            return Ok(());
                        }
                        (false, ')') => {
                            // It applies to the rest of the group, in Oniguruma as well.
                            write!(self.out, "?{flags})").map_err(|error| error.to_string())?;
                            return Ok(());
                        }
                        _ => write!(self.out, "?{flags}:"),
                    }
                }
                _ => return Err(format!("(?{head}{sign}")),
            }
            .map_err(|error| error.to_string())?;
        }
        self.groups.push((start, outer.0, outer.1));
        Ok(())
    }

    /// Refuses regexes in which case folding maps one character to two letters.
    fn require_simple_folding(&self) -> std::result::Result<(), Refused> {
        let all: String = self.rest.clone().collect::<String>().to_lowercase();
        match FOLDED.iter().find(|pair| all.contains(**pair)) {
            Some(pair) => Err(format!("(?i) before {pair:?}")),
            None => Ok(()),
        }
    }

    /// Translates `{n,m}` and its suffix.
    fn repeat(&mut self) -> std::result::Result<(), Refused> {
        let mut bounds = String::new();
        loop {
            match self.rest.next() {
                Some('}') => break,
                Some(c) if c.is_ascii_digit() || c == ',' => bounds.push(c),
                _ => return Err(format!("{{{bounds}")),
            }
        }
        let (least, most) = bounds.split_once(',').unwrap_or((&bounds, ""));
        let is_reversed = least.parse::<u32>().is_ok_and(|least| most.parse().is_ok_and(|most: u32| most < least));
        if least.is_empty() || is_reversed || (self.look_behind && self.rest.peek() == Some(&'+')) {
            return Err(format!("{{{bounds}}}"));
        }
        if self.rest.next_if_eq(&'+').is_some() {
            self.out.insert_str(self.atom, "(?>");
            write!(self.out, "{{{bounds}}})").map_err(|error| error.to_string())?;
            return Ok(());
        }
        write!(self.out, "{{{bounds}}}").map_err(|error| error.to_string())?;
        if !bounds.contains(',') {
            // A lazy exact count is the exact count, but in Oniguruma `?` would make it optional.
            let _ = self.rest.next_if_eq(&'?');
        }
        Ok(())
    }

    /// Translates an escape outside a class.
    fn escape(&mut self) -> std::result::Result<(), Refused> {
        match self.rest.peek() {
            Some('w') => self.atom(&format!("[{WORD}]")),
            Some('W') => self.atom(&format!("[^{WORD}]")),
            Some('b') => self.atom(&format!("(?:(?<=[{WORD}])(?![{WORD}])|(?<![{WORD}])(?=[{WORD}]))")),
            Some('B') => self.atom(&format!("(?:(?<=[{WORD}])(?=[{WORD}])|(?<![{WORD}])(?![{WORD}]))")),
            Some('A') => self.atom(r"\A"),
            Some('z') => self.atom(r"\z"),
            Some(digit @ '1'..='9') => {
                let reference = format!("\\{digit}");
                self.atom(&reference);
            }
            _ => {
                let escaped = self.escaped()?;
                self.atom(&escaped);
                return Ok(());
            }
        }
        self.rest.next();
        Ok(())
    }

    /// Translates an escape that has the same meaning inside and outside a class.
    fn escaped(&mut self) -> std::result::Result<String, Refused> {
        let c = self.rest.next().ok_or("a backslash at the end")?;
        Ok(match c {
            'd' => r"\p{Nd}".to_owned(),
            'D' => r"\P{Nd}".to_owned(),
            's' | 'S' | 'n' | 'r' | 't' | 'f' | 'v' | 'a' => format!("\\{c}"),
            'p' | 'P' => match self.rest.next() {
                Some('{') => {
                    let name: String = self.rest.by_ref().take_while(|&c| c != '}').collect();
                    format!("\\{c}{{{name}}}")
                }
                Some(letter) => format!("\\{c}{{{letter}}}"),
                None => return Err(format!("\\{c}")),
            },
            'x' | 'u' => {
                let digits: String = if self.rest.next_if_eq(&'{').is_some() {
                    self.rest.by_ref().take_while(|&c| c != '}').collect()
                } else {
                    self.rest.by_ref().take(if c == 'x' { 2 } else { 4 }).collect()
                };
                format!("\\x{{{digits}}}")
            }
            other if other.is_ascii_alphanumeric() || matches!(other, '<' | '>') => return Err(format!("\\{other}")),
            other => format!("\\{other}"),
        })
    }

    /// Translates a class, after its bracket.
    fn class(&mut self) -> std::result::Result<(), Refused> {
        self.atom = self.out.len();
        let start = self.atom;
        self.out.push('[');
        if self.rest.next_if_eq(&'^').is_some() {
            self.out.push('^');
        }
        if self.rest.peek() == Some(&']') {
            return Err("[]".to_owned());
        }
        loop {
            match self.rest.next().ok_or("a class that does not end")? {
                ']' => break,
                '[' if self.rest.peek() == Some(&':') => self.posix()?,
                '[' => self.class()?,
                '\\' => {
                    let escaped = match self.rest.peek() {
                        Some('w') => WORD.to_owned(),
                        Some('W') => format!("[^{WORD}]"),
                        _ => {
                            let escaped = self.escaped()?;
                            self.out.push_str(&escaped);
                            continue;
                        }
                    };
                    self.rest.next();
                    self.out.push_str(&escaped);
                }
                '&' if self.rest.next_if_eq(&'&').is_some() => {
                    // An intersection with an empty side differs.
                    let is_empty = self.out.ends_with(['[', '^', '-', '&'])
                        || matches!(self.rest.peek(), None | Some(']' | '^' | '-' | '&'));
                    if is_empty {
                        return Err("&&".to_owned());
                    }
                    self.out.push_str("&&");
                }
                c @ ('-' | '~') if self.rest.peek() == Some(&c) => return Err(format!("{c}{c}")),
                c => self.out.push(c),
            }
        }
        self.out.push(']');
        self.atom = start;
        Ok(())
    }

    fn posix(&mut self) -> std::result::Result<(), Refused> {
        let name: String = self.rest.by_ref().take_while(|&c| c != ']').collect();
        let inside = match name.as_str() {
            ":alpha:" => "a-zA-Z",
            ":digit:" => "0-9",
            ":alnum:" => "0-9a-zA-Z",
            ":lower:" => "a-z",
            ":upper:" => "A-Z",
            ":space:" => r"\x{09}-\x{0D}\x{20}",
            ":blank:" => r"\x{09}\x{20}",
            ":word:" => "0-9a-zA-Z_",
            ":xdigit:" => "0-9a-fA-F",
            ":punct:" => r"\x{21}-\x{2F}\x{3A}-\x{40}\x{5B}-\x{60}\x{7B}-\x{7E}",
            _ => return Err(format!("[{name}]")),
        };
        self.out.push_str(inside);
        Ok(())
    }
}

/// Returns texts that mix all kinds of characters, to verify a translation.
fn samples() -> Vec<String> {
    #[rustfmt::skip]
    const PARTS: [&str; 36] = [
        "a", "B", "ab cd", "It's", "'LL", "é", "e\u{301}", "ſ", "ß", "İ", "ﬁ", "中文", "かな", "ไทย", "ا", "\u{200c}",
        "\u{200d}", "1", "1234567", "²", "Ⅷ", "٣", " ", "  ", "\t", "\n", "\r\n", "\n\n ", "\u{a0}", "\u{85}",
        "\u{2028}", "_", "-", "..", "!?", "😀",
    ];
    let mut samples: Vec<String> = PARTS.iter().map(|part| (*part).to_owned()).collect();
    let mut state = 1u32;
    let mut draw = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        PARTS[(state >> 16) as usize % PARTS.len()]
    };
    samples.extend((0..400).map(|i| (0..2 + i % 9).map(|_| draw()).collect::<String>()));
    samples
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PATTERNS: [&str; 15] = [
        r"(?s:.+)",
        r"\w+|[^\w\s]+|\s+",
        r"\d{3}+|.",
        r"\s+$|^\s|\S+",
        r"(?m)^\s+$|\S+|\s",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\b\w+\b|\W",
        r"[[:alpha:]]+|[^[:alpha:]\d]+|\d{1,3}?",
        r"\p{L}+(?!\d)|\pN{1,3}|[\x21-\x2f\u00e9]+|(?>a|b)++",
        r"(?P<word>\p{Lu}?\p{Ll}+)|(?<!a) +|.",
        r"(?:ab){2}+|[a-c&~-]",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s",
        r"(?=[A-Z])",
        r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}&&[^a-z]]*[\p{L}&&[^A-Z]]+(?:'[sS]|'[lL][lL])?|\p{N}| ?[^\s\p{L}\p{N}]+|\s+",
        r"[[a-zé一-龥가-\u{d7ff}]&&\S&&[^b\d]]+|[^\w&&[^.,]]|.",
        r"[^a-c&&[b-dA]s]+|(?s:.)",
    ];

    thread_local! {
        /// Each pattern by fancy-regex, and its translation by Oniguruma.
        static PAIRS: Vec<(Pretokenizer, Pretokenizer)> = PATTERNS
            .iter()
            .map(|pattern| {
                let ours = Pretokenizer::new(pattern).expect("a valid regex");
                let regex = to_oniguruma(&ours).expect("a translation");
                (ours, Pretokenizer::oniguruma(&regex).expect("a valid regex"))
            })
            .collect();
    }

    proptest! {
        #[test]
        fn translations_split_alike(text in "([a-cA-Bsſé中1²٣!., _\t\r\n\u{301}\u{a0}\u{200c}]|'s|'LL|  |123|abab){0,30}") {
            PAIRS.with(|pairs| {
                for (ours, translated) in pairs {
                    let (left, right) = (ours.split(&text).ok(), translated.split(&text).ok());
                    prop_assert_eq!(left, right, "{} as {}", ours.pattern(), translated.pattern());
                }
                Ok(())
            })?;
        }
    }

    #[test]
    fn what_has_no_counterpart_is_named() {
        for (pattern, part) in [
            (r"[a-z&&]+", "&&"),
            (r"[&&a]+", "&&"),
            (r"[a-z--b]+", "--"),
            (r"(?i:straSSe)", "ss"),
            (r"a\Kb", r"\K"),
            (r"(?x) a b", "(?x"),
            (r"\Aa{2}\<", r"\<"),
        ] {
            let step = Pretokenizer { splitter: Splitter::Sequence(Vec::new()), pattern: pattern.to_owned() };
            let message = to_oniguruma(&step).expect_err("no counterpart").to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}

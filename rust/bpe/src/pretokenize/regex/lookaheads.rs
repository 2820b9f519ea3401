//! The lookaheads of a regex in Oniguruma's syntax.

use super::oniguruma::CALLOUT;

/// What a search must know of a regex's lookaheads to end it within one match.
pub(super) struct Lookaheads {
    /// The regex with a callout at the start of each lookahead.
    pub(super) watched: String,
    /// Whether a positive lookahead is in a group that is repeated or called: each may read all of the text, and one that
    /// matches takes no backtracking step.
    pub(super) repeated: bool,
}

impl Lookaheads {
    /// Finds the lookaheads outside classes and comments.
    pub(super) fn of(pattern: &str) -> Self {
        let calls = pattern.contains(r"\g");
        // `[\c]]` is one class. Such characters are rare, so their regexes are watched only where a match may begin.
        let controls = [r"\c", r"\C", r"\M"].iter().any(|escape| pattern.contains(escape));
        let mut found = Self { watched: String::with_capacity(pattern.len()), repeated: false };
        // For each open group, whether it holds a lookahead.
        let mut groups: Vec<bool> = Vec::new();
        let mut classes = 0_usize;
        let mut rest = pattern;
        while let Some(next) = rest.chars().next() {
            let mut length = next.len_utf8();
            let mut callout = "";
            match next {
                '\\' => length += rest[1..].chars().next().map_or(0, char::len_utf8),
                '[' => {
                    classes += 1;
                    // A bracket that comes first is no end.
                    length += rest[1..].len() - rest[1..].strip_prefix('^').unwrap_or(&rest[1..]).len();
                    length += usize::from(rest[length..].starts_with(']'));
                }
                ']' => classes = classes.saturating_sub(1),
                _ if classes > 0 => (),
                '(' if rest.starts_with("(?#") => length = comment(rest),
                '(' => {
                    groups.push(false);
                    let is_positive = rest.starts_with("(?=");
                    if is_positive {
                        groups.fill(true);
                        found.repeated |= calls;
                    }
                    if is_positive || rest.starts_with("(?!") {
                        (length, callout) = (3, if controls { "" } else { CALLOUT });
                    }
                }
                ')' => {
                    let holds = groups.pop().unwrap_or(false);
                    found.repeated |= holds && rest[1..].starts_with(['*', '+', '{']);
                }
                _ => (),
            }
            found.watched.push_str(&rest[..length]);
            found.watched.push_str(callout);
            rest = &rest[length..];
        }
        found
    }
}

/// Returns the length of the comment at the start of a text.
fn comment(text: &str) -> usize {
    let mut is_escaped = false;
    let end = text.bytes().position(|byte| {
        let ends = byte == b')' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        ends
    });
    end.map_or(text.len(), |end| end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callouts_are_put_into_lookaheads_only() {
        for (pattern, watched, repeated) in [
            (r"a(?=b)", r"a(?=(?{watch})b)", false),
            (r"(?:a(?=b))+", r"(?:a(?=(?{watch})b))+", true),
            (r"(?:a((?=b)))*?", r"(?:a((?=(?{watch})b)))*?", true),
            (r"(?:a(?!b))+", r"(?:a(?!(?{watch})b))+", false),
            (r"(é(?=b)){2}", r"(é(?=(?{watch})b)){2}", true),
            (r"(?<n>a(?=b))\g<n>", r"(?<n>a(?=(?{watch})b))\g<n>", true),
            (r"[\c](?=](a(?=b))+", r"[\c](?=](a(?=b))+", true),
            (r"\(?=(?#(?=\)(?=)[](?=][^](?=[a](?=]\\", r"\(?=(?#(?=\)(?=)[](?=][^](?=[a](?=]\\", false),
        ] {
            let found = Lookaheads::of(pattern);
            assert_eq!((found.watched.as_str(), found.repeated), (watched, repeated), "{pattern}");
        }
    }
}

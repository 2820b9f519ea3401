//! Text to pieces.

use std::sync::LazyLock;

use bpe_llama::Pretokenizer;
use bpe_llama::pretokenize::SUPERWORD_PATTERN;
use fancy_regex::Regex;

use super::input;

/// The names of all grammars.
pub(crate) const NAMES: [&str; 8] =
    ["r50k", "cl100k", "llama3", "o200k", "qwen2", "deepseek_v3", "smollm", "smollm_digits"];

static GRAMMARS: LazyLock<Vec<(Pretokenizer, Regex)>> = LazyLock::new(|| {
    let grammar = |name| {
        let fast = Pretokenizer::new(name).expect("a pattern");
        let regex = Regex::new(fast.pattern()).expect("a regex");
        (fast, regex)
    };
    // The last is a regex without a grammar.
    NAMES.into_iter().chain([SUPERWORD_PATTERN, r"\w+|\s"]).map(grammar).collect()
});

/// As [`check_splitters`].
///
/// The input: whether bytes are text or kinds of characters, and how many pieces are asked for at a time; the text.
pub(crate) fn pretokenize(input: &[u8]) {
    let Some((&flags, bytes)) = input.split_first() else { return };
    let text = input::text(&bytes[..bytes.len().min(1000)], flags & 1 != 0);
    check_splitters(&text, 1 + usize::from(flags >> 1), usize::from(flags));
}

/// Every splitter gives the pieces of its regex: all at once, `capacity` at a time, and in two parts, cut at `from` or after.
pub(crate) fn check_splitters(text: &str, capacity: usize, from: usize) {
    for (fast, regex) in GRAMMARS.iter() {
        let expected = matches(regex, text).expect("a linear pattern");
        assert_eq!(fast.split(text).expect("a linear pattern"), expected, "{:?}", fast.pattern());
        let mut ends = Vec::with_capacity(capacity);
        let (mut at, mut pieces) = (0, Vec::new());
        while at < text.len() {
            ends.clear();
            fast.fill_ends(text, at, &mut ends).expect("a linear pattern");
            assert!(!ends.is_empty() && ends.len() <= capacity);
            for &end in &ends {
                pieces.push(&text[at..end]);
                at = end;
            }
        }
        assert_eq!(pieces, expected, "{:?}, some at a time", fast.pattern());
        if let Some(cut) = fast.chunk_boundary(text, from) {
            assert!(cut >= from);
            let parts = [&text[..cut], &text[cut..]].map(|part| fast.split(part).expect("a linear pattern"));
            assert_eq!(parts.concat(), expected, "{:?}, cut at {cut}", fast.pattern());
        }
    }
}

/// Any pattern on any text gives its matches and the text between them, or an error. A prefix drops the text between.
///
/// The input: the pattern, a line end, the text.
pub(crate) fn pattern(input: &[u8]) {
    let mut parts = input.splitn(2, |&byte| byte == b'\n');
    let mut part = |length: usize| {
        let bytes = parts.next().unwrap_or_default();
        input::text(&bytes[..bytes.len().min(length)], false)
    };
    let (pattern, text) = (part(50), part(60));
    let Ok(splitter) = Pretokenizer::new(&pattern) else { return };
    let Ok(pieces) = splitter.split(&text) else { return };
    assert!(pieces.iter().all(|piece| !piece.is_empty()));
    if let Some(regex) = splitter.pattern().strip_prefix("(?#matches)") {
        let regex = Regex::new(regex).expect("it split the text");
        let found = regex.find_iter(&text).map_while(|found| Some(found.ok()?.as_str()));
        assert_eq!(pieces, found.filter(|piece| !piece.is_empty()).collect::<Vec<_>>());
        return;
    }
    assert_eq!(pieces.concat(), text);
    if splitter.pattern().starts_with("(?#oniguruma)") {
        return; // another engine, which reads some patterns otherwise
    }
    if let Some(expected) = Regex::new(splitter.pattern()).ok().and_then(|regex| matches(&regex, &text)) {
        assert_eq!(pieces, expected);
    }
}

/// Matches and what lies between them; `None` where the regex gives up.
pub(crate) fn matches<'text>(regex: &Regex, text: &'text str) -> Option<Vec<&'text str>> {
    let mut pieces = Vec::new();
    let mut start = 0;
    for found in regex.find_iter(text) {
        let found = found.ok()?;
        pieces.extend([&text[start..found.start()], found.as_str()].into_iter().filter(|piece| !piece.is_empty()));
        start = found.end();
    }
    pieces.extend(Some(&text[start..]).filter(|rest| !rest.is_empty()));
    Some(pieces)
}

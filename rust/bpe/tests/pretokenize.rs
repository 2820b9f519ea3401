//! Every hand-written splitter against the regex it stands for, matched by `fancy-regex`.

use bpe_llama::pretokenize::Pretokenizer;
use fancy_regex::Regex;
use proptest::prelude::*;
use targets::{NAMES, check_splitters, matches};

#[path = "../../fuzz/targets/mod.rs"]
mod targets;

/// The steps that the published tokenizer.json of these two applies, one after the other.
const DEEPSEEK_V3: [&str; 3] = [
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];
const SMOLLM: [&str; 2] = [r"\p{N}", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"];

/// `Digits` of `tokenizers`, by Unicode 17.
const DIGIT: &str = r"[\p{N}\x{11DE0}-\x{11DE9}\x{16FF4}-\x{16FF6}]";

struct Oracle {
    name: &'static str,
    fast: Pretokenizer,
    steps: Vec<Regex>,
    /// `Pretokenizer::pattern`
    in_one: Regex,
}

impl Oracle {
    fn new(name: &'static str) -> Self {
        let fast = named(name);
        let steps: Vec<&str> = match name {
            "deepseek_v3" => DEEPSEEK_V3.to_vec(),
            "smollm" => SMOLLM.to_vec(),
            "smollm_digits" => vec![DIGIT, SMOLLM[1]],
            _ => vec![fast.pattern()],
        };
        let steps = steps.into_iter().map(|step| Regex::new(step).expect("a valid regex")).collect();
        let in_one = Regex::new(fast.pattern()).expect("a valid regex");
        Self { name, fast, steps, in_one }
    }

    fn check(&self, text: &str) {
        let mut expected = vec![text];
        for step in &self.steps {
            expected = expected.into_iter().flat_map(|part| matches(step, part).expect("the text is short")).collect();
        }
        if self.steps.len() > 1 {
            let in_one = matches(&self.in_one, text).expect("the text is short");
            assert_eq!(in_one, expected, "{}: the pattern in one regex", self.name);
        }
        let actual = self.fast.split(text).expect("named patterns do not fail");
        if actual != expected {
            let at = actual.iter().zip(&expected).take_while(|(left, right)| left == right).count();
            let around = |pieces: &[&str]| format!("{:?}", &pieces[at.saturating_sub(2)..pieces.len().min(at + 3)]);
            panic!("{}: {} instead of {}", self.name, around(&actual), around(&expected));
        }
    }
}

/// Characters of every kind that some pattern tells apart, in one to four bytes of UTF-8.
const POOL: &str = "abzstdmlrevASTLREVDMéÉßſʼªжЖǅוشक中龥龦のー・゠ｱ한𝐀𝐚𐐀𐐨𠀀\u{301}\u{94d}\u{3099}\u{20dd}\u{1e8d0}019²٣\
    Ⅷ〇𝟘'’!./_-\"(<$+—“，。€😀👨\u{200d}\u{fe0f}\u{1f3fd}   \n\n\r\t\u{b}\u{c}\u{1c}\u{85}\u{a0}\
    \u{2003}\u{2028}\u{3000}\u{200b}\0\u{7f}\u{ad}\u{feff}\u{378}\u{e000}\u{10ffff}";

fn text() -> impl Strategy<Value = String> {
    // Runs of one character make the long-run cases, single ones the rest.
    let run = (
        prop::sample::select(POOL.chars().collect::<Vec<_>>()),
        prop_oneof![6 => 1..2_usize, 2 => 2..6_usize, 1 => 6..90_usize],
    );
    let word = prop::sample::select(
        &["the", " The", "'ll", "'RE", "'ſ", "\r\n", "    ", "123", "don't", "HTTPServer", "日本語"][..],
    );
    let part = prop_oneof![4 => run.prop_map(|(character, count)| character.to_string().repeat(count)), 1 => word.prop_map(str::to_owned)];
    prop::collection::vec(part, 0..60).prop_map(|parts| parts.concat())
}

thread_local! {
    static ORACLES: Vec<Oracle> = NAMES.into_iter().map(Oracle::new).collect();
}

fn named(name: &str) -> Pretokenizer {
    Pretokenizer::new(name).expect("a known name")
}

fn check(text: &str) {
    ORACLES.with(|oracles| oracles.iter().for_each(|oracle| oracle.check(text)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn splitters_equal_their_regexes(text in text(), capacity in 1..9_usize, from in 0..400_usize) {
        check(&text);
        check_splitters(&text, capacity, from);
    }
}

/// Every character, beside letters, numbers, spaces, line breaks, apostrophes and itself. The long ranges of one class
/// (Han, Hangul, unassigned planes, private use) are sampled; the build script takes the class of all of them from the regex crates.
#[test]
fn every_code_point_in_every_neighbourhood() {
    let mut text = String::new();
    for code_point in 0..=0x0010_ffff_u32 {
        let is_sampled = matches!(code_point, 0x3500..0x9f00 | 0xac80..0xd700 | 0xe100..0xf800 | 0x1_7100..0x1_8c00 | 0x2_0000..0xe_0000)
            || code_point >= 0xe_0200;
        let Some(c) = char::from_u32(code_point).filter(|_| !is_sampled || code_point % 0x3ff < 2) else { continue };
        text.extend(
            ["a", "B ", "1", "!", "\n", "'s", " ", "中"].into_iter().flat_map(|beside| beside.chars().chain([c])),
        );
        text.push(c);
        if text.len() > 1 << 16 {
            check(&text);
            text.clear();
        }
    }
    check(&text);
}

#[test]
fn the_usual_spellings_of_a_pattern_have_its_name() {
    let original = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let spellings = [
        (r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s", "r50k"),
        (r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", "r50k"),
        (
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
            "cl100k",
        ),
        (original, "llama3"),
        (&original.replace("{1,3}", ""), "qwen2"),
    ];
    for (regex, name) in spellings {
        assert_eq!(Pretokenizer::new(regex).expect("a valid regex").name(), Some(name), "{regex}");
    }
    for name in NAMES {
        let pretokenizer = named(name);
        assert_eq!(pretokenizer.name(), Some(name));
        assert_eq!(Pretokenizer::new(pretokenizer.pattern()).expect("a valid regex").name(), Some(name));
    }
}

#[test]
fn steps_in_sequence_split_each_others_pieces() {
    let sequence = |steps: &[&str]| {
        Pretokenizer::sequence(steps.iter().map(|step| Pretokenizer::new(step).expect("a valid regex")).collect())
    };
    assert_eq!(sequence(&DEEPSEEK_V3).expect("known steps").name(), Some("deepseek_v3"));
    assert_eq!(sequence(&SMOLLM).expect("known steps").name(), Some("smollm"));
    assert_eq!(sequence(&[DIGIT, SMOLLM[1]]).expect("known steps").name(), Some("smollm_digits"));
    assert!(sequence(&[]).is_err());
    let custom = sequence(&["-", r"\d", "r50k"]).expect("valid steps");
    assert_eq!(custom.name(), None);
    let text = "a-b 12  x-  \n-3 ".repeat(100);
    let expected = ["a", "-", "b", " ", "1", "2", " ", " x", "-", "  \n", "-", "3"];
    let pieces = custom.split(&text).expect("short texts do not fail");
    assert_eq!(pieces.concat(), text);
    assert_eq!(pieces[..12], expected);
    assert_eq!(pieces[12..15], [" a", "-", "b"]);
    assert_eq!(pieces.len(), 12 * 100 + 1);
    assert!(custom.chunk_boundary(&text, 0).is_none());
}

#[test]
fn bad_patterns_are_named_in_the_error() {
    for (pattern, expected) in [("cl100", "r50k, cl100k"), ("", "expected a regex"), ("(", "not a valid regex")] {
        let message = Pretokenizer::new(pattern).expect_err("a bad pattern").to_string();
        assert!(message.contains(&format!("{pattern:?}")) && message.contains(expected), "{message}");
    }
    let endless = Pretokenizer::new(r"(?=(a+)+$)x|(a|aa)+(?!a)\1b").expect("a valid regex");
    let message = endless.split(&"a".repeat(60)).expect_err("it backtracks").to_string();
    assert!(message.contains("gave up"), "{message}");
}

#[test]
fn empty_matches_cut_and_are_no_pieces() {
    let pretokenizer = Pretokenizer::new("x*").expect("a valid regex");
    assert_eq!(pretokenizer.split("axxb中").expect("short texts do not fail"), ["a", "xx", "b", "中"]);
    assert!(pretokenizer.split("").expect("short texts do not fail").is_empty());
    let pretokenizer = Pretokenizer::new("(?=[A-Z])").expect("a valid regex");
    assert_eq!(pretokenizer.split("someCamelCase").expect("short texts do not fail"), ["some", "Camel", "Case"]);
}

/// A megabyte of anything takes no longer than a few times a megabyte of prose.
#[test]
fn long_runs_take_linear_time() {
    let texts = [
        "a", " ", "\n ", " \n", "1", "!", "\t", "'", "中", "\u{301}", "A\u{301}", "中A", "\r\n  ", "٣", "\u{200d}",
        "😀",
    ];
    for name in NAMES {
        let pretokenizer = named(name);
        for unit in texts {
            let text = unit.repeat(1_000_000 / unit.len());
            let began = std::time::Instant::now();
            let pieces = pretokenizer.split(&text).expect("named patterns do not fail").len();
            // Quadratic time would be minutes.
            assert!(began.elapsed().as_secs() < 20, "{name}: {pieces} pieces of {unit:?} x 1e6");
        }
    }
}

/// `SPLIT_FILES=a.txt,b.txt cargo test --release -p bpe-llama --test pretokenize real_text -- --ignored`
#[test]
#[ignore = "reads the files named in SPLIT_FILES"]
fn real_text_splits_as_its_regexes_do() {
    for path in std::env::var("SPLIT_FILES").expect("files to read").split(',') {
        check(&std::fs::read_to_string(path).expect("a readable file"));
    }
}

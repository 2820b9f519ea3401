//! The parts of a `tokenizer.json` that spell SentencePiece: `▁` for spaces, bytes to fall back on.
//!
//! There are two layouts. Older files normalize: `Prepend` puts a `▁` first, `Replace` writes it for spaces. Newer ones
//! leave that to the pre-tokenizer `Metaspace`, which puts none before a space and may put it at the start of the whole
//! text only.

use std::borrow::Cow;

use hashbrown::{HashMap, HashSet};
use serde_json::{Value, json};

use super::huggingface::{Merge, type_of, unsupported};
use super::sentencepiece::byte_of;
use crate::normalize::SPACE;
use crate::{AddedToken, Error, Pieces, Pretokenizer, Result, SpacePrefix, Spaces, Tokenizer, Vocab};

/// The whole text is a piece.
const WHOLE: &str = "(?s:.+)";

/// Words with the spaces before them; `pretokenize/words.rs` splits so.
const WORDS: &str = " *[^ ]+| +";

/// What begins with a space: `Metaspace` that splits.
const EACH_SPACE: &str = " [^ ]*|[^ ]+";

/// What removes spaces at both ends and makes several in a row one, as regexes and what replaces their matches.
const COLLAPSE: [(&str, &str); 3] = [(r"\A +", ""), (" {2,}", " "), ("[ \u{2581}]+\\z", "")];

/// How a file treats spaces and splits.
struct Layout {
    spaces: Spaces,
    /// Whether every space begins a piece.
    splits: bool,
    /// Texts that are pieces wherever they occur.
    apart: Vec<String>,
}

/// Returns words as pieces if no token spans two of them, so that no merge does; else the whole text.
pub(super) fn words_or_whole(merged: &[(Vec<u8>, u32)]) -> Result<Pretokenizer> {
    let spans_words = |(bytes, _): &(Vec<u8>, u32)| bytes.windows(2).any(|pair| pair[0] != b' ' && pair[1] == b' ');
    Pretokenizer::new(if merged.iter().any(spans_words) { WHOLE } else { WORDS })
}

/// Refuses a vocabulary in which a space is no token: its `▁` would fall back on other bytes than the space has.
pub(super) fn require_space(pieces: &Pieces) -> Result<()> {
    if pieces.merged.iter().chain(&pieces.whole).any(|(bytes, _)| bytes == b" ") {
        return Ok(());
    }
    Err(Error::Format(format!("no token is {:?}, which stands for a space: this is not supported", SPACE.to_string())))
}

/// Returns what splits off these texts, the longest first.
pub(super) fn split_apart(mut texts: Vec<String>) -> Result<Pretokenizer> {
    texts.sort_by(|a, b| b.len().cmp(&a.len()).then(a.cmp(b)));
    let texts: Vec<_> = texts.iter().map(|text| fancy_regex::escape(text)).collect();
    Pretokenizer::new(&format!("(?:{})", texts.join("|")))
}

/// Returns the tokenizer of a file whose model is BPE with byte fallback.
pub(super) fn read(
    (normalizer, pre_tokenizer, decoder): (Option<&Value>, Option<&Value>, Option<&Value>),
    entries: &[(Cow<'_, str>, u32)],
    merges: &[Merge<'_>],
    mut added: Vec<AddedToken>,
    ignore_merges: bool,
) -> Result<Tokenizer> {
    let layout = Layout::read(normalizer, pre_tokenizer, decoder)?;
    // Text holds spaces where these have `▁`: they come of merges, as any token does.
    added.retain(|token| token.special || token.content.chars().count() == 1 || !token.content.contains(SPACE));
    let (pieces, ids) = pieces_of(entries, &added)?;
    require_space(&pieces)?;
    let mut pairs = Vec::with_capacity(merges.len());
    for (number, Merge(left, right)) in merges.iter().enumerate() {
        let id_of = |token: &str| {
            ids.get(token).copied().ok_or_else(|| {
                Error::Format(format!("tokenizer.json: merge {number} names {token:?}, which is not in the vocabulary"))
            })
        };
        if byte_of(left).is_some() || byte_of(right).is_some() {
            return Err(unsupported("a merge of a byte token", &(left, right), "merges of text"));
        }
        let (left, right, merged) = (id_of(left)?, id_of(right)?, id_of(&format!("{left}{right}"))?);
        // Special and byte tokens do not come of text, even where merges spell them.
        if let (Some(left), Some(right), Some(_)) = (left, right, merged) {
            pairs.push((left, right));
        }
    }
    let vocab = Vocab::from_piece_merges(&pieces, pairs, ignore_merges)?;
    let is_apart = |bytes: &[u8]| layout.apart.iter().any(|text| text.as_bytes() == bytes);
    // Pieces that are tokens come before merges, so there the ends of pieces matter.
    let may_split = !ignore_merges || vocab.merges_reach_all(|bytes| !is_apart(bytes))?;
    let mut steps = Vec::new();
    if layout.splits {
        steps.push(Pretokenizer::new(EACH_SPACE)?);
    }
    if !layout.apart.is_empty() {
        steps.push(split_apart(layout.apart.clone())?);
    }
    if !layout.splits && !layout.apart.iter().any(|text| text.contains(' ')) {
        let others: Vec<_> = pieces.merged.into_iter().filter(|(bytes, _)| !is_apart(bytes)).collect();
        steps.push(if may_split { words_or_whole(&others)? } else { Pretokenizer::new(WHOLE)? });
    }
    let pretokenizer = Pretokenizer::sequence(steps)?;
    Ok(Tokenizer::new(vocab, pretokenizer, added, false)?.with_spaces(layout.spaces))
}

/// Returns the tokens by what they are for, and their ids by name: `None` for what text never becomes.
fn pieces_of<'a>(
    entries: &'a [(Cow<'_, str>, u32)],
    added: &[AddedToken],
) -> Result<(Pieces, HashMap<&'a str, Option<u32>>)> {
    let added: HashMap<&str, &AddedToken> = added.iter().map(|token| (token.content.as_str(), token)).collect();
    let (mut pieces, mut bytes) = (Pieces::default(), [None; 256]);
    let mut ids = HashMap::with_capacity(entries.len());
    for (token, id) in entries {
        let spaced = token.replace(SPACE, " ").into_bytes();
        let known = added.get(token.as_ref()).filter(|token| token.id == *id);
        let is_added = known.is_some_and(|known| known.special || token.chars().count() > 1);
        let byte = byte_of(token);
        if let Some(byte) = byte {
            bytes[usize::from(byte)] = Some(*id);
        } else if token.contains(' ') && !is_added {
            // Spaces are `▁` before tokens are looked for.
            pieces.silent.push((spaced, *id));
        } else if !is_added {
            pieces.merged.push((spaced, *id));
        }
        let is_text = byte.is_none() && !is_added && !token.contains(' ');
        ids.insert(token.as_ref(), is_text.then_some(*id));
    }
    pieces.bytes = bytes.into_iter().flatten().collect();
    if pieces.bytes.len() < 256 {
        let count = pieces.bytes.len();
        return Err(unsupported("the number of byte tokens", &count, "256, from <0x00> to <0xFF>"));
    }
    Ok((pieces, ids))
}

impl Layout {
    fn read(normalizer: Option<&Value>, pre_tokenizer: Option<&Value>, decoder: Option<&Value>) -> Result<Self> {
        let normalizers = steps_of(normalizer, "normalizers");
        let collapses = |(step, (regex, content)): (&&Value, (&str, &str))| {
            type_of(step) == "Replace" && step["pattern"]["Regex"] == regex && step["content"] == content
        };
        let collapse = normalizers.len() > COLLAPSE.len() && normalizers.iter().zip(COLLAPSE).all(collapses);
        let (mut prefix, mut replaced) = (SpacePrefix::Never, false);
        for step in &normalizers[if collapse { COLLAPSE.len() } else { 0 }..] {
            match type_of(step) {
                "Prepend" if step["prepend"] == SPACE.to_string() => prefix = SpacePrefix::Always,
                "Replace" if step["pattern"]["String"] == " " && step["content"] == SPACE.to_string() => {
                    replaced = true;
                }
                _ => return Err(unsupported("normalizer", step, "Prepend and Replace of \u{2581}, or none")),
            }
        }
        let (mut splits, mut apart) = (false, Vec::new());
        for step in steps_of(pre_tokenizer, "pretokenizers") {
            match type_of(step) {
                "Metaspace" if step["replacement"] == SPACE.to_string() => {
                    let scheme = metaspace_prefix(step)?;
                    // After `Prepend` no text begins without a space.
                    prefix = if prefix == SpacePrefix::Always { prefix } else { scheme };
                    (replaced, splits) = (true, step["split"] != false);
                }
                // There is no space left to split at.
                "Split" if replaced && step["pattern"]["String"] == " " => {}
                "Split" if replaced && step["behavior"] == "Isolated" && apart.is_empty() => {
                    let pattern = step["pattern"]["Regex"].as_str().unwrap_or_default();
                    apart = literals(pattern).ok_or_else(|| {
                        unsupported("pre_tokenizer.pattern", &step["pattern"], "a choice of literal texts")
                    })?;
                }
                other => return Err(unsupported("pre_tokenizer.type", &other, "Metaspace or none")),
            }
        }
        if !replaced {
            return Err(unsupported("normalizer", &normalizer, "Replace of a space by \u{2581}, or Metaspace"));
        }
        let drop_first = drops_first(decoder)?;
        Ok(Self { spaces: Spaces { prefix, collapse, drop_first }, splits, apart })
    }
}

fn metaspace_prefix(step: &Value) -> Result<SpacePrefix> {
    match (step["prepend_scheme"].as_str(), step["add_prefix_space"].as_bool()) {
        (Some("always"), _) | (None, Some(true) | None) => Ok(SpacePrefix::UnlessSpace),
        (Some("first"), _) => Ok(SpacePrefix::FirstUnlessSpace),
        (Some("never"), _) | (None, Some(false)) => Ok(SpacePrefix::Never),
        (Some(other), _) => Err(unsupported("prepend_scheme", &other, "always, first or never")),
    }
}

/// Returns whether decoding leaves out a space that comes first.
fn drops_first(decoder: Option<&Value>) -> Result<bool> {
    let (mut drops, mut falls_back) = (false, false);
    for step in steps_of(decoder, "decoders") {
        match type_of(step) {
            "Fuse" => {}
            "ByteFallback" => falls_back = true,
            "Replace" if step["pattern"]["String"] == SPACE.to_string() && step["content"] == " " => {}
            "Strip" if step["content"] == " " && step["start"] == 1 && step["stop"] == 0 => drops = true,
            "Metaspace" => drops |= metaspace_prefix(step)? != SpacePrefix::Never,
            _ => return Err(unsupported("decoder", step, "Replace, ByteFallback, Fuse and Strip")),
        }
    }
    if falls_back { Ok(drops) } else { Err(unsupported("decoder", &decoder, "one with ByteFallback")) }
}

/// Returns the steps of a sequence, or the one step, or none.
fn steps_of<'a>(value: Option<&'a Value>, key: &str) -> Vec<&'a Value> {
    match value {
        Some(value) if type_of(value) == "Sequence" => value[key].as_array().into_iter().flatten().collect(),
        value => value.into_iter().collect(),
    }
}

/// Returns the texts, with spaces for `▁`, of a regex that is a choice of them, as [`split_apart`] makes it.
fn literals(regex: &str) -> Option<Vec<String>> {
    let mut texts = vec![String::new()];
    let mut characters = regex.strip_prefix("(?:")?.strip_suffix(')')?.chars();
    while let Some(character) = characters.next() {
        match character {
            '|' => texts.push(String::new()),
            '\\' => {
                let escaped = match characters.next()? {
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    other if other.is_alphanumeric() => return None,
                    other => other,
                };
                texts.last_mut()?.push(escaped);
            }
            '.' | '+' | '*' | '?' | '(' | ')' | '[' | ']' | '{' | '}' | '^' | '$' => return None,
            SPACE => texts.last_mut()?.push(' '),
            _ => texts.last_mut()?.push(character),
        }
    }
    texts.iter().all(|text| !text.is_empty()).then_some(texts)
}

/// Returns the normalizer, the pre-tokenizer and the decoder of a file for this tokenizer.
pub(super) fn to_json(tokenizer: &Tokenizer, spaces: Spaces) -> [Value; 3] {
    let space = SPACE.to_string();
    let mut normalizers = Vec::new();
    if spaces.collapse {
        let replace = |(regex, content)| json!({"type": "Replace", "pattern": {"Regex": regex}, "content": content});
        normalizers.extend(COLLAPSE.map(replace));
    }
    let mut pretokenizers = Vec::new();
    let steps = tokenizer.pretokenizer().steps();
    let splits = steps.iter().any(|step| step.pattern() == EACH_SPACE);
    let scheme = match spaces.prefix {
        SpacePrefix::FirstUnlessSpace => Some("first"),
        SpacePrefix::UnlessSpace => Some("always"),
        SpacePrefix::Always | SpacePrefix::Never => splits.then_some("never"),
    };
    if spaces.prefix == SpacePrefix::Always {
        normalizers.push(json!({"type": "Prepend", "prepend": space}));
    }
    if let Some(scheme) = scheme {
        pretokenizers
            .push(json!({"type": "Metaspace", "replacement": space, "prepend_scheme": scheme, "split": splits}));
    } else {
        normalizers.push(json!({"type": "Replace", "pattern": {"String": " "}, "content": space}));
    }
    for step in steps.iter().filter(|step| ![WHOLE, WORDS, EACH_SPACE].contains(&step.pattern())) {
        let pattern = step.pattern().replace(' ', &space);
        pretokenizers
            .push(json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}));
    }
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": space}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if spaces.drop_first {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let sequence = |key: &str, steps: Vec<Value>| {
        if steps.is_empty() { Value::Null } else { json!({"type": "Sequence", key: steps}) }
    };
    [sequence("normalizers", normalizers), sequence("pretokenizers", pretokenizers), sequence("decoders", decoders)]
}

/// Returns how a token is written: `▁` for spaces.
pub(super) fn name_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace(' ', &SPACE.to_string())
}

/// Returns the names of all tokens with their ids.
///
/// # Errors
/// [`Error::InvalidArgument`] if two have one name; or if merges cannot be written as a list, since characters that are
/// no tokens take part, or several ways to one token are worth the same.
pub(super) fn names(vocab: &Vocab) -> Result<Vec<(String, u32)>> {
    let refuse =
        |why: String| Error::InvalidArgument(format!("this vocabulary cannot be saved as tokenizer.json: {why}"));
    let mut entries: Vec<(String, u32)> = (0u8..=255)
        .zip(vocab.byte_fallback().into_iter().flatten())
        .map(|(byte, &id)| (format!("<0x{byte:02X}>"), id))
        .collect();
    let bytes: HashSet<u32> = entries.iter().map(|&(_, id)| id).collect();
    for id in (0..vocab.id_bound()).filter(|id| !bytes.contains(id)) {
        let Some(token) = vocab.id_to_bytes(id) else { continue };
        let is_text = vocab.bytes_to_id(token) == Some(id);
        if !is_text && token != b" " && String::from_utf8_lossy(token).chars().count() == 1 {
            return Err(refuse(format!(
                "no text becomes its token {:?}, which a tokenizer.json cannot say of a character",
                String::from_utf8_lossy(token)
            )));
        }
        entries.push((if is_text { name_of(token) } else { String::from_utf8_lossy(token).into_owned() }, id));
    }
    let mut seen = HashSet::new();
    if let Some((name, _)) = entries.iter().find(|(name, _)| !seen.insert(name)) {
        return Err(refuse(format!("two tokens are {name:?}")));
    }
    drop(seen);
    let mut last = None;
    for &(left, right) in vocab.merges() {
        let [Some(a), Some(b)] = [left, right].map(|id| vocab.id_to_bytes(id).filter(|_| !bytes.contains(&id))) else {
            return Err(refuse("a token holds a character that is no token".to_owned()));
        };
        let rank = vocab.rank(left, right);
        let merged = name_of(&[a, b].concat());
        let is_run = merged.chars().all(|character| merged.starts_with(character));
        if last == Some(rank) && !is_run {
            return Err(refuse(format!("it has several merges of {merged:?} that are worth the same")));
        }
        last = Some(rank);
    }
    Ok(entries)
}

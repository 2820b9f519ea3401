//! The `tokenizer.json` of a SentencePiece model: `▁` for spaces, and byte fallback.
//!
//! There are two layouts. Older files have normalizers: `Prepend` adds a leading `▁`, `Replace` replaces spaces. Newer
//! files have the pre-tokenizer `Metaspace`, which adds no `▁` before a space and can be restricted to the start of the
//! text.

use std::borrow::Cow;

use hashbrown::{HashMap, HashSet};
use serde_json::{Value, json};

use super::parse::Parsed;
use super::schema::Merge;
use crate::byte_alphabet::byte_of;
use crate::formats::sentencepiece::{isolate, require_space, words_or_whole};
use crate::normalize::METASPACE;
use crate::pipeline::components::{Behavior, Normalizer, Pattern, PreTokenizer, PrependScheme};
use crate::pipeline::{Components, unknown_in_merge};
use crate::pretokenize::{SPACED_WORDS_PATTERN, WHOLE};
use crate::{AddedToken, Pretokenizer, Result, SentencePieceTokens, SpacePrefix, Spaces, Tokenizer, Vocab};

/// Pieces that begin at each space: a `Metaspace` that splits.
const EACH_SPACE: &str = " [^ ]*|[^ ]+";

/// The regexes and replacements that remove spaces at both ends and collapse runs of spaces.
const COLLAPSE: [(&str, &str); 3] = [(r"\A +", ""), (" {2,}", " "), ("[ \u{2581}]+\\z", "")];

/// How a file treats spaces and splits.
struct Layout {
    spaces: Spaces,
    /// Whether every space begins a piece.
    splits: bool,
    /// Texts that are isolated wherever they occur.
    isolated: Vec<String>,
}

/// Returns the tokenizer of a file whose model is BPE with byte fallback, if the file is of a known layout.
pub(super) fn read(file: &Parsed<'_>) -> Result<Option<Tokenizer>> {
    let (entries, added, ignore_merges) = (file.entries, &file.added, file.options.ignore_merges);
    let affixes = [&file.options.continuing_subword_prefix, &file.options.end_of_word_suffix];
    // Added tokens must match in the original text, where spaces are no `▁` yet.
    let is_plain = |token: &AddedToken| {
        !token.normalized && !token.content.contains(METASPACE) && byte_of(&token.content).is_none()
    };
    if !file.options.byte_fallback || affixes.iter().any(|affix| affix.is_some()) || !added.iter().all(is_plain) {
        return Ok(None);
    }
    let Some(layout) = Layout::of(&file.components) else { return Ok(None) };
    let Some((pieces, ids)) = pieces_of(entries, added) else { return Ok(None) };
    if require_space(&pieces).is_err() {
        return Ok(None);
    }
    let mut pairs = Vec::with_capacity(file.merges.len());
    for (rank, Merge(left, right)) in file.merges.iter().enumerate() {
        let id_of = |token: &str| ids.get(token).copied().ok_or_else(|| unknown_in_merge(rank, token));
        if byte_of(left).is_some() || byte_of(right).is_some() {
            return Ok(None);
        }
        let (left, right, merged) = (id_of(left)?, id_of(right)?, id_of(&format!("{left}{right}"))?);
        // A merge with a token that text never becomes, such as an added token.
        let (Some(left), Some(right), Some(_)) = (left, right, merged) else { return Ok(None) };
        pairs.push((left, right));
    }
    let vocab = Vocab::from_sentencepiece_merges(&pieces, pairs, ignore_merges)?;
    let is_isolated = |bytes: &[u8]| layout.isolated.iter().any(|text| text.as_bytes() == bytes);
    // With `ignore_merges`, the boundaries of pieces matter, unless merges reach every token.
    let may_split = !ignore_merges || vocab.merges_reach_all(|bytes| !is_isolated(bytes))?;
    let mut steps = Vec::new();
    if layout.splits {
        steps.push(Pretokenizer::new(EACH_SPACE)?);
    }
    if !layout.isolated.is_empty() {
        steps.push(isolate(layout.isolated.clone())?);
    }
    if !layout.splits && !layout.isolated.iter().any(|text| text.contains(' ')) {
        let others: Vec<_> = pieces.merged.into_iter().filter(|(bytes, _)| !is_isolated(bytes)).collect();
        steps.push(if may_split { words_or_whole(&others)? } else { Pretokenizer::new(WHOLE)? });
    }
    let pretokenizer = Pretokenizer::sequence(steps)?;
    Ok(Some(Tokenizer::new(vocab, pretokenizer, added.clone(), false)?.with_spaces(layout.spaces)))
}

/// Returns the tokens by type, if all 256 bytes are among them, and their ids by name: `None` for tokens that text
/// never becomes.
fn pieces_of<'a>(
    entries: &'a [(Cow<'_, str>, u32)],
    added: &[AddedToken],
) -> Option<(SentencePieceTokens, HashMap<&'a str, Option<u32>>)> {
    let added: HashMap<&str, &AddedToken> = added.iter().map(|token| (token.content.as_str(), token)).collect();
    let (mut pieces, mut bytes) = (SentencePieceTokens::default(), [None; 256]);
    let mut ids = HashMap::with_capacity(entries.len());
    for (token, id) in entries {
        let spaced = token.replace(METASPACE, " ").into_bytes();
        let known = added.get(token.as_ref()).filter(|token| token.id == *id);
        let is_added = known.is_some_and(|known| known.special || token.chars().count() > 1);
        let byte = byte_of(token);
        if let Some(byte) = byte {
            bytes[usize::from(byte)] = Some(*id);
        } else if token.contains(' ') && !is_added {
            // Spaces become `▁` before merging, so text never becomes this token.
            pieces.decode_only.push((spaced, *id));
        } else if !is_added {
            pieces.merged.push((spaced, *id));
        }
        let is_text = byte.is_none() && !is_added && !token.contains(' ');
        ids.insert(token.as_ref(), is_text.then_some(*id));
    }
    pieces.bytes = bytes.into_iter().flatten().collect();
    (pieces.bytes.len() == 256).then_some((pieces, ids))
}

impl Layout {
    /// Returns the layout of a file, if it is a known one.
    fn of(components: &Components) -> Option<Self> {
        let space = METASPACE.to_string();
        let normalizers = components.normalizer.as_ref().map(Normalizer::steps).unwrap_or_default();
        let collapses = |(step, (regex, new)): (&&Normalizer, (&str, &str))| match step {
            Normalizer::Replace { pattern: Pattern::Regex(pattern), content } => pattern == regex && content == new,
            _ => false,
        };
        let collapse = normalizers.len() > COLLAPSE.len() && normalizers.iter().zip(COLLAPSE).all(collapses);
        let (mut prefix, mut replaced) = (SpacePrefix::Never, false);
        for step in &normalizers[if collapse { COLLAPSE.len() } else { 0 }..] {
            match step {
                // Only one: two of them would add two `▁`.
                Normalizer::Prepend { prepend } if *prepend == space && !replaced && prefix == SpacePrefix::Never => {
                    prefix = SpacePrefix::Always;
                }
                Normalizer::Replace { pattern: Pattern::String(text), content } if text == " " && *content == space => {
                    replaced = true;
                }
                _ => return None,
            }
        }
        let (mut splits, mut isolated) = (false, Vec::new());
        for step in components.pre_tokenizer.as_ref().map(PreTokenizer::steps).unwrap_or_default() {
            match step {
                PreTokenizer::Metaspace(metaspace) if metaspace.replacement == METASPACE && isolated.is_empty() => {
                    prefix = match metaspace.prepend_scheme {
                        // After `Prepend`, every text begins with a space.
                        _ if prefix == SpacePrefix::Always => prefix,
                        PrependScheme::Always => SpacePrefix::UnlessSpace,
                        PrependScheme::First => SpacePrefix::FirstUnlessSpace,
                        PrependScheme::Never => SpacePrefix::Never,
                    };
                    (replaced, splits) = (true, metaspace.split);
                }
                // No space is left to split at.
                PreTokenizer::Split { pattern: Pattern::String(text), invert: false, .. }
                    if replaced && text == " " => {}
                PreTokenizer::Split { pattern: Pattern::Regex(regex), behavior: Behavior::Isolated, .. }
                    if replaced && isolated.is_empty() =>
                {
                    isolated = literals(regex)?;
                }
                _ => return None,
            }
        }
        // If spaces were removed before, `Metaspace` does not recognize the start of the text.
        let is_clear = replaced && !(collapse && prefix == SpacePrefix::FirstUnlessSpace);
        is_clear.then_some(Self { spaces: Spaces { prefix, collapse, drop_first: false }, splits, isolated })
    }
}

/// Returns the alternatives, with spaces for `▁`, of a regex like that of [`isolate`].
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
            METASPACE => texts.last_mut()?.push(' '),
            _ => texts.last_mut()?.push(character),
        }
    }
    texts.iter().all(|text| !text.is_empty()).then_some(texts)
}

/// Returns the normalizer, the pre-tokenizer and the decoder of a file for this tokenizer.
pub(super) fn to_json(tokenizer: &Tokenizer, spaces: Spaces) -> [Value; 3] {
    let space = METASPACE.to_string();
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
    for step in steps.iter().filter(|step| ![WHOLE, SPACED_WORDS_PATTERN, EACH_SPACE].contains(&step.pattern())) {
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

/// Returns the name of a token in a file: its text with `▁` for spaces.
pub(super) fn name_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace(' ', &METASPACE.to_string())
}

/// Returns the names of all tokens with their ids.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if two tokens have the same name, or if no list can express the merges: characters
/// without a token take part in them, or several merges of a token have the same rank.
pub(super) fn names(vocab: &Vocab) -> Result<Vec<(String, u32)>> {
    let refuse = |why: String| invalid!("this vocabulary cannot be saved as tokenizer.json: {why}");
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
                "text never becomes its token {:?}, which a tokenizer.json cannot express for a single character",
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
            return Err(refuse("a token contains a character that is not a token".to_owned()));
        };
        let rank = vocab.rank(left, right);
        let merged = name_of(&[a, b].concat());
        let is_run = merged.chars().all(|character| merged.starts_with(character));
        if last == Some(rank) && !is_run {
            return Err(refuse(format!("several merges of {merged:?} have the same rank")));
        }
        last = Some(rank);
    }
    Ok(entries)
}

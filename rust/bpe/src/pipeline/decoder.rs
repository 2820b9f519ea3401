//! Decoders: tokens to text.

use super::bounds::Growth;
use super::components::{Decoder, Metaspace, PrependScheme};
use super::search::Search;
use crate::Result;
use crate::byte_alphabet::to_bytes;
use crate::interrupt::Interrupt;

/// The compiled steps of a decoder. Without a decoder, tokens are joined by spaces.
#[derive(Debug)]
pub(super) struct Decoders(Option<Vec<Step>>);

#[derive(Debug)]
enum Step {
    Bpe { suffix: String },
    ByteFallback,
    ByteLevel,
    Fuse,
    Metaspace(Metaspace),
    Replace(Search, String),
    Strip { content: char, start: usize, stop: usize },
    WordPiece { prefix: String, cleanup: bool },
}

impl Decoders {
    /// Returns the steps of a decoder.
    ///
    /// # Errors
    /// [`crate::Error::Format`] for an invalid regex.
    pub(super) fn compile(decoder: Option<&Decoder>) -> Result<Self> {
        let compile = |decoder: &Decoder| decoder.steps().into_iter().map(Step::compile).collect::<Result<_>>();
        decoder.map(compile).transpose().map(Self)
    }

    /// Returns whether the decoder only concatenates the bytes of the byte alphabet.
    pub(super) fn is_byte_level(&self) -> bool {
        matches!(self.0.as_deref(), Some([Step::ByteLevel]))
    }

    /// Returns whether the text of further tokens can be decoded from the last few tokens only.
    ///
    /// It cannot if a step processes the whole text as one token, since it can match across any distance.
    pub(super) fn decodes_by_parts(&self) -> bool {
        let steps = self.0.as_deref().unwrap_or_default();
        let joins = |step: &Step| matches!(step, Step::Fuse | Step::ByteLevel);
        let after = steps.iter().skip_while(|step| !joins(step)).skip(1);
        let mut stripped = 0;
        // A strip of at most one character applies to each part alike. Other steps can match across parts.
        after.into_iter().all(|step| match step {
            Step::Fuse | Step::Metaspace(_) => true,
            Step::Strip { start, .. } => {
                stripped += start;
                stripped <= 1
            }
            _ => false,
        })
    }

    /// Returns the bytes of a token within a text.
    pub(super) fn token_bytes(&self, name: &str) -> Vec<u8> {
        let steps = self.0.iter().flatten();
        steps.fold(name.as_bytes().to_vec(), |token, step| step.apply_inside(token))
    }

    /// Returns whether a token is one of a run of bytes whose text is unknown before the run ends.
    ///
    /// If a run is not UTF-8, each of its bytes becomes U+FFFD, even those of complete characters.
    pub(super) fn is_byte_of_run(&self, name: &str) -> bool {
        let mut token = name.as_bytes().to_vec();
        for step in self.0.iter().flatten() {
            if matches!(step, Step::ByteFallback) {
                return std::str::from_utf8(&token).is_ok_and(|text| byte_of(text).is_some());
            }
            token = step.apply_inside(token);
        }
        false
    }

    /// Returns the text of tokens.
    ///
    /// # Errors
    /// The error of the interrupt check; [`crate::Error::InvalidArgument`] if a match of a regex backtracks beyond its
    /// bound, or the steps make too much of the tokens.
    pub(super) fn decode(&self, mut tokens: Vec<String>, interrupt: Interrupt<'_>) -> Result<String> {
        let Some(steps) = &self.0 else { return Ok(tokens.join(" ")) };
        let length = |tokens: &[String]| tokens.iter().map(|token| token.len() + 1).sum();
        let growth = Growth::new("decoder", length(&tokens));
        for step in steps {
            tokens = step.apply(tokens, growth, interrupt)?;
            growth.check(length(&tokens))?;
        }
        Ok(tokens.concat())
    }
}

impl Step {
    fn compile(step: &Decoder) -> Result<Self> {
        Ok(match step {
            Decoder::Bpe { suffix } => Self::Bpe { suffix: suffix.clone() },
            Decoder::ByteFallback {} => Self::ByteFallback,
            Decoder::ByteLevel(_) => Self::ByteLevel,
            Decoder::Fuse {} => Self::Fuse,
            Decoder::Metaspace(metaspace) => Self::Metaspace(*metaspace),
            Decoder::Replace { pattern, content } => Self::Replace(Search::of(pattern)?, content.clone()),
            &Decoder::Strip { content, start, stop } => Self::Strip { content, start, stop },
            Decoder::WordPiece { prefix, cleanup } => Self::WordPiece { prefix: prefix.clone(), cleanup: *cleanup },
            Decoder::Sequence { .. } => unreachable!("steps flattens sequences"),
        })
    }

    /// Applies the step to a token that is neither first nor last.
    fn apply_inside(&self, token: Vec<u8>) -> Vec<u8> {
        let Ok(text) = std::str::from_utf8(&token) else { return token };
        match self {
            Self::ByteLevel => to_bytes(text).unwrap_or(token),
            Self::ByteFallback => byte_of(text).map_or(token, |byte| vec![byte]),
            Self::Metaspace(metaspace) => text.replace(metaspace.replacement, " ").into_bytes(),
            Self::Bpe { suffix } => text.replace(suffix, " ").into_bytes(),
            Self::Replace(search, content) => {
                let growth = Growth::new("decoder", text.len());
                replace(text, search, content, (growth, 0), Interrupt::NEVER).map_or(token, String::into_bytes)
            }
            Self::Fuse | Self::Strip { .. } | Self::WordPiece { .. } => token,
        }
    }

    fn apply(&self, tokens: Vec<String>, growth: Growth, interrupt: Interrupt<'_>) -> Result<Vec<String>> {
        match self {
            Self::Bpe { suffix } => {
                let last = tokens.len().saturating_sub(1);
                map(tokens, interrupt, |i, token| Ok(token.replace(suffix, if i == last { "" } else { " " })))
            }
            Self::ByteFallback => join_bytes(tokens, interrupt),
            Self::ByteLevel => {
                let mut bytes = Vec::with_capacity(tokens.len() * 4);
                for (i, token) in tokens.into_iter().enumerate() {
                    interrupt.check_at(i)?;
                    bytes.extend(to_bytes(&token).unwrap_or(token.into_bytes()));
                }
                Ok(vec![String::from_utf8_lossy(&bytes).into_owned()])
            }
            Self::Fuse => Ok(vec![tokens.concat()]),
            Self::Metaspace(metaspace) => map(tokens, interrupt, |i, token| {
                let is_dropped = i == 0 && metaspace.prepend_scheme != PrependScheme::Never;
                Ok(token.replace(metaspace.replacement, if is_dropped { "" } else { " " }))
            }),
            Self::Replace(search, content) => {
                let mut done = 0;
                map(tokens, interrupt, |_, token| {
                    let new = replace(&token, search, content, (growth, done), interrupt)?;
                    done += new.len();
                    Ok(new)
                })
            }
            &Self::Strip { content, start, stop } => {
                map(tokens, interrupt, |_, token| Ok(strip(&token, content, start, stop)))
            }
            Self::WordPiece { prefix, cleanup } => map(tokens, interrupt, |i, mut token| {
                if i > 0 {
                    token = token.strip_prefix(prefix.as_str()).map_or_else(|| format!(" {token}"), str::to_owned);
                }
                Ok(if *cleanup { clean_up(&token) } else { token })
            }),
        }
    }
}

/// Returns the results of `change` for each token and its index.
fn map(
    tokens: Vec<String>,
    interrupt: Interrupt<'_>,
    mut change: impl FnMut(usize, String) -> Result<String>,
) -> Result<Vec<String>> {
    let tokens = tokens.into_iter().enumerate();
    tokens.map(|(i, token)| interrupt.check_at(i).and_then(|()| change(i, token))).collect()
}

/// Returns the byte of a token such as `<0xE4>`: as in `tokenizers`, digits can be lower case.
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// Decodes runs of tokens such as `<0xE4>`; each byte of a run that is not UTF-8 becomes U+FFFD.
fn join_bytes(tokens: Vec<String>, interrupt: Interrupt<'_>) -> Result<Vec<String>> {
    let mut joined = Vec::with_capacity(tokens.len());
    let mut run = Vec::new();
    let flush = |run: &mut Vec<u8>, joined: &mut Vec<String>| {
        let count = run.len();
        match String::from_utf8(std::mem::take(run)) {
            Ok(text) if text.is_empty() => {}
            Ok(text) => joined.push(text),
            Err(_) => joined.extend(std::iter::repeat_n("\u{fffd}".to_owned(), count)),
        }
    };
    for (index, token) in tokens.into_iter().enumerate() {
        interrupt.check_at(index)?;
        if let Some(byte) = byte_of(&token) {
            run.push(byte);
            continue;
        }
        flush(&mut run, &mut joined);
        joined.push(token);
    }
    flush(&mut run, &mut joined);
    Ok(joined)
}

/// Replaces each match by `content`; `before` is the length of the tokens before.
fn replace(
    token: &str,
    search: &Search,
    content: &str,
    (growth, before): (Growth, usize),
    interrupt: Interrupt<'_>,
) -> Result<String> {
    let (mut new, mut done, mut fits) = (String::new(), 0, Ok(()));
    search.find_all(token, interrupt, |start, end| {
        if fits.is_ok() {
            new.push_str(&token[done..start]);
            new.push_str(content);
            done = end;
            fits = growth.check(before + new.len());
        }
    })?;
    fits?;
    new.push_str(&token[done..]);
    Ok(new)
}

/// Removes `content` up to `start` times at the start, and up to `stop` times at the end.
fn strip(mut token: &str, content: char, start: usize, stop: usize) -> String {
    for _ in 0..start {
        let Some(rest) = token.strip_prefix(content) else { break };
        token = rest;
    }
    for _ in 0..stop {
        let Some(rest) = token.strip_suffix(content) else { break };
        token = rest;
    }
    token.to_owned()
}

/// Removes the spaces before English punctuation and contractions.
///
/// Source: `clean_up_tokenization` of transformers, in the order of `tokenizers`.
fn clean_up(token: &str) -> String {
    const RULES: [(&str, &str); 11] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" do not", " don't"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    RULES.iter().fold(token.to_owned(), |text, (from, to)| text.replace(from, to))
}

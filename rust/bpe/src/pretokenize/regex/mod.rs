//! Regex engines: `fancy-regex` for a caller's patterns, Oniguruma for those of a `tokenizer.json`.

mod fancy;
mod matches;
#[cfg_attr(not(feature = "oniguruma"), path = "without_oniguruma.rs")]
mod oniguruma;

pub(crate) use self::fancy::FancyRegex;
pub(crate) use self::matches::MATCHES_PER_CHECK;
pub(crate) use self::oniguruma::Oniguruma;

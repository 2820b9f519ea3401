//! Regex engines: `fancy-regex` for a caller's patterns, Oniguruma for those of a `tokenizer.json`.

mod fancy;
#[cfg(feature = "oniguruma")]
mod lookaheads;
mod matches;
#[cfg_attr(not(feature = "oniguruma"), path = "without_oniguruma.rs")]
mod oniguruma;
mod patience;
mod watched_text;

pub(crate) use self::fancy::FancyRegex;
pub(crate) use self::oniguruma::Oniguruma;
pub(crate) use self::patience::Patience;

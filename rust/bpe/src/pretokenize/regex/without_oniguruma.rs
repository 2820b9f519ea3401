//! In place of `oniguruma.rs` without the feature `oniguruma`: no such regex exists.

use super::Patience;
use crate::Result;

#[derive(Debug, Clone)]
pub(crate) enum Oniguruma {}

pub(crate) struct Cursor;

impl Oniguruma {
    pub(crate) fn new(pattern: &str) -> Result<Self> {
        Err(invalid!(
            "pattern {pattern:?} is a regex for Oniguruma, which needs the feature `oniguruma` of the crate bpe-llama"
        ))
    }

    pub(crate) fn pattern(&self) -> &str {
        match *self {}
    }

    pub(crate) fn cursor(&self) -> Cursor {
        match *self {}
    }

    pub(crate) fn next_match(&self, _: &str, _: &mut Cursor, _: &Patience<'_>) -> Result<Option<(usize, usize)>> {
        match *self {}
    }

    pub(crate) fn fill_ends(&self, _: &str, _: usize, _: &mut Vec<usize>, _: &Patience<'_>) -> Result<()> {
        match *self {}
    }
}

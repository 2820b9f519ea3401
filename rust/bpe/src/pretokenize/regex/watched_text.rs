//! A text in which a search of `fancy-regex` can be stopped.

use std::cell::Cell;
use std::panic::resume_unwind;

use fancy_regex::Input;

use super::patience::{Patience, SLOW};

/// Steps between two checks. Most matches take fewer, and no time.
const STEPS_PER_CHECK: u32 = 64;

/// The bytes of a text of which 64 steps may take noticeable time.
const LONG: usize = 1 << 20;

/// A text that `fancy-regex` asks for its bytes in each step; a search is stopped there, by unwinding with
/// [`Stopped`](super::patience::Stopped).
pub(super) struct WatchedText<'a> {
    text: &'a str,
    patience: &'a Patience<'a>,
    steps_per_check: Cell<u32>,
    steps_to_check: Cell<u32>,
}

impl<'a> WatchedText<'a> {
    pub(super) fn new(text: &'a str, patience: &'a Patience<'a>) -> Self {
        let steps = if text.len() < LONG { STEPS_PER_CHECK } else { 1 };
        Self { text, patience, steps_per_check: Cell::new(steps), steps_to_check: Cell::new(steps) }
    }

    #[inline]
    fn step(&self) {
        match self.steps_to_check.get() {
            0 => self.check(),
            steps => self.steps_to_check.set(steps - 1),
        }
    }

    #[cold]
    fn check(&self) {
        let elapsed = self.patience.check().unwrap_or_else(|stopped| resume_unwind(Box::new(stopped)));
        if let Some(elapsed) = elapsed {
            let steps = if elapsed > SLOW { 0 } else { (2 * self.steps_per_check.get()).clamp(1, STEPS_PER_CHECK) };
            self.steps_per_check.set(steps);
        }
        self.steps_to_check.set(self.steps_per_check.get());
    }
}

impl Input for WatchedText<'_> {
    type Match<'t>
        = (usize, usize)
    where
        Self: 't;

    fn len(&self) -> usize {
        self.text.len()
    }

    #[inline]
    fn as_bytes(&self) -> &[u8] {
        self.step();
        self.text.as_bytes()
    }

    fn is_char_boundary(&self, index: usize) -> bool {
        self.text.is_char_boundary(index)
    }

    fn is_ascii(&self) -> bool {
        self.text.is_ascii()
    }

    fn prev_codepoint_ix(&self, index: usize) -> usize {
        Input::prev_codepoint_ix(self.text, index)
    }

    fn make_match(&self, start: usize, end: usize) -> (usize, usize) {
        (start, end)
    }

    fn advance_position(&self, index: usize) -> usize {
        Input::advance_position(self.text, index)
    }
}

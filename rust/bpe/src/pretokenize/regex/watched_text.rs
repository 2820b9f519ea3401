//! A text in which a search of `fancy-regex` can be stopped.

use std::cell::Cell;
use std::panic::resume_unwind;
use std::time::{Duration, Instant};

use fancy_regex::Input;

use crate::Error;
use crate::interrupt::Interrupt;

/// The longest time of the long matches in one text, besides a microsecond for each byte. `(?:a(?=a*c|a))+` on many
/// letters `a` takes quadratic time in one match: each lookahead reads the rest of the text.
pub(super) const PATIENCE: Duration = Duration::from_secs(8);
const PATIENCE_PER_BYTE: Duration = Duration::from_micros(1);

/// Steps between two checks. Most matches take fewer, and no time.
const STEPS_PER_CHECK: u32 = 64;

/// The time between two checks after which each step is checked.
const SLOW: Duration = Duration::from_millis(1);

/// The bytes of a text of which 64 steps may take noticeable time.
const LONG: usize = 1 << 20;

/// What a stopped search unwinds with: the error of the interrupt check, or `None` if the search took too long.
pub(super) struct Stopped(pub(super) Option<Error>);

/// A text that `fancy-regex` asks for its bytes in each step; the steps of a match are stopped there, by unwinding.
pub(super) struct WatchedText<'a> {
    text: &'a str,
    interrupt: Interrupt<'a>,
    steps_per_check: Cell<u32>,
    steps_to_check: Cell<u32>,
    last_check: Cell<Option<Instant>>,
    /// The time that long matches have taken.
    pub(super) spent: Cell<Duration>,
}

impl<'a> WatchedText<'a> {
    pub(super) fn new(text: &'a str, interrupt: Interrupt<'a>) -> Self {
        let steps = if text.len() < LONG { STEPS_PER_CHECK } else { 1 };
        Self {
            text,
            interrupt,
            steps_per_check: Cell::new(steps),
            steps_to_check: Cell::new(steps),
            last_check: Cell::default(),
            spent: Cell::default(),
        }
    }

    /// Must be called before each match, so that the time between matches does not count.
    pub(super) fn begin_match(&self) {
        self.last_check.set(None);
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
        let now = Instant::now();
        let elapsed = self.last_check.replace(Some(now)).map_or(Duration::ZERO, |last| now - last);
        let steps = if elapsed > SLOW { 0 } else { (2 * self.steps_per_check.get()).clamp(1, STEPS_PER_CHECK) };
        self.steps_per_check.set(steps);
        self.steps_to_check.set(steps);
        self.spent.set(self.spent.get() + elapsed);
        let bytes = u32::try_from(self.text.len()).unwrap_or(u32::MAX);
        let stopped = self.interrupt.check().err();
        if stopped.is_some() || self.spent.get() > PATIENCE + PATIENCE_PER_BYTE * bytes {
            resume_unwind(Box::new(Stopped(stopped)));
        }
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

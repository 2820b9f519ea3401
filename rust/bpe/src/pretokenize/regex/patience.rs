//! [`Patience`]: how long the searches for a regex in one text may go on.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::Error;
use crate::interrupt::Interrupt;

/// The longest time of the searches in one text, besides [`PER_BYTE`]. `a(?=.*)` on many letters `a` takes quadratic time:
/// each lookahead reads the rest of the text.
pub(super) const LONGEST: Duration = Duration::from_secs(8);
const PER_BYTE: Duration = Duration::from_micros(1);

/// The most that the time between two checks counts: the process may have been stopped.
const LONGEST_BETWEEN_CHECKS: Duration = Duration::from_secs(1);

/// The most matches between two checks.
const MATCHES_PER_CHECK: u32 = 64;

/// The time between two checks after which each match, and each step of a match, is checked.
pub(super) const SLOW: Duration = Duration::from_millis(1);

/// Ends the searches in one text by the interrupt check, or when they have taken too long.
pub(crate) struct Patience<'a> {
    interrupt: Interrupt<'a>,
    bytes: usize,
    spent: Cell<Duration>,
    last_check: Cell<Option<Instant>>,
    matches_to_check: Cell<u32>,
}

/// Why searches end early: the error of the interrupt check, or `None` if they took too long.
pub(super) struct Stopped(pub(super) Option<Error>);

impl<'a> Patience<'a> {
    /// Returns the patience for the searches in a text.
    pub(crate) fn new(text: &str, interrupt: Interrupt<'a>) -> Self {
        Self {
            interrupt,
            bytes: text.len(),
            spent: Cell::default(),
            last_check: Cell::default(),
            matches_to_check: Cell::new(0),
        }
    }

    /// Must be called where other work begins, whose time does not count.
    #[inline]
    pub(crate) fn pause(&self) {
        self.last_check.set(None);
    }

    /// Counts the time since the last check, and returns it if no pause was between.
    pub(super) fn check(&self) -> Result<Option<Duration>, Stopped> {
        self.interrupt.check().map_err(|error| Stopped(Some(error)))?;
        let now = Instant::now();
        let elapsed = self.last_check.replace(Some(now)).map(|last| now - last);
        self.spent.set(self.spent.get() + elapsed.unwrap_or_default().min(LONGEST_BETWEEN_CHECKS));
        let bytes = u32::try_from(self.bytes).unwrap_or(u32::MAX);
        if self.spent.get() > LONGEST + PER_BYTE * bytes { Err(Stopped(None)) } else { Ok(elapsed) }
    }

    /// Must be called before each match: checks before one of 64, and before each while they are slow.
    pub(super) fn before_match(&self) -> Result<(), Stopped> {
        match self.matches_to_check.get() {
            0 => {
                if let Some(elapsed) = self.check()? {
                    self.matches_to_check.set(if elapsed > SLOW { 0 } else { MATCHES_PER_CHECK });
                }
            }
            matches => self.matches_to_check.set(matches - 1),
        }
        Ok(())
    }

    /// Spends all of the time.
    #[cfg(test)]
    pub(super) fn spend(&self) {
        self.spent.set(Duration::MAX / 2);
    }
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;

    use super::super::{FancyRegex, Oniguruma};
    use super::*;

    #[test]
    fn time_counts_except_in_pauses() {
        let patience = Patience::new("", Interrupt::NEVER);
        let check = || patience.check().map_err(|_| "stopped").expect("time is left");
        assert_eq!(check(), None);
        sleep(2 * SLOW);
        assert!(check() >= Some(2 * SLOW));
        let spent = patience.spent.get();
        assert!(spent >= 2 * SLOW);
        patience.pause();
        sleep(2 * SLOW);
        assert_eq!((check(), patience.spent.get()), (None, spent));
    }

    #[test]
    fn many_short_matches_that_read_far_are_an_error() {
        const PATTERN: &str = "a(?=.*)";
        let text = "a".repeat(1000);
        let patience = Patience::new(&text, Interrupt::NEVER);
        let mut ends = Vec::with_capacity(64);
        let fancy = FancyRegex::new(PATTERN).expect("a regex");
        let oniguruma = Oniguruma::new(PATTERN).expect("a regex");
        for start in [0, 64] {
            fancy.fill_ends(&text, start, &mut ends, &patience).expect("time is left");
            ends.clear();
            oniguruma.fill_ends(&text, start, &mut ends, &patience).expect("time is left");
            ends.clear();
        }
        assert!(patience.spent.get() > Duration::ZERO, "the time of four calls");
        patience.spend();
        let late = [fancy.fill_ends(&text, 128, &mut ends, &patience), {
            ends.clear();
            oniguruma.fill_ends(&text, 128, &mut ends, &patience)
        }];
        for late in late {
            let message = late.expect_err("the time is over").to_string();
            assert!(message.contains("it takes too long") && message.contains(PATTERN), "{message}");
        }
    }

    #[test]
    fn short_matches_can_be_interrupted() {
        let text = "a".repeat(1000);
        let stop = || Err(Error::Interrupted);
        let patience = Patience::new(&text, Interrupt::new(&stop));
        let mut ends = Vec::with_capacity(256);
        let stopped = FancyRegex::new("a").expect("a regex").fill_ends(&text, 0, &mut ends, &patience);
        assert!(matches!(stopped, Err(Error::Interrupted)), "{stopped:?}");
        ends.clear();
        let stopped = Oniguruma::new("a").expect("a regex").fill_ends(&text, 0, &mut ends, &patience);
        assert!(matches!(stopped, Err(Error::Interrupted)), "{stopped:?}");
    }
}

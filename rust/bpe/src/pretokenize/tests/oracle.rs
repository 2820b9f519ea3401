//! The oracle of the splitters: the regex itself.

use crate::interrupt::Interrupt;
use crate::pretokenize::regex::{FancyRegex, Patience};

/// Returns the ends of the pieces of a regex.
pub(crate) fn ends_of_regex(pattern: &str, text: &str) -> Vec<usize> {
    let mut ends = Vec::with_capacity(2 * text.len() + 1);
    FancyRegex::new(pattern)
        .expect("valid")
        .fill_ends(text, 0, &mut ends, &Patience::new(text, Interrupt::NEVER))
        .expect("linear");
    ends
}

/// Returns all ends of a splitter that is called with room for `room` ends at a time.
pub(crate) fn all_ends(fill_ends: impl Fn(&[u8], usize, &mut Vec<usize>), text: &str, room: usize) -> Vec<usize> {
    let (mut all, mut start) = (Vec::new(), 0);
    while start < text.len() {
        let mut ends = Vec::with_capacity(room);
        fill_ends(text.as_bytes(), start, &mut ends);
        assert!(!ends.is_empty() && ends.len() <= room, "{} of {room} ends", ends.len());
        start = ends[ends.len() - 1];
        all.append(&mut ends);
    }
    all
}

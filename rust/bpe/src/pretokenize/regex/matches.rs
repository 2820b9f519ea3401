//! Matches of a regex to pieces: the matches, and the text between them.

use crate::Result;

/// Appends the ends of the next pieces of `text` from `start` on, within the capacity of `ends`.
///
/// `next_match` returns the start and end of the next match, or `text.len()` for both if there is none. An empty match, as of
/// `(?=[A-Z])`, splits the text without being a piece.
pub(super) fn fill_ends(
    text: &str,
    start: usize,
    ends: &mut Vec<usize>,
    mut next_match: impl FnMut() -> Result<(usize, usize)>,
) -> Result<()> {
    let mut piece_start = start;
    while piece_start < text.len() && ends.len() < ends.capacity() {
        let (match_start, match_end) = next_match()?;
        if match_start > piece_start {
            ends.push(match_start);
            if ends.len() == ends.capacity() {
                break;
            }
        }
        piece_start = match_end;
        if match_end > match_start {
            ends.push(match_end);
        }
    }
    Ok(())
}

//! Where the script of a text changes: the pre-tokenizer `UnicodeScripts`.

use super::script_table::RUNS;
use crate::Result;
use crate::interrupt::Interrupt;

/// The number of "no script": unassigned characters and the space, which belong to what is before them.
const ANY: u8 = 0;

fn script_of(c: char) -> u8 {
    let next = RUNS.partition_point(|&(first, _)| first <= c as u32);
    next.checked_sub(1).map_or(ANY, |run| RUNS[run].1)
}

/// Returns where the pieces of a text begin, and its end. Characters without a script before the first are in none.
///
/// # Errors
/// What the interrupt check returns.
///
/// Source: the pre-tokenizer `UnicodeScripts` of Hugging Face `tokenizers`, after SentencePiece.
pub(super) fn starts(text: &str, interrupt: Interrupt<'_>) -> Result<Vec<usize>> {
    let mut starts = Vec::new();
    let mut last = ANY;
    for (turn, (at, c)) in text.char_indices().enumerate() {
        interrupt.check_at(turn)?;
        let script = script_of(c);
        if script != ANY {
            if script != last {
                starts.push(at);
            }
            last = script;
        }
    }
    starts.push(text.len());
    Ok(starts)
}

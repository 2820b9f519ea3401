//! The pre-tokenizer `UnicodeScripts`, which splits where the script changes.

use super::script_table::RUNS;
use crate::Result;
use crate::interrupt::Interrupt;

/// No script: unassigned characters and the space, which continue the piece before.
const ANY: u8 = 0;

fn script_of(c: char) -> u8 {
    let next = RUNS.partition_point(|&(first, _)| first <= c as u32);
    next.checked_sub(1).map_or(ANY, |run| RUNS[run].1)
}

/// Returns the starts of the pieces of a text, and its end. Leading characters without a script are in no piece.
///
/// Source: the pre-tokenizer `UnicodeScripts` of Hugging Face `tokenizers`, after SentencePiece.
pub(super) fn starts(text: &str, interrupt: Interrupt<'_>) -> Result<Vec<usize>> {
    let mut starts = Vec::new();
    let mut last = ANY;
    for (index, (at, c)) in text.char_indices().enumerate() {
        interrupt.check_at(index)?;
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

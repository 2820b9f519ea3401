//! Which texts begin with which others.

/// Returns for each text the index of the longest other one that it begins with; `sorted` are the indices in order.
pub(crate) fn longest_prefixes(texts: &[&[u8]], sorted: &[usize]) -> Vec<Option<usize>> {
    let mut prefixes = vec![None; texts.len()];
    for pair in sorted.windows(2) {
        let mut prefix = Some(pair[0]);
        while let Some(other) = prefix.filter(|&other| !texts[pair[1]].starts_with(texts[other])) {
            prefix = prefixes[other];
        }
        prefixes[pair[1]] = prefix;
    }
    prefixes
}

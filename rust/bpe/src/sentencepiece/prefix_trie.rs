//! The longest of several texts that another text starts with.

/// SentencePiece considers at most so many matching symbols, the shortest first.
///
/// # Source
/// `PrefixMatcher::PrefixMatch` in `src/normalizer.cc` of SentencePiece 0.2.3.
const MAX_MATCHES: usize = 64;

/// No child: the index of the root, which is no node's child.
const NONE: u32 = 0;

/// A trie of user-defined symbols.
#[derive(Debug, Clone)]
pub(super) struct PrefixTrie {
    /// The children of the root, by their byte.
    first: Box<[u32; 256]>,
    /// Node 0 is the root; its edges are in `first`.
    nodes: Vec<Node>,
}

#[derive(Debug, Clone, Default)]
struct Node {
    edges: Vec<(u8, u32)>,
    is_end: bool,
}

impl PrefixTrie {
    /// Returns the trie of these texts, which must not be empty, or `None` without any.
    pub(super) fn new<'a>(texts: impl Iterator<Item = &'a [u8]>) -> Option<Self> {
        let mut trie = Self { first: Box::new([NONE; 256]), nodes: vec![Node::default()] };
        for text in texts {
            let mut node = 0u32;
            for &byte in text {
                let next = trie.child(node, byte);
                node = if next == NONE { trie.add(node, byte) } else { next };
            }
            trie.nodes[node as usize].is_end = true;
        }
        (trie.nodes.len() > 1).then_some(trie)
    }

    /// Returns the length of the longest of the texts that `text` starts with, or 0.
    #[inline]
    pub(super) fn longest_match(&self, text: &[u8]) -> usize {
        let Some(&byte) = text.first() else { return 0 };
        if self.first[usize::from(byte)] == NONE { 0 } else { self.walk(text) }
    }

    fn walk(&self, text: &[u8]) -> usize {
        let (mut node, mut longest, mut count) = (0, 0, 0);
        for (length, &byte) in (1..).zip(text) {
            node = self.child(node, byte);
            if node == NONE {
                break;
            }
            if self.nodes[node as usize].is_end {
                (longest, count) = (length, count + 1);
                if count == MAX_MATCHES {
                    break;
                }
            }
        }
        longest
    }

    fn child(&self, node: u32, byte: u8) -> u32 {
        if node == 0 {
            return self.first[usize::from(byte)];
        }
        let edges = &self.nodes[node as usize].edges;
        edges.iter().find(|(label, _)| *label == byte).map_or(NONE, |&(_, child)| child)
    }

    fn add(&mut self, node: u32, byte: u8) -> u32 {
        let child = self.nodes.len() as u32;
        self.nodes.push(Node::default());
        if node == 0 {
            self.first[usize::from(byte)] = child;
        } else {
            self.nodes[node as usize].edges.push((byte, child));
        }
        child
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_MATCHES, PrefixTrie};
    use proptest::prelude::*;

    #[test]
    fn only_the_shortest_matches_count() {
        let texts: Vec<Vec<u8>> = (1..=MAX_MATCHES + 9).map(|length| vec![b'a'; length]).collect();
        let trie = PrefixTrie::new(texts.iter().map(Vec::as_slice)).expect("texts");
        assert_eq!(trie.longest_match(&[b'a'; 200]), MAX_MATCHES);
        assert!(PrefixTrie::new(std::iter::empty()).is_none());
    }

    proptest! {
        #[test]
        fn matches_like_starts_with(texts in prop::collection::vec("[ab\u{2581}]{1,4}", 1..9), text in "[ab\u{2581}]{0,6}") {
            let trie = PrefixTrie::new(texts.iter().map(String::as_bytes)).expect("texts");
            let longest = texts.iter().filter(|prefix| text.starts_with(*prefix)).map(String::len).max();
            prop_assert_eq!(trie.longest_match(text.as_bytes()), longest.unwrap_or(0));
        }
    }
}

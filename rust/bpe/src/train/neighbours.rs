//! What stands on one side of a symbol, and where: filled for one symbol, drained, and used for the next.

/// Says that a list is not kept.
pub(super) const NOT_KEPT: usize = usize::MAX;

/// A symbol that stands beside the one in question.
#[derive(Debug, Clone, Copy)]
pub(super) struct Neighbour {
    pub(super) symbol: u32,
    /// The number of places where it does, and how often these occur.
    pub(super) places: u32,
    pub(super) count: u64,
    /// Where its next place is written, or [`NOT_KEPT`].
    pub(super) write: usize,
}

/// The neighbours on one side.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    /// Index into `found` plus one, by symbol; 0 where it was not met.
    index: Vec<u32>,
    found: Vec<Neighbour>,
    /// Every place, with the index into `found`.
    places: Vec<(u32, u32)>,
}

impl Neighbours {
    /// Makes room for symbols below `symbols`.
    pub(super) fn resize(&mut self, symbols: usize) {
        self.index.resize(symbols, 0);
    }

    /// Notes that `symbol` stands here, in a word that occurs `count` times.
    #[inline]
    pub(super) fn note(&mut self, symbol: u32, place: u32, count: u64) {
        let mut index = self.index[symbol as usize];
        if index == 0 {
            self.found.push(Neighbour { symbol, places: 0, count: 0, write: NOT_KEPT });
            index = self.found.len() as u32;
            self.index[symbol as usize] = index;
        }
        let neighbour = &mut self.found[index as usize - 1];
        neighbour.places += 1;
        neighbour.count += count;
        self.places.push((index - 1, place));
    }

    /// Calls `keep` with each neighbour, then writes the places of those for which it set `write`, and forgets all.
    pub(super) fn drain(&mut self, lists: &mut Vec<u32>, mut keep: impl FnMut(&mut Neighbour, &mut Vec<u32>)) {
        for neighbour in &mut self.found {
            self.index[neighbour.symbol as usize] = 0;
            keep(neighbour, lists);
        }
        for &(index, place) in &self.places {
            let neighbour = &mut self.found[index as usize];
            if let Some(slot) = lists.get_mut(neighbour.write) {
                *slot = place;
                neighbour.write += 1;
            }
        }
        self.found.clear();
        self.places.clear();
    }
}

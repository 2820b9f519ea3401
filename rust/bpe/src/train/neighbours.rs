//! The neighbours of one symbol on one side, with their positions. The memory is reused from merge to merge.

/// A neighbour whose positions are not stored.
pub(super) const NOT_STORED: usize = usize::MAX;

/// A symbol adjacent to the new symbol.
#[derive(Debug, Clone, Copy)]
pub(super) struct Neighbour {
    pub(super) symbol: u32,
    /// The number of positions; `count` is the sum of their words' counts.
    pub(super) positions: u32,
    pub(super) count: u64,
    /// The index at which its next position is stored, or [`NOT_STORED`].
    pub(super) write: usize,
}

/// All neighbours on one side.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    /// The index into `found` plus one, by symbol; 0 if the symbol is no neighbour.
    index: Vec<u32>,
    found: Vec<Neighbour>,
    /// The index into `found` and the position of each pair.
    positions: Vec<(u32, u32)>,
}

impl Neighbours {
    /// Reserves memory for symbols below `symbols`.
    pub(super) fn resize(&mut self, symbols: usize) {
        self.index.resize(symbols, 0);
    }

    /// Adds the position of a pair with `symbol`, in a word of this count.
    #[inline]
    pub(super) fn add(&mut self, symbol: u32, position: u32, count: u64) {
        let mut index = self.index[symbol as usize];
        if index == 0 {
            self.found.push(Neighbour { symbol, positions: 0, count: 0, write: NOT_STORED });
            index = self.found.len() as u32;
            self.index[symbol as usize] = index;
        }
        let neighbour = &mut self.found[index as usize - 1];
        neighbour.positions += 1;
        neighbour.count += count;
        self.positions.push((index - 1, position));
    }

    /// Calls `reserve` with each neighbour, stores the positions of each neighbour whose `write` it set, and clears all.
    pub(super) fn drain(&mut self, lists: &mut Vec<u32>, mut reserve: impl FnMut(&mut Neighbour, &mut Vec<u32>)) {
        for neighbour in &mut self.found {
            self.index[neighbour.symbol as usize] = 0;
            reserve(neighbour, lists);
        }
        for &(index, position) in &self.positions {
            let neighbour = &mut self.found[index as usize];
            if let Some(slot) = lists.get_mut(neighbour.write) {
                *slot = position;
                neighbour.write += 1;
            }
        }
        self.found.clear();
        self.positions.clear();
    }
}

//! The memory that encoding reuses from call to call.

use crate::Result;
use crate::cache::{CharacterTable, IDS_PER_PIECE, MAX_PIECE, Miss, PieceCache, Probe};
use crate::memory::{caught, checked, filled};
use crate::merge::Merger;

/// Pieces that the pre-tokenizer yields at a time: all their cache look-ups are prefetched together.
pub(super) const BATCH: usize = 1024;

/// Ids of one piece that stay allocated for the next: 1 MiB.
const MAX_KEPT_IDS: usize = 1 << 18;

/// The cache and the buffers of one thread. Once warm, encoding allocates nothing.
pub(crate) struct Scratch {
    pub(super) cache: PieceCache,
    cache_limit: usize,
    pub(super) characters: CharacterTable,
    pub(super) merger: Merger,
    pub(super) ends: Vec<usize>,
    pub(super) probes: Vec<Probe>,
    /// The ids of a run of cached pieces.
    pub(super) run: Vec<u32>,
    /// The pieces within a run that are not cached.
    pub(super) misses: Vec<Miss>,
    /// The cached ids of one piece.
    pub(super) cached: Vec<u32>,
    /// The ids of a group of pieces that are merged together, and the end of each piece's ids.
    pub(super) group: (Vec<u32>, Vec<usize>),
    /// The ids of one piece that is not cached.
    pub(super) ids: Vec<u32>,
}

impl Scratch {
    /// Returns empty scratch memory whose cache takes at most about `cache_limit` bytes.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`] if there is none.
    #[cold]
    pub(crate) fn boxed(cache_limit: usize) -> Result<Box<Self>> {
        caught(|| Box::new(Self::new(cache_limit)))
    }

    fn new(cache_limit: usize) -> Self {
        Self {
            cache: PieceCache::new(cache_limit),
            cache_limit,
            characters: CharacterTable::new(),
            merger: Merger::default(),
            ends: checked(BATCH),
            probes: filled(Probe::default(), BATCH),
            run: filled(0, BATCH * IDS_PER_PIECE + MAX_PIECE),
            misses: Vec::new(),
            cached: filled(0, MAX_PIECE),
            group: (Vec::new(), Vec::new()),
            ids: Vec::new(),
        }
    }

    /// Empties the ids of one piece, and frees those of a very long one.
    pub(super) fn clear_ids(&mut self) {
        self.ids.clear();
        if self.ids.capacity() > MAX_KEPT_IDS {
            self.ids = Vec::new();
        }
    }

    pub(crate) fn cache_limit(&self) -> usize {
        self.cache_limit
    }
}

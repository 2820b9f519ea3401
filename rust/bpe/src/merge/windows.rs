//! Windows of up to 64 bytes, merged in arrays on the stack; a longer segment is several overlapping windows.
//!
//! A merge depends on the look-up of the merge before it, which mostly waits for memory. So up to 12 windows are merged in
//! an interleaved way: their look-ups overlap.

use crate::Result;
#[cfg(target_arch = "x86_64")]
use crate::vocab::{Avx2, Avx512};
use crate::vocab::{ID_BOUND, KEYS, NO_ID, NO_RANK, Portable, Query, SimdSearch, Vocab};

/// The bytes of a window.
pub(super) const WIDTH: usize = KEYS;

/// The bytes that two neighbouring windows share.
const OVERLAP: usize = 12;

/// The most windows of a segment.
const WINDOWS: usize = 12;

const STRIDE: usize = WIDTH - OVERLAP;

/// The most bytes of a segment.
pub(super) const SPAN: usize = STRIDE * WINDOWS + OVERLAP;

/// A symbol is stored at the place of its first byte. The key of a pair is its rank and, in the low bits, the place of its
/// left symbol, so the smallest key is the leftmost pair of the best rank.
const PLACE_BITS: u32 = WIDTH.ilog2();
const NO_PAIR: i32 = (NO_RANK << PLACE_BITS) as i32;

struct Window {
    /// The entry at [`WIDTH`] is the missing neighbour of the first and the last symbol.
    ids: [u32; WIDTH + 1],
    keys: [i32; WIDTH],
    /// One bit for each place that holds a symbol.
    places: u64,
    /// The look-ups of the pairs that the last merge created.
    pending: [Pending; 2],
}

/// A look-up in progress, and the place of the pair's left symbol.
#[derive(Clone, Copy)]
struct Pending {
    place: usize,
    query: Query,
}

impl Pending {
    /// Starts a look-up: `ALONE` if no other window's look-ups overlap with it.
    #[inline(always)]
    fn new<const ALONE: bool>(vocab: &Vocab, place: usize, pair: (u32, u32)) -> Self {
        let pairs = vocab.pair_table();
        Self { place, query: if ALONE { pairs.filter(pair) } else { pairs.prefetch(pair) } }
    }
}

impl Window {
    const EMPTY: Self = Self {
        ids: [NO_ID; WIDTH + 1],
        keys: [NO_PAIR; WIDTH],
        places: 0,
        pending: [Pending { place: 0, query: Query::NONE }; 2],
    };

    /// Fills the empty window with the bytes of a piece, 1 to [`WIDTH`] of them.
    #[inline(always)]
    fn fill(&mut self, vocab: &Vocab, piece: &[u8]) -> Result<()> {
        let mut all = 0;
        let pairs = self.ids.iter_mut().zip(&mut self.keys).zip(piece.iter().zip(&piece[1..])).enumerate();
        for (place, ((id, pair), (&left, &right))) in pairs {
            *id = vocab.byte_ids()[usize::from(left)];
            all |= *id;
            *pair = key(vocab.byte_rank(left, right), place);
        }
        let last = piece.len() - 1;
        self.ids[last] = vocab.require_byte(piece[last])?;
        if all >= ID_BOUND {
            // A byte has no id: find and report it.
            piece.iter().try_for_each(|&byte| vocab.require_byte(byte).map(drop))?;
        }
        self.places = u64::MAX >> (WIDTH - piece.len());
        Ok(())
    }

    /// Merges the pair of the smallest key and starts to look up the two new pairs. Returns whether there was a pair.
    ///
    /// [`Window::set_ranks`] must follow.
    #[inline(always)]
    fn merge<const ALONE: bool>(&mut self, vocab: &Vocab, best: i32) -> bool {
        if best >= NO_PAIR {
            return false;
        }
        let at = best as usize % WIDTH;
        let merged = vocab.merged(best as u32 >> PLACE_BITS);
        self.ids[at] = merged;
        let behind = self.places & (u64::MAX << at << 1);
        self.places ^= behind & behind.wrapping_neg();
        self.keys[behind.trailing_zeros() as usize % WIDTH] = NO_PAIR;
        let behind = behind & behind.wrapping_sub(1);
        let before = self.places & ((1 << at) - 1);
        // Without a set bit there are [`WIDTH`] trailing zeros.
        let next = behind.trailing_zeros() as usize;
        let previous = if before == 0 { WIDTH } else { before.ilog2() as usize };
        self.pending = [
            Pending::new::<ALONE>(vocab, previous, (self.ids[previous], merged)),
            Pending::new::<ALONE>(vocab, at, (merged, self.ids[next])),
        ];
        true
    }

    /// Stores the ranks that [`Window::merge`] started to look up.
    #[inline(always)]
    fn set_ranks(&mut self, search: impl SimdSearch, vocab: &Vocab) {
        for pending in self.pending {
            let rank = vocab.pair_table().look_up(search, pending.query);
            if let Some(entry) = self.keys.get_mut(pending.place) {
                *entry = key(rank, pending.place);
            }
        }
    }

    /// Appends the ids of the symbols.
    #[inline(always)]
    fn push(&self, out: &mut Vec<u32>) {
        let mut places = self.places;
        out.extend((0..places.count_ones()).map(|_| {
            let place = places.trailing_zeros() as usize;
            places &= places - 1;
            self.ids[place % WIDTH]
        }));
    }

    /// Drops the symbols that end after `limit`, except the first symbol, and returns the end of the last one left.
    fn truncate(&mut self, limit: usize, length: usize) -> usize {
        let later = self.places & (self.places - 1);
        let within = later & (u64::MAX >> (WIDTH - 1 - limit));
        let end = if within != 0 { within.ilog2() as usize } else { (later.trailing_zeros() as usize).min(length) };
        self.places &= 1_u64.checked_shl(end as u32).unwrap_or(0).wrapping_sub(1);
        end
    }
}

#[inline(always)]
fn key(rank: u32, place: usize) -> i32 {
    (rank << PLACE_BITS) as i32 | place as i32
}

/// Appends the ids of a prefix of `piece`, which is not empty, and returns the length of that prefix.
///
/// Up to [`WIDTH`] bytes are encoded whole. For a longer piece the ids depend on its first [`SPAN`] bytes alone; the encoding
/// of the whole piece may begin with other ids.
pub(super) fn merge_prefix(vocab: &Vocab, piece: &[u8], out: &mut Vec<u32>) -> Result<usize> {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx2,bmi1,bmi2,lzcnt,popcnt")]
        fn with_avx512(search: Avx512, vocab: &Vocab, piece: &[u8], out: &mut Vec<u32>) -> Result<usize> {
            merge(search, vocab, piece, out)
        }
        #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
        fn with_avx2(search: Avx2, vocab: &Vocab, piece: &[u8], out: &mut Vec<u32>) -> Result<usize> {
            merge(search, vocab, piece, out)
        }
        if let Some(avx512) = Avx512::detect() {
            // SAFETY: the CPU has what the function is compiled for.
            return unsafe { with_avx512(avx512, vocab, piece, out) };
        }
        if let Some(avx2) = Avx2::detect() {
            // SAFETY: as above.
            return unsafe { with_avx2(avx2, vocab, piece, out) };
        }
    }
    merge(Portable, vocab, piece, out)
}

#[inline(always)]
fn merge(search: impl SimdSearch, vocab: &Vocab, piece: &[u8], out: &mut Vec<u32>) -> Result<usize> {
    if piece.len() > WIDTH {
        return merge_overlapping(search, vocab, piece, out);
    }
    let mut window = Window::EMPTY;
    window.fill(vocab, piece)?;
    while window.merge::<true>(vocab, search.smallest(&window.keys)) {
        window.set_ranks(search, vocab);
    }
    window.push(out);
    Ok(piece.len())
}

/// Merges overlapping windows and concatenates them at tokens that two neighbouring windows share.
///
/// Any sequence of adjacent tokens of an encoding is the encoding of its own bytes, and tokens whose adjacent pairs all are
/// encodings form an encoding. So at a shared token, the tokens before it in the left window and those after it in the right
/// window form an encoding.
#[inline(always)]
fn merge_overlapping(search: impl SimdSearch, vocab: &Vocab, piece: &[u8], out: &mut Vec<u32>) -> Result<usize> {
    let mut windows = [Window::EMPTY; WINDOWS];
    let length = piece.len().min(SPAN);
    let count = (length - OVERLAP).div_ceil(STRIDE);
    let windows = &mut windows[..count];
    for (i, window) in windows.iter_mut().enumerate() {
        window.fill(vocab, &piece[i * STRIDE..length.min(i * STRIDE + WIDTH)])?;
    }
    let mut best = [NO_PAIR; WINDOWS];
    let mut is_merging = true;
    while is_merging {
        is_merging = false;
        for (best, window) in best.iter_mut().zip(&*windows) {
            *best = search.smallest(&window.keys);
        }
        for (&best, window) in best.iter().zip(&mut *windows) {
            is_merging |= window.merge::<false>(vocab, best);
        }
        for window in &mut *windows {
            window.set_ranks(search, vocab);
        }
    }
    // Keep the left window up to the shared token and the right one from it on; stop where two windows share none.
    let mut last = 0;
    while last + 1 < count {
        let (before, after) = windows.split_at_mut(last + 1);
        let (left, right) = (&mut before[last], &mut after[0]);
        let Some(place) = shared_token(left, right) else { break };
        left.places &= (1 << (STRIDE + place)) - 1;
        right.places &= u64::MAX << place;
        last += 1;
    }
    let (start, mut end) = (last * STRIDE, length.min(last * STRIDE + WIDTH));
    if end < piece.len() {
        // The last bytes may merge with the bytes after the segment.
        end = start + windows[last].truncate(end - start - OVERLAP, end - start);
    }
    for window in &windows[..=last] {
        window.push(out);
    }
    Ok(end)
}

/// Returns the place in `right` of the first token that both windows share.
#[inline(always)]
fn shared_token(left: &Window, right: &Window) -> Option<usize> {
    // A place is also the end of the token before it. `left` ends with the overlap, `right` later.
    let left_places = left.places >> STRIDE | 1 << OVERLAP;
    let mut shared = left.places >> STRIDE & right.places;
    while shared != 0 {
        let place = shared.trailing_zeros() as usize;
        let next = |places: u64| (places >> place >> 1).trailing_zeros();
        if next(left_places) == next(right.places) && left.ids[STRIDE + place] == right.ids[place] {
            return Some(place);
        }
        shared &= shared - 1;
    }
    None
}

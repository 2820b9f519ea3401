//! Windows of up to 64 bytes, merged in arrays on the stack; a longer segment is several overlapping windows.
//!
//! A merge depends on the look-up of the merge before it, which mostly waits for memory. So up to 12 windows, of one piece
//! or of as many, are merged in an interleaved way: their look-ups overlap.

use crate::Result;
#[cfg(target_arch = "x86_64")]
use crate::vocab::{Avx2, Avx512};
use crate::vocab::{ID_BOUND, NO_ID, NO_RANK, Portable, Query, SimdSearch, Vocab};

/// The most bytes of a window.
pub(crate) const WIDTH: usize = 64;

/// The most bytes of a narrow window.
const NARROW: usize = 16;

/// The bytes that two neighbouring windows share.
const OVERLAP: usize = 12;

/// The most windows of a segment.
const WINDOWS: usize = 12;

/// The most pieces of a group.
pub(crate) const GROUP: usize = WINDOWS;

const STRIDE: usize = WIDTH - OVERLAP;

/// The most bytes of a segment.
pub(super) const SPAN: usize = STRIDE * WINDOWS + OVERLAP;

/// A symbol is stored at the place of its first byte. The key of a pair is its rank and, in the low bits, the place of its
/// left symbol, so the smallest key is the leftmost pair of the best rank.
const PLACE_BITS: u32 = WIDTH.ilog2();
const NO_PAIR: i32 = (NO_RANK << PLACE_BITS) as i32;

/// A window of at most `BYTES` bytes, [`WIDTH`] or [`NARROW`]; `IDS` is one more.
struct Window<const BYTES: usize, const IDS: usize> {
    /// The last entry is the missing neighbour of the first and the last symbol.
    ids: [u32; IDS],
    keys: [i32; BYTES],
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

type WideWindow = Window<WIDTH, { WIDTH + 1 }>;
type NarrowWindow = Window<NARROW, { NARROW + 1 }>;

impl<const BYTES: usize, const IDS: usize> Window<BYTES, IDS> {
    const EMPTY: Self = Self {
        ids: [NO_ID; IDS],
        keys: [NO_PAIR; BYTES],
        places: 0,
        pending: [Pending { place: 0, query: Query::NONE }; 2],
    };

    /// Fills the empty window with the bytes of a piece, 1 to `BYTES` of them.
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
        let at = best as usize % BYTES;
        let merged = vocab.merged(best as u32 >> PLACE_BITS);
        self.ids[at] = merged;
        let behind = self.places & (u64::MAX << at << 1);
        self.places ^= behind & behind.wrapping_neg();
        self.keys[behind.trailing_zeros() as usize % BYTES] = NO_PAIR;
        let behind = behind & behind.wrapping_sub(1);
        let before = self.places & ((1 << at) - 1);
        // Without a set bit there are 64 trailing zeros.
        let next = (behind.trailing_zeros() as usize).min(BYTES);
        let previous = if before == 0 { BYTES } else { before.ilog2() as usize };
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
            self.ids[place % BYTES]
        }));
    }
}

impl WideWindow {
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
    Prefix { vocab, piece, out }.with_best_search()
}

/// Appends the ids of several pieces of 1 to [`WIDTH`] bytes, [`GROUP`] at most, and for each the end of its ids to `ends`.
///
/// As their look-ups overlap, it takes less time than one piece after the other: least if none has more than 16 bytes.
pub(crate) fn merge_group(vocab: &Vocab, pieces: &[&[u8]], out: &mut Vec<u32>, ends: &mut Vec<usize>) -> Result<()> {
    Group { vocab, pieces, out, ends }.with_best_search()
}

/// Work that is compiled for each instruction set.
trait Work: Sized {
    type Output;

    /// Does the work; an implementation is inlined.
    fn run(self, search: impl SimdSearch) -> Self::Output;

    /// Does the work with the best search of this CPU.
    #[inline]
    fn with_best_search(self) -> Self::Output {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx512f,avx2,bmi1,bmi2,lzcnt,popcnt")]
            fn with_avx512<W: Work>(search: Avx512, work: W) -> W::Output {
                work.run(search)
            }
            #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
            fn with_avx2<W: Work>(search: Avx2, work: W) -> W::Output {
                work.run(search)
            }
            if let Some(avx512) = Avx512::detect() {
                // SAFETY: the CPU has what the function is compiled for.
                return unsafe { with_avx512(avx512, self) };
            }
            if let Some(avx2) = Avx2::detect() {
                // SAFETY: as above.
                return unsafe { with_avx2(avx2, self) };
            }
        }
        self.run(Portable)
    }
}

struct Prefix<'a> {
    vocab: &'a Vocab,
    piece: &'a [u8],
    out: &'a mut Vec<u32>,
}

impl Work for Prefix<'_> {
    type Output = Result<usize>;

    #[inline(always)]
    fn run(self, search: impl SimdSearch) -> Result<usize> {
        merge(search, self.vocab, self.piece, self.out)
    }
}

struct Group<'a> {
    vocab: &'a Vocab,
    pieces: &'a [&'a [u8]],
    out: &'a mut Vec<u32>,
    ends: &'a mut Vec<usize>,
}

impl Work for Group<'_> {
    type Output = Result<()>;

    #[inline(always)]
    fn run(self, search: impl SimdSearch) -> Result<()> {
        if self.pieces.iter().any(|piece| piece.len() > NARROW) {
            self.merge([WideWindow::EMPTY; GROUP], search)
        } else {
            self.merge([NarrowWindow::EMPTY; GROUP], search)
        }
    }
}

impl Group<'_> {
    #[inline(always)]
    fn merge<const BYTES: usize, const IDS: usize>(
        self,
        mut windows: [Window<BYTES, IDS>; GROUP],
        search: impl SimdSearch,
    ) -> Result<()> {
        let windows = &mut windows[..self.pieces.len()];
        for (window, piece) in windows.iter_mut().zip(self.pieces) {
            window.fill(self.vocab, piece)?;
        }
        merge_interleaved(search, self.vocab, windows);
        for window in windows {
            window.push(self.out);
            self.ends.push(self.out.len());
        }
        Ok(())
    }
}

/// Merges all windows, one merge of each at a time.
#[inline(always)]
fn merge_interleaved<const BYTES: usize, const IDS: usize>(
    search: impl SimdSearch,
    vocab: &Vocab,
    windows: &mut [Window<BYTES, IDS>],
) {
    let mut active: [usize; WINDOWS] = std::array::from_fn(|i| i);
    let mut best = [NO_PAIR; WINDOWS];
    let mut count = windows.len();
    while count > 0 {
        for (best, &at) in best.iter_mut().zip(&active[..count]) {
            *best = search.smallest(&windows[at].keys);
        }
        let mut left = 0;
        for i in 0..count {
            let at = active[i];
            if windows[at].merge::<false>(vocab, best[i]) {
                active[left] = at;
                left += 1;
            }
        }
        count = left;
        for &at in &active[..count] {
            windows[at].set_ranks(search, vocab);
        }
    }
}

#[inline(always)]
fn merge(search: impl SimdSearch, vocab: &Vocab, piece: &[u8], out: &mut Vec<u32>) -> Result<usize> {
    if piece.len() > WIDTH {
        return merge_overlapping(search, vocab, piece, out);
    }
    if piece.len() > NARROW {
        merge_alone(WideWindow::EMPTY, search, vocab, piece, out)?;
    } else {
        merge_alone(NarrowWindow::EMPTY, search, vocab, piece, out)?;
    }
    Ok(piece.len())
}

#[inline(always)]
fn merge_alone<const BYTES: usize, const IDS: usize>(
    mut window: Window<BYTES, IDS>,
    search: impl SimdSearch,
    vocab: &Vocab,
    piece: &[u8],
    out: &mut Vec<u32>,
) -> Result<()> {
    window.fill(vocab, piece)?;
    while window.merge::<true>(vocab, search.smallest(&window.keys)) {
        window.set_ranks(search, vocab);
    }
    window.push(out);
    Ok(())
}

/// Merges overlapping windows and concatenates them at tokens that two neighbouring windows share.
///
/// Any sequence of adjacent tokens of an encoding is the encoding of its own bytes, and tokens whose adjacent pairs all are
/// encodings form an encoding. So at a shared token, the tokens before it in the left window and those after it in the right
/// window form an encoding.
#[inline(always)]
fn merge_overlapping(search: impl SimdSearch, vocab: &Vocab, piece: &[u8], out: &mut Vec<u32>) -> Result<usize> {
    let mut windows = [WideWindow::EMPTY; WINDOWS];
    let length = piece.len().min(SPAN);
    let count = (length - OVERLAP).div_ceil(STRIDE);
    let windows = &mut windows[..count];
    for (i, window) in windows.iter_mut().enumerate() {
        window.fill(vocab, &piece[i * STRIDE..length.min(i * STRIDE + WIDTH)])?;
    }
    merge_interleaved(search, vocab, windows);
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
fn shared_token(left: &WideWindow, right: &WideWindow) -> Option<usize> {
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

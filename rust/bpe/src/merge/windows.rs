//! Up to 64 bytes merge in arrays on the stack, and several such windows side by side.
//!
//! A merge waits for the look-up of the merge before it, most of its time for memory. While one window waits, others work.

use super::byte_id;
use crate::Result;
#[cfg(target_arch = "x86_64")]
use crate::simd_search::{Avx2, Avx512};
use crate::simd_search::{KEYS, Portable, SimdSearch};
use crate::vocab::{ID_BOUND, NO_RANK, Query};
use crate::vocab::{NO_ID, Vocab};

/// How many bytes a window has at most.
pub(super) const WIDTH: usize = KEYS;

/// How many bytes two neighbouring windows share.
const OVERLAP: usize = 12;

/// How many windows are merged side by side.
const WINDOWS: usize = 12;

const STRIDE: usize = WIDTH - OVERLAP;

/// The most bytes that windows side by side cover.
pub(super) const SPAN: usize = STRIDE * WINDOWS + OVERLAP;

/// Every symbol stays where its first byte is: the key of a pair is its rank and, below it, the place of its left
/// symbol, so that the smallest key is the leftmost pair of the best rank.
const PLACE_BITS: u32 = WIDTH.ilog2();
const NO_PAIR: i32 = (NO_RANK << PLACE_BITS) as i32;

struct Window {
    /// At [`WIDTH`] stands for the neighbour that the first and the last symbol do not have.
    ids: [u32; WIDTH + 1],
    keys: [i32; WIDTH],
    /// A bit for each place that holds a symbol.
    places: u64,
    asked: [Asked; 2],
}

/// Which pair's rank is asked for, and the place of its left symbol.
#[derive(Clone, Copy)]
struct Asked {
    place: usize,
    query: Query,
}

impl Asked {
    #[inline(always)]
    fn new(vocab: &Vocab, place: usize, pair: (u32, u32)) -> Self {
        Self { place, query: vocab.pair_table().prefetch(pair) }
    }
}

impl Window {
    const EMPTY: Self = Self {
        ids: [NO_ID; WIDTH + 1],
        keys: [NO_PAIR; WIDTH],
        places: 0,
        asked: [Asked { place: 0, query: Query::NONE }; 2],
    };

    /// Takes the bytes of a piece, 1 to [`WIDTH`] of them; the window must be empty.
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
        self.ids[last] = byte_id(vocab, piece[last])?;
        if all >= ID_BOUND {
            // Some byte has no id.
            piece.iter().try_for_each(|&byte| byte_id(vocab, byte).map(drop))?;
        }
        self.places = u64::MAX >> (WIDTH - piece.len());
        Ok(())
    }

    /// Merges the pair of the smallest key, the leftmost of the best rank, and asks for the new ranks; returns whether there was one.
    ///
    /// [`Window::answer`] must follow.
    #[inline(always)]
    fn merge(&mut self, vocab: &Vocab, best: i32) -> bool {
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
        // Where no bit is set, [`WIDTH`] zeros trail.
        let next = behind.trailing_zeros() as usize;
        let previous = if before == 0 { WIDTH } else { before.ilog2() as usize };
        self.asked = [
            Asked::new(vocab, previous, (self.ids[previous], merged)),
            Asked::new(vocab, at, (merged, self.ids[next])),
        ];
        true
    }

    /// Takes the answers to what [`Window::merge`] asked.
    #[inline(always)]
    fn answer(&mut self, search: impl SimdSearch, vocab: &Vocab) {
        for asked in self.asked {
            let rank = vocab.pair_table().look_up(search, asked.query);
            if let Some(answer) = self.keys.get_mut(asked.place) {
                *answer = key(rank, asked.place);
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

    /// Drops all symbols but the first that end behind `limit`, and returns where the last that is left ends.
    fn cut(&mut self, limit: usize, length: usize) -> usize {
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

/// Appends the ids of a beginning of `piece`, which is not empty, and returns how many bytes they encode.
///
/// Up to [`WIDTH`] bytes are encoded whole. Of a longer piece the ids depend on no more than [`SPAN`] bytes; those of the whole
/// piece may begin otherwise.
pub(super) fn merge_beginning(vocab: &Vocab, piece: &[u8], out: &mut Vec<u32>) -> Result<usize> {
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
        return merge_side_by_side(search, vocab, piece, out);
    }
    let mut window = Window::EMPTY;
    window.fill(vocab, piece)?;
    while window.merge(vocab, search.smallest(&window.keys)) {
        window.answer(search, vocab);
    }
    window.push(out);
    Ok(piece.len())
}

/// Neighbouring tokens of an encoding are encoded alike without what surrounds them, and tokens of which all neighbours
/// are so are an encoding. Two windows are therefore joined at a token that both hold: what stands before it in one, and
/// behind it in the other, does not merge with it.
#[inline(always)]
fn merge_side_by_side(search: impl SimdSearch, vocab: &Vocab, piece: &[u8], out: &mut Vec<u32>) -> Result<usize> {
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
            is_merging |= window.merge(vocab, best);
        }
        for window in &mut *windows {
            window.answer(search, vocab);
        }
    }
    // Drop what the next window says better, and from that what this one does, until two do not agree.
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
        // The last bytes may yet merge with what follows.
        end = start + windows[last].cut(end - start - OVERLAP, end - start);
    }
    for window in &windows[..=last] {
        window.push(out);
    }
    Ok(end)
}

/// Returns the place in `right` of the first token that both windows hold.
#[inline(always)]
fn shared_token(left: &Window, right: &Window) -> Option<usize> {
    // A place is where the token before ends, too. `left` ends where the overlap does, `right` later.
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

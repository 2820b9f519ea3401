//! How vectors lie in memory for the kernels: in batches, and within a batch the same columns of all side by side.

use super::formats::{BLOCK, filled_up};
use super::lanes::{LANES, Sixteen};
use super::{Many, Matrix, amx, pairs};
use bpe_llama_simd::Backend;
use std::cell::Cell;
use std::ops::Range;

/// Vectors that one pass over a matrix serves, with 32 registers of 16 lanes and with fewer or narrower ones; more take
/// another pass, over a part that the cache still holds.
pub(crate) const TOGETHER: usize = 8;
pub(crate) const TOGETHER_IN_FEWER: usize = 4;

/// Vectors of two tiles.
const VECTORS_IN_TILES: usize = 32;

/// Rows of weights that a unit for matrices takes at once.
pub(crate) const ROWS_IN_UNIT: usize = 32;
/// Rows whose products with pairs fill whole tiles.
pub(crate) const ROWS_OF_PAIRS: usize = 48;

/// How the numbers of a batch of vectors become lanes; zeros follow where a vector ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Sixteen columns at a time.
    Plain,
    /// Of 32 columns the even ones, then the odd ones.
    EvenOdd,
    /// Of a [`BLOCK`] each eighth column from the first on, from the second on, and so forth; then the sums of these eight.
    Block,
    /// For a unit for matrices (`amx.rs`).
    Tiles,
    /// Rounded to bfloat16, for instructions that multiply pairs of these (`pairs.rs`).
    Pairs,
}

impl Layout {
    /// Appends a batch of vectors of `columns` numbers, of every vector the same columns side by side.
    fn lay_out(self, x: &[f32], columns: usize, lanes: &mut Vec<Sixteen>) {
        match self {
            // SAFETY: matrices ask for these layouts where the instructions are.
            Self::Tiles => unsafe { amx::lay_out(x, columns, lanes) },
            // SAFETY: as above.
            Self::Pairs => unsafe { pairs::lay_out(x, columns, lanes) },
            Self::Plain => push_every::<LANES, 1>(x, columns, lanes, |_| {}),
            Self::EvenOdd => push_every::<{ 2 * LANES }, 2>(x, columns, lanes, |_| {}),
            Self::Block => push_every::<BLOCK, 8>(x, columns, lanes, |lanes| {
                let count = x.len() / columns;
                let start = lanes.len() - 8 * count;
                for row in 0..count {
                    let mut sum = [0.0; LANES];
                    for vector in lanes[start + row..].iter().step_by(count).take(8) {
                        for (sum, x) in sum.iter_mut().zip(vector.0) {
                            *sum += x;
                        }
                    }
                    lanes.push(Sixteen(sum));
                }
            }),
        }
    }
}

/// Appends, for each `N` columns and each of `STEP` places to start from, every vector's numbers at every `STEP`th column;
/// calls `then` behind each `N`.
#[inline(always)]
fn push_every<const N: usize, const STEP: usize>(
    x: &[f32],
    columns: usize,
    lanes: &mut Vec<Sixteen>,
    then: impl Fn(&mut Vec<Sixteen>),
) {
    for at in (0..columns).step_by(N) {
        for start in 0..STEP {
            lanes.extend(x.chunks_exact(columns).map(|row| {
                let tail;
                let numbers = if let Some(numbers) = row[at..].first_chunk::<N>() {
                    numbers
                } else {
                    tail = filled_up(&row[at..]);
                    &tail
                };
                Sixteen(std::array::from_fn(|lane| numbers[STEP * lane + start]))
            }));
        }
        then(lanes);
    }
}

/// A few vectors, and where their numbers are as the kernel takes them.
pub(crate) struct Batch {
    pub(crate) first: usize,
    pub(crate) count: usize,
    pub(crate) lanes: Range<usize>,
}

/// Vectors in every layout that the matrices of a product need.
pub(crate) struct Laid {
    pub(crate) lanes: Vec<Sixteen>,
    batches: Vec<(Layout, Vec<Batch>)>,
}

/// More is given back: 8 MiB.
const MOST_KEPT: usize = (8 << 20) / size_of::<Sixteen>();

thread_local! {
    /// Memory of the last product: new memory costs more than what is written there.
    static KEPT: Cell<Vec<Sixteen>> = const { Cell::new(Vec::new()) };
}

impl Laid {
    pub(crate) fn new(matrices: &[Matrix<'_>], x: &[f32], columns: usize, backend: Backend, many: Many) -> Self {
        let mut lanes = KEPT.take();
        lanes.clear();
        let mut laid = Self { lanes, batches: Vec::with_capacity(1) };
        for matrix in matrices {
            let layout = matrix.layout(many);
            if laid.batches.iter().all(|(other, _)| *other != layout) {
                laid.lay_out(layout, x, columns, backend);
            }
        }
        laid
    }

    fn lay_out(&mut self, layout: Layout, x: &[f32], columns: usize, backend: Backend) {
        let (vectors, mut first, mut batches) = (x.len() / columns, 0, Vec::new());
        while first < vectors {
            let count = match vectors - first {
                left if matches!(layout, Layout::Tiles | Layout::Pairs) => left.min(VECTORS_IN_TILES),
                TOGETHER.. if backend.has_wide_registers() => TOGETHER,
                left => left.min(TOGETHER_IN_FEWER),
            };
            let start = self.lanes.len();
            layout.lay_out(&x[first * columns..][..count * columns], columns, &mut self.lanes);
            batches.push(Batch { first, count, lanes: start..self.lanes.len() });
            first += count;
        }
        self.batches.push((layout, batches));
    }

    pub(crate) fn batches(&self, layout: Layout) -> &[Batch] {
        self.batches.iter().find(|(other, _)| *other == layout).map_or(&[], |(_, batches)| batches)
    }
}

impl Drop for Laid {
    fn drop(&mut self) {
        if self.lanes.capacity() <= MOST_KEPT {
            KEPT.set(std::mem::take(&mut self.lanes));
        }
    }
}

//! Products of matrices with a few vectors, as fast as the matrices can be read.
//!
//! A language model that writes one sequence multiplies each of its matrices with one vector a token: the time goes into
//! reading weights. They are read where they lie, in float32, bfloat16, eight or four bits; every weight is read once for
//! several vectors, and rows are shared among threads that stand ready (`crew.rs`).
//!
//! All arithmetic is float32, in an order that the format alone fixes (`formats.rs`): a result has the same bits on every
//! CPU, for every number of threads, alone or with other vectors. More than eight vectors go through a unit for matrices
//! where there is one (`amx.rs`), or, for bfloat16, through instructions for pairs of these, to which they are then rounded
//! (`pairs.rs`): both sum in an order of their own, the same for any such number of vectors and any number of threads.
//!
//! [`attend`] does what else a new token needs of a layer in the same way: it looks at the keys and values of a cache.
//!
//! ```
//! use bpe_llama_kernels::{Input, Matrix, Weights, multiply};
//!
//! let matrix = Matrix::new(2, 3, Weights::F32(&[1.0, 2.0, 3.0, 0.0, 0.5, 0.0]))?;
//! let mut out = [0.0; 2];
//! multiply(&[matrix], Input::Plain(&[1.0, 10.0, 100.0]), &mut out, false, 1)?;
//! assert_eq!(out, [321.0, 5.0]);
//! # Ok::<(), bpe_llama_kernels::Error>(())
//! ```

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
use absent as amx;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod crew;
mod error;
mod formats;
mod input;
mod lanes;
mod layout;
#[cfg(target_arch = "x86_64")]
mod pairs;
#[cfg(not(target_arch = "x86_64"))]
use absent as pairs;
#[cfg(target_arch = "x86_64")]
mod tiles;

/// Stands for what other processors and systems do not have.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod absent {
    use super::{Range, Sixteen, Task};

    pub(crate) fn is_there() -> bool {
        false
    }

    pub(crate) unsafe fn lay_out(_: &[f32], _: usize, _: &mut Vec<Sixteen>) {
        unreachable!("it is not there");
    }

    pub(crate) unsafe fn run(_: &Task<'_>, _: Range<usize>) {
        unreachable!("it is not there");
    }
}

#[cfg(test)]
mod tests;

pub use attention::{Shape, Store, Tokens, attend};
pub use error::{Error, Result};
pub use input::{Input, Numbers};

use bpe_llama_simd::{Backend, Kind};
use formats::{Ahead, Bf16, F32, Format, Int4, Int8};
use lanes::{Lanes, Portable, Sixteen};
use layout::{Batch, Laid, Layout, ROWS_IN_UNIT, ROWS_OF_PAIRS, TOGETHER, TOGETHER_IN_FEWER};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// Columns that may share a scale in four bits.
const GROUPS: [usize; 4] = [32, 64, 128, 256];

/// More columns are in no memory, and their multiples in no `usize`.
const MOST_COLUMNS: usize = usize::MAX >> 8;

/// Bytes of weights that a thread takes at once, for one batch of vectors and for several.
const CHUNK: usize = 1 << 15;
const CHUNK_OF_MANY: usize = 1 << 18;

/// A matrix's numbers, row after row.
#[derive(Debug, Clone, Copy)]
pub enum Weights<'a> {
    /// Float32.
    F32(&'a [f32]),
    /// Bfloat16, as bits.
    Bf16(&'a [u16]),
    /// Signed bytes, and for each row the float32 that they are multiplied with.
    Int8(&'a [i8], &'a [f32]),
    /// Four bits each, the even column's in a byte's lower half, and for each group of columns of each row the bits of a
    /// bfloat16 scale and offset: a weight is `(code - 8) * scale + offset`.
    Int4(&'a [u8], &'a [[u16; 2]]),
}

/// A matrix in memory of others.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    rows: usize,
    columns: usize,
    weights: Weights<'a>,
}

impl<'a> Matrix<'a> {
    /// Returns the matrix of that shape.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there are no columns or impossibly many, the weights or scales are not as many as the shape asks for,
    /// or the columns are not in groups of 32, 64, 128 or 256.
    pub fn new(rows: usize, columns: usize, weights: Weights<'a>) -> Result<Self> {
        let numbers = rows.checked_mul(columns);
        let (found, fit) = match weights {
            Weights::F32(numbers) => (numbers.len(), true),
            Weights::Bf16(numbers) => (numbers.len(), true),
            Weights::Int8(codes, scales) => (codes.len(), scales.len() == rows),
            Weights::Int4(codes, pairs) => {
                let fits = |size| numbers == Some(pairs.len() * size) && columns.is_multiple_of(size);
                (2 * codes.len(), GROUPS.into_iter().any(fits))
            }
        };
        if columns == 0 || columns > MOST_COLUMNS {
            return Err(Error::InvalidArgument(format!("a matrix of {columns} columns; expected 1 to {MOST_COLUMNS}")));
        }
        if numbers != Some(found) {
            return Err(Error::InvalidArgument(format!(
                "{found} weights for a matrix of {rows} rows and {columns} columns"
            )));
        }
        if !fit {
            return Err(Error::InvalidArgument(format!(
                "the scales do not fit a matrix of {rows} rows and {columns} columns"
            )));
        }
        Ok(Self { rows, columns, weights })
    }

    /// Returns the number of rows: of numbers that come out.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the number of columns: of numbers that go in.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Returns the bytes of its weights, scales left out.
    pub fn bytes(&self) -> usize {
        self.rows * self.row_bytes()
    }

    fn row_bytes(&self) -> usize {
        match self.weights {
            Weights::F32(_) => 4 * self.columns,
            Weights::Bf16(_) => 2 * self.columns,
            Weights::Int8(..) => self.columns,
            Weights::Int4(..) => self.columns / 2,
        }
    }

    /// Returns how many rows there are in so many bytes, about: a multiple of `of`.
    fn rows_in(&self, bytes: usize, of: usize) -> usize {
        (bytes / self.row_bytes().max(1)).next_multiple_of(of).max(of)
    }

    fn layout(&self, many: Many) -> Layout {
        match self.weights {
            _ if many == Many::Unit => Layout::Tiles,
            Weights::Bf16(_) if many == Many::Pairs => Layout::Pairs,
            Weights::F32(_) | Weights::Int8(..) => Layout::Plain,
            Weights::Bf16(_) => Layout::EvenOdd,
            Weights::Int4(..) => Layout::Block,
        }
    }
}

/// How more vectors are multiplied than one pass over a matrix serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Many {
    /// In several passes.
    Passes,
    /// With bfloat16 rounded to it, by instructions for pairs (`pairs.rs`); the rest in several passes.
    Pairs,
    /// In a unit for matrices (`amx.rs`).
    Unit,
}

impl Many {
    /// Returns the fastest way of this processor.
    fn best() -> Self {
        if amx::is_there() {
            Self::Unit
        } else if pairs::is_there() {
            Self::Pairs
        } else {
            Self::Passes
        }
    }
}

/// The matrix of one part, its vectors, and where its results go.
struct Task<'a> {
    matrix: &'a Matrix<'a>,
    layout: Layout,
    batches: &'a [Batch],
    lanes: &'a [Sixteen],
    /// How many rows a thread takes at once.
    chunk: usize,
    offset: usize,
    out: &'a Out<'a>,
}

/// Float32 results, as bits that threads may write at the same time; each is written by one.
struct Out<'a> {
    cells: &'a [AtomicU32],
    width: usize,
    add: bool,
}

/// Returns what holds these numbers' bits.
fn cells(numbers: &mut [f32]) -> &[AtomicU32] {
    // SAFETY: `AtomicU32` has the size and alignment of `f32`, and the exclusive borrow lasts as long as the cells.
    unsafe { std::slice::from_raw_parts(numbers.as_mut_ptr().cast::<AtomicU32>(), numbers.len()) }
}

impl Out<'_> {
    /// Writes `R` rows' products with `M` vectors, or adds them, to where the first row's with the first vector belongs.
    #[inline(always)]
    fn put<const R: usize, const M: usize>(&self, first: usize, found: &[[f32; M]; R]) {
        let Self { cells, width, add } = *self;
        for vector in 0..M {
            let cells = &cells[first + vector * width..][..R];
            for row in 0..R {
                let before = if add { f32::from_bits(cells[row].load(Ordering::Relaxed)) } else { -0.0 };
                cells[row].store((before + found[row][vector]).to_bits(), Ordering::Relaxed);
            }
        }
    }
}

/// Writes the products of the matrices, as if they were one below the other, with each vector; or adds them.
///
/// # Arguments
/// `out` holds, vector after vector, a number for each row of all matrices. `threads` is how many may take part.
///
/// # Errors
/// [`Error::InvalidArgument`] if there is no matrix, or shapes do not fit.
///
/// # Cost
/// One read of the weights for up to some 16 vectors, or 32 in a unit for matrices or as pairs; then arithmetic counts.
pub fn multiply(matrices: &[Matrix<'_>], input: Input<'_>, out: &mut [f32], add: bool, threads: usize) -> Result<()> {
    multiply_with(Backend::best(), Many::best(), matrices, input, out, add, threads)
}

/// Returns whether this processor has a unit for matrices, Intel's AMX, and we may use it: [`multiply`] then multiplies more
/// than eight vectors there.
pub fn has_unit() -> bool {
    Many::best() == Many::Unit
}

/// Returns whether this processor has instructions for pairs of bfloat16, AVX-512 BF16, and no unit for matrices:
/// [`multiply`] then rounds more than eight vectors to bfloat16 for a matrix of that format.
pub fn has_pairs() -> bool {
    Many::best() == Many::Pairs
}

/// Returns whether this processor has AVX-512, whose many and wide registers [`multiply`] and [`attend`] use.
pub fn has_avx512() -> bool {
    Backend::best().has_wide_registers()
}

fn multiply_with(
    backend: Backend,
    many: Many,
    matrices: &[Matrix<'_>],
    input: Input<'_>,
    out: &mut [f32],
    add: bool,
    threads: usize,
) -> Result<()> {
    let (columns, width) = shape(matrices)?;
    let (given, length) = input.given(columns);
    if let Input::Normed { weight, .. } = input
        && weight.len() != columns
    {
        return Err(Error::InvalidArgument(format!("a norm of {} weights for {columns} columns", weight.len())));
    }
    let vectors = given.len() / length;
    let many = if vectors > TOGETHER { many } else { Many::Passes };
    if !given.len().is_multiple_of(length) || out.len() != vectors * width {
        return Err(Error::InvalidArgument(format!(
            "{} numbers in and {} out; expected {length} and {width} for each vector",
            given.len(),
            out.len()
        )));
    }
    let laid = Laid::new(matrices, &input.made(columns, backend), columns, backend, many);
    let out = Out { cells: cells(out), width, add };
    let (mut offset, mut chunks, mut bytes) = (0, 0, 0);
    let mut tasks = Vec::with_capacity(matrices.len());
    for matrix in matrices {
        let layout = matrix.layout(many);
        let batches = laid.batches(layout);
        let several = batches.len() > 1;
        let chunk = match layout {
            Layout::Tiles => matrix.rows_in(if several { 2 * CHUNK_OF_MANY } else { CHUNK }, ROWS_IN_UNIT),
            Layout::Pairs => matrix.rows_in(if several { CHUNK_OF_MANY } else { CHUNK }, ROWS_OF_PAIRS),
            _ if several => matrix.rows_in(CHUNK_OF_MANY, 3),
            _ => matrix.rows_in(CHUNK, 4),
        };
        tasks.push(Task { matrix, layout, batches, lanes: &laid.lanes, chunk, offset, out: &out });
        offset += matrix.rows;
        chunks += matrix.rows.div_ceil(chunk);
        bytes += matrix.bytes();
    }
    let threads = threads.min(bytes / CHUNK).max(1);
    // A stretch of chunks for each thread, so that what it asks for ahead is what it reads next; then what others left.
    let stretches: Vec<_> = (0..threads)
        .map(|thread| (AtomicUsize::new(thread * chunks / threads), (thread + 1) * chunks / threads))
        .collect();
    let arrived = AtomicUsize::new(0);
    crew::run(threads, &|| {
        let own = arrived.fetch_add(1, Ordering::Relaxed) % threads;
        let (before, from_own) = stretches.split_at(own);
        for (next, end) in from_own.iter().chain(before) {
            loop {
                let chunk = next.fetch_add(1, Ordering::Relaxed);
                if chunk >= *end {
                    break;
                }
                run_chunk(&tasks, chunk, backend);
            }
        }
    });
    Ok(())
}

/// Computes one of the chunks of all tasks.
fn run_chunk(tasks: &[Task<'_>], mut chunk: usize, backend: Backend) {
    for task in tasks {
        let own = task.matrix.rows.div_ceil(task.chunk);
        if chunk < own {
            return task.run(backend, chunk * task.chunk..((chunk + 1) * task.chunk).min(task.matrix.rows));
        }
        chunk -= own;
    }
}

/// Returns the columns of every matrix, and the rows of all.
fn shape(matrices: &[Matrix<'_>]) -> Result<(usize, usize)> {
    let Some(first) = matrices.first() else {
        return Err(Error::InvalidArgument("no matrix to multiply with; expected at least one".into()));
    };
    if let Some(other) = matrices.iter().find(|matrix| matrix.columns != first.columns) {
        return Err(Error::InvalidArgument(format!(
            "matrices of {} and {} columns; expected the same of all",
            first.columns, other.columns
        )));
    }
    Ok((first.columns, matrices.iter().map(Matrix::rows).sum()))
}

impl Task<'_> {
    fn run(&self, backend: Backend, rows: Range<usize>) {
        match self.layout {
            // SAFETY: tiles are laid out where the unit is there.
            Layout::Tiles => return unsafe { amx::run(self, rows) },
            // SAFETY: as for tiles.
            Layout::Pairs => return unsafe { pairs::run(self, rows) },
            Layout::Plain | Layout::EvenOdd | Layout::Block => {}
        }
        match backend.kind() {
            // SAFETY: the portable lanes need no instructions of their own.
            Kind::Portable => unsafe { self.run_in::<Portable>(rows) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Backend` is only ever one that this CPU has.
            Kind::Avx2 => unsafe { self.run_avx2(rows) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Kind::Avx512 => unsafe { self.run_avx512(rows) },
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn run_avx2(&self, rows: Range<usize>) {
        // SAFETY: AVX2 and FMA are enabled here.
        unsafe { self.run_in::<avx2::Avx2>(rows) };
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
    fn run_avx512(&self, rows: Range<usize>) {
        // SAFETY: AVX-512 F, BW and VL are enabled here.
        unsafe { self.run_in::<avx512::Avx512>(rows) };
    }

    /// Computes some rows.
    ///
    /// # Safety
    /// The CPU has the instructions of `L`.
    #[inline(always)]
    unsafe fn run_in<L: Lanes>(&self, rows: Range<usize>) {
        let turns = self.batches.len();
        let bytes = rows.len() * self.matrix.row_bytes();
        for (turn, batch) in self.batches.iter().enumerate() {
            let ahead = Ahead::of_turn(turn, turns, bytes);
            let rows = rows.clone();
            // SAFETY: the caller's promise.
            unsafe {
                match self.matrix.weights {
                    Weights::F32(weights) => self.batch::<L, _>(F32(weights), batch, rows, ahead),
                    Weights::Bf16(weights) => self.batch::<L, _>(Bf16(weights), batch, rows, ahead),
                    Weights::Int8(codes, scales) => self.batch::<L, _>(Int8 { codes, scales }, batch, rows, ahead),
                    Weights::Int4(codes, pairs) => self.batch::<L, _>(Int4 { codes, pairs }, batch, rows, ahead),
                }
            }
        }
    }

    /// # Safety
    /// The CPU has the instructions of `L`.
    #[inline(always)]
    unsafe fn batch<L: Lanes, F: Format>(&self, format: F, batch: &Batch, rows: Range<usize>, ahead: Ahead) {
        // SAFETY: the caller's promise.
        unsafe {
            match batch.count {
                1 => self.sweep::<L, F, 4, 1>(format, batch, rows, ahead),
                2 => self.sweep::<L, F, 2, 2>(format, batch, rows, ahead),
                3 if L::REGISTERS < 16 => self.sweep::<L, F, 1, 3>(format, batch, rows, ahead),
                3 => self.sweep::<L, F, 2, 3>(format, batch, rows, ahead),
                TOGETHER_IN_FEWER if L::REGISTERS < 16 => {
                    self.sweep::<L, F, 1, TOGETHER_IN_FEWER>(format, batch, rows, ahead);
                }
                TOGETHER_IN_FEWER => self.sweep::<L, F, 2, TOGETHER_IN_FEWER>(format, batch, rows, ahead),
                // 24 sums, three weights and a number of a vector at a time.
                _ => self.sweep::<L, F, 3, TOGETHER>(format, batch, rows, ahead),
            }
        }
    }

    /// Computes `R` rows at a time, and what is left one by one.
    ///
    /// # Safety
    /// The CPU has the instructions of `L`.
    #[inline(always)]
    unsafe fn sweep<L: Lanes, F: Format, const R: usize, const M: usize>(
        &self,
        format: F,
        batch: &Batch,
        rows: Range<usize>,
        ahead: Ahead,
    ) {
        let (columns, lanes) = (self.matrix.columns, &self.lanes[batch.lanes.clone()]);
        let first = batch.first * self.out.width + self.offset;
        let mut row = rows.start;
        while row + R <= rows.end {
            // SAFETY: the caller's promise.
            let found = unsafe { format.products::<L, R, M>(row, columns, lanes, ahead) };
            self.out.put(first + row, &found);
            row += R;
        }
        for row in row..rows.end {
            // SAFETY: the caller's promise.
            let found = unsafe { format.products::<L, 1, M>(row, columns, lanes, ahead) };
            self.out.put(first + row, &found);
        }
    }
}

//! The micro-kernel of four-bit weights: products of integers.
//!
//! A block is 128 columns, eight for each lane. The activations `x` of a lane are rounded to `q * step`, with integers `q` of 23
//! bits and one `step`, a power of two. The lane adds `sum((code - 8) * q) * step * scale`, with the `scale` of its group. That
//! sum of integers is exact until it is rounded to float32, so it is the same on every backend. `offset * sum(x)` is added once
//! for each group.
//!
//! Where the CPU multiplies bytes, `q` is three signed bytes, each multiplied with its code. Other backends multiply words.

use super::int4_vector::{BLOCK, BYTES_VECTORS, Int4Dot, Products, WORDS_VECTORS};
use super::micro_kernel::{rows_in_steps, sum_lanes};
use crate::backend::{FEW_GEMV_ROWS, GEMV_ROWS};
use crate::matmul::prefetch_distance::PrefetchDistance;
use crate::matmul::task::{Panel, Task};
use crate::matmul::weights::group_size;
#[cfg(target_arch = "aarch64")]
use bpe_llama_simd::f32x16::Neon;
#[cfg(target_arch = "x86_64")]
use bpe_llama_simd::f32x16::{Avx2, Avx512};
use bpe_llama_simd::f32x16::{LANES, Portable};
use bpe_llama_simd::{Backend, Kind};
use std::ops::Range;

/// Four-bit weights.
#[derive(Clone, Copy)]
struct Int4<'a> {
    codes: &'a [u8],
    /// The bfloat16 scale and offset of each group, row by row.
    scales: &'a [[u16; 2]],
    groups: Groups,
}

/// Which groups of columns the lanes of a block belong to.
#[derive(Clone, Copy)]
struct Groups {
    of_lane: [u32; LANES],
    /// The binary logarithm of the columns of a group; group sizes are powers of two.
    shift: u32,
    in_block: usize,
}

impl Groups {
    fn new(size: usize) -> Self {
        let shift = size.trailing_zeros();
        let of_lane = std::array::from_fn(|lane| (8 * lane as u32) >> shift);
        Self { of_lane, shift, in_block: (BLOCK >> shift).max(1) }
    }

    /// Returns exactly the scales of the row: those of the next one may be infinite, which a product with 0 does not hide.
    #[inline(always)]
    fn of_row<'a>(&self, scales: &'a [[u16; 2]], row: usize, columns: usize) -> &'a [[u16; 2]] {
        &scales[(row * columns) >> self.shift..][..columns >> self.shift]
    }

    /// Returns the scales and offsets of a block, from those of the row.
    #[inline(always)]
    fn of_block<'a>(&self, of_row: &'a [[u16; 2]], block: usize) -> &'a [[u16; 2]] {
        let scales = &of_row[(block * BLOCK) >> self.shift..];
        &scales[..scales.len().min(self.in_block)]
    }
}

/// Repeats `$body` for `$index` from 0 to below `$count`, at most 4. A compiler does not unroll a loop with so long a body,
/// and the arrays that the loop indexes would be in memory.
macro_rules! unrolled {
    ($count:expr, $index:ident, $body:block) => {
        const { assert!($count <= 4) };
        unrolled!(0 1 2 3; $count, $index, $body);
    };
    ($($number:literal)*; $count:expr, $index:ident, $body:block) => {
        $(if $number < $count {
            let $index = $number;
            $body
        })*
    };
}

/// Multiplies some weight rows with all panels.
pub(super) fn run(task: &Task<'_>, backend: Backend, codes: &[u8], scales: &[[u16; 2]], rows: &Range<usize>) {
    let weights = Int4 { codes, scales, groups: Groups::new(group_size(codes, scales)) };
    match (backend.kind(), Products::of(backend)) {
        // SAFETY: the portable backend needs no CPU feature.
        (Kind::Portable, _) => unsafe { run_passes::<Portable, WORDS_VECTORS, false>(task, weights, rows) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: a `Backend` and its `Products` exist only if the CPU has them.
        (Kind::Neon, Products::Dot) => unsafe { run_neon_dot(task, weights, rows) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        (Kind::Neon, _) => unsafe { run_passes::<Neon, WORDS_VECTORS, false>(task, weights, rows) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        (Kind::Avx2, Products::Dot) => unsafe { run_avx_vnni(task, weights, rows) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        (Kind::Avx2, _) => unsafe { run_avx2(task, weights, rows) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        (Kind::Avx512, Products::Dot) => unsafe { run_avx512_vnni(task, weights, rows) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        (Kind::Avx512, _) => unsafe { run_avx512(task, weights, rows) },
    }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,dotprod")]
fn run_neon_dot(task: &Task<'_>, weights: Int4<'_>, rows: &Range<usize>) {
    // SAFETY: NEON and its dot products are enabled here.
    unsafe { run_passes::<Neon, BYTES_VECTORS, true>(task, weights, rows) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2(task: &Task<'_>, weights: Int4<'_>, rows: &Range<usize>) {
    // SAFETY: AVX2 and FMA are enabled here.
    unsafe { run_passes::<Avx2, BYTES_VECTORS, false>(task, weights, rows) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avxvnni")]
fn run_avx_vnni(task: &Task<'_>, weights: Int4<'_>, rows: &Range<usize>) {
    // SAFETY: AVX2, FMA and AVX-VNNI are enabled here.
    unsafe { run_passes::<Avx2, BYTES_VECTORS, true>(task, weights, rows) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
fn run_avx512(task: &Task<'_>, weights: Int4<'_>, rows: &Range<usize>) {
    // SAFETY: AVX-512 F, BW and VL are enabled here.
    unsafe { run_passes::<Avx512, BYTES_VECTORS, false>(task, weights, rows) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
fn run_avx512_vnni(task: &Task<'_>, weights: Int4<'_>, rows: &Range<usize>) {
    // SAFETY: AVX-512 F, BW, VL and VNNI are enabled here.
    unsafe { run_passes::<Avx512, BYTES_VECTORS, true>(task, weights, rows) };
}

/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn run_passes<V: Int4Dot<N>, const N: usize, const DOT: bool>(
    task: &Task<'_>,
    weights: Int4<'_>,
    rows: &Range<usize>,
) {
    let (passes, bytes) = (task.panels.len(), rows.len() * task.matrix.row_bytes());
    for (pass, panel) in task.panels.iter().enumerate() {
        let sweep = Sweep { task, weights, panel, rows: rows.clone() };
        let prefetch = PrefetchDistance::of_pass(pass, passes, bytes);
        // SAFETY: the caller's promise.
        unsafe {
            match panel.rows {
                1 if V::REGISTERS < 16 => sweep.run::<V, N, DOT, 1, 1>(prefetch),
                2 if V::REGISTERS < 16 => sweep.run::<V, N, DOT, 1, 2>(prefetch),
                1 => sweep.run::<V, N, DOT, 4, 1>(prefetch),
                2 => sweep.run::<V, N, DOT, 2, 2>(prefetch),
                3 => sweep.run::<V, N, DOT, 1, 3>(prefetch),
                FEW_GEMV_ROWS => sweep.run::<V, N, DOT, 1, FEW_GEMV_ROWS>(prefetch),
                _ if V::REGISTERS < 16 => unreachable!("panels of at most {FEW_GEMV_ROWS} rows"),
                _ => sweep.run::<V, N, DOT, 1, GEMV_ROWS>(prefetch),
            }
        }
    }
}

/// The products of some weight rows with a panel.
struct Sweep<'a> {
    task: &'a Task<'a>,
    weights: Int4<'a>,
    panel: &'a Panel,
    rows: Range<usize>,
}

impl Sweep<'_> {
    /// Multiplies `R` weight rows at a time, and the rest one by one, with the `M` rows of the panel.
    ///
    /// # Safety
    /// The CPU has the features of `V`.
    #[inline(always)]
    unsafe fn run<V: Int4Dot<N>, const N: usize, const DOT: bool, const R: usize, const M: usize>(
        &self,
        prefetch: PrefetchDistance,
    ) {
        let first = self.task.output_index(0, self.panel.first_row);
        let mut row = self.rows.start;
        // SAFETY: the caller's promise.
        unsafe {
            while row + R <= self.rows.end {
                self.task.out.store(first + row, &self.multiply::<V, N, DOT, R, M>(row, prefetch));
                row += R;
            }
            for row in row..self.rows.end {
                self.task.out.store(first + row, &self.multiply::<V, N, DOT, 1, M>(row, prefetch));
            }
        }
    }

    /// Returns the products of `R` weight rows, the first of them `row`.
    ///
    /// # Safety
    /// The CPU has the features of `V`.
    #[inline(always)]
    unsafe fn multiply<V: Int4Dot<N>, const N: usize, const DOT: bool, const R: usize, const M: usize>(
        &self,
        row: usize,
        mut prefetch: PrefetchDistance,
    ) -> [[f32; M]; R] {
        let (columns, Int4 { codes, scales, groups }) = (self.task.matrix.columns, self.weights);
        let rows = rows_in_steps::<u8, R, { BLOCK / 2 }>(codes, row, columns / 2);
        let scales: [_; R] = std::array::from_fn(|next| groups.of_row(scales, row + next, columns));
        let (blocks, group_sums) =
            self.task.packed(self.panel).as_chunks::<M>().0.split_at(N * columns.div_ceil(BLOCK));
        // SAFETY: the caller's promise.
        unsafe {
            let zero = V::splat(0.0);
            let mut accumulators = [[zero; M]; R];
            for (sixteen, sums) in group_sums.iter().enumerate() {
                for next in 0..R {
                    let offset = V::load_offsets(&scales[next][sixteen * LANES..]);
                    for m in 0..M {
                        accumulators[next][m] = offset.mul_add(V::load(&sums[m].0), accumulators[next][m]);
                    }
                }
            }
            for (block, x) in blocks.as_chunks::<N>().0.iter().enumerate() {
                prefetch.prefetch::<_, R, { BLOCK / 2 }>(codes, row * columns / 2, block);
                unrolled!(R, next, {
                    let codes = V::load_codes(rows[next].0.get(block).map_or(rows[next].1, |codes| codes.as_slice()));
                    let scale = V::load_scales(groups.of_block(scales[next], block), &groups.of_lane);
                    for m in 0..M {
                        let sum = V::dot::<DOT, M>(codes, x, m).mul_add(V::load(&x[N - 1][m].0), zero);
                        accumulators[next][m] = sum.mul_add(scale, accumulators[next][m]);
                    }
                });
            }
            sum_lanes(accumulators)
        }
    }
}

//! The unit itself: eight tiles of sixteen lines of 64 bytes.

use super::super::lanes::Sixteen;
use super::TILE;
use std::arch::asm;
use std::marker::PhantomData;

/// Sums of products of rows and vectors in bfloat16: of the first sixteen rows and of the second with the first sixteen
/// vectors, then with the second.
pub(super) trait Unit {
    /// # Safety
    /// It is there.
    unsafe fn new() -> Self;

    /// Makes all sums 0.
    fn clear(&mut self);

    /// Takes a part of the rows.
    ///
    /// # Safety
    /// There are rows where they are said to be.
    unsafe fn take(&mut self, rows: Rows, part: usize);

    /// Adds the products of the part taken with a part of the vectors, one tile or two.
    fn add(&mut self, vectors: &[Sixteen]);

    /// Writes the sums, a tile of each.
    fn sums(&mut self, to: &mut [Sixteen; 4 * TILE]);
}

/// Where sixteen rows of [`STEP`] columns are, and sixteen more; further parts, if there are, [`PART`] bytes behind.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) first: *const u8,
    pub(super) second: *const u8,
    pub(super) stride: usize,
}

/// Bytes of one part of staged rows.
const PART: usize = 2 * TILE * size_of::<Sixteen>();

/// The unit at work on this thread. No compiler uses tiles unless told to, so what one function leaves there the next
/// one finds.
///
/// Tiles 0 to 3 are the sums, 4 and 5 the rows, 6 and 7 the vectors.
pub(super) struct Amx(PhantomData<*const ()>);

#[allow(clippy::unused_self, reason = "what the functions work on is not in memory")]
impl Unit for Amx {
    unsafe fn new() -> Self {
        /// Palette 1, and eight tiles of 16 rows of 64 bytes.
        #[repr(C, align(64))]
        struct Shapes([u8; 64]);
        let mut shapes = Shapes([0; 64]);
        shapes.0[0] = 1;
        for tile in 0..8 {
            shapes.0[16 + 2 * tile] = 64;
            shapes.0[48 + tile] = 16;
        }
        // SAFETY: the caller's promise; these are shapes that every such processor has.
        unsafe {
            asm!(
                "ldtilecfg [{}]", in(reg) shapes.0.as_ptr(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly, preserves_flags),
            );
        };
        Self(PhantomData)
    }

    fn clear(&mut self) {
        // SAFETY: tiles have shapes as long as this object lives.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack, nomem, preserves_flags)
            );
        }
    }

    #[inline(always)]
    unsafe fn take(&mut self, rows: Rows, part: usize) {
        // SAFETY: tiles have shapes, and the caller's promise.
        unsafe {
            asm!(
                "tileloadd tmm4, [{first} + {stride}]", "tileloadd tmm5, [{second} + {stride}]",
                first = in(reg) rows.first.wrapping_add(part * PART),
                second = in(reg) rows.second.wrapping_add(part * PART),
                stride = in(reg) rows.stride, out("tmm4") _, out("tmm5") _, options(nostack, readonly, preserves_flags),
            );
        }
    }

    #[inline(always)]
    fn add(&mut self, vectors: &[Sixteen]) {
        // SAFETY: tiles have shapes, and are read from memory for one or two.
        unsafe {
            asm!(
                "tileloadd tmm6, [{vectors} + {line}]", "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm5, tmm6",
                vectors = in(reg) vectors[..TILE].as_ptr(), line = in(reg) 64_usize, out("tmm0") _, out("tmm1") _, out("tmm6") _,
                options(nostack, readonly, preserves_flags),
            );
            if vectors.len() > TILE {
                asm!(
                    "tileloadd tmm7, [{vectors} + {line}]", "tdpbf16ps tmm2, tmm4, tmm7", "tdpbf16ps tmm3, tmm5, tmm7",
                    vectors = in(reg) vectors[TILE..2 * TILE].as_ptr(), line = in(reg) 64_usize,
                    out("tmm2") _, out("tmm3") _, out("tmm7") _,
                    options(nostack, readonly, preserves_flags),
                );
            }
        }
    }

    fn sums(&mut self, to: &mut [Sixteen; 4 * TILE]) {
        // SAFETY: tiles have shapes, and four are written to memory for four.
        unsafe {
            asm!(
                "tilestored [{to} + {line}], tmm0", "tilestored [{to} + {line} + 1024], tmm1",
                "tilestored [{to} + {line} + 2048], tmm2", "tilestored [{to} + {line} + 3072], tmm3",
                to = in(reg) to.as_mut_ptr(), line = in(reg) 64_usize, options(nostack, preserves_flags),
            );
        }
    }
}

impl Drop for Amx {
    fn drop(&mut self) {
        // SAFETY: the unit is there, and nothing of ours is in its tiles any more.
        unsafe {
            asm!(
                "tilerelease",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, nomem, preserves_flags),
            );
        };
    }
}

/// What the unit does, for tests on processors that have none.
#[cfg(test)]
pub(super) struct Emulated {
    sums: [Sixteen; 4 * TILE],
    rows: [[u32; TILE]; 2 * TILE],
}

#[cfg(test)]
impl Unit for Emulated {
    unsafe fn new() -> Self {
        Self { sums: [Sixteen([0.0; TILE]); 4 * TILE], rows: [[0; TILE]; 2 * TILE] }
    }

    fn clear(&mut self) {
        self.sums = [Sixteen([0.0; TILE]); 4 * TILE];
    }

    unsafe fn take(&mut self, rows: Rows, part: usize) {
        for (row, words) in self.rows.iter_mut().enumerate() {
            let first = if row < TILE { rows.first } else { rows.second };
            let line = first.wrapping_add(part * PART + row % TILE * rows.stride);
            // SAFETY: the caller's promise.
            *words = unsafe { line.cast::<[u32; TILE]>().read_unaligned() };
        }
    }

    fn add(&mut self, vectors: &[Sixteen]) {
        let halves = |word: u32| [f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000)];
        for (pair, tile) in vectors.chunks_exact(TILE).enumerate() {
            for (row, words) in self.rows.iter().enumerate() {
                let sums = &mut self.sums[2 * pair * TILE + row].0;
                for (&word, vectors) in words.iter().zip(tile) {
                    let [low, high] = halves(word);
                    for (sum, vector) in sums.iter_mut().zip(vectors.0) {
                        let [vector_low, vector_high] = halves(vector.to_bits());
                        *sum += low * vector_low + high * vector_high;
                    }
                }
            }
        }
    }

    fn sums(&mut self, to: &mut [Sixteen; 4 * TILE]) {
        *to = self.sums;
    }
}

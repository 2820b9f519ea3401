//! The tile registers of AMX: eight tiles of 16 rows of 64 bytes.

use crate::matmul::gemm::tile::TILE_ROWS;
use bpe_llama_simd::f32x16::CacheLine;
use std::arch::asm;
use std::marker::PhantomData;

/// Four accumulators: the first 16 weight rows and the second 16, times the first 16 activation rows, then times the second
/// 16.
pub(super) trait TileRegisters {
    /// Returns the configured registers.
    ///
    /// # Safety
    /// The CPU has AMX.
    unsafe fn new() -> Self;

    /// Sets all accumulators to 0.
    fn clear(&mut self);

    /// Loads one term of the weights.
    ///
    /// # Safety
    /// `weights` points to the term.
    unsafe fn load_weights(&mut self, weights: WeightTiles, term: usize);

    /// Adds the products of the loaded weights with one term of the activations, which is one tile or two.
    fn multiply_add(&mut self, x: &[CacheLine]);

    /// Writes the accumulators, one after the other.
    fn store(&mut self, to: &mut [CacheLine; 4 * TILE_ROWS]);
}

/// Where two tiles of 16 weight rows are. Each further term is [`TERM_BYTES`] behind the one before.
#[derive(Clone, Copy)]
pub(super) struct WeightTiles {
    pub(super) first: *const u8,
    pub(super) second: *const u8,
    /// Bytes from row to row.
    pub(super) stride: usize,
}

/// Bytes of one term of staged weights.
pub(super) const TERM_BYTES: usize = 2 * TILE_ROWS * size_of::<CacheLine>();

/// The tile registers of this thread. Compilers do not use them unless told to, so their contents last from function to
/// function.
///
/// Tiles 0 to 3 are accumulators, 4 and 5 weights, 6 and 7 activations.
pub(super) struct Amx(PhantomData<*const ()>);

#[allow(clippy::unused_self, reason = "the state is in registers")]
impl TileRegisters for Amx {
    unsafe fn new() -> Self {
        /// Palette 1, and eight tiles of 16 rows of 64 bytes.
        #[repr(C, align(64))]
        struct Config([u8; 64]);
        let mut config = Config([0; 64]);
        config.0[0] = 1;
        for tile in 0..8 {
            config.0[16 + 2 * tile] = 64;
            config.0[48 + tile] = 16;
        }
        // SAFETY: the caller's promise; every CPU with AMX supports this configuration.
        unsafe {
            asm!(
                "ldtilecfg [{}]", in(reg) config.0.as_ptr(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly, preserves_flags),
            );
        };
        Self(PhantomData)
    }

    fn clear(&mut self) {
        // SAFETY: the tiles are configured as long as `self` lives.
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
    unsafe fn load_weights(&mut self, weights: WeightTiles, term: usize) {
        // SAFETY: the tiles are configured; the caller's promise.
        unsafe {
            asm!(
                "tileloadd tmm4, [{first} + {stride}]", "tileloadd tmm5, [{second} + {stride}]",
                first = in(reg) weights.first.wrapping_add(term * TERM_BYTES),
                second = in(reg) weights.second.wrapping_add(term * TERM_BYTES),
                stride = in(reg) weights.stride, out("tmm4") _, out("tmm5") _,
                options(nostack, readonly, preserves_flags),
            );
        }
    }

    #[inline(always)]
    fn multiply_add(&mut self, x: &[CacheLine]) {
        // SAFETY: the tiles are configured, and loaded from slices of one tile each.
        unsafe {
            asm!(
                "tileloadd tmm6, [{x} + {line}]", "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm5, tmm6",
                x = in(reg) x[..TILE_ROWS].as_ptr(), line = in(reg) 64_usize,
                out("tmm0") _, out("tmm1") _, out("tmm6") _,
                options(nostack, readonly, preserves_flags),
            );
            if x.len() > TILE_ROWS {
                asm!(
                    "tileloadd tmm7, [{x} + {line}]", "tdpbf16ps tmm2, tmm4, tmm7", "tdpbf16ps tmm3, tmm5, tmm7",
                    x = in(reg) x[TILE_ROWS..2 * TILE_ROWS].as_ptr(), line = in(reg) 64_usize,
                    out("tmm2") _, out("tmm3") _, out("tmm7") _,
                    options(nostack, readonly, preserves_flags),
                );
            }
        }
    }

    fn store(&mut self, to: &mut [CacheLine; 4 * TILE_ROWS]) {
        // SAFETY: the tiles are configured, and `to` has room for four.
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
        // SAFETY: the CPU has AMX, and the tiles are no longer used.
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

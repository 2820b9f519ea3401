//! The tile registers in plain Rust, for tests on a CPU without AMX.

use super::tile_registers::{TERM_BYTES, TileRegisters, WeightTiles};
use crate::matmul::gemm::tile::TILE_ROWS;
use bpe_llama_simd::f32x16::CacheLine;

pub(super) struct Emulated {
    accumulators: [CacheLine; 4 * TILE_ROWS],
    weights: [[u32; TILE_ROWS]; 2 * TILE_ROWS],
}

impl TileRegisters for Emulated {
    unsafe fn new() -> Self {
        Self { accumulators: [CacheLine::ZERO; 4 * TILE_ROWS], weights: [[0; TILE_ROWS]; 2 * TILE_ROWS] }
    }

    fn clear(&mut self) {
        self.accumulators = [CacheLine::ZERO; 4 * TILE_ROWS];
    }

    unsafe fn load_weights(&mut self, weights: WeightTiles, term: usize) {
        for (row, pairs) in self.weights.iter_mut().enumerate() {
            let first = if row < TILE_ROWS { weights.first } else { weights.second };
            let line = first.wrapping_add(term * TERM_BYTES + row % TILE_ROWS * weights.stride);
            // SAFETY: the caller's promise.
            *pairs = unsafe { line.cast::<[u32; TILE_ROWS]>().read_unaligned() };
        }
    }

    fn multiply_add(&mut self, x: &[CacheLine]) {
        let halves = |pair: u32| [f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000)];
        for (index, tile) in x.chunks_exact(TILE_ROWS).enumerate() {
            for (row, pairs) in self.weights.iter().enumerate() {
                let sums = &mut self.accumulators[2 * index * TILE_ROWS + row].0;
                for (&pair, x) in pairs.iter().zip(tile) {
                    let [low, high] = halves(pair);
                    for (sum, x) in sums.iter_mut().zip(x.0) {
                        let [x_low, x_high] = halves(x.to_bits());
                        *sum += low * x_low + high * x_high;
                    }
                }
            }
        }
    }

    fn store(&mut self, to: &mut [CacheLine; 4 * TILE_ROWS]) {
        *to = self.accumulators;
    }
}

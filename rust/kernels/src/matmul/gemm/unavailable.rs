//! Takes the place of AMX and AVX-512 BF16 on other architectures, where detection never selects them.

use crate::matmul::task::Task;
use bpe_llama_simd::f32x16::CacheLine;
use std::ops::Range;

pub(crate) unsafe fn pack(_: &[f32], _: usize, _: &mut Vec<CacheLine>) {
    unreachable!("not selected on this architecture");
}

pub(crate) unsafe fn run(_: &Task<'_>, _: Range<usize>) {
    unreachable!("not selected on this architecture");
}

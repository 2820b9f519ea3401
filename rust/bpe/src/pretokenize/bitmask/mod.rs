//! The bitmask splitter: piece boundaries of 64 bytes at once, from bit masks of their character classes.
//!
//! | file | |
//! |---|---|
//! | `backend.rs` | the byte-vector trait: bit masks of byte ranges |
//! | `x86.rs`, `neon.rs`, `portable.rs` | AVX-512, AVX2, NEON, and 64-bit registers: the safe twin of the others |
//! | `classes.rs` | the character classes of a block, and boundaries that several grammars share |
//! | `splitter.rs` | the loop over blocks |
//!
//! Tests hold every backend to the grammar's one-piece-at-a-time function.

pub(crate) mod backend;
mod classes;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod portable;
pub(crate) mod splitter;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86;

pub(crate) use self::classes::{Classes, run_from, split_contractions};
pub(crate) use self::splitter::BitmaskGrammar;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use bpe_llama_simd::Tier;

/// Appends the ends of the pieces of `text` from `start` on, within the capacity of `ends`.
#[inline]
pub(crate) fn fill_ends<G: BitmaskGrammar>(text: &[u8], start: usize, ends: &mut Vec<usize>) {
    #[cfg(target_arch = "x86_64")]
    {
        if x86::has_avx512() {
            // SAFETY: the CPU has what the function is compiled for.
            return unsafe { x86::fill_ends_avx512::<G>(text, start, ends) };
        }
        if Tier::Avx2.is_used() {
            // SAFETY: as above.
            return unsafe { x86::fill_ends_avx2::<G>(text, start, ends) };
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        if Tier::Neon.is_used() {
            // SAFETY: the CPU has what the function is compiled for.
            return unsafe { neon::fill_ends::<G>(text, start, ends) };
        }
    }
    splitter::fill_ends::<portable::Portable, G>(text, start, ends);
}

//! Float32 results that several threads write at the same time.

use std::sync::atomic::{AtomicU32, Ordering};

/// Returns the elements as atomic bits. One thread writes each element, with relaxed stores, which cost nothing.
pub(crate) fn atomic_bits(elements: &mut [f32]) -> &[AtomicU32] {
    // SAFETY: `AtomicU32` has the size and alignment of `f32`, and the exclusive borrow lasts as long as the result.
    unsafe { std::slice::from_raw_parts(elements.as_mut_ptr().cast::<AtomicU32>(), elements.len()) }
}

/// The output of a product, `(M, width)`.
pub(crate) struct Output<'a> {
    pub(crate) bits: &'a [AtomicU32],
    pub(crate) width: usize,
    /// Whether results are added to the output.
    pub(crate) accumulate: bool,
}

impl Output<'_> {
    /// Writes or adds the products of `R` weight rows with `M` activation rows; `index` is where the first one belongs.
    #[inline(always)]
    pub(crate) fn store<const R: usize, const M: usize>(&self, index: usize, products: &[[f32; M]; R]) {
        let Self { bits, width, accumulate } = *self;
        for m in 0..M {
            let bits = &bits[index + m * width..][..R];
            for row in 0..R {
                let before = if accumulate { f32::from_bits(bits[row].load(Ordering::Relaxed)) } else { -0.0 };
                bits[row].store((before + products[row][m]).to_bits(), Ordering::Relaxed);
            }
        }
    }
}

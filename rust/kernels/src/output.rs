//! Float32 results that several threads write at the same time.

use bpe_llama_simd::f32x16::{CacheLine, F32x16, LANES, zero_padded};
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

    /// Writes or adds the first `count` products of a vector, each multiplied with its scale, if any.
    ///
    /// # Safety
    /// The CPU has the features of `V`, and no other thread accesses these outputs now.
    #[inline(always)]
    pub(crate) unsafe fn store_vector<V: F32x16>(
        &self,
        index: usize,
        count: usize,
        products: &CacheLine,
        scales: Option<&[f32]>,
    ) {
        let bits = &self.bits[index..][..count.min(LANES)];
        let to = bits.as_ptr().cast::<f32>().cast_mut();
        // SAFETY: the caller's promise; `AtomicU32` may be written through a shared reference.
        unsafe {
            let mut products = V::load(&products.0);
            if let Some(scales) = scales {
                let scales = if let Some(scales) = scales.first_chunk() { *scales } else { zero_padded(scales) };
                products = products.mul_add(V::load(&scales), V::splat(-0.0));
            }
            if count >= LANES {
                if self.accumulate {
                    products = products.mul_add(V::splat(1.0), V::load(&*to.cast()));
                }
                products.store(&mut *to.cast());
            } else {
                let mut line = [0.0; LANES];
                products.store(&mut line);
                for (bits, product) in bits.iter().zip(line) {
                    let before = if self.accumulate { f32::from_bits(bits.load(Ordering::Relaxed)) } else { -0.0 };
                    bits.store((before + product).to_bits(), Ordering::Relaxed);
                }
            }
        }
    }
}

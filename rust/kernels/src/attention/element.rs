//! The dtypes of a KV cache.

use bpe_llama_simd::bf16;

/// An element of the cache: float32, or the bits of bfloat16.
pub(super) trait Element: Copy + Sync {
    /// Returns the nearest element, ties to even.
    fn from_f32(x: f32) -> Self;

    /// Returns the float32 of the element; exact.
    fn to_f32(self) -> f32;

    /// Returns the elements, if they are float32.
    fn as_f32(_elements: &[Self]) -> Option<&[f32]> {
        None
    }

    /// Returns the bits, if the elements are bfloat16.
    fn as_bf16(_elements: &[Self]) -> Option<&[u16]> {
        None
    }
}

impl Element for f32 {
    fn from_f32(x: f32) -> Self {
        x
    }

    fn to_f32(self) -> f32 {
        self
    }

    fn as_f32(elements: &[Self]) -> Option<&[f32]> {
        Some(elements)
    }
}

impl Element for u16 {
    fn from_f32(x: f32) -> Self {
        bf16::from_f32(x)
    }

    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }

    fn as_bf16(elements: &[Self]) -> Option<&[u16]> {
        Some(elements)
    }
}

//! [`F32x16`], a vector of 16 float32, and its backends.
//!
//! | backend | instruction set | registers that hold 16 float32 |
//! |---|---|---|
//! | [`Avx512`] | AVX-512 F, BW and VL | 32 |
//! | [`Avx2`] | AVX2 and FMA | 8 pairs |
//! | `Neon` | NEON | 8 quadruples |
//! | [`Portable`] | what the compiler targets: SSE2 on x86-64, NEON on arm64 | 8 |

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
mod vector;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub use neon::Neon;
pub use portable::Portable;
pub use vector::{CacheLine, F32x16, LANES, zero_padded};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backend, Kind};

    /// Returns the bits of every operation on some fixed operands.
    ///
    /// # Safety
    /// Needs the CPU features of the backend.
    #[inline(always)]
    unsafe fn results<V: F32x16>() -> Vec<u32> {
        let floats: [f32; LANES] =
            std::array::from_fn(|lane| 1.1f32.powi(lane as i32) * if lane % 3 == 0 { -1e-3 } else { 7.3 });
        let bf16: [u16; 2 * LANES] = std::array::from_fn(|place| 0x3f00 + 0x31 * place as u16);
        let bytes: [i8; LANES] = std::array::from_fn(|lane| (lane as i8 - 8) * 15);
        let mut bits = Vec::new();
        // SAFETY: the caller's promise.
        unsafe {
            let [x, y] = [V::load(&floats), V::load_i8(&bytes)];
            let [even, odd] = V::load_bf16(&bf16);
            for vector in [x, y, even, odd, x.mul_add(y, V::splat(0.7)), x.mul_add(x, even)] {
                let mut lanes = [0.0; LANES];
                vector.store(&mut lanes);
                bits.extend(lanes.map(f32::to_bits));
            }
            let tile = std::array::from_fn(|line| CacheLine(floats.map(|x| x * line as f32)));
            let mut lanes = [CacheLine::ZERO; 2 * LANES];
            V::transpose(&tile, &mut lanes, 2);
            for (lane, line) in lanes.iter().step_by(2).enumerate() {
                let column: [f32; LANES] = std::array::from_fn(|line| tile[line].0[lane]);
                assert_eq!(line.0.map(f32::to_bits), column.map(f32::to_bits));
            }
            let sums = V::sum_each([x, y, x.mul_add(y, x), V::splat(0.1)]);
            bits.extend([x.sum(), x.mul_add(x, y).sum()].iter().chain(&sums).map(|sum| sum.to_bits()));
        }
        bits
    }

    #[test]
    fn every_backend_returns_the_same_bits() {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn avx2() -> Vec<u32> {
            // SAFETY: the features are enabled above.
            unsafe { results::<Avx2>() }
        }

        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn avx512() -> Vec<u32> {
            // SAFETY: the features are enabled above.
            unsafe { results::<Avx512>() }
        }

        // SAFETY: the portable backend needs no feature.
        let expected = unsafe { results::<Portable>() };
        for backend in Backend::available() {
            let got = match backend.kind() {
                Kind::Portable => continue,
                #[cfg(target_arch = "aarch64")]
                // SAFETY: every CPU of this target has NEON.
                Kind::Neon => unsafe { results::<Neon>() },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: a `Backend` exists only if the CPU has it.
                Kind::Avx2 => unsafe { avx2() },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Kind::Avx512 => unsafe { avx512() },
            };
            assert_eq!(got, expected, "{backend:?}");
        }
    }
}

//! Counter-based random numbers: a pure function of (seed, step), without state.

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Returns the random number of a step, in [0, 1), a multiple of 2^-53.
///
/// This is output `step` of `SplitMix64` with the initial state `mix(seed)`, computed without the outputs before it. So
/// a draw can be repeated, skipped or made on another device.
///
/// # Source
/// Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", figure 16.
///
/// ```
/// use bpe_llama_sampler::uniform;
/// assert_eq!(uniform(1, 0), 0.749_748_241_358_030_1);
/// ```
pub fn uniform(seed: u64, step: u64) -> f64 {
    let word = mix(mix(seed).wrapping_add(step.wrapping_add(1).wrapping_mul(GOLDEN)));
    (word >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// The finaliser of `SplitMix64`.
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::uniform;

    #[test]
    fn stays_below_one_and_spreads() {
        let draws: Vec<f64> = (0..10_000).map(|step| uniform(7, step)).collect();
        assert!(draws.iter().all(|u| (0.0..1.0).contains(u)));
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        // The draws have more than 24 bits: most are no multiple of 2^-24.
        let coarse = draws.iter().filter(|u| (*u * f64::from(1u32 << 24)).fract() == 0.0).count();
        assert!(coarse < 10, "{coarse}");
    }

    #[test]
    fn seeds_and_steps_wrap() {
        assert!((0.0..1.0).contains(&uniform(u64::MAX, u64::MAX)));
        assert_ne!(uniform(0, 0).to_bits(), uniform(0, 1).to_bits());
        assert_ne!(uniform(0, 0).to_bits(), uniform(1, 0).to_bits());
    }
}

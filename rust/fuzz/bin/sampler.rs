//! The target of the sampler's crate, which the other targets' crate does not know.
#![no_main]

#[path = "../targets/sampler.rs"]
mod sampler;

libfuzzer_sys::fuzz_target!(|input: &[u8]| sampler::sampler(input));

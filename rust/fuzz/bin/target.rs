//! The binary of every target: it has the target's name.
#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let target = targets::TARGETS.into_iter().find(|(name, _)| *name == env!("CARGO_BIN_NAME"));
    target.expect("a target of this name").1(input);
});

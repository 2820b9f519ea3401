//! Writes `unicode_tables.rs`, the character classes of `src/pretokenize/unicode.rs`, from the Unicode tables of
//! `regex-syntax`: those that the `regex` and `fancy-regex` crates match with, and so the ones tiktoken splits by.

use std::collections::HashMap;
use std::path::PathBuf;

use regex_syntax::hir::{Class, Hir, HirKind};

/// Bit and regex of each class; the same bits as in `src/pretokenize/unicode.rs`.
const CLASSES: [(u8, &str); 8] = [
    (1, r"[\p{Lu}\p{Lt}]"),
    (1 << 1, r"\p{Ll}"),
    (1 << 2, r"[\p{Lm}\p{Lo}]"),
    (1 << 3, r"\p{M}"),
    (1 << 4, r"\p{N}"),
    (1 << 5, r"\s"),
    (1 << 6, r"[\p{P}\p{S}]"),
    (1 << 7, r"[\r\n]"),
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-env=UNICODE_VERSION={}", newest_age());
    let path = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it")).join("unicode_tables.rs");
    std::fs::write(path, tables()).expect("a writable folder");
}

/// Returns the source text of `unicode_tables.rs`.
fn tables() -> String {
    let mut class_of = vec![0_u8; 0x11_0000];
    for (bit, pattern) in CLASSES {
        let Ok(HirKind::Class(Class::Unicode(class))) = regex_syntax::parse(pattern).map(Hir::into_kind) else {
            panic!("{pattern} is no class of characters");
        };
        for range in class.ranges() {
            for class in &mut class_of[range.start() as usize..=range.end() as usize] {
                *class |= bit;
            }
        }
    }
    let mut known = HashMap::new();
    let mut classes = Vec::new();
    let mut block_of = Vec::new();
    for block in class_of.chunks(64) {
        let next = known.len();
        let index = *known.entry(block).or_insert_with(|| {
            classes.extend_from_slice(block);
            next
        });
        block_of.push(index);
    }
    let (blocks, bytes) = (block_of.len(), classes.len());
    format!(
        "/// The row of `CLASSES` that holds a block of 64 code points.\n\
         static BLOCK_OF: [u16; {blocks}] = {block_of:?};\n\
         /// The class bits of each code point, 64 to a block.\n\
         static CLASSES: [u8; {bytes}] = {classes:?};\n"
    )
}

/// The highest Unicode version whose characters the dependency knows.
fn newest_age() -> String {
    let parses = |version: &String| regex_syntax::parse(&format!(r"\p{{age={version}}}")).is_ok();
    let versions = (6..40).rev().flat_map(|major| (0..4).rev().map(move |minor| format!("{major}.{minor}")));
    { versions }.find(parses).map_or_else(String::new, |version| format!("{version}.0"))
}

//! The committed class tables against the tables of the regex crates.

#[path = "../examples/generate_unicode_tables.rs"]
#[allow(dead_code, reason = "the generator's `main` is not needed here")]
mod generator;

#[test]
fn the_committed_tables_are_those_of_the_regex_crates() {
    let committed = include_str!("../src/pretokenize/unicode_tables.rs").replace("\r\n", "\n");
    // Comparing with `assert_eq!` would print half a megabyte.
    assert!(committed == generator::tables(), "run the example generate_unicode_tables and commit what it writes");
}

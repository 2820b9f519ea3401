//! The file format of word counts.
//!
//! Integers are LEB128, strings a length and bytes. Equal counts give equal files.
//!
//! | field | |
//! |---|---|
//! | magic | `BPEWORDS` |
//! | version | one byte |
//! | pattern | a string |
//! | special tokens | their number, then strings |
//! | words | their number, then each in the order of its bytes: the length of the prefix shared with the word before, at most 64, the rest as a string, the count |
//! | checksum | CRC-32 of all bytes before, four bytes, little-endian |

use std::path::Path;

use super::sort::sort;
use super::word_counts::WordCounts;
use crate::files::read_with_magic;
use crate::{Error, Interrupt, Result};

const MAGIC: &[u8; 8] = b"BPEWORDS";
const VERSION: u8 = 1;

/// The most bytes of a prefix that a word written shares with the word before, so that words take at most
/// [`MAX_EXPANSION`] times the memory of the file.
const MAX_SHARED: usize = 64;

/// How many times the size of the file the words read may take, and the size that is allowed for any file.
const MAX_EXPANSION: usize = 32;
const LEAST_LIMIT: usize = 64 << 20;

/// Words between two interrupt checks.
const CHECK_WORDS: usize = 1 << 16;

impl WordCounts {
    /// Reads a file of the bytes of [`WordCounts::to_bytes`].
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::Format`] if it is damaged or of another format; the error of
    /// the interrupt check.
    pub fn load(path: &Path, interrupt: Interrupt<'_>) -> Result<Self> {
        let bytes = read_with_magic(path, MAGIC)?;
        Self::from_bytes(&bytes, interrupt).map_err(|error| match error {
            Error::Format(problem) => malformed!("{}: {problem}", path.display()),
            other => other,
        })
    }

    /// Returns the counts in the file format.
    ///
    /// # Errors
    /// The error of the interrupt check.
    pub fn to_bytes(&self, interrupt: Interrupt<'_>) -> Result<Vec<u8>> {
        let mut bytes = MAGIC.to_vec();
        bytes.push(VERSION);
        put_string(&mut bytes, self.pattern().as_bytes());
        put(&mut bytes, self.special_tokens().len() as u64);
        for token in self.special_tokens() {
            put_string(&mut bytes, token.as_bytes());
        }
        let mut words = Vec::with_capacity(self.len());
        self.for_each(interrupt, |word, count| words.push((word.to_vec(), count)))?;
        sort(&mut words, interrupt)?;
        put(&mut bytes, words.len() as u64);
        let mut before: &[u8] = &[];
        for (index, (word, count)) in words.iter().enumerate() {
            if index.is_multiple_of(CHECK_WORDS) {
                interrupt.check()?;
            }
            let shared = word.iter().zip(before).take(MAX_SHARED).take_while(|(a, b)| a == b).count();
            put(&mut bytes, shared as u64);
            put_string(&mut bytes, &word[shared..]);
            put(&mut bytes, *count);
            before = word;
        }
        let checksum = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        Ok(bytes)
    }

    /// Returns the counts that [`WordCounts::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`Error::Format`] if the bytes are damaged or of another format; the error of the interrupt check.
    pub fn from_bytes(bytes: &[u8], interrupt: Interrupt<'_>) -> Result<Self> {
        if !bytes.starts_with(MAGIC) {
            return Err(malformed!(
                "no word counts: the file does not begin with {:?}",
                MAGIC.escape_ascii().to_string()
            ));
        }
        let Some((body, &checksum)) = bytes.split_last_chunk::<4>().filter(|(body, _)| body.len() > MAGIC.len()) else {
            return Err(damaged("the file ends too soon"));
        };
        if crc32fast::hash(body) != u32::from_le_bytes(checksum) {
            return Err(damaged("the checksum differs"));
        }
        if body[MAGIC.len()] != VERSION {
            return Err(damaged(&format!("version {}, expected {VERSION}", body[MAGIC.len()])));
        }
        // The checksum matches, but lengths are still checked: another program may have written them.
        let mut rest = &body[MAGIC.len() + 1..];
        let limit = (bytes.len() * MAX_EXPANSION).max(LEAST_LIMIT);
        let pattern = take_text(&mut rest)?;
        let mut special_tokens = Vec::new();
        for _ in 0..take(&mut rest)? {
            let token = take_text(&mut rest)?;
            if token.is_empty() {
                return Err(ends_early());
            }
            special_tokens.push(token);
        }
        let total = words_bytes(rest, interrupt)?;
        if total > limit {
            return Err(damaged(&format!("words of {total} bytes; expected at most {limit}")));
        }
        let mut counts = Self::from_parts(&pattern, &special_tokens, []);
        let mut word = Vec::new();
        for index in 0..take(&mut rest)? {
            if index % CHECK_WORDS as u64 == 0 {
                interrupt.check()?;
            }
            word.truncate(take_shared(&mut rest, word.len())?);
            word.extend_from_slice(take_string(&mut rest)?);
            counts.add(&word, take(&mut rest)?);
        }
        if rest.is_empty() { Ok(counts) } else { Err(ends_early()) }
    }
}

#[cold]
fn damaged(what: &str) -> Error {
    malformed!("damaged word counts: {what}")
}

#[cold]
fn ends_early() -> Error {
    damaged("an empty special token, or a length beyond the file's end")
}

/// Returns the bytes of all words, before memory is taken for them.
fn words_bytes(mut rest: &[u8], interrupt: Interrupt<'_>) -> Result<usize> {
    let (mut length, mut total) = (0, 0_usize);
    for index in 0..take(&mut rest)? {
        if index % CHECK_WORDS as u64 == 0 {
            interrupt.check()?;
        }
        length = take_shared(&mut rest, length)? + take_string(&mut rest)?.len();
        total = total.saturating_add(length);
        take(&mut rest)?;
    }
    Ok(total)
}

fn put(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn put_string(bytes: &mut Vec<u8>, string: &[u8]) {
    put(bytes, string.len() as u64);
    bytes.extend_from_slice(string);
}

fn take(bytes: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or_else(ends_early)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(ends_early())
}

/// Returns the length of the prefix that a word shares with the word before, of `length` bytes.
fn take_shared(bytes: &mut &[u8], length: usize) -> Result<usize> {
    usize::try_from(take(bytes)?).ok().filter(|&shared| shared <= length).ok_or_else(ends_early)
}

fn take_string<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8]> {
    let length = take(bytes)?;
    let (string, rest) =
        usize::try_from(length).ok().and_then(|length| bytes.split_at_checked(length)).ok_or_else(ends_early)?;
    *bytes = rest;
    Ok(string)
}

fn take_text(bytes: &mut &[u8]) -> Result<String> {
    String::from_utf8(take_string(bytes)?.to_vec()).map_err(|_| ends_early())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;

    const GO_ON: Interrupt<'_> = Interrupt::NEVER;

    type Step<'a> = &'a dyn Fn(Interrupt<'_>) -> Result<()>;

    fn sorted(counts: &WordCounts) -> Vec<(Vec<u8>, u64)> {
        counts.most_common(usize::MAX, GO_ON).expect("not stopped")
    }

    proptest! {
        #[test]
        fn round_trips(words in prop::collection::btree_map(prop::collection::vec(any::<u8>(), 1..20), 1u64.., 0..50)) {
            let counts = WordCounts::from_parts("a+", &["<x>".to_owned()], words.iter().map(|(word, &count)| (&word[..], count)));
            let back = WordCounts::from_bytes(&counts.to_bytes(GO_ON).expect("not stopped"), GO_ON).expect("what was written");
            prop_assert_eq!(sorted(&back), sorted(&counts));
            prop_assert_eq!((back.pattern(), back.special_tokens()), (counts.pattern(), counts.special_tokens()));
            prop_assert_eq!(back.to_bytes(GO_ON).expect("not stopped"), counts.to_bytes(GO_ON).expect("not stopped"));
        }

        #[test]
        fn damage_is_an_error(at in 0usize..1000, flip in 1u8.., cut in 0usize..1000) {
            let bytes = WordCounts::from_words("a+", [(&b"word"[..], 3), (b"words", 70_000)]).to_bytes(GO_ON).expect("not stopped");
            let mut damaged = bytes.clone();
            damaged[at % bytes.len()] ^= flip;
            prop_assert!(WordCounts::from_bytes(&damaged, GO_ON).is_err());
            prop_assert!(WordCounts::from_bytes(&bytes[..cut % bytes.len()], GO_ON).is_err());
        }

        /// Random bytes with a valid checksum: no panic, no memory beyond the file's size.
        #[test]
        fn random_lengths_are_safe(body in prop::collection::vec(any::<u8>(), 0..60)) {
            let mut bytes = [&MAGIC[..], &[VERSION], &body].concat();
            let checksum = crc32fast::hash(&bytes);
            bytes.extend_from_slice(&checksum.to_le_bytes());
            let _ = WordCounts::from_bytes(&bytes, GO_ON);
        }
    }

    #[test]
    fn words_that_share_long_prefixes_take_no_more_memory_than_the_file_allows() {
        // Each word of four bytes in the file is one byte longer than the word before.
        let file = |words: u64| {
            let mut bytes = [&MAGIC[..], &[VERSION]].concat();
            put_string(&mut bytes, b"a+");
            put(&mut bytes, 0);
            put(&mut bytes, words);
            for word in 0..words {
                put(&mut bytes, word);
                put_string(&mut bytes, b"a");
                put(&mut bytes, 1);
            }
            let checksum = crc32fast::hash(&bytes);
            bytes.extend_from_slice(&checksum.to_le_bytes());
            bytes
        };
        assert_eq!(WordCounts::from_bytes(&file(2000), GO_ON).expect("2 MB of words").len(), 2000);
        let error = WordCounts::from_bytes(&file(20_000), GO_ON).expect_err("200 MB of words").to_string();
        assert!(error.contains("words of 200010000 bytes; expected at most 67108864"), "{error}");
        // What is written can be read: no word shares more than 64 bytes.
        let words: Vec<Vec<u8>> = (1..2000).map(|length| vec![b'a'; length]).collect();
        let bytes =
            WordCounts::from_words("a+", words.iter().map(|word| (&word[..], 1))).to_bytes(GO_ON).expect("bytes");
        let total: usize = words.iter().map(Vec::len).sum();
        assert!(total <= 32 * bytes.len(), "{total} bytes of words in {}", bytes.len());
        assert_eq!(WordCounts::from_bytes(&bytes, GO_ON).expect("what was written").len(), words.len());
    }

    #[cfg(unix)] // elsewhere the file would take its length on the disk
    #[test]
    fn a_large_file_of_another_format_is_not_read() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(1 << 40).expect("a sparse file");
        let error = WordCounts::load(file.path(), GO_ON).expect_err("zeros").to_string();
        assert!(error.contains("does not begin with \"BPEWORDS\""), "{error}");
        assert_eq!(read_with_magic(file.path(), MAGIC).expect("eight bytes"), [0; 8]);
    }

    /// Enough words that each step checks more than once.
    #[test]
    fn every_step_checks_for_an_interrupt() {
        let words: Vec<String> = (0..(1 << 17)).map(|word| word.to_string()).collect();
        let counts = WordCounts::from_words("a+", words.iter().map(|word| (word.as_bytes(), 1)));
        let bytes = counts.to_bytes(GO_ON).expect("not stopped");
        let steps: [Step<'_>; 6] = [
            &|interrupt| counts.for_each(interrupt, |_, _| ()),
            &|interrupt| counts.most_common(usize::MAX, interrupt).map(|_| ()),
            &|interrupt| counts.to_bytes(interrupt).map(|_| ()),
            &|interrupt| WordCounts::from_bytes(&bytes, interrupt).map(|_| ()),
            &|interrupt| counts.clone().merge(&counts, interrupt),
            &|interrupt| counts.pruned(2, interrupt).map(|_| ()),
        ];
        for (index, step) in steps.iter().enumerate() {
            let checks = AtomicUsize::new(0);
            // Interrupts at the last check.
            let count = || checks.fetch_add(1, Ordering::Relaxed);
            step(Interrupt::new(&|| {
                count();
                Ok(())
            }))
            .expect("not stopped");
            let last = checks.swap(0, Ordering::Relaxed);
            assert!(last > 1, "step {index} checks {last} times");
            let stop = || if count() + 1 == last { Err(Error::Interrupted) } else { Ok(()) };
            assert!(matches!(step(Interrupt::new(&stop)), Err(Error::Interrupted)), "step {index}");
        }
    }
}

//! A sort that can be interrupted.

use crate::Result;
use crate::interrupt::Interrupt;

/// Items sorted or partitioned between two interrupt checks.
const CHECK_ITEMS: usize = 1 << 15;

/// Items in the sample whose median is the pivot.
const PIVOT_SAMPLE: usize = 64;

/// Sorts distinct items by quicksort, with an interrupt check every few milliseconds.
///
/// `sort_unstable` and `select_nth_unstable` cannot be interrupted, and take over a second for millions of words.
///
/// # Errors
/// The error of the interrupt check; the order is unspecified then.
pub(super) fn sort<T: Ord>(mut items: &mut [T], interrupt: Interrupt<'_>) -> Result<()> {
    while items.len() > CHECK_ITEMS {
        // Pivot: the median of a sample spread over all items.
        let step = items.len() / PIVOT_SAMPLE;
        for index in 0..PIVOT_SAMPLE {
            items.swap(index, index * step);
        }
        items[..PIVOT_SAMPLE].sort_unstable();
        items.swap(0, PIVOT_SAMPLE / 2);
        let mut middle = 0;
        for index in 1..items.len() {
            if index % CHECK_ITEMS == 1 {
                interrupt.check()?;
            }
            if items[index] < items[0] {
                middle += 1;
                items.swap(index, middle);
            }
        }
        items.swap(0, middle);
        let (smaller, larger) = items.split_at_mut(middle);
        let larger = &mut larger[1..];
        // Recursion into the shorter part only: its depth is at most the logarithm of the length.
        let (shorter, longer) = if smaller.len() < larger.len() { (smaller, larger) } else { (larger, smaller) };
        sort(shorter, interrupt)?;
        items = longer;
    }
    interrupt.check()?;
    items.sort_unstable();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorts_like_the_standard_library() {
        let length = 3 * CHECK_ITEMS as u32 + 5;
        let multiples = |factor: u32| (0..length).map(|index| index.wrapping_mul(factor)).collect();
        // Ascending, descending and shuffled: multiplication by an odd number repeats no value.
        let orders: [Vec<u32>; 3] = [multiples(1), (0..length).rev().collect(), multiples(0x9E37_79B9)];
        for mut items in orders {
            let mut expected = items.clone();
            expected.sort_unstable();
            sort(&mut items, Interrupt::NEVER).expect("not stopped");
            assert!(items == expected);
        }
    }
}

//! Scratch memory that outlives a call, for whatever thread comes next.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many values are kept at most.
const SLOTS: usize = 64;

/// Values that threads take and give back, mostly each thread its own.
///
/// No lock is ever waited for: a forked child may have inherited one from a thread that does not exist there, and then
/// goes on to the next slot.
pub struct ScratchPool<T> {
    slots: [Mutex<Option<Box<T>>>; SLOTS],
}

impl<T> Default for ScratchPool<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> ScratchPool<T> {
    /// Returns an empty pool.
    pub const fn new() -> Self {
        Self { slots: [const { Mutex::new(None) }; SLOTS] }
    }

    /// Returns the value that this thread gave back last, else that of another, if there is one.
    pub fn take(&self) -> Option<Box<T>> {
        self.home_first().find_map(|slot| slot.try_lock().ok()?.take())
    }

    /// Keeps the value, or drops it if too many are kept already.
    pub fn give_back(&self, value: Box<T>) {
        let free = self.home_first().find_map(|slot| slot.try_lock().ok().filter(|slot| slot.is_none()));
        if let Some(mut slot) = free {
            *slot = Some(value);
        }
    }

    /// Drops all values that no thread uses.
    pub fn clear(&self) {
        while self.take().is_some() {}
    }

    /// All slots, from the one on that is this thread's alone unless there are more threads than slots.
    fn home_first(&self) -> impl Iterator<Item = &Mutex<Option<Box<T>>>> {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static HOME: usize = THREADS.fetch_add(1, Ordering::Relaxed) % SLOTS);
        let (before, after) = self.slots.split_at(HOME.with(|home| *home));
        after.iter().chain(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_back_is_taken_again_by_this_thread_or_another() {
        let pool = ScratchPool::new();
        assert!(pool.take().is_none());
        pool.give_back(Box::new(7));
        assert_eq!(pool.take().as_deref(), Some(&7));
        pool.give_back(Box::new(8));
        let taken = std::thread::scope(|scope| scope.spawn(|| pool.take()).join().expect("no panic"));
        assert_eq!(taken.as_deref(), Some(&8));
        for value in 0..1000 {
            pool.give_back(Box::new(value));
        }
        assert_eq!(std::iter::from_fn(|| pool.take()).count(), SLOTS);
        pool.give_back(Box::new(9));
        pool.clear();
        assert!(pool.take().is_none());
    }

    #[test]
    fn a_slot_that_is_held_for_ever_is_passed_over() {
        let pool = ScratchPool::new();
        let held: Vec<_> = pool.home_first().take(3).map(|slot| slot.lock().expect("not poisoned")).collect();
        assert!(pool.take().is_none());
        pool.give_back(Box::new(1));
        assert_eq!(pool.take().as_deref(), Some(&1));
        drop(held);
    }
}

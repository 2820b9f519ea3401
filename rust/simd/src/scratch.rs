//! Scratch memory that threads reuse from call to call.

// `make loom` runs the test named `models` in every order of the threads' steps.
#[cfg(all(test, loom))]
use loom::sync::Mutex;
#[cfg(not(all(test, loom)))]
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The most values that a pool stores.
const SLOTS: usize = if cfg!(all(test, loom)) { 2 } else { 64 };

/// A pool of values that threads take and give back; a thread usually gets its own value again.
///
/// Locks are tried, never waited for: a forked child may inherit a lock that no thread of it will release, and then uses
/// the next slot.
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
    #[cfg(not(all(test, loom)))]
    pub const fn new() -> Self {
        Self { slots: [const { Mutex::new(None) }; SLOTS] }
    }

    /// Returns an empty pool.
    #[cfg(all(test, loom))]
    pub fn new() -> Self {
        Self { slots: std::array::from_fn(|_| Mutex::new(None)) }
    }

    /// Returns the value that this thread gave back last, another thread's value, or `None` if the pool is empty.
    pub fn take(&self) -> Option<Box<T>> {
        self.home_first().find_map(|slot| slot.try_lock().ok()?.take())
    }

    /// Stores the value, or drops it if the pool is full.
    pub fn give_back(&self, value: Box<T>) {
        let free = self.home_first().find_map(|slot| slot.try_lock().ok().filter(|slot| slot.is_none()));
        if let Some(mut slot) = free {
            *slot = Some(value);
        }
    }

    /// Drops all stored values.
    pub fn clear(&self) {
        while self.take().is_some() {}
    }

    /// Returns all slots, starting at the home slot of this thread. Up to 64 threads have different home slots.
    fn home_first(&self) -> impl Iterator<Item = &Mutex<Option<Box<T>>>> {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static HOME: usize = THREADS.fetch_add(1, Ordering::Relaxed) % SLOTS);
        let (before, after) = self.slots.split_at(HOME.with(|home| *home));
        after.iter().chain(before)
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use loom::sync::Arc;

    #[test]
    fn a_value_is_left_in_every_order() {
        loom::model(|| {
            let pool = Arc::new(ScratchPool::new());
            pool.give_back(Box::new(0));
            let other = Arc::clone(&pool);
            let use_one = |pool: &ScratchPool<usize>| {
                let value = pool.take().unwrap_or(Box::new(1));
                pool.give_back(value);
            };
            let thread = loom::thread::spawn(move || use_one(&other));
            use_one(&pool);
            thread.join().expect("no panic");
            // A slot that is locked for an instant is passed over, so one of two values may be dropped.
            assert!(pool.take().is_some(), "a thread may drop its value only if another's stays");
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn values_are_reused_by_this_thread_or_another() {
        let pool = ScratchPool::new();
        assert!(pool.take().is_none());
        pool.give_back(Box::new(7));
        assert_eq!(pool.take().as_deref(), Some(&7));
        pool.give_back(Box::new(8));
        let taken = std::thread::scope(|scope| scope.spawn(|| pool.take()).join().expect("no panic"));
        assert_eq!(taken.as_deref(), Some(&8));
        for value in 0..100 {
            pool.give_back(Box::new(value));
        }
        assert_eq!(std::iter::from_fn(|| pool.take()).count(), SLOTS);
        pool.give_back(Box::new(9));
        pool.clear();
        assert!(pool.take().is_none());
    }

    #[test]
    fn a_slot_locked_for_ever_is_skipped() {
        let pool = ScratchPool::new();
        let held: Vec<_> = pool.home_first().take(3).map(|slot| slot.lock().expect("not poisoned")).collect();
        assert!(pool.take().is_none());
        pool.give_back(Box::new(1));
        assert_eq!(pool.take().as_deref(), Some(&1));
        drop(held);
    }
}

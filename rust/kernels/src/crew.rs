//! Threads that wait for the next product: starting some for each would cost as much as the product.
//!
//! A token takes some hundred products of a few microseconds each. A helper that has finished one looks for the next
//! for [`PATIENCE`] before it sleeps.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a helper looks for work before it sleeps.
const PATIENCE: Duration = Duration::from_micros(100);

type Job = &'static (dyn Fn() + Sync);

#[derive(Default)]
struct Slot {
    job: Option<Job>,
    /// How many helpers may still take part.
    wanted: usize,
    asleep: usize,
}

#[derive(Default)]
struct Shared {
    slot: Mutex<Slot>,
    wake: Condvar,
    /// Counts the jobs.
    turn: AtomicUsize,
    /// Helpers at work on the job; grows only under the lock, and while there is a job.
    inside: AtomicUsize,
    /// A job has panicked in a helper.
    failed: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn help(&self) {
        let mut seen = 0;
        loop {
            seen = self.next_turn(seen);
            let mut slot = self.lock();
            let Some(job) = slot.job.filter(|_| slot.wanted > 0) else { continue };
            slot.wanted -= 1;
            self.inside.fetch_add(1, Ordering::Relaxed);
            drop(slot);
            // A panic must not leave the caller waiting for ever, nor with part of the work; no job is known to panic.
            if catch_unwind(AssertUnwindSafe(job)).is_err() {
                self.failed.store(true, Ordering::Relaxed);
            }
            self.inside.fetch_sub(1, Ordering::Release);
        }
    }

    fn next_turn(&self, seen: usize) -> usize {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            for _ in 0..32 {
                let turn = self.turn.load(Ordering::Acquire);
                if turn != seen {
                    return turn;
                }
                std::hint::spin_loop();
            }
        }
        let mut slot = self.lock();
        slot.asleep += 1;
        while self.turn.load(Ordering::Acquire) == seen {
            slot = self.wake.wait(slot).unwrap_or_else(PoisonError::into_inner);
        }
        slot.asleep -= 1;
        self.turn.load(Ordering::Acquire)
    }
}

/// Takes the job back when dropped, and waits for the helpers that have begun it.
struct Open<'a>(&'a Shared);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.lock().job = None;
        let mut rounds = 0_u32;
        while self.0.inside.load(Ordering::Acquire) > 0 {
            rounds = rounds.saturating_add(1);
            if rounds < 10_000 {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

struct Crew {
    process: u32,
    helpers: usize,
    shared: Arc<Shared>,
}

static CREW: Mutex<Option<Crew>> = Mutex::new(None);

/// Runs `job` on this thread, and at the same time on up to `threads - 1` others that are free; returns when all are done.
///
/// The job must do all of its work whoever takes part. Where the crew serves another thread, this one works alone. So
/// does a child whose parent was forked during a product; any other child starts a crew of its own. After a job that
/// panicked, whose panic the caller meets, all work alone.
pub(crate) fn run(threads: usize, job: &(dyn Fn() + Sync)) {
    let Some(mut crew) = (if threads > 1 { CREW.try_lock().ok() } else { None }) else {
        return job();
    };
    let process = std::process::id();
    crew.take_if(|crew| crew.process != process);
    crew.get_or_insert_with(|| Crew { process, helpers: 0, shared: Arc::default() }).run(threads, job);
}

impl Crew {
    fn run(&mut self, threads: usize, job: &(dyn Fn() + Sync)) {
        while self.helpers < threads - 1 {
            let shared = Arc::clone(&self.shared);
            if std::thread::Builder::new().name("bpe-llama".into()).spawn(move || shared.help()).is_err() {
                break; // fewer will do
            }
            self.helpers += 1;
        }
        let shared = &*self.shared;
        // SAFETY: helpers call the job only while they count as inside, which they begin only while the slot holds it;
        // `open`, dropped before this function returns or unwinds, empties the slot and waits until none is inside.
        let lasting = unsafe { std::mem::transmute::<&(dyn Fn() + Sync), Job>(job) };
        let open = Open(shared);
        let mut slot = shared.lock();
        slot.job = Some(lasting);
        slot.wanted = threads - 1;
        shared.turn.fetch_add(1, Ordering::Release);
        let asleep = slot.asleep > 0;
        drop(slot);
        if asleep {
            shared.wake.notify_all();
        }
        job();
        drop(open);
        assert!(!shared.failed.load(Ordering::Relaxed), "a job panicked in a helper");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_work_is_done_before_it_returns_whoever_helps() {
        for round in 0..2000 {
            let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
            run(1 + round % 4, &|| {
                while next.fetch_add(1, Ordering::Relaxed) < 50 {
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
            assert_eq!(done.load(Ordering::Relaxed), 50);
            if round % 100 == 0 {
                std::thread::sleep(2 * PATIENCE); // the helpers sleep, and must wake
            }
        }
    }

    #[test]
    fn helpers_do_come() {
        let came = Mutex::new(std::collections::HashSet::new());
        for _ in 0..1000 {
            run(2, &|| {
                came.lock().unwrap_or_else(PoisonError::into_inner).insert(std::thread::current().id());
                std::thread::sleep(Duration::from_micros(200));
            });
            if came.lock().is_ok_and(|came| came.len() > 1) {
                return;
            }
        }
        panic!("no helper came to a thousand jobs");
    }

    #[test]
    fn a_panic_in_a_helper_reaches_the_caller() {
        let mut crew = Crew { process: std::process::id(), helpers: 0, shared: Arc::default() };
        let (caller, came) = (std::thread::current().id(), AtomicUsize::new(0));
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            crew.run(2, &|| {
                if std::thread::current().id() != caller {
                    came.store(1, Ordering::Relaxed);
                    panic!("for the test");
                }
                while came.load(Ordering::Relaxed) == 0 {
                    std::thread::yield_now();
                }
            });
        }));
        assert!(outcome.is_err());
    }

    #[test]
    fn callers_at_the_same_time_and_one_inside_another_do_not_wait_for_each_other() {
        let done = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..300 {
                        run(2, &|| {
                            run(2, &|| {
                                done.fetch_add(1, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert!(done.load(Ordering::Relaxed) >= 900);
    }
}

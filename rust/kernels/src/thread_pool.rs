//! A thread pool for jobs of a few microseconds.
//!
//! Decoding a token takes about a hundred products. Starting threads for each would cost as much as the product, so workers
//! stay: after a job a worker spins for [`SPIN_TIME`], then sleeps.

// `make loom` runs the tests named `models` in every order of the threads' steps.
#[cfg(all(test, loom))]
use loom::{
    hint,
    sync::atomic::{AtomicBool, AtomicUsize},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
#[cfg(not(all(test, loom)))]
use std::{
    hint,
    sync::atomic::{AtomicBool, AtomicUsize},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread,
};

use bpe_llama_simd::threads::bounded;

/// How long a worker spins before it sleeps.
const SPIN_TIME: Duration = if cfg!(loom) { Duration::ZERO } else { Duration::from_micros(100) };

type Job = &'static (dyn Fn() + Sync);

#[derive(Default)]
struct State {
    job: Option<Job>,
    /// How many more workers may join the job.
    openings: usize,
    sleeping: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    /// The number of jobs so far.
    jobs: AtomicUsize,
    /// Workers that run the job. It grows only under the lock, while there is a job.
    active: AtomicUsize,
    /// Whether a job has panicked in a worker.
    panicked: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `job` on this thread and on up to `openings` workers; returns when all have finished.
    fn run(&self, openings: usize, job: &(dyn Fn() + Sync)) {
        // SAFETY: a worker calls the job only while it counts as active, and becomes active only while the state holds the
        // job. Before this function returns or unwinds, `guard` is dropped: it removes the job and waits until no worker is
        // active.
        let job_of_workers = unsafe { std::mem::transmute::<&(dyn Fn() + Sync), Job>(job) };
        let guard = JobGuard(self);
        let mut state = self.lock();
        state.job = Some(job_of_workers);
        state.openings = openings;
        self.jobs.fetch_add(1, Ordering::Release);
        let sleeping = state.sleeping > 0;
        drop(state);
        if sleeping {
            self.wake.notify_all();
        }
        job();
        drop(guard);
        assert!(!self.panicked.load(Ordering::Relaxed), "a job panicked in a worker");
    }

    /// Waits for a job after `seen`, joins it if it has an opening, and returns its number.
    fn join_next(&self, seen: usize) -> usize {
        let number = self.next_job(seen);
        let mut state = self.lock();
        let Some(job) = state.job.filter(|_| state.openings > 0) else { return number };
        state.openings -= 1;
        self.active.fetch_add(1, Ordering::Relaxed);
        drop(state);
        // After a panic the caller must neither wait for ever nor return an incomplete result. No job is known to panic.
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
        self.active.fetch_sub(1, Ordering::Release);
        number
    }

    /// Waits until the number of jobs differs from `seen`, and returns it.
    fn next_job(&self, seen: usize) -> usize {
        let start = Instant::now();
        while start.elapsed() < SPIN_TIME {
            for _ in 0..32 {
                let jobs = self.jobs.load(Ordering::Acquire);
                if jobs != seen {
                    return jobs;
                }
                hint::spin_loop();
            }
        }
        let mut state = self.lock();
        state.sleeping += 1;
        while self.jobs.load(Ordering::Acquire) == seen {
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.sleeping -= 1;
        self.jobs.load(Ordering::Acquire)
    }
}

/// Withdraws the job when dropped, and waits for the workers that have joined it.
struct JobGuard<'a>(&'a Shared);

impl Drop for JobGuard<'_> {
    fn drop(&mut self) {
        self.0.lock().job = None;
        let mut rounds = 0_u32;
        while self.0.active.load(Ordering::Acquire) > 0 {
            rounds = rounds.saturating_add(1);
            if rounds < 10_000 {
                hint::spin_loop();
            } else {
                thread::yield_now();
            }
        }
    }
}

struct ThreadPool {
    process: u32,
    workers: usize,
    shared: Arc<Shared>,
}

static POOL: std::sync::Mutex<Option<ThreadPool>> = std::sync::Mutex::new(None);

/// Runs `job` on this thread and, at the same time, on up to `threads - 1` free workers; returns when all have finished.
/// There is at most one worker a CPU, eight on small machines.
///
/// Whoever runs it, the job must do all of its work: this thread runs it alone if the pool serves another thread, in a
/// child forked while the pool was in use, and after a job has panicked. Any other forked child starts its own pool.
///
/// # Panics
/// If the job panics, on whichever thread.
pub(crate) fn run(threads: usize, job: &(dyn Fn() + Sync)) {
    let Some(mut pool) = (if threads > 1 { POOL.try_lock().ok() } else { None }) else {
        return job();
    };
    let process = std::process::id();
    pool.take_if(|pool| pool.process != process);
    pool.get_or_insert_with(|| ThreadPool::new(process)).run(threads, job);
}

impl ThreadPool {
    fn new(process: u32) -> Self {
        Self { process, workers: 0, shared: Arc::new(Shared::default()) }
    }

    fn run(&mut self, threads: usize, job: &(dyn Fn() + Sync)) {
        let threads = bounded(threads);
        while self.workers < threads - 1 {
            let shared = Arc::clone(&self.shared);
            let work = move || {
                let mut seen = 0;
                loop {
                    seen = shared.join_next(seen);
                }
            };
            if thread::Builder::new().name("bpe-llama".into()).spawn(work).is_err() {
                break; // go on with fewer
            }
            self.workers += 1;
        }
        self.shared.run(threads - 1, job);
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use loom::cell::UnsafeCell;

    /// What a job borrows: loom fails if a worker reads it after `run` has returned.
    struct Borrowed(UnsafeCell<()>);

    // SAFETY: the cell holds nothing; loom checks the accesses.
    unsafe impl Sync for Borrowed {}

    impl Borrowed {
        fn read(&self) {
            self.0.with(|_| ());
        }
    }

    /// Runs `jobs` jobs with `workers` threads in every order of their steps.
    fn explore(workers: usize, jobs: usize) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(move || {
            let shared = Arc::new(Shared::default());
            let started: Vec<_> = (0..workers)
                .map(|_| {
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || {
                        let mut seen = 0;
                        while seen < jobs {
                            seen = shared.join_next(seen);
                        }
                    })
                })
                .collect();
            for _ in 0..jobs {
                let borrowed = Borrowed(UnsafeCell::new(()));
                shared.run(workers, &|| borrowed.read());
                borrowed.0.with_mut(|_| ()); // no worker uses it any more
            }
            for worker in started {
                worker.join().expect("no panic");
            }
        });
    }

    #[test]
    fn no_worker_uses_a_job_after_run_has_returned_and_none_sleeps_for_ever() {
        explore(1, 2);
        explore(2, 1);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const ROUNDS: usize = if cfg!(miri) { 20 } else { 1000 };

    #[test]
    fn a_job_is_complete_when_run_returns_whichever_workers_join() {
        for round in 0..2 * ROUNDS {
            let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
            run(1 + round % 4, &|| {
                while next.fetch_add(1, Ordering::Relaxed) < 50 {
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
            assert_eq!(done.load(Ordering::Relaxed), 50);
            if round % (ROUNDS / 10) == 0 {
                std::thread::sleep(2 * SPIN_TIME); // the workers sleep, and must wake
            }
        }
    }

    #[test]
    fn workers_join_jobs() {
        let threads = Mutex::new(std::collections::HashSet::new());
        for _ in 0..ROUNDS {
            run(2, &|| {
                threads.lock().unwrap_or_else(PoisonError::into_inner).insert(std::thread::current().id());
                std::thread::sleep(Duration::from_micros(200));
            });
            if threads.lock().is_ok_and(|threads| threads.len() > 1) {
                return;
            }
        }
        panic!("no worker joined {ROUNDS} jobs");
    }

    #[test]
    fn a_panic_in_a_worker_reaches_the_caller() {
        let mut pool = ThreadPool::new(std::process::id());
        let (caller, joined) = (std::thread::current().id(), AtomicUsize::new(0));
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            pool.run(2, &|| {
                if std::thread::current().id() != caller {
                    joined.store(1, Ordering::Relaxed);
                    panic!("for the test");
                }
                while joined.load(Ordering::Relaxed) == 0 {
                    std::thread::yield_now();
                }
            });
        }));
        assert!(outcome.is_err());
    }

    #[test]
    fn concurrent_and_nested_callers_do_not_wait_for_each_other() {
        let done = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        run(2, &|| {
                            run(2, &|| {
                                done.fetch_add(1, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert!(done.load(Ordering::Relaxed) >= 3 * ROUNDS);
    }
}

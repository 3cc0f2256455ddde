//! A bounded pool of threads that start on demand and end when idle.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::base::clock::Deadline;
use crate::base::sync::{Condvar, Mutex, thread};
use crate::metrics::Metrics;

/// How long a thread waits for its next job before it ends.
const IDLE: Duration = Duration::from_secs(5);
/// The stack of a worker: jobs are shallow, and hundreds may be parked on slow transfers.
const STACK: usize = 512 << 10;

type Job = Box<dyn FnOnce() + Send>;

/// A pool of at most `max_threads` threads and `max_queue` waiting jobs.
///
/// A job that panics is logged and counted; its thread goes on.
pub struct Workers {
    name: &'static str,
    max_threads: usize,
    max_queue: usize,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    wake: Condvar,
    /// A worker has run out of jobs.
    resting: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

/// The pool's queue is full, or no thread could be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Saturated;

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workers")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Workers {
    /// Makes a pool; no thread starts before the first job.
    pub fn new(
        name: &'static str,
        max_threads: usize,
        max_queue: usize,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            name,
            max_threads,
            max_queue,
            metrics,
            state: Mutex::default(),
            wake: Condvar::new(),
            resting: Condvar::new(),
        })
    }

    /// Runs `job` on a thread of the pool, soon.
    ///
    /// # Errors
    /// [`Saturated`]; the job is then dropped unrun.
    pub fn spawn(self: &Arc<Self>, job: impl FnOnce() + Send + 'static) -> Result<(), Saturated> {
        let mut state = self.state.lock();
        if state.queue.len() >= self.max_queue {
            return Err(Saturated);
        }
        state.queue.push_back(Box::new(job));
        if state.idle >= state.queue.len() {
            drop(state);
            self.wake.notify_one();
            return Ok(());
        }
        if state.threads >= self.max_threads {
            return Ok(());
        }
        state.threads += 1;
        drop(state);
        let pool = Arc::clone(self);
        let started = thread::Builder::new()
            .name(self.name.into())
            .stack_size(STACK)
            .spawn(move || pool.serve());
        if let Err(error) = started {
            let mut state = self.state.lock();
            state.threads -= 1;
            tracing::warn!("cannot start another {} thread: {error}", self.name);
            if state.threads == 0 {
                state.queue.pop_back();
                return Err(Saturated);
            }
        }
        Ok(())
    }

    /// Returns whether the next job would have to wait for a thread.
    pub fn is_full(&self) -> bool {
        let state = self.state.lock();
        state.threads >= self.max_threads && state.idle <= state.queue.len()
    }

    /// Waits until all jobs have ended, not past the deadline; tells whether they have.
    pub fn wait_idle(&self, deadline: Deadline) -> bool {
        let mut state = self.state.lock();
        while !state.queue.is_empty() || state.idle < state.threads {
            if deadline.remaining().is_none() {
                return false;
            }
            self.resting.wait_until(&mut state, deadline.instant());
        }
        true
    }

    fn serve(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                drop(state);
                if catch_unwind(AssertUnwindSafe(job)).is_err() {
                    self.metrics.caught_panic();
                    tracing::error!("a {} job panicked; please report this", self.name);
                }
                state = self.state.lock();
                continue;
            }
            state.idle += 1;
            self.resting.notify_all();
            let timed_out = self.wake.wait_for(&mut state, IDLE).timed_out();
            state.idle -= 1;
            if timed_out && state.queue.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_panicking_job_neither_ends_the_pool_nor_goes_uncounted() {
        let metrics = Arc::new(Metrics::default());
        let pool = Workers::new("test", 1, 10, Arc::clone(&metrics));
        pool.spawn(|| panic!("expected by this test"))
            .expect("room");
        let (done, wait) = mpsc::channel();
        pool.spawn(move || done.send(7).expect("a receiver"))
            .expect("room");
        assert_eq!(wait.recv(), Ok(7));
        assert_eq!(metrics.panics_total.get(), 1);
    }

    #[test]
    fn a_pool_is_idle_when_its_jobs_have_ended() {
        let pool = Workers::new("test", 2, 10, Arc::default());
        assert!(
            pool.wait_idle(Deadline::after(Duration::ZERO)),
            "never used"
        );
        let (release, gate) = mpsc::channel::<()>();
        pool.spawn(move || gate.recv().expect("a sender"))
            .expect("room");
        assert!(!pool.wait_idle(Deadline::after(Duration::ZERO)), "at work");
        release.send(()).expect("the job waits");
        assert!(pool.wait_idle(Deadline::after(Duration::from_secs(60))));
    }

    #[test]
    fn a_full_queue_is_refused() {
        let pool = Workers::new("test", 1, 1, Arc::default());
        let (release, gate) = mpsc::channel::<()>();
        let (started, running) = mpsc::channel();
        pool.spawn(move || {
            started.send(()).expect("a receiver");
            gate.recv().expect("a sender");
        })
        .expect("room");
        running.recv().expect("the job runs");
        pool.spawn(|| {}).expect("room in the queue");
        assert_eq!(pool.spawn(|| {}), Err(Saturated));
        release.send(()).expect("the job waits");
    }
}

//! Runs the disk's work on threads of its own, for callers with another way where the disk hangs: a
//! network disk without its server, or a failing one.
//!
//! While something hangs, the next one waits for a moment only. It may be of a part of the disk that
//! is well, and tells when all of it is well again.

use std::sync::Arc;
use std::time::Duration;

use crate::base::clock::Deadline;
use crate::base::sync::atomic::{AtomicUsize, Ordering};
use crate::base::sync::{self, Condvar, Mutex};
use crate::base::workers::Workers;
use crate::metrics::Metrics;

/// Threads that work with the disk; one that hangs keeps its own.
const THREADS: usize = 32;
/// Work that waits for a thread.
const QUEUED: usize = 64;
/// A caller that has the network as well waits for this part of the remaining deadline.
const PART: u32 = 4;
/// The same while something hangs.
const WHILE_HUNG: Duration = Duration::from_millis(50);

/// The threads of one cache folder.
#[derive(Debug)]
pub struct Patience {
    workers: Arc<Workers>,
    /// How many hang.
    hung: Arc<AtomicUsize>,
}

/// Work that is waited for.
struct Task<T> {
    state: Mutex<State<T>>,
    ended: Condvar,
}

enum State<T> {
    Waiting,
    Done(T),
    /// It panicked.
    Lost,
    GivenUp,
}

/// Ends a task, also one that panics.
struct Ending<T> {
    task: Arc<Task<T>>,
    hung: Arc<AtomicUsize>,
    result: Option<T>,
}

impl<T> Drop for Ending<T> {
    fn drop(&mut self) {
        let mut state = self.task.state.lock();
        if matches!(*state, State::GivenUp) {
            self.hung.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        *state = self.result.take().map_or(State::Lost, State::Done);
        drop(state);
        self.task.ended.notify_all();
    }
}

impl Patience {
    /// The longest that anything waits for the disk.
    pub const MOST: Duration = Duration::from_secs(5);
    /// The longest that a caller waits which needs nothing of the disk.
    pub const MOMENT: Duration = Duration::from_millis(500);

    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            workers: Workers::new("kvfs-disk", THREADS, QUEUED, metrics),
            hung: Arc::default(),
        }
    }

    /// Returns how long a caller with this much time waits for the disk.
    pub fn of(deadline: Deadline) -> Duration {
        (deadline.remaining().unwrap_or_default() / PART).min(Self::MOST)
    }

    /// Does `work` on another thread; `None` when it takes longer than `patience`. It goes on then,
    /// and what comes of it is dropped.
    pub fn wait<T: Send + 'static>(
        &self,
        patience: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let patience = match self.hung.load(Ordering::Relaxed) {
            0 => patience,
            _ => patience.min(WHILE_HUNG),
        };
        let until = sync::now() + patience;
        let task = Arc::new(Task {
            state: Mutex::new(State::Waiting),
            ended: Condvar::new(),
        });
        let ending = Ending {
            task: Arc::clone(&task),
            hung: Arc::clone(&self.hung),
            result: None,
        };
        let job = move || {
            let mut ending = ending;
            if matches!(*ending.task.state.lock(), State::Waiting) {
                ending.result = Some(work());
            }
        };
        if self.workers.spawn(job).is_err() {
            return None;
        }
        let mut state = task.state.lock();
        while matches!(*state, State::Waiting) {
            if sync::now() >= until {
                *state = State::GivenUp;
                let before = self.hung.fetch_add(1, Ordering::Relaxed);
                drop(state);
                if before == 0 {
                    tracing::warn!("the disk of the cache hangs; reading goes on without it");
                }
                return None;
            }
            task.ended.wait_until(&mut state, until);
        }
        match std::mem::replace(&mut *state, State::Lost) {
            State::Done(result) => Some(result),
            _ => None,
        }
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn what_hangs_is_waited_for_once_and_what_follows_for_a_moment_until_it_is_well() {
        let patience = Patience::new(Arc::default());
        assert_eq!(patience.wait(LONG, || 1), Some(1));
        let (go_on, hangs) = mpsc::channel::<()>();
        let hung = patience.wait(Duration::from_millis(10), move || hangs.recv());
        assert!(hung.is_none());
        let (go_on_too, hangs) = mpsc::channel::<()>();
        let begun = std::time::Instant::now();
        assert!(patience.wait(LONG, move || hangs.recv()).is_none());
        assert!(begun.elapsed() < LONG / 2);
        // Something else may be well.
        assert_eq!(patience.wait(LONG, || 2), Some(2));
        drop((go_on, go_on_too));
        while patience.hung.load(Ordering::Relaxed) > 0 {
            std::thread::yield_now();
        }
        assert_eq!(patience.wait(LONG, || 3), Some(3));
    }

    #[test]
    fn a_panic_is_no_answer_and_no_hang() {
        let patience = Patience::new(Arc::default());
        assert_eq!(patience.wait(LONG, || -> u8 { panic!("as told") }), None);
        assert_eq!(patience.hung.load(Ordering::Relaxed), 0);
        assert_eq!(patience.wait(LONG, || 1), Some(1));
    }
}

//! Time under exploration: it stands still while any thread can run.
//!
//! When all threads wait, the earliest of their deadlines passes, and time jumps to it. So a wait
//! of a minute costs nothing, and a wait for ever shows as a deadline that has passed or as a
//! deadlock. [`super::explore`] can have deadlines pass at any moment besides.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use shuttle::thread::{self, Thread};

/// When time begins.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

thread_local! {
    /// Of the execution under way; all its threads run on this one.
    static TIME: RefCell<Time> = RefCell::default();
}

#[derive(Default)]
struct Time {
    passed: Duration,
    /// By their deadlines; the number tells those of one moment apart.
    waiting: BTreeMap<(Instant, u64), Arc<Waiter>>,
    count: u64,
    keeper: Option<Waker>,
}

const WAITING: u8 = 0;
const NOTIFIED: u8 = 1;
const EXPIRED: u8 = 2;

/// A thread that waits to be notified, or for a moment.
#[derive(Debug)]
pub(super) struct Waiter {
    thread: Thread,
    state: AtomicU8,
}

/// Returns the monotonic time.
pub fn now() -> Instant {
    *START + TIME.with_borrow(|time| time.passed)
}

/// Returns the time since the machine was started, which was an hour ago when time began.
pub fn since_boot() -> Duration {
    Duration::from_secs(3600) + TIME.with_borrow(|time| time.passed)
}

/// Returns for how long the machine has slept since it was started.
pub fn time_asleep() -> Duration {
    Duration::ZERO
}

/// Begins at the start. Called by the first thread of an execution, before any other is started:
/// the thread that keeps the time is its second.
pub(super) fn begin() {
    TIME.set(Time::default());
    drop(shuttle::future::spawn(keep()));
}

/// Makes deadlines pass; the scheduler runs this when no other thread can run.
async fn keep() {
    poll_fn(|context| {
        let due = TIME.with_borrow_mut(|time| {
            while let Some(((at, _), waiter)) = time.waiting.pop_first() {
                if waiter.end(EXPIRED) {
                    time.passed = time.passed.max(at.saturating_duration_since(*START));
                    return Some(waiter);
                }
            }
            time.keeper = Some(context.waker().clone());
            None
        });
        if let Some(waiter) = due {
            waiter.thread.unpark();
            context.waker().wake_by_ref();
        }
        Poll::<()>::Pending
    })
    .await;
}

impl Waiter {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            thread: thread::current(),
            state: AtomicU8::new(WAITING),
        })
    }

    fn end(&self, how: u8) -> bool {
        self.state
            .compare_exchange(WAITING, how, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }

    /// Wakes the thread; `false` when it has been woken already.
    pub(super) fn notify(&self) -> bool {
        let is_first = self.end(NOTIFIED);
        if is_first {
            self.thread.unpark();
        }
        is_first
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.state.load(Ordering::SeqCst) == WAITING
    }

    /// Waits; tells whether `until` has passed.
    pub(super) fn wait(self: &Arc<Self>, until: Option<Instant>) -> bool {
        if let Some(until) = until {
            let keeper = TIME.with_borrow_mut(|time| {
                time.count += 1;
                time.waiting.insert((until, time.count), Arc::clone(self));
                time.keeper.take()
            });
            if let Some(keeper) = keeper {
                keeper.wake();
            }
        }
        while self.is_waiting() {
            thread::park();
        }
        self.state.load(Ordering::SeqCst) == EXPIRED
    }
}

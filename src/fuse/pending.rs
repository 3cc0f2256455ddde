//! Requests that wait: each is answered once, by the first of these: the thread that works on it,
//! its deadline, or the signal that ends its program.
//!
//! `fuser` 0.18 does not handle FUSE_INTERRUPT, and the kernel sends none for readahead. So for
//! each request that waits longer than a moment, this module looks up its program's pending signals
//! in `/proc`.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use fuser::{
    Errno, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyLseek, ReplyOpen, ReplyWrite, ReplyXattr,
};
use libc::c_int;
use parking_lot::{Condvar, Mutex};

use super::processes::{exists, proc_shows_own_numbers};
use crate::base::caller::Caller;

/// How often waiting requests are looked at. The end of a program may take two of them one after the
/// other, as that of one in fsync, which closes its files then.
const TICK: Duration = Duration::from_millis(50);
/// How long a request waits before it is looked at: most are answered sooner.
const MOMENT: Duration = Duration::from_millis(20);
/// A request that has waited for longer than the first is looked at less often, every second one:
/// hundreds that wait for minutes must not cost a processor.
const LONG: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(200));
/// A thread may answer this much after the deadline with a better error than the deadline's.
const SLACK: Duration = Duration::from_millis(500);

/// A reply that can say only that it failed.
pub trait Refuse: Send + 'static {
    /// Answers with an errno.
    fn refuse(self, errno: Errno);
}

macro_rules! refuse {
    ($($reply:ty),*) => {
        $(impl Refuse for $reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        })*
    };
}

refuse!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyLseek,
    ReplyOpen,
    ReplyWrite,
    ReplyXattr
);

/// The right to answer a request, taken once.
#[derive(Debug)]
pub struct Ticket<R>(Arc<Cell<R>>);

#[derive(Debug)]
struct Cell<R> {
    reply: Mutex<Option<R>>,
    /// The request takes effect: the program gets that answer, and no other.
    claimed: AtomicBool,
    /// Since when it has not got on; `None` while it asks the store, or waits for a thread.
    still: Mutex<Option<Instant>>,
    /// Counts it from when it was answered too late until its thread has done with it.
    stuck: Stuck,
}

/// How many requests were answered because they were late, and still have threads at work.
pub type Count = Arc<AtomicUsize>;

#[derive(Debug)]
struct Stuck(Count, AtomicBool);

impl Stuck {
    fn begin(&self) {
        if !self.1.swap(true, Ordering::Relaxed) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        if *self.1.get_mut() {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl<R> Ticket<R> {
    /// Takes the reply; `None` when the request has been answered.
    pub fn take(&self) -> Option<R> {
        self.0.reply.lock().take()
    }
}

impl<R: Send + 'static> Ticket<R> {
    /// Returns what tells whether the program that asked still waits.
    pub fn caller(&self) -> Box<dyn Caller> {
        Box::new(Asking(Arc::clone(&self.0)))
    }
}

struct Asking<R>(Arc<Cell<R>>);

impl<R> Caller for Asking<R> {
    fn waits(&self) -> bool {
        self.0.reply.lock().is_some()
    }

    fn claim(&self) -> bool {
        let reply = self.0.reply.lock();
        self.0.claimed.store(true, Ordering::Relaxed);
        reply.is_some()
    }

    fn release(&self) {
        self.0.claimed.store(false, Ordering::Relaxed);
    }

    fn gets_on(&self, since: Option<Instant>) {
        *self.0.still.lock() = since;
    }
}

trait Answerable: Send + Sync {
    fn is_open(&self) -> bool;
    /// Returns for how long it has not got on.
    fn still(&self, now: Instant) -> Duration;
    /// Refuses it, unless the request takes effect just now; with `long` also then.
    fn refuse(&self, errno: Errno, long: bool) -> bool;
}

impl<R: Refuse> Answerable for Cell<R> {
    fn is_open(&self) -> bool {
        self.reply.lock().is_some()
    }

    fn still(&self, now: Instant) -> Duration {
        let still = *self.still.lock();
        still.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    fn refuse(&self, errno: Errno, long: bool) -> bool {
        let mut reply = self.reply.lock();
        if self.claimed.load(Ordering::Relaxed) && !long {
            return false;
        }
        match reply.take() {
            Some(reply) => {
                if long {
                    self.stuck.begin();
                }
                reply.refuse(errno);
                true
            }
            None => false,
        }
    }
}

struct Waiting {
    request: Weak<dyn Answerable>,
    operation: &'static str,
    /// Thread id of the caller; 0 when it is in another pid namespace.
    pid: u32,
    since: Instant,
    /// How long it may take to get on.
    patience: Duration,
    /// When its caller is looked at next.
    look: Instant,
}

/// Is told which operation was not answered within its deadline.
pub type Late = Box<dyn Fn(&'static str) + Send + Sync>;

/// Watches over the requests that wait. Its thread sleeps while there are none.
pub struct Watcher {
    waiting: Mutex<Vec<Waiting>>,
    added: Condvar,
    late: Late,
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watcher")
    }
}

impl Watcher {
    /// Starts the watcher; its thread ends when the watcher is dropped.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(late: Late) -> std::io::Result<Arc<Self>> {
        let watcher = Arc::new(Self {
            waiting: Mutex::default(),
            added: Condvar::new(),
            late,
        });
        let weak = Arc::downgrade(&watcher);
        thread::Builder::new()
            .name("kvfs-watcher".into())
            .stack_size(128 << 10)
            .spawn(move || {
                while let Some(watcher) = weak.upgrade() {
                    // Without it no program could be interrupted, and deadlines would pass unseen.
                    if catch_unwind(AssertUnwindSafe(|| watcher.round())).is_err() {
                        tracing::error!("the watcher panicked and goes on; please report this");
                    }
                }
            })?;
        Ok(watcher)
    }

    /// Watches over a request from now on; it is answered when it has not got on for that long, and
    /// then counts as `stuck`.
    pub fn watch<R: Refuse>(
        &self,
        reply: R,
        operation: &'static str,
        pid: u32,
        patience: Duration,
        stuck: &Count,
    ) -> Ticket<R> {
        let since = Instant::now();
        let cell = Arc::new(Cell {
            reply: Mutex::new(Some(reply)),
            claimed: AtomicBool::new(false),
            still: Mutex::new(Some(since)),
            stuck: Stuck(Arc::clone(stuck), AtomicBool::new(false)),
        });
        let erased: Arc<dyn Answerable> = Arc::<Cell<R>>::clone(&cell);
        let request = Arc::downgrade(&erased);
        let mut waiting = self.waiting.lock();
        waiting.push(Waiting {
            request,
            operation,
            pid,
            since,
            patience: patience + SLACK,
            look: since + MOMENT,
        });
        let first = waiting.len() == 1;
        drop(waiting);
        if first {
            self.added.notify_one();
        }
        Ticket(cell)
    }

    fn round(&self) {
        let mut waiting = self.waiting.lock();
        if waiting.is_empty() {
            // Now and then the thread looks whether it is still wanted.
            self.added.wait_for(&mut waiting, Duration::from_secs(5));
        } else {
            self.added.wait_for(&mut waiting, TICK);
        }
        waiting.retain(|entry| {
            let request = entry.request.upgrade();
            request.is_some_and(|request| request.is_open())
        });
        let now = Instant::now();
        let due: Vec<(Arc<dyn Answerable>, &'static str, u32, bool)> = waiting
            .iter_mut()
            .filter(|entry| now >= entry.look)
            .filter_map(|entry| {
                let is_long = now.duration_since(entry.since) >= LONG.0;
                entry.look = now + if is_long { LONG.1 } else { Duration::ZERO };
                let request = entry.request.upgrade()?;
                let late = request.still(now) >= entry.patience;
                Some((request, entry.operation, entry.pid, late))
            })
            .collect();
        drop(waiting);
        for (request, operation, pid, late) in due {
            if late && request.refuse(Errno::ETIMEDOUT, true) {
                (self.late)(operation);
            } else if ending_signal_pending(pid) && request.refuse(Errno::EINTR, false) {
                tracing::debug!("{operation}: given up because process {pid} is being ended");
            }
        }
    }
}

/// Returns whether a signal that people end programs with waits for this thread to leave the
/// kernel.
///
/// Only these five: a timer's or a runtime's own signals must not make reads fail.
fn ending_signal_pending(pid: u32) -> bool {
    const ENDING: [c_int; 5] = [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGKILL,
        libc::SIGTERM,
    ];
    if pid == 0 {
        return false;
    }
    let status = if proc_shows_own_numbers() {
        fs::read_to_string(format!("/proc/{pid}/status")).ok()
    } else {
        None
    };
    let Some(status) = status else {
        // Hidden, or no descriptor is left to look with. One that is gone wants no answer.
        return !exists(pid);
    };
    let mask = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name));
        line.and_then(|line| u64::from_str_radix(line.get(name.len()..)?.trim(), 16).ok())
            .unwrap_or(0)
    };
    let ending = ENDING
        .iter()
        .fold(0u64, |bits, signal| bits | 1 << (signal - 1));
    // Daemons catch a hangup to read their settings again: no end of anything.
    let caught_hangup = mask("SigCgt:") & 1 << (libc::SIGHUP - 1);
    let ending = ending & !caught_hangup;
    (mask("SigPnd:") | mask("ShdPnd:")) & !mask("SigBlk:") & !mask("SigIgn:") & ending != 0
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    struct Probe(mpsc::Sender<c_int>);

    impl Refuse for Probe {
        fn refuse(self, errno: Errno) {
            self.0.send(errno.code()).expect("a receiver");
        }
    }

    #[test]
    fn a_request_past_its_deadline_is_answered_and_only_once() {
        let watcher = Watcher::start(Box::new(|_| {})).expect("a thread");
        let (sent, answers) = mpsc::channel();
        let (pid, stuck) = (std::process::id(), Count::default());
        let ticket = watcher.watch(Probe(sent), "read", pid, Duration::ZERO, &stuck);
        assert_eq!(
            answers.recv_timeout(Duration::from_secs(10)),
            Ok(libc::ETIMEDOUT)
        );
        assert!(ticket.take().is_none());
        assert_eq!(stuck.load(Ordering::Relaxed), 1);
        drop(ticket);
        while stuck.load(Ordering::Relaxed) > 0 {
            thread::yield_now();
        }
    }

    #[test]
    fn a_request_is_late_when_it_does_not_get_on_and_not_while_it_asks_the_store() {
        let watcher = Watcher::start(Box::new(|_| {})).expect("a thread");
        let (sent, answers) = mpsc::channel();
        let (pid, stuck) = (std::process::id(), Count::default());
        let ticket = watcher.watch(Probe(sent), "close", pid, Duration::ZERO, &stuck);
        ticket.caller().gets_on(None);
        assert!(answers.recv_timeout(3 * SLACK).is_err());
        ticket.caller().gets_on(Some(Instant::now()));
        assert_eq!(
            answers.recv_timeout(Duration::from_secs(10)),
            Ok(libc::ETIMEDOUT)
        );
    }

    #[test]
    fn the_answer_to_a_dead_caller_is_eintr() {
        let mut child = std::process::Command::new("true").spawn().expect("a child");
        let pid = child.id();
        child.wait().expect("its end");
        let watcher = Watcher::start(Box::new(|_| {})).expect("a thread");
        let (sent, answers) = mpsc::channel();
        let patience = Duration::from_secs(60);
        let _ticket = watcher.watch(Probe(sent), "read", pid, patience, &Count::default());
        assert_eq!(
            answers.recv_timeout(Duration::from_secs(10)),
            Ok(libc::EINTR)
        );
    }
}

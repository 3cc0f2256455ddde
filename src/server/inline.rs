//! Whether a read is worth a thread of its own.
//!
//! What lies in the page cache is read faster than another thread is woken, so reads of near
//! stores are worked off where they arrive. A disk that has to move, or a network file system,
//! would hold up all other connections: one slow read, and reads get threads of their own for a while.
//! A read that only took long because its thread had to wait for a processor is not slow.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

/// A read that takes longer is slow, unless it was a processor that it had to wait for.
const SLOW: Duration = Duration::from_millis(2);

/// How long reads get threads of their own after a slow one.
const WHILE: Duration = Duration::from_millis(500);

/// How fast near stores are at present.
#[derive(Debug)]
pub(super) struct Pace {
    began: Instant,
    /// Milliseconds since then until which reads get threads of their own.
    slow_until: AtomicU64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            slow_until: AtomicU64::new(0),
        }
    }
}

impl Pace {
    /// Tells whether a read may be worked off where it arrives.
    pub(super) fn is_fast(&self) -> bool {
        self.now() >= self.slow_until.load(Ordering::Relaxed)
    }

    /// Works a read off here.
    pub(super) fn measure<T>(&self, read: impl FnOnce() -> T) -> T {
        let (start, before) = (Instant::now(), Used::here());
        let done = read();
        let took = start.elapsed();
        if took > SLOW && before.until(&Used::here()).is_slow() {
            let until = self.now() + WHILE.as_millis() as u64;
            self.slow_until.fetch_max(until, Ordering::Relaxed);
        }
        done
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }
}

/// What a thread has used, see getrusage(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Used {
    /// How often it has waited for a disk, a lock or a timer: its voluntary context switches.
    waits: i64,
    /// How long it ran, in microseconds.
    ran: i64,
}

impl Used {
    fn here() -> Self {
        // Only a kernel before Linux 2.6.26 does not know the kind that is asked for.
        getrusage(UsageWho::RUSAGE_THREAD).map_or_else(
            |_| Self::default(),
            |usage| Self {
                waits: usage.voluntary_context_switches(),
                ran: (usage.user_time() + usage.system_time()).num_microseconds(),
            },
        )
    }

    fn until(&self, later: &Self) -> Self {
        Self {
            waits: later.waits - self.waits,
            ran: later.ran - self.ran,
        }
    }

    /// Tells whether a read that took long used its time itself.
    fn is_slow(&self) -> bool {
        self.waits > 0 || self.ran > SLOW.as_micros() as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_that_computes_for_long_is_slow() {
        let pace = Pace::default();
        let before = Used::here();
        pace.measure(|| while before.until(&Used::here()).ran <= 2 * SLOW.as_micros() as i64 {});
        assert!(!pace.is_fast());
    }

    #[test]
    fn a_thread_that_is_not_let_run_is_not_slow() {
        assert!(!Used { waits: 0, ran: 50 }.is_slow());
        assert!(Used { waits: 1, ran: 50 }.is_slow());
    }

    #[test]
    fn one_slow_read_gives_threads_to_the_next() {
        let pace = Pace::default();
        assert!(pace.is_fast());
        assert_eq!(pace.measure(|| 1), 1);
        pace.measure(|| std::thread::sleep(SLOW * 2));
        assert!(!pace.is_fast());
        pace.slow_until.store(0, Ordering::Relaxed);
        assert!(pace.is_fast());
    }
}

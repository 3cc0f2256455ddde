//! Whether a read is worth a thread of its own.
//!
//! What lies in the page cache is read faster than another thread is woken, so reads of near
//! stores are worked off where they arrive. A disk that has to move, or a network file system,
//! would hold up all other connections: one slow read, and reads get threads of their own for a while.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A read that takes longer is slow.
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
        let start = Instant::now();
        let done = read();
        if start.elapsed() > SLOW {
            let until = self.now() + WHILE.as_millis() as u64;
            self.slow_until.fetch_max(until, Ordering::Relaxed);
        }
        done
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

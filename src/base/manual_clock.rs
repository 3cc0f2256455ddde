//! A clock that tests move by hand.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::clock::Clock;
use super::sync::{self, Mutex};

/// A clock that stands still until a test advances it.
#[derive(Debug, Clone)]
pub struct ManualClock {
    start: (Instant, SystemTime),
    elapsed: Arc<Mutex<Duration>>,
    wall: Arc<Mutex<Option<SystemTime>>>,
    asleep: Arc<Mutex<Duration>>,
}

impl Default for ManualClock {
    fn default() -> Self {
        Self {
            start: (sync::now(), SystemTime::now()),
            elapsed: Arc::default(),
            wall: Arc::default(),
            asleep: Arc::default(),
        }
    }
}

impl ManualClock {
    /// Moves the time forward by `step`.
    pub fn advance(&self, step: Duration) {
        *self.elapsed.lock() += step;
    }

    /// Makes the machine sleep for `span`.
    pub fn suspend(&self, span: Duration) {
        self.advance(span);
        *self.asleep.lock() += span;
    }

    /// Sets the wall clock, as people and time servers do; the time that passes is another.
    pub fn set_wall(&self, time: SystemTime) {
        *self.wall.lock() = Some(time);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Instant {
        self.start.0 + *self.elapsed.lock()
    }

    fn wall(&self) -> SystemTime {
        let set = *self.wall.lock();
        set.unwrap_or(self.start.1 + *self.elapsed.lock())
    }

    fn asleep(&self) -> Duration {
        *self.asleep.lock()
    }
}

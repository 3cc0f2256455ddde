//! Time as a dependency, so that tests move it by hand.

use std::fmt;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use crate::base::sync;

/// Where the time comes from.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Returns a time that never goes back, for TTLs. It is not that of [`Deadline`]s and of
    /// condition variables: time in which the machine was suspended counts here.
    fn now(&self) -> Instant;

    /// Returns the wall-clock time, for file times and signature expiry.
    fn wall(&self) -> SystemTime;

    /// Returns how long the machine has been suspended since it was started: others' clocks, the
    /// kernel's among them, stood still then.
    fn asleep(&self) -> Duration;
}

/// The system's clocks. Time that the machine spends suspended counts: an answer valid for ten
/// seconds in the evening is not valid the next morning.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        if cfg!(feature = "shuttle") {
            return sync::now();
        }
        // `Instant` stands still while the machine is suspended, CLOCK_BOOTTIME does not.
        static START: OnceLock<(Instant, Duration)> = OnceLock::new();
        let (instant, booted) = *START.get_or_init(|| (sync::now(), sync::since_boot()));
        instant + sync::since_boot().saturating_sub(booted)
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    fn asleep(&self) -> Duration {
        sync::time_asleep()
    }
}

/// As good as never, for a time beyond what a clock can represent.
const AGES: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// The moment by which an operation must have ended.
///
/// Deadlines bound waiting on the network and on other threads; they run on the system's
/// monotonic clock even where a test drives the TTLs by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// Returns the deadline `span` from now.
    pub fn after(span: Duration) -> Self {
        Self(sync::now() + span.min(AGES))
    }

    /// Returns the instant itself, for waits that take one.
    pub fn instant(self) -> Instant {
        self.0
    }

    /// Returns the time left, or `None` when it has passed.
    pub fn remaining(self) -> Option<Duration> {
        self.0
            .checked_duration_since(sync::now())
            .filter(|left| !left.is_zero())
    }

    /// Returns the deadline `span` later than this one.
    pub fn later(self, span: Duration) -> Self {
        Self(self.0 + span.min(AGES))
    }
}

/// Whether an operation may wait, and how long.
///
/// The kernel's threads try every operation with [`Wait::Never`] first; what would have to wait
/// for the network, the disk or another thread is repeated on a pool thread with a deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Answer from memory or not at all.
    Never,
    /// Wait, but not past the deadline.
    Until(Deadline),
}

impl Wait {
    /// Returns the deadline, `None` when waiting is not allowed.
    pub fn deadline(self) -> Option<Deadline> {
        match self {
            Self::Never => None,
            Self::Until(deadline) => Some(deadline),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_may_be_as_far_away_as_anybody_can_say() {
        let never = Deadline::after(Duration::MAX);
        assert!(never.remaining() > Some(AGES / 2));
        assert!(Deadline::after(Duration::ZERO) < never);
    }
}

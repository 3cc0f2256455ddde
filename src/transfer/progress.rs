//! A deadline that moves on while bytes come, as an upload's does while they go out.
//!
//! Where no part can be asked for by itself, the end of a large record comes when all of it has come,
//! however long that takes. So time in which bytes come does not count, at most as much as they
//! take at the slowest; silence ends a wait as early as any other.

use std::time::{Duration, Instant};

use crate::base::caller;
use crate::base::clock::Deadline;
use crate::store::SLOWEST_UPLOAD;

/// How often a thread that waits looks whether bytes come.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// The deadline of one wait.
#[derive(Debug)]
pub(super) struct Progress {
    deadline: Deadline,
    /// Until when time has been counted, and how many bytes had come by then.
    counted: (Instant, u64),
}

impl Progress {
    /// Begins a wait after `total` bytes have come.
    pub(super) fn new(deadline: Deadline, now: Instant, total: u64) -> Self {
        Self {
            deadline,
            counted: (now, total),
        }
    }

    /// Returns the deadline as it is by now: `total` bytes have come, the last of them then.
    pub(super) fn deadline(&mut self, total: u64, last: Option<Instant>) -> Deadline {
        let (since, before) = self.counted;
        let Some(last) = last.filter(|last| *last > since && total > before) else {
            return self.deadline;
        };
        let slowest = Duration::from_secs_f64((total - before) as f64 / SLOWEST_UPLOAD as f64);
        let granted = last.saturating_duration_since(since).min(slowest);
        self.counted = (last, total);
        self.deadline = self.deadline.later(granted);
        caller::may_wait_until(self.deadline.instant());
        self.deadline
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_time_in_which_bytes_come_moves_a_readers_deadline() {
        let second = Duration::from_secs(1);
        let now = Instant::now();
        let first = Deadline::after(60 * second);
        let mut progress = Progress::new(first, now, 500);
        assert_eq!(progress.deadline(500, None), first);
        assert_eq!(
            progress.deadline(500, Some(now + second)),
            first,
            "older bytes"
        );
        let fast = 500 + (10 << 20);
        let moved = progress.deadline(fast, Some(now + 5 * second));
        assert_eq!(moved, first.later(5 * second));
        assert_eq!(progress.deadline(fast, Some(now + 5 * second)), moved);
        // A drip counts as what it would take at the slowest.
        let drip = fast + 2 * SLOWEST_UPLOAD;
        let moved = progress.deadline(drip, Some(now + 50 * second));
        assert_eq!(moved, first.later(7 * second));
    }
}

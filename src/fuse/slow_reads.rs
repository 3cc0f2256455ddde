//! Reads that were not answered at once, and which of them is the second of one system call.
//!
//! Where reading ahead has failed, the kernel asks once more for the page that the program wants: two
//! requests, of one `read(2)` or one page fault, with one deadline.

use std::ops::Range;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::syscalls::{GAP, LEAST};

/// Reads that are remembered; beyond that each has a deadline of its own.
const MOST: usize = 1024;

/// The reads of all threads that wait, or have waited in vain.
#[derive(Debug)]
pub(super) struct SlowReads {
    deadline: Duration,
    reads: Mutex<Vec<Slow>>,
}

#[derive(Debug)]
struct Slow {
    read: Read,
    begun: Instant,
    /// When it was told that it has taken too long.
    failed: Option<Instant>,
}

/// What a thread reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) thread: u32,
    pub(super) ino: u64,
    pub(super) range: Range<u64>,
}

impl Read {
    fn overlaps(&self, other: &Self) -> bool {
        self.thread == other.thread
            && self.ino == other.ino
            && self.range.start < other.range.end
            && other.range.start < self.range.end
    }
}

impl SlowReads {
    pub(super) fn new(deadline: Duration) -> Self {
        Self {
            deadline,
            reads: Mutex::default(),
        }
    }

    /// Notes a read that has to wait; returns how long it may.
    pub(super) fn begin(&self, read: Read) -> Duration {
        let now = Instant::now();
        let since = |at: Instant| now.saturating_duration_since(at);
        let mut reads = self.reads.lock();
        reads.retain(|slow| since(slow.begun) < 2 * self.deadline);
        let before = reads.iter().position(|slow| {
            slow.read.overlaps(&read)
                && match slow.failed {
                    Some(at) => since(at) < GAP,
                    // The watcher has answered it: a thread waits for one thing at a time.
                    None => since(slow.begun) >= self.deadline,
                }
        });
        let begun = before.map_or(now, |at| reads.swap_remove(at).begun);
        let left = self.deadline.saturating_sub(since(begun));
        if left.is_zero() {
            // Once: a program may go on trying.
            return left;
        }
        if reads.len() < MOST {
            reads.push(Slow {
                read,
                begun,
                failed: None,
            });
        }
        left.max(self.deadline / LEAST)
    }

    /// Notes the answer, which may be that it has taken too long.
    pub(super) fn answered(&self, read: &Read, is_late: bool) {
        let mut reads = self.reads.lock();
        match reads.iter().position(|slow| slow.read == *read) {
            Some(at) if is_late => reads[at].failed = Some(Instant::now()),
            Some(at) => {
                reads.swap_remove(at);
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(thread: u32, range: Range<u64>) -> Read {
        Read {
            thread,
            ino: 1,
            range,
        }
    }

    #[test]
    fn the_page_that_is_asked_for_again_after_reading_ahead_was_late_has_no_time_left() {
        let deadline = Duration::from_millis(5);
        let reads = SlowReads::new(deadline);
        assert_eq!(reads.begin(read(1, 0..1000)), deadline);
        std::thread::sleep(deadline);
        assert_eq!(reads.begin(read(1, 500..600)), Duration::ZERO);
        assert_eq!(reads.begin(read(1, 500..600)), deadline, "once");
    }

    #[test]
    fn a_read_that_failed_sooner_leaves_time() {
        let deadline = Duration::from_secs(60);
        let reads = SlowReads::new(deadline);
        reads.begin(read(1, 0..1000));
        reads.answered(&read(1, 0..1000), true);
        let left = reads.begin(read(1, 0..10));
        assert!(left <= deadline && left > deadline / 2);
    }

    #[test]
    fn other_threads_and_other_places_have_deadlines_of_their_own() {
        let deadline = Duration::from_millis(5);
        let reads = SlowReads::new(deadline);
        reads.begin(read(1, 0..1000));
        std::thread::sleep(deadline);
        assert_eq!(reads.begin(read(2, 0..1000)), deadline);
        assert_eq!(reads.begin(read(1, 1000..2000)), deadline);
        reads.answered(&read(1, 0..1000), false);
        assert_eq!(reads.begin(read(1, 0..1000)), deadline);
    }
}

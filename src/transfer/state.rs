//! What is known of a download at one moment, under its lock.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connections::Pace;
use super::ranges::RangeSet;
use super::window::Window;
use crate::base::sync::Condvar;
use crate::disk::Spool;
use crate::store::StoreError;

#[derive(Debug, Default)]
pub(super) struct State {
    pub present: RangeSet,
    /// The last bytes that arrived.
    pub window: Window,
    /// Readers that wait for bytes.
    pub waiting: Vec<Waiting>,
    /// Parts that are being fetched by requests of their own.
    pub fetching: Vec<Range<u64>>,
    /// Whether one connection fills front to back.
    pub streaming: bool,
    /// While there are several connections: what the one that began at the start has to itself.
    pub front: Option<Range<u64>>,
    /// How far the content has come from its start.
    pub position: u64,
    /// How far it has come, or is on its way.
    pub frontier: u64,
    /// The end of the farthest read that waits for the filling threads, or was served by them.
    pub demand: u64,
    /// Where the last read that had to wait ends: blocks end there too.
    pub phase: u64,
    pub users: usize,
    /// Callers that wait for the size: they use the download, too.
    pub sizing: usize,
    /// Whether it was begun for a reader that may never come.
    pub ahead: bool,
    /// When it was first seen unused.
    pub unused_since: Option<Instant>,
    /// Bytes that readers have fetched in parts of their own.
    pub in_parts: u64,
    /// Whether all of it is fetched as long as it is open.
    pub whole: bool,
    /// Whether a filling thread waits for demand.
    pub paused: bool,
    /// Since when it has, without any demand.
    pub idle_since: Option<Instant>,
    /// Whether that thread is wanted elsewhere.
    pub must_park: bool,
    /// When each write to the disk began that is under way.
    pub writing: Vec<Instant>,
    /// How many fill.
    pub active: usize,
    /// Bytes that those have brought.
    pub total: u64,
    pub pace: Pace,
    pub status: Status,
}

/// A reader that waits, to be woken when its bytes are there or never come.
#[derive(Debug)]
pub(super) struct Waiting {
    pub wanted: Range<u64>,
    pub woken: Arc<Condvar>,
}

#[derive(Debug, Default)]
pub(super) enum Status {
    #[default]
    Running,
    /// It is unused; its bytes are kept for a while.
    Paused(Box<Spool>),
    /// Its readers have what they want so far; the next read takes it up.
    Parked(Box<Spool>),
    /// Whole, of this size.
    Complete(u64),
    /// Read to its end to learn its size; there was no room to keep it.
    Counted(u64),
    Failed(StoreError),
    /// Given up because it was unused.
    Abandoned,
}

impl State {
    /// Marks a part as being fetched.
    pub fn claim(&mut self, part: &Range<u64>) {
        self.fetching.push(part.clone());
        self.frontier = self.frontier.max(part.end);
    }

    /// Returns when a reader must look again whether the disk hangs; `None` when it does.
    pub fn look_again(
        &self,
        now: Instant,
        patience: Duration,
        deadline: Instant,
    ) -> Option<Instant> {
        match self.writing.iter().min() {
            Some(since) if *since + patience <= now => None,
            Some(since) => Some(deadline.min(*since + patience)),
            None => Some(deadline),
        }
    }

    /// Returns what is here, on its way, or promised to `front`.
    pub fn taken(&self, front: Option<&Range<u64>>) -> RangeSet {
        let mut taken = self.present.clone();
        for part in self.fetching.iter().chain(front) {
            taken.insert(part.clone());
        }
        taken
    }

    /// Notes that bytes are on disk, and wakes the readers that have all they wait for.
    pub fn arrived(&mut self, range: Range<u64>) {
        self.present.insert(range);
        for waiting in &self.waiting {
            if self.present.contains(&waiting.wanted) {
                waiting.woken.notify_one();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_for_bytes_looks_whether_the_disk_takes_them() {
        let second = Duration::from_secs(1);
        let (now, deadline) = (Instant::now(), Instant::now() + 60 * second);
        let mut state = State::default();
        assert_eq!(state.look_again(now, second, deadline), Some(deadline));
        state.writing = vec![now];
        assert_eq!(state.look_again(now, second, deadline), Some(now + second));
        assert_eq!(state.look_again(now, 99 * second, deadline), Some(deadline));
        assert_eq!(state.look_again(now + second, second, deadline), None);
    }
}

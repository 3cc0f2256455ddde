//! Operations as they happen, for `kvfs trace`.
//!
//! Without followers, an operation costs one relaxed load. Each follower has its own queue;
//! operations that do not fit are dropped and counted, so that no follower slows the mount down.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};

use super::origin::Origin;

/// Operations that wait for one follower; more are dropped.
const QUEUED: usize = 8192;

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When it was answered, in microseconds since 1970.
    pub at_unix_us: u64,
    /// Which: `lookup`, `open`, `read`, ...
    pub operation: String,
    /// The record's key, or the name looked for; none for the folder itself.
    pub key: Option<String>,
    /// `ok`, or the symbolic errno.
    pub result: String,
    /// From the request to its answer, in microseconds.
    pub duration_us: u64,
    /// Where the answer came from.
    pub origin: Origin,
    /// The thread that asked; 0 when it is in another pid namespace.
    pub pid: u32,
}

/// Hands operations to their followers.
#[derive(Debug, Default)]
pub struct Tracer {
    following: Arc<AtomicUsize>,
    queues: Mutex<Vec<Arc<Queue>>>,
}

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<Waiting>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Event>,
    dropped: u64,
    left: bool,
}

/// The right to follow; ends when dropped.
#[derive(Debug)]
pub struct Follower {
    queue: Arc<Queue>,
    following: Arc<AtomicUsize>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.following.fetch_sub(1, Ordering::Relaxed);
        let mut state = self.queue.state.lock();
        state.left = true;
        state.events = VecDeque::new();
    }
}

impl Tracer {
    /// Returns whether there is a follower.
    pub fn is_active(&self) -> bool {
        self.following.load(Ordering::Relaxed) > 0
    }

    /// Follows from now on.
    pub fn follow(&self) -> Follower {
        let queue = Arc::<Queue>::default();
        let mut queues = self.queues.lock();
        queues.retain(|queue| !queue.state.lock().left);
        queues.push(Arc::clone(&queue));
        self.following.fetch_add(1, Ordering::Relaxed);
        Follower {
            queue,
            following: Arc::clone(&self.following),
        }
    }

    /// Sends an operation to all followers.
    pub fn tell(&self, event: &Event) {
        for queue in self.queues.lock().iter() {
            let mut state = queue.state.lock();
            if state.left {
                continue;
            }
            if state.events.len() < QUEUED {
                state.events.push_back(event.clone());
            } else {
                state.dropped += 1;
            }
            drop(state);
            queue.arrived.notify_one();
        }
    }
}

impl Follower {
    /// Returns what has happened since the last call, and how many operations were dropped; waits
    /// at most `patience` for the first.
    pub fn next(&self, patience: Duration) -> (Vec<Event>, u64) {
        let mut state = self.queue.state.lock();
        if state.events.is_empty() {
            self.queue.arrived.wait_for(&mut state, patience);
        }
        let events = std::mem::take(&mut state.events).into();
        (events, std::mem::take(&mut state.dropped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(at_unix_us: u64) -> Event {
        Event {
            at_unix_us,
            operation: "open".into(),
            key: Some("a".into()),
            result: "ok".into(),
            duration_us: 7,
            origin: Origin::Disk,
            pid: 1,
        }
    }

    #[test]
    fn followers_get_what_happens_while_they_follow() {
        let tracer = Tracer::default();
        assert!(!tracer.is_active());
        tracer.tell(&event(0));
        let follower = tracer.follow();
        assert!(tracer.is_active());
        tracer.tell(&event(1));
        let (events, dropped) = follower.next(Duration::ZERO);
        assert_eq!((events, dropped), (vec![event(1)], 0));
        drop(follower);
        assert!(!tracer.is_active());
    }

    #[test]
    fn who_does_not_keep_up_loses_the_newest_and_is_told_how_many() {
        let tracer = Tracer::default();
        let slow = tracer.follow();
        for at in 0..QUEUED as u64 + 3 {
            tracer.tell(&event(at));
        }
        let (events, dropped) = slow.next(Duration::ZERO);
        assert_eq!((events.len(), dropped), (QUEUED, 3));
        tracer.tell(&event(9));
        assert_eq!(slow.next(Duration::ZERO), (vec![event(9)], 0));
    }
}

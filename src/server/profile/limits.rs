//! Limits as a balancer counts them: requests in the second that just passed.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The stretch in which requests are counted.
const WINDOW: Duration = Duration::from_secs(1);
/// Stores and kinds of requests that are counted at once.
const MOST: usize = 10_000;

/// The requests of the last second, by a hash of store and kind: strangers choose that text.
#[derive(Debug, Default)]
pub(super) struct Windows(Mutex<HashMap<u64, VecDeque<Instant>>>, RandomState);

impl Windows {
    /// Counts a request; false if it is one too many.
    pub(super) fn admit(&self, class: &str, limit: u32) -> bool {
        let class = self.1.hash_one(class);
        let now = Instant::now();
        let mut all = self.0.lock();
        if all.len() >= MOST {
            all.clear();
        }
        let window = all.entry(class).or_default();
        while window
            .front()
            .is_some_and(|at| now.saturating_duration_since(*at) >= WINDOW)
        {
            window.pop_front();
        }
        let fits = window.len() < limit as usize;
        if fits {
            window.push_back(now);
        }
        fits
    }
}

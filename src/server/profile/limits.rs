//! Limits as a balancer counts them: requests in the second that just passed.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The stretch in which requests are counted.
const WINDOW: Duration = Duration::from_secs(1);
/// Stores and kinds of requests that are counted at once.
const MOST: usize = 10_000;

/// The requests of the last second, by store and kind.
#[derive(Debug, Default)]
pub(super) struct Windows(Mutex<HashMap<String, VecDeque<Instant>>>);

impl Windows {
    /// Counts a request; false if it is one too many.
    pub(super) fn admit(&self, class: String, limit: u32) -> bool {
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

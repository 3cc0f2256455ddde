//! How long operations take, as histograms with fixed bounds: cheap to count, to add and to
//! subtract, so that the difference of two snapshots shows the times in between.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Upper bounds of the buckets in microseconds, from 10 µs to 100 s; one more bucket has no bound.
pub const BOUNDS_US: [u64; 22] = [
    10,
    20,
    50,
    100,
    200,
    500,
    1_000,
    2_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
];

/// The operations with counters of their own; any other counts as the last.
pub const OPERATIONS: [&str; 18] = [
    "lookup",
    "stat",
    "open",
    "read",
    "opendir",
    "readdir",
    "getxattr",
    "listxattr",
    "create",
    "write",
    "setattr",
    "close",
    "fsync",
    "rename",
    "unlink",
    "setxattr",
    "removexattr",
    "other",
];

/// Times counted by bucket.
#[derive(Debug, Default)]
struct Histogram {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    fn observe(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    fn snapshot(&self) -> Latency {
        let buckets: Vec<u64> = self
            .buckets
            .iter()
            .map(|bucket| bucket.load(Ordering::Relaxed))
            .collect();
        Latency::new(self.sum_us.load(Ordering::Relaxed), buckets)
    }
}

/// The times of every operation of [`OPERATIONS`].
#[derive(Debug, Default)]
pub struct Latencies([Histogram; OPERATIONS.len()]);

impl Latencies {
    /// Counts an operation.
    pub fn observe(&self, operation: &str, took: Duration) {
        let at = OPERATIONS.iter().position(|name| *name == operation);
        self.0[at.unwrap_or(OPERATIONS.len() - 1)].observe(took);
    }

    /// Returns the times of the operations that happened at all.
    pub fn snapshot(&self) -> BTreeMap<String, Latency> {
        OPERATIONS
            .iter()
            .zip(&self.0)
            .map(|(name, histogram)| ((*name).to_owned(), histogram.snapshot()))
            .filter(|(_, latency)| latency.count > 0)
            .collect()
    }
}

/// The times of one operation at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Latency {
    /// How often it happened.
    pub count: u64,
    /// All times together, in microseconds.
    pub sum_us: u64,
    /// Half of the times are at most this long, in microseconds.
    pub p50_us: u64,
    /// Nine tenths of the times are at most this long, in microseconds.
    pub p90_us: u64,
    /// All but one in a hundred are at most this long, in microseconds.
    pub p99_us: u64,
    /// How many times fall into each bucket of [`BOUNDS_US`], and above them all.
    pub buckets: Vec<u64>,
}

impl Latency {
    fn new(sum_us: u64, buckets: Vec<u64>) -> Self {
        let mut latency = Self {
            count: buckets.iter().sum(),
            sum_us,
            buckets,
            ..Self::default()
        };
        latency.p50_us = latency.quantile_us(0.5);
        latency.p90_us = latency.quantile_us(0.9);
        latency.p99_us = latency.quantile_us(0.99);
        latency
    }

    /// Returns the times between an earlier moment and this one.
    pub fn since(&self, earlier: &Self) -> Self {
        let buckets =
            self.buckets.iter().enumerate().map(|(at, count)| {
                count.saturating_sub(earlier.buckets.get(at).copied().unwrap_or(0))
            });
        Self::new(
            self.sum_us.saturating_sub(earlier.sum_us),
            buckets.collect(),
        )
    }

    /// Returns the time that so large a part of all times does not exceed, in microseconds;
    /// within a bucket the times are taken to lie evenly.
    pub fn quantile_us(&self, part: f64) -> u64 {
        let wanted = (self.count as f64 * part).ceil().max(1.0);
        let mut before = 0.0;
        for (at, count) in self.buckets.iter().enumerate() {
            let count = *count as f64;
            if before + count >= wanted {
                let low = at.checked_sub(1).map_or(0, |below| BOUNDS_US[below]) as f64;
                let high = BOUNDS_US.get(at).map_or(low, |bound| *bound as f64);
                return (low + (high - low) * (wanted - before) / count).round() as u64;
            }
            before += count;
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_in_the_bucket_of_the_time_they_stand_for() {
        let latencies = Latencies::default();
        for us in 1..=1000 {
            latencies.observe("open", Duration::from_micros(us));
        }
        let open = &latencies.snapshot()["open"];
        assert_eq!((open.count, open.sum_us), (1000, 500_500));
        assert_eq!(open.p50_us, 500);
        assert_eq!(open.p90_us, 900);
        assert_eq!(open.p99_us, 990);
    }

    #[test]
    fn what_is_longer_than_all_bounds_is_counted_and_shown_as_the_last() {
        let latencies = Latencies::default();
        latencies.observe("read", Duration::from_secs(1000));
        let read = &latencies.snapshot()["read"];
        assert_eq!((read.count, read.p50_us), (1, 100_000_000));
        assert_eq!(read.buckets.len(), BOUNDS_US.len() + 1);
    }

    #[test]
    fn the_time_between_two_moments_knows_nothing_of_what_was_before() {
        let latencies = Latencies::default();
        latencies.observe("open", Duration::from_secs(10));
        let before = latencies.snapshot()["open"].clone();
        latencies.observe("open", Duration::from_micros(10));
        let since = latencies.snapshot()["open"].since(&before);
        assert_eq!((since.count, since.sum_us, since.p99_us), (1, 10, 10));
    }

    #[test]
    fn unknown_operations_count_as_other_and_none_is_lost() {
        let latencies = Latencies::default();
        latencies.observe("dance", Duration::ZERO);
        assert_eq!(latencies.snapshot()["other"].count, 1);
    }
}

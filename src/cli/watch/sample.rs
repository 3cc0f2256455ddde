//! The state of a mount at one moment, and what happened between two moments.

use std::time::Instant;

use serde_json::Value;

use crate::metrics::Snapshot;
use crate::metrics::latency::Latency;

/// The state of a mount at a moment.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When it was asked.
    pub at: Instant,
    /// The store reference.
    pub store: String,
    /// Where it is mounted.
    pub mount_point: String,
    /// Decoded or raw, read-only or not.
    pub mode: String,
    /// How long it has been mounted, in seconds.
    pub uptime_s: u64,
    /// Its counters.
    pub stats: Snapshot,
}

impl Sample {
    /// Reads the JSON of `kvfs status`; what is missing counts as nothing.
    pub fn new(state: &Value, at: Instant) -> Self {
        let text = |name: &str| state[name].as_str().unwrap_or("-").to_owned();
        Self {
            at,
            store: text("store"),
            mount_point: text("mount_point"),
            mode: format!("{}, {}", text("mode"), text("access")),
            uptime_s: state["uptime_s"].as_u64().unwrap_or(0),
            stats: serde_json::from_value(state["stats"].clone()).unwrap_or_default(),
        }
    }
}

/// The time between two moments.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// The earlier one.
    pub first: &'a Sample,
    /// The later one.
    pub last: &'a Sample,
}

impl Span<'_> {
    /// Returns how much a counter grew.
    pub fn grown(&self, counter: fn(&Snapshot) -> u64) -> u64 {
        counter(&self.last.stats).saturating_sub(counter(&self.first.stats))
    }

    /// Returns how much a counter grew, a second.
    pub fn rate(&self, counter: fn(&Snapshot) -> u64) -> f64 {
        let seconds = self.last.at.duration_since(self.first.at).as_secs_f64();
        if seconds > 0.0 {
            self.grown(counter) as f64 / seconds
        } else {
            0.0
        }
    }

    /// Returns the times of the operations that happened, since the mount began for those that
    /// did not happen in between, with how many there were a second.
    pub fn operations(&self) -> Vec<(&str, Latency, f64)> {
        let seconds = self.last.at.duration_since(self.first.at).as_secs_f64();
        self.last
            .stats
            .operations
            .iter()
            .map(|(name, now)| {
                let before = self.first.stats.operations.get(name);
                let since = now.since(before.unwrap_or(&Latency::default()));
                if since.count == 0 || seconds == 0.0 {
                    (name.as_str(), now.clone(), 0.0)
                } else {
                    let rate = since.count as f64 / seconds;
                    (name.as_str(), since, rate)
                }
            })
            .collect()
    }

    /// Returns the shares of opens that memory, disk and network answered, in percent; since the
    /// mount began if there was none in between. Nothing when there was none at all.
    pub fn shares(&self) -> Option<[u64; 3]> {
        const SOURCES: [fn(&Snapshot) -> u64; 3] = [
            |stats| stats.cache_memory_hits,
            |stats| stats.cache_disk_hits,
            |stats| stats.cache_misses,
        ];
        let mut opens = SOURCES.map(|source| self.grown(source));
        if opens == [0; 3] {
            opens = SOURCES.map(|source| source(&self.last.stats));
        }
        let all: u64 = opens.iter().sum();
        (all > 0).then(|| opens.map(|part| (part * 100 + all / 2) / all))
    }
}

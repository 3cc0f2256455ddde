//! The counters of a mount, and its latest errors for `kvfs status`.
//!
//! One [`Metrics`] belongs to one mount or server and is handed to every part of it; there are
//! no globals. Counters only grow. [`Snapshot`] is the JSON of `kvfs status --json` and of the
//! `user.kvfs.stats` attribute: names there are stable, units are in the names.
//!
//! [`NUMBERS`] describes each number for `kvfs mount --metrics`; docs/METRICS.md has them all in
//! a table, which a test compares.

pub mod exporter;
pub mod latency;
pub mod origin;
pub mod trace;
pub mod transfers;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::metrics::latency::{Latencies, Latency};
use crate::metrics::trace::Tracer;
use crate::metrics::transfers::{TransferEntry, Transfers};

/// How many errors are remembered.
const REMEMBERED_ERRORS: usize = 32;

/// A counter or, where it can also shrink, a gauge.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn one(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Takes `n` away (gauges only).
    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }

    /// Replaces the value (gauges only).
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// Returns the value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Whether a number may shrink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It is what it is now.
    Gauge,
}

/// What one number of a [`Snapshot`] is.
#[derive(Clone, Copy, Debug)]
pub struct Number {
    /// Its name there; ends in its unit, if it has one.
    pub name: &'static str,
    /// Whether it may shrink.
    pub kind: Kind,
    /// What it counts.
    pub help: &'static str,
    /// Reads it.
    pub get: fn(&Snapshot) -> u64,
}

macro_rules! kind {
    () => {
        Kind::Counter
    };
    (gauge) => {
        Kind::Gauge
    };
}

macro_rules! metrics {
    ($($(#[doc = $doc:literal])* $name:ident $(: $kind:ident)?,)*) => {
        /// The counters of one mount.
        #[derive(Debug, Default)]
        pub struct Metrics {
            $($(#[doc = $doc])* pub $name: Counter,)*
            /// How long filesystem operations take.
            pub latencies: Latencies,
            /// The transfers under way.
            pub transfers: Arc<Transfers>,
            /// The live followers of operations.
            pub tracer: Tracer,
            errors: Mutex<VecDeque<ErrorEntry>>,
            /// Whether a hook of the process counts panics where they happen.
            has_hook: AtomicBool,
        }

        /// The counters at one moment.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Snapshot {
            $($(#[doc = $doc])* pub $name: u64,)*
            /// How long filesystem operations took, by operation.
            pub operations: BTreeMap<String, Latency>,
            /// Some of the transfers under way, the oldest first.
            pub transfers: Vec<TransferEntry>,
            /// The last errors, oldest first.
            pub last_errors: Vec<ErrorEntry>,
        }

        /// What each number of a [`Snapshot`] is.
        pub const NUMBERS: &[Number] = &[
            $(Number {
                name: stringify!($name),
                kind: kind!($($kind)?),
                help: concat!($($doc),*),
                get: |snapshot| snapshot.$name,
            },)*
        ];

        impl Metrics {
            /// Returns all counters and the remembered errors.
            pub fn snapshot(&self) -> Snapshot {
                Snapshot {
                    $($name: self.$name.get(),)*
                    operations: self.latencies.snapshot(),
                    transfers: self.transfers.snapshot(),
                    last_errors: self.errors.lock().iter().cloned().collect(),
                }
            }
        }
    };
}

// A number that may shrink is marked with `: gauge`.
metrics! {
    /// Requests sent, all kinds, retries included.
    requests_total,
    /// Requests for a page of keys.
    requests_list,
    /// Requests for a record's bytes.
    requests_get,
    /// Of those, conditional ones (`If-None-Match`, `If-Modified-Since`).
    requests_conditional,
    /// Requests for a record's metadata.
    requests_head,
    /// Requests that store a record.
    requests_put,
    /// Requests that delete a record.
    requests_delete,
    /// Requests about stores, runs and users.
    requests_other,
    /// Of all requests, those that repeat a failed one.
    requests_retried,
    /// Answers 429.
    responses_rate_limited,
    /// Microseconds that requests waited for their turn under the request budget.
    budget_waited_us,
    /// Requests for records a second that the server allows; 0 while it is not known to limit.
    budget_records_per_second: gauge,
    /// Requests for metadata of records a second that the server allows; 0 while not known.
    budget_heads_per_second: gauge,
    /// Other requests a second that the server allows; 0 while it is not known to limit.
    budget_rest_per_second: gauge,
    /// Requests for pages of keys a second that the server allows; 0 while it is not known to limit.
    budget_lists_per_second: gauge,
    /// Requests that wait because the server has refused them for its limit (429).
    requests_waiting_for_limit: gauge,
    /// Body bytes received.
    received_bytes,
    /// Body bytes sent.
    sent_bytes,
    /// Opens answered by the memory cache.
    cache_memory_hits,
    /// Opens answered by the disk cache.
    cache_disk_hits,
    /// Opens that fetched the record.
    cache_misses,
    /// Opens after which the kernel kept the pages that it had: reads cost nothing.
    cache_kernel_hits,
    /// Records fetched ahead of a scan.
    prefetched,
    /// Stored bytes of records fetched ahead of a scan.
    prefetched_bytes,
    /// Of the records fetched ahead, those that were opened while they were good.
    prefetch_used,
    /// Of the records fetched ahead, those that no program opened within the TTL.
    prefetch_wasted,
    /// Records that `kvfs warm` asked the store for.
    warmed,
    /// Broken cache entries that were dropped and fetched again.
    cache_healed,
    /// Bytes in the memory cache now.
    cache_memory_bytes: gauge,
    /// Bytes in the disk cache now.
    cache_disk_bytes: gauge,
    /// Bytes that reads returned through the daemon.
    read_bytes,
    /// Bytes that programs wrote.
    written_bytes,
    /// Records stored because a file was closed, synced or renamed.
    commits,
    /// Such records that could not be stored.
    commits_failed,
    /// Filesystem operations that failed, other than with "no such file".
    errors_total,
    /// Panics, of handlers and of other threads; what was asked for got an EIO.
    panics_total,
    /// Closed files that wait to be uploaded or are being uploaded now (`--write-back`).
    uploads_pending: gauge,
    /// Pending uploads that reached the store.
    uploads_total,
    /// Attempts at pending uploads that failed and are to be repeated.
    uploads_retried,
    /// Pending uploads that the store refused for good.
    uploads_failed,
    /// Files open now.
    open_files: gauge,
    /// Inodes known now.
    inodes: gauge,
}

/// An error that a program got, with its explanation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorEntry {
    /// When, in seconds since 1970.
    pub at_unix_s: u64,
    /// The symbolic errno, such as `EACCES`.
    pub errno: String,
    /// The operation: `open`, `read`, ...
    pub operation: String,
    /// The record's key, if the error is about one.
    pub key: Option<String>,
    /// What happened.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// How often this happened in a row.
    pub count: u64,
}

impl Metrics {
    /// Counts a panic that was caught, unless a hook has.
    pub fn caught_panic(&self) {
        if !self.has_hook.load(Ordering::Relaxed) {
            self.panics_total.one();
        }
    }

    /// Leaves counting panics, caught or not, to a hook of the process from now on.
    pub fn counts_panics_by_hook(&self) {
        self.has_hook.store(true, Ordering::Relaxed);
    }

    /// Counts a filesystem operation and its time.
    pub fn operation(&self, operation: &str, took: Duration) {
        self.latencies.observe(operation, took);
    }

    /// Remembers an error; one that repeats the last one only raises its count.
    pub fn remember_error(&self, now: SystemTime, mut entry: ErrorEntry) {
        self.errors_total.one();
        entry.at_unix_s = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let mut errors = self.errors.lock();
        if let Some(last) = errors.back_mut()
            && (&last.errno, &last.operation, &last.key, &last.message)
                == (&entry.errno, &entry.operation, &entry.key, &entry.message)
        {
            last.count += 1;
            last.at_unix_s = entry.at_unix_s;
            return;
        }
        if errors.len() == REMEMBERED_ERRORS {
            errors.pop_front();
        }
        errors.push_back(ErrorEntry { count: 1, ..entry });
    }
}

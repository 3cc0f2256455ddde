//! The server's counters: for tests, and for `GET /_kvfs/stats`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::metrics::Counter;

/// How many requests are remembered.
const REMEMBERED: usize = 10_000;

/// How many bytes of them, at most: strangers write some of that.
const REMEMBERED_BYTES: usize = 4 << 20;

/// How long the size of a store that others may change stays valid.
const MEASURED_FOR: Duration = Duration::from_secs(2);

/// Bytes of a path or a header that are remembered.
const LONGEST: usize = 512;

/// Query parameters with values that are not remembered.
const SECRETS: [&str; 2] = ["token", "signature"];

/// What kind of request something was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    List,
    Get,
    Head,
    Put,
    Delete,
    Other,
}

/// The counters of a server.
#[derive(Debug, Default)]
pub(super) struct Stats {
    list: Counter,
    get: Counter,
    head: Counter,
    put: Counter,
    delete: Counter,
    other: Counter,
    conditional: Counter,
    ranged: Counter,
    bytes_sent: Counter,
    bytes_received: Counter,
    connections: AtomicU64,
    in_flight: AtomicU64,
    most_in_flight: AtomicU64,
    log: Mutex<Log>,
    /// By the store's id.
    stores: Mutex<HashMap<String, Arc<StoreStats>>>,
}

/// The last requests.
#[derive(Debug, Default)]
struct Log {
    requests: VecDeque<Arc<LoggedRequest>>,
    bytes: usize,
}

impl Log {
    /// Adds a request; returns those that make way for it, to be dropped without the lock.
    fn push(&mut self, request: Arc<LoggedRequest>) -> Vec<Arc<LoggedRequest>> {
        self.bytes += request.bytes();
        self.requests.push_back(request);
        let mut gone = Vec::new();
        while (self.requests.len() > REMEMBERED || self.bytes > REMEMBERED_BYTES)
            && let Some(oldest) = self.requests.pop_front()
        {
            self.bytes -= oldest.bytes();
            gone.push(oldest);
        }
        gone
    }
}

/// What the server tells its owner of itself.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    counts: Counts,
    requests: Vec<Arc<LoggedRequest>>,
}

/// What was done with one store since the server started.
#[derive(Debug, Default)]
pub(super) struct StoreStats {
    reads: Counter,
    writes: Counter,
    deletes: Counter,
    lists: Counter,
    measured: Mutex<Option<Measured>>,
}

/// How large a store was.
#[derive(Clone, Copy, Debug)]
struct Measured {
    at: Instant,
    /// How often it had been changed through this server.
    changes: u64,
    /// `None` where it takes long to find out.
    bytes: Option<u64>,
}

impl StoreStats {
    /// Returns the store's size, measured again at most once in a while: anyone may ask for a public
    /// store's as often as they like.
    pub(super) fn size(&self, measure: impl FnOnce() -> Option<u64>) -> Option<u64> {
        let changes = self.writes.get() + self.deletes.get();
        let known = *self.measured.lock();
        if let Some(known) = known
            && known.changes == changes
            && known.at.elapsed() < MEASURED_FOR
        {
            return known.bytes;
        }
        let measured = Measured {
            at: Instant::now(),
            changes,
            bytes: measure(),
        };
        *self.measured.lock() = Some(measured);
        measured.bytes
    }

    pub(super) fn read(&self) {
        self.reads.one();
    }

    pub(super) fn written(&self) {
        self.writes.one();
    }

    pub(super) fn deleted(&self) {
        self.deletes.one();
    }

    pub(super) fn listed(&self) {
        self.lists.one();
    }

    /// Returns the counts as store objects show them.
    pub(super) fn object(&self) -> serde_json::Value {
        serde_json::json!({
            "readCount": self.reads.get(),
            "writeCount": self.writes.get(),
            "deleteCount": self.deletes.get(),
            "listCount": self.lists.get(),
        })
    }
}

/// The counters of a server at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Pages of listings (`GET …/keys`).
    pub list: u64,
    /// Records asked for, answers 304 and 404 included.
    pub get: u64,
    /// `HEAD` of records.
    pub head: u64,
    /// Records stored or refused.
    pub put: u64,
    /// Records deleted.
    pub delete: u64,
    /// Everything else: store objects, users, unknown addresses.
    pub other: u64,
    /// Requests of any kind that carried a precondition (`If-…`).
    pub conditional: u64,
    /// Gets of records that carried `Range`.
    pub ranged: u64,
    /// Bytes of bodies sent.
    pub bytes_sent: u64,
    /// Bytes of records received.
    pub bytes_received: u64,
    /// Connections that are open now.
    pub connections: u64,
    /// Requests under way now, their bodies included.
    pub in_flight: u64,
    /// The most requests that were under way at once.
    pub most_in_flight: u64,
}

impl Counts {
    /// Returns how many requests there were.
    #[cfg(feature = "testing")]
    pub fn requests(&self) -> u64 {
        self.list + self.get + self.head + self.put + self.delete + self.other
    }
}

/// One request that the server answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggedRequest {
    /// The method.
    pub method: String,
    /// Path and query as they came, the values of secret parameters replaced; of long ones the
    /// first 512 bytes.
    pub path: String,
    /// The status of the answer.
    pub status: u16,
    /// `Range`, of a long one the first 512 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<String>,
    /// Whether it carried a precondition.
    pub conditional: bool,
}

impl LoggedRequest {
    /// Returns about how much memory this takes.
    fn bytes(&self) -> usize {
        let range = self.range.as_ref().map_or(0, String::len);
        size_of::<Self>() + self.method.len() + self.path.len() + range
    }
}

impl Stats {
    pub(super) fn count(&self, kind: Kind, request: Arc<LoggedRequest>) {
        let counter = match kind {
            Kind::List => &self.list,
            Kind::Get => &self.get,
            Kind::Head => &self.head,
            Kind::Put => &self.put,
            Kind::Delete => &self.delete,
            Kind::Other => &self.other,
        };
        counter.one();
        if request.conditional {
            self.conditional.one();
        }
        if kind == Kind::Get && request.range.is_some() {
            self.ranged.one();
        }
        let gone = self.log.lock().push(request);
        drop(gone);
    }

    /// Returns the counts of a store.
    pub(super) fn store(&self, id: &str) -> Arc<StoreStats> {
        let mut stores = self.stores.lock();
        match stores.get(id) {
            Some(stats) => stats.clone(),
            None => stores.entry(id.to_owned()).or_default().clone(),
        }
    }

    pub(super) fn sent(&self, bytes: u64) {
        self.bytes_sent.add(bytes);
    }

    pub(super) fn received(&self, bytes: u64) {
        self.bytes_received.add(bytes);
    }

    pub(super) fn began(&self) {
        let now = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_in_flight.fetch_max(now, Ordering::Relaxed);
    }

    pub(super) fn ended(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts a connection until the guard is dropped.
    pub(super) fn connected(self: &Arc<Self>) -> Open {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Open(self.clone())
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            list: self.list.get(),
            get: self.get.get(),
            head: self.head.get(),
            put: self.put.get(),
            delete: self.delete.get(),
            other: self.other.get(),
            conditional: self.conditional.get(),
            ranged: self.ranged.get(),
            bytes_sent: self.bytes_sent.get(),
            bytes_received: self.bytes_received.get(),
            connections: self.connections.load(Ordering::Relaxed),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            most_in_flight: self.most_in_flight.load(Ordering::Relaxed),
        }
    }

    #[cfg(feature = "testing")]
    pub(super) fn log(&self) -> Vec<LoggedRequest> {
        let requests = self.report().requests;
        requests.iter().map(|request| (**request).clone()).collect()
    }

    pub(super) fn report(&self) -> Report {
        Report {
            counts: self.counts(),
            requests: self.log.lock().requests.iter().cloned().collect(),
        }
    }

    /// Forgets the counts of a store that is gone.
    pub(super) fn forget(&self, id: &str) {
        self.stores.lock().remove(id);
    }

    pub(super) fn reset(&self) {
        for counter in [
            &self.list,
            &self.get,
            &self.head,
            &self.put,
            &self.delete,
            &self.other,
            &self.conditional,
            &self.ranged,
            &self.bytes_sent,
            &self.bytes_received,
        ] {
            counter.set(0);
        }
        let log = std::mem::take(&mut *self.log.lock());
        drop(log);
        self.stores.lock().clear();
        let now = self.in_flight.load(Ordering::Relaxed);
        self.most_in_flight.store(now, Ordering::Relaxed);
    }
}

/// An open connection.
#[derive(Debug)]
pub(super) struct Open(Arc<Stats>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns what is remembered of a text that may be long.
pub(super) fn short(mut text: String) -> String {
    if text.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
        text.shrink_to_fit();
    }
    text
}

/// Returns path and query with the values of secret parameters replaced.
pub(super) fn redacted(path_and_query: &str) -> String {
    let Some((path, query)) = path_and_query.split_once('?') else {
        return path_and_query.to_owned();
    };
    let shown: Vec<String> = query
        .split('&')
        .map(|pair| {
            let name = pair.split('=').next().unwrap_or_default();
            let plain = percent_encoding::percent_decode_str(name).decode_utf8_lossy();
            if SECRETS
                .iter()
                .any(|secret| plain.eq_ignore_ascii_case(secret))
            {
                format!("{name}=redacted")
            } else {
                pair.to_owned()
            }
        })
        .collect();
    format!("{path}?{}", shown.join("&"))
}

#[cfg(test)]
mod tests {
    use super::redacted;

    #[test]
    fn secrets_in_queries_are_not_remembered() {
        assert_eq!(
            redacted("/v2/a?token=x&limit=1&Signature=y&%74oken=z"),
            "/v2/a?token=redacted&limit=1&Signature=redacted&%74oken=redacted"
        );
        assert_eq!(redacted("/v2/%2E%2E"), "/v2/%2E%2E");
    }
}

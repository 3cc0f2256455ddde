//! What a server's answers show of the server itself: that it is there, what time it is there, and
//! that it names its limit of requests.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use reqwest::header::{AGE, DATE, HeaderMap};

use super::call::Purpose;
use super::transport::Reply;
use crate::store::freshness::{ServerTime, Span};

/// How many requests a second the server allows.
pub(super) const RATE_LIMIT: &str = "x-ratelimit-limit";

/// `no` where the server only names the limit, as `kvfs serve` does.
const LIMIT_ENFORCED: &str = "x-ratelimit-enforced";

/// A server, as far as its answers have told.
#[derive(Debug, Default)]
pub(super) struct Peer {
    has_answered: AtomicBool,
    /// Whether an answer has named the limit of requests; then all of the API's do.
    names_limit: AtomicBool,
    /// What time it is there.
    time: Mutex<Option<ServerTime>>,
}

impl Peer {
    /// Returns whether it has ever answered.
    pub(super) fn has_answered(&self) -> bool {
        self.has_answered.load(Ordering::Relaxed)
    }

    /// Notes that a server has answered, this one or one that it redirects to.
    pub(super) fn is_reached(&self) {
        self.has_answered.store(true, Ordering::Relaxed);
    }

    /// Learns from an answer of the server to a request that was begun then. Returns the limit that
    /// it names and keeps.
    pub(super) fn answered(&self, begun: Instant, reply: &Reply) -> Option<u32> {
        self.note_time(begun, reply);
        let limit = reply.headers.get(RATE_LIMIT)?;
        self.names_limit.store(true, Ordering::Relaxed);
        if reply
            .headers
            .get(LIMIT_ENFORCED)
            .is_some_and(|kept| kept == "no")
        {
            return None;
        }
        limit.to_str().ok()?.trim().parse().ok()
    }

    /// Learns the server's time.
    fn note_time(&self, begun: Instant, reply: &Reply) {
        let received = Instant::now();
        let text = |name| reply.headers.get(name)?.to_str().ok();
        // An answer out of a cache tells the time at which it got there.
        let Some(date) = text(DATE).filter(|_| !reply.headers.contains_key(AGE)) else {
            return;
        };
        let Ok(date) = httpdate::parse_http_date(date) else {
            return;
        };
        let mut time = self.time.lock();
        match &mut *time {
            Some(time) => time.answered(begun, received, date),
            None => *time = Some(ServerTime::from_answer(begun, received, date)),
        }
    }

    /// Returns what time it is by the server's clock, as far as its answers have told.
    pub(super) fn time(&self) -> Option<Span> {
        let time = *self.time.lock();
        Some(time?.at(Instant::now()))
    }

    /// Returns whether an answer lacks what all others of the API's answers have had.
    pub(super) fn lacks_limit(&self, headers: &HeaderMap) -> bool {
        self.names_limit.load(Ordering::Relaxed) && !headers.contains_key(RATE_LIMIT)
    }

    /// Returns whether an answer that looks like success is a gateway's.
    ///
    /// A record can be a web page, so the content says nothing. But the platform names its limit of
    /// requests in every answer about records, and what stands before it does not.
    pub(super) fn is_gateways(&self, purpose: Purpose, reply: &Reply) -> bool {
        let is_success = match purpose {
            Purpose::Get | Purpose::Head => matches!(reply.status, 200 | 206),
            Purpose::Put | Purpose::Delete => (200..300).contains(&reply.status),
            // Those must be the API's JSON.
            Purpose::List | Purpose::Other | Purpose::Create => false,
        };
        is_success && self.lacks_limit(&reply.headers)
    }
}

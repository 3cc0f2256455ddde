//! Records that were fetched ahead and not opened yet; counts used and wasted ones.

use std::time::{Duration, Instant};

use lru::LruCache;

use super::content::VersionId;
use crate::base::sync::Mutex;
use crate::metrics::Metrics;
use crate::store::Key;

/// Records remembered; a program that has not come back by then will not.
const MOST: usize = 16_384;

/// Records fetched ahead that wait for a program to open them, the oldest first.
#[derive(Debug)]
pub struct Ahead(Mutex<LruCache<Key, (VersionId, Instant)>>);

impl Default for Ahead {
    fn default() -> Self {
        Self(Mutex::new(LruCache::unbounded()))
    }
}

impl Ahead {
    /// Notes a record that was fetched ahead, and counts those not opened for longer than the TTL
    /// as wasted.
    pub fn fetched(
        &self,
        key: &Key,
        version: VersionId,
        now: Instant,
        ttl: Option<Duration>,
        metrics: &Metrics,
    ) {
        let mut waiting = self.0.lock();
        waiting.put(key.clone(), (version, now));
        let is_over = |at: Instant| ttl.is_some_and(|ttl| now.saturating_duration_since(at) >= ttl);
        while waiting.len() > MOST || waiting.peek_lru().is_some_and(|(_, (_, at))| is_over(*at)) {
            waiting.pop_lru();
            metrics.prefetch_wasted.one();
        }
    }

    /// Returns whether this version of a record was fetched ahead, the first time it is opened.
    pub fn used(&self, key: &Key, version: VersionId, metrics: &Metrics) -> bool {
        let mut waiting = self.0.lock();
        match waiting.pop(key) {
            Some((fetched, _)) if fetched == version => {
                metrics.prefetch_used.one();
                true
            }
            Some(_) => {
                metrics.prefetch_wasted.one();
                false
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_fetched_ahead_is_used_once_or_wasted_after_the_ttl() {
        let (ahead, metrics) = (Ahead::default(), Metrics::default());
        let key = |name: &str| Key::new(name).expect("a key");
        let (now, ttl) = (Instant::now(), Some(Duration::from_secs(10)));
        ahead.fetched(&key("a"), VersionId(1), now, ttl, &metrics);
        ahead.fetched(&key("b"), VersionId(2), now, ttl, &metrics);
        ahead.fetched(&key("c"), VersionId(3), now, ttl, &metrics);
        assert!(ahead.used(&key("a"), VersionId(1), &metrics));
        assert!(!ahead.used(&key("a"), VersionId(1), &metrics), "once");
        assert!(!ahead.used(&key("c"), VersionId(9), &metrics), "it changed");
        let later = now + Duration::from_secs(11);
        ahead.fetched(&key("d"), VersionId(4), later, ttl, &metrics);
        assert_eq!(metrics.prefetch_used.get(), 1);
        assert_eq!(metrics.prefetch_wasted.get(), 2);
    }
}

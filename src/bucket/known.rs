//! A process's memory of the catalog, for moments only: other servers change it, too.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;
use object_store::UpdateVersion;
use object_store::path::Path;
use parking_lot::Mutex;

use super::catalog::Description;
use super::objects::Seen;
use crate::base::sync::now;

/// Stores, and names, that are remembered.
const MOST: NonZeroUsize = NonZeroUsize::new(1000).expect("more than none");

/// Descriptions, their accounts, and claims that stand still. Never locked across I/O.
pub(super) struct Known {
    stores: Mutex<LruCache<String, (Instant, Option<Description>)>>,
    /// Which store a claim was of when it was last read. Only the store itself says whether it still is.
    holders: Mutex<LruCache<Path, String>>,
    /// Claims of stores that are not called so, and since when they are seen unchanged here.
    unsettled: Mutex<LruCache<Path, (Option<UpdateVersion>, Instant)>>,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            stores: Mutex::new(LruCache::new(MOST)),
            holders: Mutex::new(LruCache::new(MOST)),
            unsettled: Mutex::new(LruCache::new(MOST)),
        }
    }
}

impl Known {
    /// Returns the time of a question; to be taken before it is asked.
    pub(super) fn ask(&self) -> Instant {
        now()
    }

    /// Keeps what a store was found to be, unless something was found out later.
    pub(super) fn remember(&self, id: &str, asked: Instant, found: Option<&Seen<Description>>) {
        let id = id.to_ascii_lowercase();
        let mut stores = self.stores.lock();
        if stores.peek(&id).is_none_or(|(known, _)| *known <= asked) {
            stores.put(id, (asked, found.map(|found| found.value.clone())));
        }
    }

    /// Returns a store as it was within the last `age`.
    pub(super) fn store(&self, id: &str, age: Duration) -> Option<Description> {
        if age.is_zero() {
            return None;
        }
        let mut stores = self.stores.lock();
        let (asked, found) = stores.get(&id.to_ascii_lowercase())?;
        found.clone().filter(|_| asked.elapsed() < age)
    }

    pub(super) fn forget(&self, id: &str) {
        self.stores.lock().pop(&id.to_ascii_lowercase());
    }

    pub(super) fn hold(&self, claim: &Path, id: &str) {
        self.holders.lock().put(claim.clone(), id.to_owned());
    }

    pub(super) fn holder(&self, claim: &Path) -> Option<String> {
        self.holders.lock().get(claim).cloned()
    }

    /// Returns whether a claim has been the same for long enough by this machine's own clock.
    pub(super) fn stood_still(
        &self,
        claim: &Path,
        version: Option<&UpdateVersion>,
        patience: Duration,
    ) -> bool {
        let mut unsettled = self.unsettled.lock();
        let now = now();
        match unsettled.get(claim) {
            Some((seen, since)) if seen.as_ref() == version => {
                now.duration_since(*since) >= patience
            }
            _ => {
                unsettled.put(claim.clone(), (version.cloned(), now));
                patience.is_zero()
            }
        }
    }
}

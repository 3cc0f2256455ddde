//! The mount's current listing: shared by all readers of the directory, and asked whether a single
//! record is listed.

use std::sync::Arc;
use std::time::Instant;

use crate::base::sync::Mutex;
use crate::listing::{Found, Listing};
use crate::store::Key;

/// The latest listing; `None` before the first. It also leads to the one before it, as far as it has
/// not come yet.
#[derive(Debug, Default)]
pub struct Current(Mutex<Option<Arc<Listing>>>);

impl Current {
    /// Returns the latest listing, however old.
    pub fn latest(&self) -> Option<Arc<Listing>> {
        self.0.lock().clone()
    }

    /// Returns the listing that shows what comes behind a key: the latest, unless that has not come to
    /// its end and the one before it has the key.
    pub fn farthest(&self, key: &Key) -> Option<Arc<Listing>> {
        let latest = self.latest()?;
        let before = latest.before().filter(|before| before.rank(key).is_some());
        Some(before.unwrap_or(latest))
    }

    /// Returns the latest listing if it `is_fresh`, else the one that `begin` makes of it, and whether
    /// it is a new one.
    pub fn fresh(
        &self,
        is_fresh: impl FnOnce(&Listing) -> bool,
        begin: impl FnOnce(Option<Arc<Listing>>) -> Arc<Listing>,
    ) -> (Arc<Listing>, bool) {
        let mut latest = self.0.lock();
        match &*latest {
            Some(listing) if is_fresh(listing) => (Arc::clone(listing), false),
            _ => {
                let listing = begin(latest.take());
                *latest = Some(Arc::clone(&listing));
                (listing, true)
            }
        }
    }

    /// Forgets the listing.
    pub fn clear(&self) {
        let dropped = self.0.lock().take();
        drop(dropped);
    }

    /// Looks a key up: in the latest listing, else, where that has not come so far, in the one
    /// before it. The time says which.
    pub fn find(&self, key: &Key) -> Found {
        let Some(latest) = self.latest() else {
            return Found::Unknown;
        };
        match latest.find(key) {
            Found::Unknown => latest
                .before()
                .map_or(Found::Unknown, |before| before.find(key)),
            found => found,
        }
    }

    /// Returns when the youngest page was asked for: of the latest listing, or of the one before it
    /// while that has none.
    pub fn youngest(&self) -> Option<Instant> {
        let latest = self.latest()?;
        latest.youngest().or_else(|| latest.before()?.youngest())
    }

    /// Returns whether any page was asked for after `at`.
    pub fn is_younger(&self, at: Instant) -> bool {
        self.youngest().is_some_and(|youngest| youngest > at)
    }

    /// Returns the first listed key that `wanted` accepts; as [`Current::find`].
    pub fn find_key(&self, wanted: &dyn Fn(&Key) -> bool) -> Option<Key> {
        let latest = self.latest()?;
        latest
            .find_key(wanted)
            .or_else(|| latest.before()?.find_key(wanted))
    }
}

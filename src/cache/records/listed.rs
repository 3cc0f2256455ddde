//! What the listing says of a record, held against what else is known of it: the younger counts.
//!
//! Nothing here may be asked while the record's slot is locked.

use std::time::Instant;

use super::Records;
use super::known::{Known, Slot};
use crate::cache::content::Content;
use crate::cache::sizes::Remembered;
use crate::listing::Found;
use crate::store::Key;

impl Records {
    /// Returns what the listing says of a record. That it has none says nothing if the record was
    /// forgotten since then, as it may have been changed.
    pub fn listed(&self, key: &Key) -> Found {
        match self.listing.find(key) {
            Found::Absent(at) if self.was_forgotten_since(key, at) => Found::Unknown,
            found => found,
        }
    }

    fn was_forgotten_since(&self, key: &Key, at: Instant) -> bool {
        let slot = self.slots.lock().peek(key).cloned();
        slot.is_some_and(|slot| {
            let forgotten = slot.state.lock().invalidated;
            forgotten.is_some_and(|forgotten| at <= forgotten)
        })
    }

    /// Returns the stored size that a fresh listing shows.
    pub(in crate::cache) fn listed_size(&self, key: &Key) -> Option<u64> {
        match self.listing.find(key) {
            Found::Listed(entry, at) if self.is_fresh(at) => entry.stored_size,
            _ => None,
        }
    }

    /// Returns whether a version is believed to be the current one: it is fresh, and no younger
    /// listing says otherwise.
    pub(super) fn is_current(&self, key: &Key, known: &Known) -> bool {
        self.is_fresh(known.validated) && !self.is_shown_another(key, known, Some(known.validated))
    }

    /// Returns whether a listing that was asked for after `since`, or any, shows another version or
    /// none.
    pub(super) fn is_shown_another(
        &self,
        key: &Key,
        known: &Known,
        since: Option<Instant>,
    ) -> bool {
        if since.is_some_and(|since| !self.listing.is_younger(since)) {
            return false;
        }
        let counts = |at: Instant| since.is_none_or(|since| at > since);
        match self.listing.find(key) {
            Found::Listed(entry, at) => counts(at) && !known.has_stored_size(entry.stored_size),
            Found::Absent(at) => counts(at),
            Found::Unknown => false,
        }
    }

    /// Returns whether a listing that was asked for after `at` shows the record.
    pub(super) fn is_listed_since(&self, key: &Key, at: Instant) -> bool {
        self.listing.is_younger(at)
            && matches!(self.listing.find(key), Found::Listed(_, listed) if listed > at)
    }

    /// Returns when that was learnt of a record which a younger listing contradicts: a version, or
    /// that there is none.
    pub(super) fn contradicted(&self, key: &Key, slot: &Slot) -> Option<Instant> {
        let youngest = self.listing.youngest()?;
        let (absent, known) = {
            let state = slot.state.lock();
            let is_older = |at: Instant| at < youngest;
            let known = |known: &&Known| is_older(known.validated);
            match state.absent {
                Some(at) => (is_older(at).then_some(at), None),
                None => (None, state.known.as_ref().filter(known).cloned()),
            }
        };
        let is_shown = |known: &Known| self.is_shown_another(key, known, Some(known.validated));
        absent
            .filter(|at| self.is_listed_since(key, *at))
            .or_else(|| Some(known.filter(is_shown)?.validated))
    }

    /// Returns whether a fresh listing shows another size than it did for this content, which was read
    /// before this mount knew of the record.
    pub(super) fn is_listed_otherwise(&self, content: &Content) -> bool {
        let listed = self.listed_size(&content.key);
        let (Some(listed), Some(stored)) = (listed, content.meta.stored_size) else {
            return false;
        };
        let kept = self.sizes.get(&content.key);
        let as_before = |kept: &Remembered| kept.stored == stored && kept.listed == listed;
        listed != stored && !kept.as_ref().is_some_and(as_before)
    }
}

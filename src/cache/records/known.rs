//! What is known of each record: its current version, or that it does not exist.

use std::sync::{Arc, Weak};
use std::time::{Instant, SystemTime};

use super::Records;
use crate::base::sync::atomic::Ordering;
use crate::base::sync::{Condvar, Mutex};
use crate::cache::content::{Content, Data, VersionId};
use crate::store::{Key, RecordMeta};

/// Records whose metadata is remembered: more than a scan at the full rate touches within a TTL.
const MOST_SLOTS: usize = 16_384;

#[derive(Debug, Default)]
pub(in crate::cache) struct Slot {
    pub(in crate::cache) state: Mutex<SlotState>,
    pub(super) changed: Condvar,
}

#[derive(Debug, Default)]
pub(in crate::cache) struct SlotState {
    /// Whether somebody is asking the store about this record now (C5).
    pub(super) busy: bool,
    pub(in crate::cache) known: Option<Known>,
    pub(in crate::cache) absent: Option<Instant>,
    pub(in crate::cache) content: Weak<Content>,
    /// How often this mount has stored or deleted the record: an answer to a question from
    /// before the last time says nothing any more.
    pub(in crate::cache) changes: u64,
}

/// What is known of a record's current version.
#[derive(Clone, Debug)]
pub struct Known {
    /// What the store said of it.
    pub meta: RecordMeta,
    /// Which version.
    pub version: VersionId,
    /// When the store last confirmed it.
    pub validated: Instant,
    /// The time that its file shows.
    pub modified: SystemTime,
    /// The exact content size, once known.
    pub size: Option<u64>,
    /// The disk cache's entry of this version.
    pub(in crate::cache) disk_id: Option<String>,
}

/// What memory knows of a record, without asking anybody.
#[derive(Clone, Debug)]
pub enum Peek {
    /// It exists.
    Present(Known),
    /// It did not exist a moment ago.
    Absent,
    /// Nothing that is fresh enough.
    Unknown,
}

impl Records {
    /// Returns what memory knows of a record.
    pub fn peek(&self, key: &Key) -> Peek {
        let Some(slot) = self.slots.lock().peek(key).cloned() else {
            return Peek::Unknown;
        };
        let state = slot.state.lock();
        if state.absent.is_some_and(|at| self.is_fresh(at)) {
            return Peek::Absent;
        }
        match &state.known {
            Some(known) if self.is_fresh(known.validated) => Peek::Present(known.clone()),
            _ => Peek::Unknown,
        }
    }

    /// Returns the exact content size of a record that a listing shows with `stored` bytes, if
    /// it is known: from what is fresh in memory, or from an earlier decoding.
    pub fn exact_size(&self, key: &Key, stored: Option<u64>) -> Option<u64> {
        if let Peek::Present(known) = self.peek(key)
            && (stored.is_none()
                || known.meta.stored_size.is_none()
                || known.meta.stored_size == stored)
        {
            return known.size;
        }
        if self.config.raw {
            stored
        } else {
            self.sizes.get(key, stored?)
        }
    }

    /// Drops what is known of a record, so that the next question goes to the store.
    pub fn expire(&self, key: &Key) {
        if let Some(slot) = self.slots.lock().pop(key) {
            *slot.state.lock() = SlotState::default();
        }
        self.memory.lock().remove(key);
    }

    /// Has the next question about a record go to the store, which is asked whether it is still what is
    /// known of it.
    pub fn doubt(&self, key: &Key) {
        let long_ago = self.config.ttl.and_then(|ttl| self.now().checked_sub(ttl));
        let slot = self.slots.lock().peek(key).cloned();
        if let Some(slot) = slot
            && let (Some(known), Some(long_ago)) = (&mut slot.state.lock().known, long_ago)
        {
            known.validated = known.validated.min(long_ago);
        }
    }

    pub(in crate::cache) fn slot(&self, key: &Key) -> Arc<Slot> {
        let mut slots = self.slots.lock();
        let slot = Arc::clone(slots.get_or_insert(key.clone(), Arc::default));
        if slots.len() > MOST_SLOTS {
            slots.pop_lru();
        }
        slot
    }

    /// Returns the name of a version that nobody has seen so far.
    pub fn new_version(&self) -> VersionId {
        VersionId(self.versions.fetch_add(1, Ordering::Relaxed))
    }

    pub(in crate::cache) fn known_of(&self, content: &Content, validated: Instant) -> Known {
        let size = content.known_size();
        if let Some(size) = size {
            self.remember_size(content, size);
        }
        let disk_id = match &content.data {
            Data::File { id, .. } => Some(id.clone()),
            _ => None,
        };
        Known {
            meta: content.meta.clone(),
            version: content.version,
            validated,
            modified: content.modified,
            size,
            disk_id,
        }
    }

    pub(super) fn remember_size(&self, content: &Content, size: u64) {
        if let Some(stored) = content.meta.stored_size.filter(|stored| *stored != size) {
            self.sizes.remember(&content.key, stored, size);
        }
    }

    pub(super) fn note_size(&self, content: &Content, size: u64) {
        self.remember_size(content, size);
        let slot = self.slot(&content.key);
        let mut state = slot.state.lock();
        if let Some(known) = state
            .known
            .as_mut()
            .filter(|known| known.version == content.version)
        {
            known.size = Some(size);
        }
    }
}

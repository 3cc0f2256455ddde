//! The cached metadata of each record: its current version, or that it does not exist.

use std::sync::{Arc, Weak};
use std::time::{Instant, SystemTime};

use super::Records;
use crate::base::sync::atomic::Ordering;
use crate::base::sync::{Condvar, Mutex};
use crate::cache::content::{Content, Data, VersionId};
use crate::cache::sizes::Remembered;
use crate::store::{Key, RecordMeta};

/// How many records have their metadata remembered: more than a scan at the full rate touches
/// within a TTL.
const MOST_SLOTS: usize = 16_384;

#[derive(Debug, Default)]
pub(in crate::cache) struct Slot {
    pub(in crate::cache) state: Mutex<SlotState>,
    pub(super) changed: Condvar,
}

#[derive(Debug, Default)]
pub(in crate::cache) struct SlotState {
    /// Whether a thread is asking the store about this record now (C5).
    pub(super) busy: bool,
    pub(in crate::cache) known: Option<Known>,
    pub(in crate::cache) absent: Option<Instant>,
    pub(in crate::cache) content: Weak<Content>,
    /// What the store said of it when it was asked for no more than that.
    pub(in crate::cache) described: Option<(RecordMeta, Instant)>,
    /// When it was last forgotten, as it may have changed.
    pub(super) invalidated: Option<Instant>,
    /// Whether the store is to be asked again, however young what is known is.
    pub(in crate::cache) is_doubted: bool,
    /// Whether the last answer was for a lookup: the open that follows it has it, too.
    pub(in crate::cache) is_unopened: bool,
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
    /// The store had it at that time by the server's clock or later, where that is known.
    pub read: Option<SystemTime>,
    /// The exact content size, once known.
    pub size: Option<u64>,
    /// The stored size that a listing showed when the store confirmed it, where that is another.
    pub listed: Option<u64>,
    /// The disk cache's entry of this version.
    pub(in crate::cache) disk_id: Option<String>,
}

/// What memory knows of a record, without asking the store.
#[derive(Clone, Debug)]
pub enum Peek {
    /// It exists.
    Present(Known),
    /// It did not exist when the store was asked then.
    Absent(Instant),
    /// Nothing that is fresh enough.
    Unknown,
}

impl Peek {
    /// Returns the exact content size, as far as it is known.
    pub fn known_size(&self) -> Option<u64> {
        match self {
            Self::Present(known) => known.size,
            Self::Absent(_) | Self::Unknown => None,
        }
    }
}

impl Known {
    /// Returns whether this version has the stored size that a listing shows.
    pub fn has_stored_size(&self, stored: Option<u64>) -> bool {
        stored.is_none()
            || self.meta.stored_size.is_none()
            || stored == self.meta.stored_size
            || stored == self.listed
    }

    /// Returns a version without content, for tests of what is decided by its age.
    #[cfg(test)]
    pub(crate) fn for_test(meta: RecordMeta, validated: Instant) -> Self {
        Self {
            meta,
            version: VersionId(1),
            validated,
            modified: SystemTime::UNIX_EPOCH,
            read: None,
            size: None,
            listed: None,
            disk_id: None,
        }
    }
}

impl Records {
    /// Returns what memory knows of a record and is still valid.
    pub fn peek(&self, key: &Key) -> Peek {
        match self.recall(key) {
            Peek::Present(known) if self.is_current(key, &known) => Peek::Present(known),
            Peek::Absent(at) if self.is_fresh(at) && !self.is_listed_since(key, at) => {
                Peek::Absent(at)
            }
            _ => Peek::Unknown,
        }
    }

    /// Returns what memory knows of a record, however old.
    pub fn recall(&self, key: &Key) -> Peek {
        let Some(slot) = self.slots.lock().peek(key).cloned() else {
            return Peek::Unknown;
        };
        let (absent, known) = {
            let state = slot.state.lock();
            (state.absent, state.known.clone())
        };
        match (absent, known) {
            (Some(at), _) => Peek::Absent(at),
            (None, Some(known)) => Peek::Present(self.renewed(key, &known)),
            (None, None) => Peek::Unknown,
        }
    }

    /// Returns a version with the age of the last question that says that it is current: about the
    /// record itself, or about the store.
    pub(super) fn renewed(&self, key: &Key, known: &Known) -> Known {
        let mut known = known.clone();
        if !self.is_fresh(known.validated)
            && let Some(asked) = self.vouched(key, &known)
        {
            known.validated = known.validated.max(asked);
        }
        known
    }

    /// Returns a version that is fresh, or that the store's clock says is current; no listing is looked
    /// at, so that this may be asked while the record's slot is locked.
    pub(super) fn believed(&self, known: &Known) -> Option<Known> {
        if self.is_fresh(known.validated) {
            return Some(known.clone());
        }
        if known.meta.validator().is_some() {
            return None;
        }
        let asked = self.freshness.vouched(known.read)?;
        Some(Known {
            validated: known.validated.max(asked),
            ..known.clone()
        })
    }

    /// Returns when the store was last asked about, if the answer says that a version without
    /// validators is the current one, and no listing says otherwise.
    fn vouched(&self, key: &Key, known: &Known) -> Option<Instant> {
        if known.meta.validator().is_some() {
            return None;
        }
        let asked = self.freshness.vouched(known.read)?;
        if self.is_shown_another(key, known, Some(known.validated)) {
            // Something has changed, and the store's clock does not show it.
            self.freshness.changed(known.read?);
            return None;
        }
        self.check_now_and_then(key, known);
        Some(asked)
    }

    /// Returns the exact content size of a record that a listing shows with `stored` bytes, if
    /// it is known: from what is fresh in memory, or from an earlier decoding.
    pub fn exact_size(&self, key: &Key, stored: Option<u64>) -> Option<u64> {
        match self.recall(key) {
            Peek::Present(known)
                if known.has_stored_size(stored)
                    && (stored.is_some() || self.is_fresh(known.validated))
                    && known.size.is_some() =>
            {
                return known.size;
            }
            _ => {}
        }
        if self.config.raw {
            stored
        } else {
            self.sizes.content_size(key, stored?)
        }
    }

    /// Returns the last content size that is known of a record, in whichever version, for where a
    /// listing tells none.
    pub fn last_size(&self, key: &Key) -> Option<u64> {
        match self.recall(key) {
            Peek::Present(known) if known.size.is_some() => known.size,
            _ => self.sizes.get(key)?.content,
        }
    }

    /// Drops what is known of a record, so that the next question goes to the store: what a listing
    /// says that was asked for before says nothing, either.
    pub fn invalidate(&self, key: &Key) {
        if let Some(slot) = self.slots.lock().pop(key) {
            *slot.state.lock() = SlotState::default();
        }
        self.slot(key).state.lock().invalidated = Some(self.now());
        self.memory.lock().remove(key);
    }

    /// Makes the next question about a record go to the store, which is asked whether it is still what
    /// is known of it. Until then its name is as well known as before.
    pub fn doubt(&self, key: &Key) {
        let slot = self.slots.lock().peek(key).cloned();
        if let Some(slot) = slot {
            slot.state.lock().is_doubted = true;
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

    /// Returns the name of a version that has not been seen so far.
    pub fn new_version(&self) -> VersionId {
        VersionId(self.versions.fetch_add(1, Ordering::Relaxed))
    }

    pub(in crate::cache) fn known_of(&self, content: &Content, validated: Instant) -> Known {
        let size = content.known_size();
        if let Some(size) = size {
            self.remember_size(content, size);
        }
        let disk_id = match &content.data {
            Data::File(kept) => Some(kept.id.clone()),
            _ => None,
        };
        Known {
            meta: content.meta.clone(),
            version: content.version,
            validated,
            modified: content.modified,
            read: content.read,
            size,
            listed: self.listed_size(&content.key),
            disk_id,
        }
    }

    /// Remembers a size; on disk later, so that no reader waits for that.
    pub(super) fn remember_size(&self, content: &Content, size: u64) {
        if self.note_version(content, size) {
            self.write_sizes_behind();
        }
    }

    /// Remembers a size in memory; returns whether there is something to write to disk.
    fn note_version(&self, content: &Content, size: u64) -> bool {
        let Some(stored) = content.meta.stored_size else {
            return false;
        };
        let version = Remembered {
            stored,
            listed: self.listed_size(&content.key).unwrap_or(stored),
            content: Some(size),
            modified: (content.modified != self.unknown_time()).then_some(content.modified),
        };
        self.sizes.note(&content.key, version)
    }

    /// Writes what was noted, but not on this thread, which may be one that answers the kernel.
    pub(super) fn write_sizes_behind(&self) {
        let sizes = Arc::clone(&self.sizes);
        if self.writers.spawn(move || sizes.write()).is_err() {
            tracing::debug!("the disk cannot keep up; some sizes and times are not kept");
        }
    }

    pub(super) fn note_size(&self, content: &Content, size: u64) {
        let slot = self.slot(&content.key);
        let mut state = slot.state.lock();
        let known = state.known.as_mut();
        if let Some(known) = known.filter(|known| known.version == content.version) {
            // Remembered when it became known.
            if known.size == Some(size) {
                return;
            }
            known.size = Some(size);
        }
        drop(state);
        self.remember_size(content, size);
    }
}

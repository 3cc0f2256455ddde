//! The time that a version shows: one time, from the first look on, as long as it is the current
//! version.
//!
//! Local folders list times. The API lists none and, but for some servers, sends none with a record
//! either. A program that compares times, as `rsync` and `make` do, must not see a file change
//! because it was opened. So:
//!
//! * the time in a listing counts
//! * else the time under which the version was shown before, in this mount or an earlier one
//! * else, of a record that is listed, the time of all unknown records: when the store was made, or
//!   1970 if that is unknown. The listing has shown it already
//! * else that of the record's own answer (`Last-Modified`)
//!
//! A version that takes the place of another has its own time, or that at which it was first seen.

use std::time::SystemTime;

use super::{Known, Records};
use crate::cache::content::Content;
use crate::cache::sizes::Remembered;
use crate::listing::Found;
use crate::store::{Key, RecordMeta, Validator};

/// What a new answer is compared with.
#[derive(Clone, Debug)]
pub(in crate::cache) struct Before {
    pub stored: Option<u64>,
    pub modified: SystemTime,
    pub validator: Option<Validator>,
    /// Whether this mount has seen it, not only an earlier one.
    pub is_known: bool,
}

impl Before {
    /// Returns what is known of the version before, if there was one.
    pub fn of(known: Option<&Known>, content: Option<&Content>) -> Option<Self> {
        match (known, content) {
            (Some(known), _) => Some(Self {
                stored: known.meta.stored_size,
                modified: known.modified,
                validator: known.meta.validator(),
                is_known: true,
            }),
            (None, Some(content)) => Some(Self {
                stored: content.meta.stored_size,
                modified: content.modified,
                validator: content.validator(),
                is_known: false,
            }),
            (None, None) => None,
        }
    }
}

impl Records {
    /// Returns the time shown for records of which nothing else is known.
    pub fn unknown_time(&self) -> SystemTime {
        self.store.info().created.unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Returns the time of a record as listed with `stored` bytes; `told` is what the listing says.
    ///
    /// A record with a changed stored size has been stored meanwhile: from now on it shows the time
    /// when that was noticed.
    pub fn listed_time(
        &self,
        key: &Key,
        stored: Option<u64>,
        told: Option<SystemTime>,
    ) -> SystemTime {
        if let Some(told) = told {
            return told;
        }
        let known = match self.recall(key) {
            super::Peek::Present(known) => Some(known),
            _ => None,
        };
        if let Some(known) = &known
            && known.has_stored_size(stored)
        {
            return known.modified;
        }
        let kept = self.sizes.get(key);
        let Some(stored) = stored.filter(|_| known.is_some() || kept.is_some()) else {
            return self.unknown_time();
        };
        if let Some(kept) = kept.filter(|kept| stored == kept.stored || stored == kept.listed) {
            return kept.modified.unwrap_or_else(|| self.unknown_time());
        }
        let modified = self.clock.wall();
        let version = Remembered {
            stored,
            listed: stored,
            content: None,
            modified: Some(modified),
        };
        if self.sizes.note(key, version) {
            self.write_sizes_behind();
        }
        modified
    }

    /// Returns the time of a version that was fetched and may be another than `before`.
    pub(in crate::cache) fn version_time(
        &self,
        key: &Key,
        meta: &RecordMeta,
        before: Option<&Before>,
    ) -> SystemTime {
        let told = meta.modified();
        let listed = match self.listing.find(key) {
            Found::Listed(entry, _) => Some(entry),
            _ => None,
        };
        if let Some(modified) = listed.as_ref().and_then(|entry| entry.modified) {
            return told.unwrap_or(modified);
        }
        let listed_size = listed.as_ref().and_then(|entry| entry.stored_size);
        let stored = meta.stored_size.or(listed_size);
        let kept = stored.and_then(|stored| self.sizes.version(key, stored));
        if let Some(before) = before {
            let same_size = before.stored.is_some() && before.stored == stored;
            // The listing has shown the new size, and a time with it.
            if !same_size && let Some(modified) = kept.and_then(|kept| kept.modified) {
                return modified;
            }
            // So it has of what only an earlier mount had read, and which it could not know to be new.
            if !same_size && !before.is_known && stored.is_some() && listed_size == stored {
                return self.unknown_time();
            }
            // Nothing says that it is another version.
            let may_be_same = same_size || before.stored.is_none() || stored.is_none();
            if may_be_same && before.validator.is_none() && meta.validator().is_none() {
                return before.modified;
            }
            return told.unwrap_or_else(|| self.clock.wall());
        }
        match (kept, listed) {
            (Some(kept), _) => kept.modified.unwrap_or_else(|| self.unknown_time()),
            (None, Some(entry)) if entry.stored_size.is_none() || entry.stored_size == stored => {
                self.unknown_time()
            }
            _ => told.unwrap_or_else(|| self.unknown_time()),
        }
    }
}

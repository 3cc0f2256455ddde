//! What of a draft is safe in the journal and on its way to the store (`--write-back`).

use std::time::SystemTime;

use super::Draft;
use crate::staging::EntryId;
use crate::staging::file::Frozen;
use crate::store::{RecordMeta, StoreError};

/// Bytes that are safe in the journal and on their way to the store.
#[derive(Debug)]
pub(super) struct Journalled {
    pub(super) id: EntryId,
    pub(super) change: u64,
    /// They therefore stay as they are.
    pub(super) bytes: Frozen,
    pub(super) size: u64,
    pub(super) modified: SystemTime,
}

impl Draft {
    /// Tells whether something of it is in the journal and not in the store yet.
    pub fn is_journalled(&self) -> bool {
        self.state.lock().journalled.is_some()
    }

    /// Takes over what an earlier mount has journalled.
    pub fn set_journalled(&self, id: EntryId, bytes: Frozen) {
        let mut state = self.state.lock();
        let (change, size, modified) = (state.change, state.size, state.modified);
        state.journalled = Some(Journalled {
            id,
            change,
            bytes,
            size,
            modified,
        });
    }

    /// Forgets what is journalled: it is no longer what is to become of this file.
    pub fn forget_journalled(&self) {
        self.state.lock().journalled = None;
    }

    /// Returns what the journal calls so, if nothing newer of this file is on its way: the bytes,
    /// how many, and when a program last changed them.
    pub fn journalled(&self, id: &EntryId) -> Option<(Frozen, u64, SystemTime)> {
        let state = self.state.lock();
        let found = state.journalled.as_ref().filter(|found| found.id == *id)?;
        Some((found.bytes.freeze(), found.size, found.modified))
    }

    /// Takes note that the store has what the journal calls so, which everybody here knows already.
    pub fn uploaded(&self, id: &EntryId, meta: &RecordMeta) {
        let mut state = self.state.lock();
        state.facts.base = Some(meta.clone());
        state.facts.exclusive = false;
        state.unanswered.clear();
        if let Some(journalled) = state.journalled.take_if(|found| found.id == *id)
            && state.change == journalled.change
        {
            state.facts.content_type = None;
            state.facts.encoding = None;
        }
    }

    /// Takes note that the store refused what the journal calls so; whoever wants the file stored
    /// is told. Returns whether that is the newest of this file.
    pub fn refused(&self, id: &EntryId, error: &StoreError) -> bool {
        let mut state = self.state.lock();
        let Some(journalled) = state.journalled.take_if(|found| found.id == *id) else {
            return false;
        };
        if state.change == journalled.change {
            state.committed = journalled.change.saturating_sub(1);
            state.failed = Some((journalled.change, error.duplicate()));
        }
        state.kept = Some((journalled.id, journalled.bytes));
        true
    }
}

//! The part of a draft that is safe in the journal and on its way to the store.

use std::sync::Arc;
use std::time::SystemTime;

use super::Draft;
use crate::staging::file::Frozen;
use crate::staging::{Began, EntryId, UnansweredUploads};
use crate::store::{RecordMeta, StoreError};

/// Bytes that are safe in the journal and on their way to the store.
#[derive(Debug)]
pub(in crate::fs::write) struct Journalled {
    pub(in crate::fs::write) id: EntryId,
    pub(in crate::fs::write) change: u64,
    /// They therefore stay as they are.
    pub(in crate::fs::write) bytes: Frozen,
    pub(in crate::fs::write) size: u64,
    pub(in crate::fs::write) modified: SystemTime,
}

impl Draft {
    /// Returns whether something of it is in the journal and not in the store yet.
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

    /// Takes over what its new name has in the journal: all that is safe of it.
    pub(in crate::fs::write) fn set_journalled_as(
        &self,
        journalled: Journalled,
        base: Option<RecordMeta>,
    ) {
        let mut state = self.state.lock();
        state.committed = journalled.change;
        state.journalled = Some(journalled);
        state.rename(base);
    }

    /// Takes over what earlier uploads may have left of the record.
    pub fn set_unanswered(&self, unanswered: UnansweredUploads) {
        self.state.lock().unanswered = unanswered;
    }

    /// Notes what uploads of another file may have made of its record.
    pub fn may_have_become(&self, unanswered: &UnansweredUploads) {
        self.state.lock().unanswered.extend(unanswered);
    }

    /// Gives up what could be neither stored nor journalled, if something older is journalled: the file
    /// is that again. Returns whether it is.
    pub fn go_back(&self) -> bool {
        let mut state = self.state.lock();
        let state = &mut *state;
        let Some(journalled) = &state.journalled else {
            return false;
        };
        state.file = Arc::clone(&journalled.bytes);
        (state.size, state.modified) = (journalled.size, journalled.modified);
        state.change += 1;
        state.committed = state.change;
        (state.failed, state.lost, state.emptied, state.kept) = (None, None, None, None);
        state.untouched = false;
        if let Some(journalled) = &mut state.journalled {
            journalled.change = state.change;
        }
        true
    }

    /// Returns what the journal calls so, if nothing newer of this file is on its way: the bytes,
    /// how many, and when a program last changed them.
    pub fn journalled(&self, id: &EntryId) -> Option<(Frozen, u64, SystemTime)> {
        let state = self.state.lock();
        let found = state.journalled.as_ref().filter(|found| found.id == *id)?;
        Some((found.bytes.freeze(), found.size, found.modified))
    }

    /// Notes that the store has the journal's entry of this name; the mount knows that already.
    pub fn uploaded(&self, id: &EntryId, meta: &RecordMeta, began: Option<Began>) {
        let mut state = self.state.lock();
        state.began = began;
        state.facts.base = Some(meta.clone());
        state.facts.exclusive = false;
        state.rebased += 1;
        state.unanswered.clear();
        let gone = state.journalled.take_if(|found| found.id == *id);
        let is_all = |journalled: &Journalled| state.change == journalled.change;
        if gone.as_ref().is_some_and(is_all) {
            state.facts.content_type = None;
            state.facts.encoding = None;
        }
        drop(state);
        drop(gone);
    }

    /// Returns its name in the journal, if the journal has all of it and its bytes are unused.
    pub fn to_park(&self) -> Option<EntryId> {
        let state = self.state.lock();
        let journalled = state.journalled.as_ref()?;
        let is_all = state.change == journalled.change && !journalled.bytes.is_adopted();
        (is_all && state.tickets == 0).then(|| journalled.id.clone())
    }

    /// Takes its bytes from the journal from now on, where they have that name.
    pub fn park(&self, id: &EntryId, bytes: Frozen) {
        let _order = self.order.lock();
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let mut gone = None;
        if let Some(journalled) = &mut state.journalled
            && journalled.id == *id
            && state.change == journalled.change
        {
            let file = std::mem::replace(&mut state.file, Arc::clone(&bytes));
            let before = std::mem::replace(&mut journalled.bytes, bytes);
            gone = Some((file, before, state.kept.take()));
        }
        drop(guard);
        drop(gone);
    }

    /// Keeps its bytes readable although the entry that has them goes.
    pub fn pin(&self) {
        let file = Arc::clone(&self.state.lock().file);
        file.pin();
    }

    /// Notes that the journal has dropped what it called so: something newer is journalled or stored.
    pub fn superseded(&self, id: &EntryId) {
        let mut state = self.state.lock();
        let gone = state.journalled.take_if(|found| found.id == *id);
        drop(state);
        drop(gone);
    }

    /// Notes that the store refused the journal's entry of this name; later closes report it.
    /// Returns whether that is the newest of this file.
    pub fn refused(&self, id: &EntryId, error: &StoreError) -> bool {
        let mut state = self.state.lock();
        let Some(journalled) = state.journalled.take_if(|found| found.id == *id) else {
            return false;
        };
        if state.change == journalled.change {
            state.committed = journalled.change.saturating_sub(1);
            state.failed = Some((journalled.change, error.duplicate()));
        }
        let before = state.kept.replace(journalled.bytes);
        drop(state);
        drop(before);
        true
    }
}

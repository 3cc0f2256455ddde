//! Stores a draft: a ticket for frozen bytes, and one verdict for all closes that wanted the same
//! bytes stored.
//!
//! A thread that sends them to the store is inside the gate of the key meanwhile (`upload::gate`), so
//! that no two of one file do; one that only journals them is not.

use std::sync::Arc;
use std::time::SystemTime;

use super::journalled::Journalled;
use super::{Draft, DraftFacts, Place, State};
use crate::fs::FsError;
use crate::fs::types::Ino;
use crate::staging::file::Frozen;
use crate::staging::{Began, EntryId, UnansweredUploads};
use crate::store::{ErrorKind, Key, RecordMeta, StoreError};

/// The reason to store a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A descriptor was closed: not yet for what is empty and untouched.
    Close,
    /// The last descriptor of the process that opened it was closed.
    Last,
    /// `fsync`: what failed before is tried again.
    Sync,
    /// The last handle is gone, and no program waits.
    Release,
    /// Nothing comes after this: an attribute was set, a size without a handle.
    Now,
}

/// The bytes to store, unchanged while they are uploaded or journalled.
///
/// Its holder must end it; dropping it counts as a failure.
#[derive(Debug)]
pub struct Ticket {
    /// Its place among the closes of its key.
    pub id: EntryId,
    /// The record.
    pub key: Key,
    /// The bytes.
    pub bytes: Frozen,
    /// How many.
    pub size: u64,
    /// What is known of it.
    pub facts: DraftFacts,
    /// The bytes that it must replace, if they are compared.
    pub began: Option<Began>,
    /// When a program last changed it.
    pub modified: SystemTime,
    /// Up to which change it has everything.
    pub change: u64,
    draft: Arc<Draft>,
    ended: bool,
}

/// What came of asking to commit.
#[derive(Debug)]
pub enum Begin {
    /// There is nothing to do.
    Nothing,
    /// The same bytes have been refused already, or are not all there.
    Refused(FsError),
    /// Store this.
    Go(Box<Ticket>),
}

impl Draft {
    /// Returns whether [`Draft::begin`] would have nothing to do, and nothing is under way.
    pub fn is_settled(&self, why: Why) -> bool {
        let state = self.state.lock();
        state.tickets == 0 && !state.needs_commit(why)
    }

    /// Returns whether [`Draft::begin`] would have something to do.
    pub fn needs_commit(&self, why: Why) -> bool {
        self.state.lock().needs_commit(why)
    }

    /// Begins to store it. An earlier refusal of the same bytes holds for every close, unless a
    /// program asks once more, and has not just `waited` for that refusal.
    pub fn begin(
        self: &Arc<Self>,
        why: Why,
        waited: bool,
        stamp: impl FnOnce() -> EntryId,
    ) -> Begin {
        // No change may be half way when the bytes are frozen.
        let _order = self.order.lock();
        let mut state = self.state.lock();
        if !state.needs_commit(why) {
            return Begin::Nothing;
        }
        if let Some(lost) = &state.lost {
            return Begin::Refused(lost.error());
        }
        if let Some((change, error)) = &state.failed
            && *change == state.change
            && (matches!(why, Why::Close | Why::Last | Why::Release) || waited)
        {
            return Begin::Refused(FsError::Store(error.duplicate()));
        }
        let Place::Record(key) = state.place.clone() else {
            return Begin::Nothing;
        };
        let facts = state.facts.clone();
        Begin::Go(Box::new(self.ticket(&mut state, key, facts, stamp())))
    }

    /// Begins to store it under a name that it does not have yet.
    pub fn begin_as(self: &Arc<Self>, key: &Key, facts: DraftFacts, id: EntryId) -> Begin {
        let _order = self.order.lock();
        let mut state = self.state.lock();
        match &state.lost {
            Some(lost) => Begin::Refused(lost.error()),
            None => {
                let mut ticket = self.ticket(&mut state, key.clone(), facts, id);
                // Whatever has that name is replaced.
                ticket.began = None;
                Begin::Go(Box::new(ticket))
            }
        }
    }

    fn ticket(
        self: &Arc<Self>,
        state: &mut State,
        key: Key,
        facts: DraftFacts,
        id: EntryId,
    ) -> Ticket {
        state.tickets += 1;
        Ticket {
            id,
            key,
            bytes: state.file.freeze(),
            size: state.size,
            facts,
            began: state.began.clone(),
            modified: state.modified,
            change: state.change,
            draft: Arc::clone(self),
            ended: false,
        }
    }

    /// Returns whether a commit is under way.
    pub fn is_committing(&self) -> bool {
        self.state.lock().tickets > 0
    }

    /// Returns up to which change its bytes are in the store or in the journal.
    pub fn committed(&self) -> u64 {
        self.state.lock().committed
    }
}

impl State {
    fn needs_commit(&self, why: Why) -> bool {
        if self.change <= self.committed || !matches!(self.place, Place::Record(_)) {
            return false;
        }
        // A shell closes a duplicate of a new file's descriptor before anything is written.
        why != Why::Close || !self.untouched || self.size > 0 || self.lost.is_some()
    }
}

impl Ticket {
    /// Returns the inode of the bytes.
    pub fn ino(&self) -> Ino {
        self.draft.ino
    }

    /// Returns what earlier uploads without an answer may have made of the record.
    pub fn unanswered(&self) -> UnansweredUploads {
        self.draft.state.lock().unanswered.clone()
    }

    /// Sets what uploads without an answer may have made of the record.
    pub fn set_unanswered(&self, unanswered: UnansweredUploads) {
        self.draft.state.lock().unanswered = unanswered;
    }

    /// Notes what the record's bytes are now, for the next change.
    pub fn set_began(&self, began: Option<Began>) {
        self.draft.state.lock().began = began;
    }

    /// Returns what bytes it is to replace by now.
    pub fn began_now(&self) -> Option<Began> {
        self.draft.state.lock().began.clone()
    }

    /// Returns what is known of the record by now.
    pub fn facts_now(&self) -> DraftFacts {
        self.draft.facts()
    }

    /// Returns whether the file still has the name, and nothing newer of it is journalled or stored.
    pub fn is_wanted(&self) -> bool {
        let state = self.draft.state.lock();
        state.committed < self.change
            && matches!(&state.place, Place::Record(key) if *key == self.key)
    }

    /// Notes under which name the journal has the bytes: they are safe from here on.
    pub fn set_journalled(&self, id: &EntryId) {
        let mut state = self.draft.state.lock();
        let before = state.journalled.replace(self.journalled(id));
        state.committed = state.committed.max(self.change);
        state.failed = None;
        state.settle_lost();
        drop(state);
        // That may close a file, for which no other thread is to wait.
        drop(before);
    }

    /// Returns what it is in the journal.
    pub(in crate::fs::write) fn journalled(&self, id: &EntryId) -> Journalled {
        Journalled {
            id: id.clone(),
            change: self.change,
            bytes: self.bytes.freeze(),
            size: self.size,
            modified: self.modified,
        }
    }

    /// Ends the commit without a verdict: nothing was to be done, another thread does it, or it is
    /// journalled.
    pub fn give_back(mut self) {
        self.finish(|_| ());
    }

    /// Ends the commit: with what the store said of the new version, or why it has none.
    pub fn end(mut self, outcome: Result<&RecordMeta, &StoreError>) {
        self.conclude(outcome);
    }

    fn conclude(&mut self, outcome: Result<&RecordMeta, &StoreError>) {
        let (own, kept) = (self.change, self.bytes.freeze());
        self.finish(|state| match outcome {
            Ok(meta) => {
                state.committed = state.committed.max(own);
                state.failed = None;
                // What of it was journalled before is older.
                let is_older = |journalled: &mut Journalled| journalled.change <= own;
                let gone = (state.kept.take(), state.journalled.take_if(is_older));
                state.settle_lost();
                state.facts.base = Some(meta.clone());
                state.facts.exclusive = false;
                state.rebased += 1;
                state.unanswered.clear();
                if state.change == own {
                    // From now on it is the record's own.
                    state.facts.content_type = None;
                    state.facts.encoding = None;
                }
                gone
            }
            Err(error) => {
                state.failed = Some((own, error.duplicate()));
                (state.kept.replace(kept), None)
            }
        });
    }

    /// What `end` returns is dropped without the lock: that may close a file.
    fn finish<T>(&mut self, end: impl FnOnce(&mut State) -> T) {
        self.ended = true;
        let mut state = self.draft.state.lock();
        state.tickets -= 1;
        let gone = end(&mut state);
        drop(state);
        drop(gone);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.ended {
            let error = StoreError::new(
                ErrorKind::Protocol,
                "the upload ended without a result; please report this",
            );
            self.conclude(Err(&error));
        }
    }
}

//! Storing a draft: one commit at a time, of frozen bytes, with one verdict for everybody who wanted
//! the same bytes stored; and pauses, in which none begins.

use std::sync::Arc;
use std::time::SystemTime;

use super::journalled::Journalled;
use super::{Draft, DraftFacts, Place, State};
use crate::fs::FsError;
use crate::fs::types::Ino;
use crate::staging::file::Frozen;
use crate::staging::{EntryId, UnansweredUploads};
use crate::store::{Key, RecordMeta, StoreError};

/// Why somebody wants the store to have a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A descriptor was closed: not yet for what is only held back, or empty and untouched.
    Close,
    /// `fsync`: what failed before is tried again.
    Sync,
    /// The last handle is gone.
    Release,
    /// Nothing comes after this: an attribute was set, a name given, the mount ends.
    Now,
}

/// What is to be stored, kept as it is while it is uploaded.
///
/// Whoever holds it must end it with [`Ticket::end`]; dropping it counts as a failure.
#[derive(Debug)]
pub struct Ticket {
    /// The record.
    pub key: Key,
    /// The bytes.
    pub bytes: Frozen,
    /// How many.
    pub size: u64,
    /// What is known of it.
    pub facts: DraftFacts,
    /// When a program last changed it.
    pub modified: SystemTime,
    change: u64,
    draft: Arc<Draft>,
    ended: bool,
}

/// The time in which no commit of a draft begins; dropping it ends that.
#[derive(Debug)]
pub struct Paused(Arc<Draft>);

impl Drop for Paused {
    fn drop(&mut self) {
        self.0.state.lock().paused = false;
        self.0.ended.notify_all();
    }
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
    /// Tells whether [`Draft::begin`] would have nothing to do and need not wait.
    pub fn is_settled(&self, why: Why) -> bool {
        let state = self.state.lock();
        !state.committing && !state.needs_commit(why)
    }

    /// Begins to store it. Waits for a commit that is under way: what that stores need not be
    /// stored again, and its verdict holds for everybody who wanted the same bytes stored.
    pub fn begin(self: &Arc<Self>, why: Why) -> Begin {
        let mut state = self.state.lock();
        let wanted = state.change;
        let mut waited = false;
        loop {
            if state.committing {
                waited = true;
                self.ended.wait(&mut state);
                continue;
            }
            if state.paused {
                self.ended.wait(&mut state);
                continue;
            }
            if !state.needs_commit(why) {
                return Begin::Nothing;
            }
            if let Some(lost) = &state.lost {
                return Begin::Refused(lost.error());
            }
            if let Some((change, error)) = &state.failed
                && *change == state.change
                && (why == Why::Close || why == Why::Release || (waited && *change >= wanted))
            {
                return Begin::Refused(FsError::Store(error.duplicate()));
            }
            // No change may be half way when the bytes are frozen.
            let order = match self.order.try_lock() {
                Some(order) => order,
                None => {
                    drop(state);
                    let order = self.order.lock();
                    state = self.state.lock();
                    if state.committing || state.paused || state.lost.is_some() {
                        drop(order);
                        continue;
                    }
                    order
                }
            };
            let Place::Record(key) = state.place.clone() else {
                return Begin::Nothing;
            };
            state.committing = true;
            state.due = None;
            let ticket = Ticket {
                key,
                bytes: state.file.freeze(),
                size: state.size,
                facts: state.facts.clone(),
                modified: state.modified,
                change: state.change,
                draft: Arc::clone(self),
                ended: false,
            };
            drop(order);
            return Begin::Go(Box::new(ticket));
        }
    }

    /// Waits until no commit is under way.
    pub fn wait_idle(&self) {
        let mut state = self.state.lock();
        while state.committing {
            self.ended.wait(&mut state);
        }
    }

    /// Waits until no commit is under way, and lets none begin as long as the result lives.
    ///
    /// Whoever pauses several drafts does it in the order of their inodes.
    pub fn pause(self: &Arc<Self>) -> Paused {
        let mut state = self.state.lock();
        while state.committing || state.paused {
            self.ended.wait(&mut state);
        }
        state.paused = true;
        Paused(Arc::clone(self))
    }

    /// Tells whether a commit is under way.
    pub fn is_committing(&self) -> bool {
        self.state.lock().committing
    }
}

impl State {
    fn needs_commit(&self, why: Why) -> bool {
        if self.change <= self.committed || !matches!(self.place, Place::Record(_)) {
            return false;
        }
        let held_back = self.temporary && self.facts.base.is_none();
        match why {
            // A shell closes a duplicate of a new file's descriptor before anything is written.
            Why::Close => !held_back && (!self.untouched || self.size > 0 || self.lost.is_some()),
            Why::Sync => !held_back,
            Why::Release | Why::Now => true,
        }
    }
}

impl Ticket {
    /// Returns the inode whose bytes they are.
    pub fn ino(&self) -> Ino {
        self.draft.ino
    }

    /// Remembers under which name the bytes are kept; returns the name that earlier ones have.
    pub fn set_kept(&self, id: EntryId) -> Option<EntryId> {
        let kept = Some((id, self.bytes.freeze()));
        let before = std::mem::replace(&mut self.draft.state.lock().kept, kept);
        before.map(|(id, _)| id)
    }

    /// Takes the name under which earlier bytes are kept.
    pub fn take_kept(&self) -> Option<EntryId> {
        self.draft.state.lock().kept.take().map(|(id, _)| id)
    }

    /// Returns what earlier uploads without an answer may have made of the record.
    pub fn unanswered(&self) -> UnansweredUploads {
        self.draft.state.lock().unanswered.clone()
    }

    /// Sets what uploads without an answer may have made of the record.
    pub fn set_unanswered(&self, unanswered: UnansweredUploads) {
        self.draft.state.lock().unanswered = unanswered;
    }

    /// Returns what is known of the record by now.
    pub fn facts_now(&self) -> DraftFacts {
        self.draft.facts()
    }

    /// Forgets what the journal has of this file.
    pub fn forget_journalled(&self) {
        self.draft.forget_journalled();
    }

    /// Remembers under which name the journal has the bytes.
    pub fn set_journalled(&self, id: EntryId) {
        self.draft.state.lock().journalled = Some(Journalled {
            id,
            change: self.change,
            bytes: self.bytes.freeze(),
            size: self.size,
            modified: self.modified,
        });
    }

    /// Ends the commit before it has begun: nothing is stored, and nothing has failed.
    pub fn give_back(mut self) {
        self.ended = true;
        self.draft.state.lock().committing = false;
        self.draft.ended.notify_all();
    }

    /// Ends the commit of bytes that are safe in the journal.
    pub fn end_journalled(mut self) {
        self.ended = true;
        let mut state = self.draft.state.lock();
        state.committing = false;
        state.committed = state.committed.max(self.change);
        state.failed = None;
        state.settle_lost();
        drop(state);
        self.draft.ended.notify_all();
    }

    /// Ends the commit: with what the store said of the new version, or why it has none.
    pub fn end(mut self, outcome: Result<&RecordMeta, &StoreError>) {
        self.finish(outcome);
    }

    fn finish(&mut self, outcome: Result<&RecordMeta, &StoreError>) {
        self.ended = true;
        let mut state = self.draft.state.lock();
        state.committing = false;
        match outcome {
            Ok(meta) => {
                state.committed = state.committed.max(self.change);
                state.failed = None;
                state.settle_lost();
                state.facts.base = Some(meta.clone());
                state.facts.exclusive = false;
                state.unanswered.clear();
                if state.change == self.change {
                    // From now on it is the record's own.
                    state.facts.content_type = None;
                    state.facts.encoding = None;
                }
            }
            Err(error) => state.failed = Some((self.change, error.duplicate())),
        }
        drop(state);
        self.draft.ended.notify_all();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.ended {
            let error = StoreError::new(
                crate::store::ErrorKind::Protocol,
                "the upload ended without a result; please report this",
            );
            self.finish(Err(&error));
        }
    }
}

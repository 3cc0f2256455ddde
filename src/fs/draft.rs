//! A file that this mount has changed: its bytes in a staging file, and how far the store has them.
//!
//! Lock order: `order`, then `state`. `order` puts the changes of one file's bytes one after the
//! other, as a filesystem's inode lock does: it is the one lock that is held while the local disk
//! works, nobody waits for it who holds another, and it is never held across a request.

use std::ffi::OsString;
use std::io;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::types::Ino;
use super::{FsError, Result};
use crate::clock::Wait;
use crate::staging::file::{Frozen, StagingFile};
use crate::staging::{EntryId, StagingFolder, UnansweredUploads};
use crate::store::{Encoding, Key, RecordMeta, StoreError};

/// What a changed file is called, and whether the store is to have it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A record.
    Record(Key),
    /// A scratch file: it lives in the daemon only.
    Scratch(OsString),
    /// It was deleted or replaced; only open handles still see it.
    Gone,
}

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

/// A file that this mount has changed.
#[derive(Debug)]
pub struct Draft {
    /// Its inode.
    pub ino: Ino,
    order: Mutex<()>,
    state: Mutex<State>,
    /// A commit or a pause has ended.
    ended: Condvar,
}

#[derive(Debug)]
struct State {
    place: Place,
    file: Arc<StagingFile>,
    size: u64,
    /// Grows with every change.
    change: u64,
    /// The change up to which the store has the file.
    committed: u64,
    committing: bool,
    /// No commit may begin: the file is getting another name, or losing its own.
    paused: bool,
    failed: Option<(u64, StoreError)>,
    /// Nothing has been written since it was created or emptied.
    untouched: bool,
    /// Whether its name is one that programs soon give up for another.
    temporary: bool,
    due: Option<Instant>,
    /// The journal's entry of bytes that the store refused. They are those of `.1`, which
    /// therefore stays as it is.
    kept: Option<(EntryId, Frozen)>,
    /// What is journalled and will be uploaded (`--write-back`).
    journalled: Option<Journalled>,
    facts: DraftFacts,
    /// What uploads whose answers were lost may have made of the record.
    unanswered: UnansweredUploads,
    modified: SystemTime,
}

/// Bytes that are safe in the journal and on their way to the store.
#[derive(Debug)]
struct Journalled {
    id: EntryId,
    change: u64,
    /// They therefore stay as they are.
    bytes: Frozen,
    size: u64,
    modified: SystemTime,
}

/// What is known of the record that a draft is to become.
#[derive(Clone, Debug, Default)]
pub struct DraftFacts {
    /// The version that it replaces; `None` for a record that did not exist.
    pub base: Option<RecordMeta>,
    /// Whether the store is to refuse it if the record exists by now.
    pub exclusive: bool,
    /// The type that a program has set.
    pub content_type: Option<Arc<str>>,
    /// The encoding that a program has set (raw mounts).
    pub encoding: Option<Encoding>,
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
    /// The same bytes have been refused already.
    Refused(StoreError),
    /// Store this.
    Go(Box<Ticket>),
}

impl Draft {
    /// Makes a draft of `size` bytes; it is changed from the start if the store does not have it.
    pub fn new(
        ino: Ino,
        place: Place,
        file: Arc<StagingFile>,
        size: u64,
        facts: DraftFacts,
        modified: SystemTime,
    ) -> Arc<Self> {
        Arc::new(Self {
            ino,
            order: Mutex::default(),
            state: Mutex::new(State {
                place,
                file,
                size,
                change: 0,
                committed: 0,
                committing: false,
                paused: false,
                failed: None,
                untouched: false,
                temporary: false,
                due: None,
                kept: None,
                journalled: None,
                facts,
                unanswered: UnansweredUploads::default(),
                modified,
            }),
            ended: Condvar::new(),
        })
    }

    /// Makes it one that does not exist in the store yet, empty.
    pub fn as_new(self: Arc<Self>, temporary: bool) -> Arc<Self> {
        {
            let mut state = self.state.lock();
            state.change = 1;
            state.untouched = true;
            state.temporary = temporary;
        }
        self
    }

    /// Returns what it is called.
    pub fn place(&self) -> Place {
        self.state.lock().place.clone()
    }

    /// Gives it another name, or none. The store is to have it again under that name.
    pub fn set_place(&self, place: Place, temporary: bool) {
        let mut state = self.state.lock();
        state.place = place;
        state.temporary = temporary;
        state.due = None;
    }

    /// Marks it as not stored under its present name.
    pub fn set_unstored(&self, base: Option<RecordMeta>) {
        let mut state = self.state.lock();
        state.change += 1;
        state.facts.base = base;
        state.facts.exclusive = false;
        state.unanswered.clear();
        state.failed = None;
    }

    /// Puts back what it replaces, after a rename that failed.
    pub fn set_base(&self, base: Option<RecordMeta>) {
        self.state.lock().facts.base = base;
    }

    /// Takes note of what it is to replace if it has no changes of its own, and that name still.
    pub fn replaces(&self, place: &Place, base: Option<RecordMeta>) {
        let mut state = self.state.lock();
        let is_clean = state.change <= state.committed && state.journalled.is_none();
        if is_clean && !state.committing && state.place == *place {
            state.facts.base = base;
        }
    }

    /// Marks it as stored as it is.
    pub fn set_committed(&self) {
        let mut state = self.state.lock();
        state.committed = state.change;
    }

    /// Returns its size in bytes.
    pub fn size(&self) -> u64 {
        self.state.lock().size
    }

    /// Returns when it was last changed.
    pub fn modified(&self) -> SystemTime {
        self.state.lock().modified
    }

    /// Returns what is known of its record.
    pub fn facts(&self) -> DraftFacts {
        self.state.lock().facts.clone()
    }

    /// Changes what is known of its record; the store is to have it so.
    pub fn set_facts(&self, change: impl FnOnce(&mut DraftFacts)) {
        let mut state = self.state.lock();
        change(&mut state.facts);
        state.change += 1;
    }

    /// Tells whether the store lacks something of it that it is to have.
    pub fn is_dirty(&self) -> bool {
        let state = self.state.lock();
        let ahead = state.change > state.committed || state.journalled.is_some();
        ahead && state.place != Place::Gone
    }

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

    /// Tells whether what the store lacks has been refused by it.
    pub fn is_refused(&self) -> bool {
        self.refusal().is_some()
    }

    /// Returns why the store has refused what it lacks, if it has.
    pub fn refusal(&self) -> Option<StoreError> {
        let state = self.state.lock();
        let failed = state.failed.as_ref();
        let (_, error) = failed.filter(|(change, _)| *change == state.change)?;
        Some(error.duplicate())
    }

    /// Tells whether a record of this name is in the store, as far as this mount knows.
    pub fn is_stored(&self) -> bool {
        self.state.lock().facts.base.is_some()
    }

    /// Tells whether a record of this name may be in the store though no answer said so.
    pub fn may_be_stored(&self) -> bool {
        !self.state.lock().unanswered.is_empty()
    }

    /// Tells whether its upload can wait for its final name.
    pub fn is_temporary(&self) -> bool {
        let state = self.state.lock();
        state.temporary && state.facts.base.is_none()
    }

    /// Returns when a held back upload is to begin.
    pub fn due(&self) -> Option<Instant> {
        self.state.lock().due
    }

    /// Holds its upload back until then.
    pub fn hold(&self, due: Option<Instant>) {
        self.state.lock().due = due;
    }

    /// Reads `len` bytes at `offset`, fewer only at its end.
    ///
    /// # Errors
    /// Those of the local disk.
    pub fn read(&self, offset: u64, len: usize) -> Result<Bytes> {
        let (file, size) = {
            let state = self.state.lock();
            (Arc::clone(&state.file), state.size)
        };
        let left = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        file.read_at(offset, len.min(left))
            .map(Bytes::from)
            .map_err(|error| FsError::staging("cannot read", &error))
    }

    /// Writes bytes at `offset`.
    ///
    /// # Errors
    /// [`FsError::WouldBlock`] and those of the local disk.
    pub fn write(
        &self,
        offset: u64,
        bytes: &[u8],
        now: SystemTime,
        folder: &StagingFolder,
        wait: Wait,
    ) -> Result<()> {
        let end = offset.saturating_add(bytes.len() as u64);
        self.edit(now, folder, wait, |file, size| {
            file.write_at(offset, bytes)?;
            Ok(size.max(end))
        })
    }

    /// Cuts it off, or lengthens it with zeros.
    ///
    /// # Errors
    /// As for [`Draft::write`].
    pub fn set_size(
        &self,
        size: u64,
        now: SystemTime,
        folder: &StagingFolder,
        wait: Wait,
    ) -> Result<()> {
        if size == 0 {
            // Nothing of the old bytes is needed: no copy of what is frozen, a new file.
            return self.empty(now, folder, wait);
        }
        self.edit(now, folder, wait, |file, _| {
            file.set_len(size).map(|()| size)
        })
    }

    /// Changes the bytes; `change` gets the size and returns the new one.
    ///
    /// # Errors
    /// As for [`Draft::write`].
    pub fn edit(
        &self,
        now: SystemTime,
        folder: &StagingFolder,
        wait: Wait,
        change: impl FnOnce(&StagingFile, u64) -> io::Result<u64>,
    ) -> Result<()> {
        let _order = self.take_order(wait)?;
        let (mut file, size) = {
            let state = self.state.lock();
            (Arc::clone(&state.file), state.size)
        };
        if file.is_frozen() {
            if wait == Wait::Never {
                return Err(FsError::WouldBlock);
            }
            file = file
                .copy(size, folder)
                .map_err(|error| FsError::staging("cannot copy", &error))?;
            self.state.lock().file = Arc::clone(&file);
        }
        let new_size =
            change(&file, size).map_err(|error| FsError::staging("cannot write", &error))?;
        let mut state = self.state.lock();
        state.size = new_size;
        state.untouched = false;
        state.changed(now);
        Ok(())
    }

    fn empty(&self, now: SystemTime, folder: &StagingFolder, wait: Wait) -> Result<()> {
        let _order = self.take_order(wait)?;
        let file = Arc::clone(&self.state.lock().file);
        let file = if file.is_frozen() {
            StagingFile::new(folder)
        } else {
            file.set_len(0).map(|()| file)
        };
        let file = file.map_err(|error| FsError::staging("cannot empty", &error))?;
        let mut state = self.state.lock();
        state.file = file;
        state.size = 0;
        state.untouched = true;
        state.changed(now);
        Ok(())
    }

    fn take_order(&self, wait: Wait) -> Result<MutexGuard<'_, ()>> {
        match wait {
            Wait::Never => self.order.try_lock().ok_or(FsError::WouldBlock),
            // Whoever holds it works on the local disk.
            Wait::Until(_) => Ok(self.order.lock()),
        }
    }

    /// Waits until the bytes are on the local disk.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn sync_locally(&self) -> Result<()> {
        let file = Arc::clone(&self.state.lock().file);
        file.sync()
            .map_err(|error| FsError::staging("cannot keep", &error))
    }

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
            if let Some((change, error)) = &state.failed
                && *change == state.change
                && (why == Why::Close || why == Why::Release || (waited && *change >= wanted))
            {
                return Begin::Refused(error.duplicate());
            }
            // No change may be half way when the bytes are frozen.
            let order = match self.order.try_lock() {
                Some(order) => order,
                None => {
                    drop(state);
                    let order = self.order.lock();
                    state = self.state.lock();
                    if state.committing || state.paused {
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
    fn changed(&mut self, now: SystemTime) {
        self.change += 1;
        self.modified = now;
    }

    fn needs_commit(&self, why: Why) -> bool {
        if self.change <= self.committed || !matches!(self.place, Place::Record(_)) {
            return false;
        }
        let held_back = self.temporary && self.facts.base.is_none();
        match why {
            // A shell closes a duplicate of a new file's descriptor before anything is written.
            Why::Close => !held_back && (!self.untouched || self.size > 0),
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

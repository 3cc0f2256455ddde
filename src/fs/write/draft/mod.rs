//! A file that this mount has changed: its bytes in a staging file, and how far the store has them.
//!
//! Lock order: `order`, then `state`. `order` puts the changes of one file's bytes one after the
//! other, as a filesystem's inode lock does: it is the one lock that is held while the local disk
//! works, no thread waits for it while holding another, and it is never held across a request.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

use crate::fs::FsError;
use crate::fs::types::Ino;
use crate::staging::file::{Frozen, StagingFile};
use crate::staging::{Began, UnansweredUploads};
use crate::store::{Encoding, Key, RecordMeta, StoreError};
use crate::upload::Expected;

mod bytes;
mod commit;
mod journalled;
mod lost;

pub use commit::{Begin, Ticket, Why};
pub(in crate::fs::write) use journalled::Journalled;
use lost::Lost;

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

/// A file that this mount has changed.
#[derive(Debug)]
pub struct Draft {
    /// Its inode.
    pub ino: Ino,
    order: Mutex<()>,
    state: Mutex<State>,
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
    /// Commits under way.
    tickets: u32,
    /// Grows whenever this mount has learnt what its own upload has made of the record.
    rebased: u64,
    failed: Option<(u64, StoreError)>,
    /// It was emptied to be rewritten, which has failed: the record stays what it was.
    lost: Option<Lost>,
    /// The change that emptied it, if the store has not got anything of it since.
    emptied: Option<u64>,
    /// Nothing has been written since it was created or emptied.
    untouched: bool,
    /// Whether its name is one that programs soon give up for another.
    temporary: bool,
    /// Bytes that the store refused and the journal keeps: they therefore stay as they are.
    kept: Option<Frozen>,
    /// What is journalled and will be uploaded (`--write-back`).
    journalled: Option<Journalled>,
    facts: DraftFacts,
    /// The bytes that it was made of, where the server does not tell versions apart.
    began: Option<Began>,
    /// What uploads with lost answers may have made of the record.
    unanswered: UnansweredUploads,
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
                tickets: 0,
                rebased: 0,
                failed: None,
                lost: None,
                emptied: None,
                untouched: false,
                temporary: false,
                kept: None,
                journalled: None,
                facts,
                began: None,
                unanswered: UnansweredUploads::default(),
                modified,
            }),
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

    /// Gives it another name, or none.
    pub fn set_place(&self, place: Place, temporary: bool) {
        let mut state = self.state.lock();
        state.place = place;
        state.temporary = temporary;
    }

    /// Marks it as not stored under its new name, which leads to `base` so far.
    pub fn set_unstored(&self, base: Option<RecordMeta>) {
        let mut state = self.state.lock();
        state.change += 1;
        state.rename(base);
    }

    /// Gives it the type and encoding that it is to be stored with under its new name.
    pub fn keep_type(&self, facts: &DraftFacts) {
        let mut state = self.state.lock();
        state.facts.content_type.clone_from(&facts.content_type);
        state.facts.encoding.clone_from(&facts.encoding);
    }

    /// Marks it as stored under its new name, up to the change of the bytes that were.
    pub fn set_stored_as(&self, change: u64, meta: RecordMeta, began: Option<Began>) {
        let mut state = self.state.lock();
        state.committed = change;
        state.rename(Some(meta));
        state.began = began;
        if state.change == change {
            state.facts.content_type = None;
            state.facts.encoding = None;
        }
    }

    /// Notes that this mount has deleted its record.
    pub fn set_deleted(&self) {
        self.state.lock().rename(None);
    }

    /// Returns a number that is another one when this mount has learnt meanwhile what its own upload
    /// has made of the record.
    pub fn rebased(&self) -> u64 {
        self.state.lock().rebased
    }

    /// Notes what it is to replace if it has no changes of its own, that name still, and nothing newer
    /// was learnt since it was `rebased`.
    pub fn replaces(&self, place: &Place, base: Option<RecordMeta>, rebased: u64) {
        let mut state = self.state.lock();
        let is_clean = state.change <= state.committed && state.journalled.is_none();
        if is_clean && state.tickets == 0 && state.place == *place && state.rebased == rebased {
            state.facts.base = base;
            state.began = None;
        }
    }

    /// Notes that this mount has stored the record again, in place of the version `before`.
    pub fn follows(&self, before: &RecordMeta, now: &RecordMeta) {
        let mut state = self.state.lock();
        let of_before = |base: &&mut RecordMeta| base.etag == before.etag;
        if let Some(base) = state.facts.base.as_mut().filter(|base| of_before(base)) {
            base.clone_from(now);
            state.rebased += 1;
        }
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

    /// Returns whether the store lacks something of it that it is to have.
    pub fn is_dirty(&self) -> bool {
        let state = self.state.lock();
        let ahead = state.change > state.committed || state.journalled.is_some();
        ahead && state.place != Place::Gone
    }

    /// Returns whether what the store lacks has been refused by it, or is not all there.
    pub fn is_refused(&self) -> bool {
        self.refusal().is_some()
    }

    /// Returns why the store does not get what it lacks, if it is so.
    pub fn refusal(&self) -> Option<FsError> {
        let state = self.state.lock();
        if let Some(lost) = &state.lost {
            return Some(lost.error());
        }
        let failed = state.failed.as_ref();
        let (_, error) = failed.filter(|(change, _)| *change == state.change)?;
        Some(FsError::Store(error.duplicate()))
    }

    /// Returns whether a record of this name is in the store, as far as this mount knows.
    pub fn is_stored(&self) -> bool {
        self.state.lock().facts.base.is_some()
    }

    /// Returns whether a record of this name may be in the store though no answer said so.
    pub fn may_be_stored(&self) -> bool {
        !self.state.lock().unanswered.is_empty()
    }

    /// Returns what its record has, as far as this mount knows.
    pub fn expected(&self) -> Expected {
        let state = self.state.lock();
        let base = state.facts.base.as_ref();
        Expected {
            exists: base.is_some(),
            etag: base.and_then(|meta| meta.etag.clone()),
            began: state.began.clone(),
            size: None,
            unanswered: state.unanswered.clone(),
        }
    }

    /// Returns whether its upload can wait for its final name.
    pub fn is_temporary(&self) -> bool {
        let state = self.state.lock();
        state.temporary && state.facts.base.is_none()
    }

    /// Notes the bytes that it was made of: it is to replace nothing else.
    pub fn set_began(&self, began: Option<Began>) {
        self.state.lock().began = began;
    }
}

impl State {
    fn rename(&mut self, base: Option<RecordMeta>) {
        self.facts.base = base;
        self.facts.exclusive = false;
        self.began = None;
        self.unanswered.clear();
        self.failed = None;
        self.rebased += 1;
    }
}

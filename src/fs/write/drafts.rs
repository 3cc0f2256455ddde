//! All files that this mount has changed and still holds: by inode, by key, by scratch name.
//!
//! Lock order: the table, then one draft.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::draft::{Draft, Place};
use crate::base::clock::Wait;
use crate::fs::types::Ino;
use crate::fs::{FsError, Result};
use crate::staging::EntryId;
use crate::store::{ErrorKind, Key, StoreError};

/// The table of drafts.
#[derive(Debug, Default)]
pub struct Drafts {
    table: Mutex<Table>,
    made: Condvar,
}

#[derive(Debug, Default)]
struct Table {
    by_ino: HashMap<Ino, Entry>,
    /// INVARIANT: names the draft at the place of that record.
    by_key: HashMap<Key, Ino>,
    /// INVARIANT: names the draft at the place of that scratch file.
    scratch: BTreeMap<OsString, Ino>,
    /// Records that were renamed to a scratch name: not shown any more, though the store keeps
    /// them until the scratch file is deleted or something takes the name.
    hidden: HashMap<Key, Ino>,
    /// Names that a rename is giving to inodes, whose bytes are safe under them already.
    taken: HashMap<Key, Ino>,
    /// The draft that an entry of the journal has the bytes of.
    entries: HashMap<EntryId, Ino>,
}

#[derive(Debug)]
enum Entry {
    /// A thread is fetching and copying its bytes.
    Making,
    Ready(Arc<Draft>),
}

/// The right to make an inode's draft; dropping it unused lets others try.
#[derive(Debug)]
pub struct Making<'a> {
    drafts: &'a Drafts,
    ino: Ino,
}

/// A draft, or the right to make it.
#[derive(Debug)]
pub enum Found<'a> {
    /// It is there.
    Draft(Arc<Draft>),
    /// The caller is to make it.
    Missing(Making<'a>),
}

impl Drafts {
    /// Returns the draft of an inode.
    pub fn get(&self, ino: Ino) -> Option<Arc<Draft>> {
        self.table.lock().ready(ino)
    }

    /// Returns the draft that has a record's name.
    pub fn of_key(&self, key: &Key) -> Option<Arc<Draft>> {
        let table = self.table.lock();
        table.ready(*table.by_key.get(key)?)
    }

    /// Returns the draft of a scratch file.
    pub fn of_scratch(&self, name: &OsStr) -> Option<Arc<Draft>> {
        let table = self.table.lock();
        table.ready(*table.scratch.get(name)?)
    }

    /// Returns the draft of an inode, or the right to make it; waits for a thread that makes it
    /// now.
    ///
    /// # Errors
    /// [`FsError::WouldBlock`], and that the wait took too long.
    pub fn find_or_make(&self, ino: Ino, wait: Wait) -> Result<Found<'_>> {
        let mut table = self.table.lock();
        loop {
            match table.by_ino.get(&ino) {
                Some(Entry::Ready(draft)) => return Ok(Found::Draft(Arc::clone(draft))),
                None => {
                    let Wait::Until(_) = wait else {
                        return Err(FsError::WouldBlock);
                    };
                    table.by_ino.insert(ino, Entry::Making);
                    return Ok(Found::Missing(Making { drafts: self, ino }));
                }
                Some(Entry::Making) => {
                    let deadline = wait.deadline().ok_or(FsError::WouldBlock)?;
                    let late = self.made.wait_until(&mut table, deadline.instant());
                    if late.timed_out() {
                        return Err(StoreError::new(
                            ErrorKind::Timeout,
                            "the deadline passed while the file's bytes were fetched",
                        )
                        .into());
                    }
                }
            }
        }
    }

    /// Adds a draft under its name.
    pub fn insert(&self, draft: &Arc<Draft>) {
        self.table.lock().insert(draft, true);
    }

    /// Gives a draft another name; a draft that had that name loses it, and is returned.
    pub fn rename(&self, draft: &Arc<Draft>, place: Place, temporary: bool) -> Option<Arc<Draft>> {
        let mut table = self.table.lock();
        table.unname(draft);
        let other = match &place {
            Place::Record(key) => table.by_key.get(key).copied(),
            Place::Scratch(name) => table.scratch.get(name).copied(),
            Place::Gone => None,
        };
        let other = other.and_then(|ino| table.ready(ino));
        if let Some(other) = &other {
            table.unname(other);
            other.set_place(Place::Gone, false);
        }
        draft.set_place(place, temporary);
        table.insert(draft, true);
        other
    }

    /// Takes a draft's name away: it is deleted, or replaced.
    pub fn unname(&self, draft: &Arc<Draft>) {
        let mut table = self.table.lock();
        table.unname(draft);
        draft.set_place(Place::Gone, false);
    }

    /// Takes the name of a draft's record from it; it is still to be stored under that name.
    pub fn detach(&self, ino: Ino) {
        let mut table = self.table.lock();
        table.by_key.retain(|_, owner| *owner != ino);
    }

    /// Drops a draft that is not open, if `unneeded` says so. One that is dropped already may have
    /// a successor of the same inode, which stays.
    pub fn remove_if(&self, draft: &Arc<Draft>, unneeded: impl FnOnce(&Draft) -> bool) -> bool {
        let mut table = self.table.lock();
        let present = table.ready(draft.ino);
        if !present.is_some_and(|present| Arc::ptr_eq(&present, draft)) || !unneeded(draft) {
            return false;
        }
        table.unname(draft);
        table.by_ino.remove(&draft.ino);
        true
    }

    /// Notes which draft an entry of the journal has the bytes of.
    pub fn note_entry(&self, id: &EntryId, ino: Ino) {
        self.table.lock().entries.insert(id.clone(), ino);
    }

    /// Returns the draft that a removed entry of the journal had the bytes of.
    pub fn take_entry(&self, id: &EntryId) -> Option<Arc<Draft>> {
        let mut table = self.table.lock();
        let ino = table.entries.remove(id)?;
        table.ready(ino)
    }

    /// Returns the draft that an entry of the journal has the bytes of.
    pub fn of_entry(&self, id: &EntryId) -> Option<Arc<Draft>> {
        let table = self.table.lock();
        table.ready(*table.entries.get(id)?)
    }

    /// Notes that a key is about to be the name of this inode, which is safe under it: nothing more of
    /// the file that still has it is stored.
    pub fn take_key(&self, key: &Key, ino: Ino) {
        self.table.lock().taken.insert(key.clone(), ino);
    }

    /// Ends what [`Drafts::take_key`] began.
    pub fn give_key(&self, key: &Key) {
        self.table.lock().taken.remove(key);
    }

    /// Returns whether a key is about to be the name of another inode.
    pub fn is_taken(&self, key: &Key, ino: Ino) -> bool {
        let table = self.table.lock();
        table.taken.get(key).is_some_and(|taken| *taken != ino)
    }

    /// Hides a record that was renamed to a scratch file.
    pub fn hide(&self, key: &Key, ino: Ino) {
        self.table.lock().hidden.insert(key.clone(), ino);
    }

    /// Returns whether a record is hidden.
    pub fn is_hidden(&self, key: &Key) -> bool {
        let table = self.table.lock();
        !table.hidden.is_empty() && table.hidden.contains_key(key)
    }

    /// Shows a key again, because something has taken its name.
    pub fn unhide(&self, key: &Key) -> bool {
        self.table.lock().hidden.remove(key).is_some()
    }

    /// Returns the record that a scratch file hides.
    pub fn hidden_by(&self, ino: Ino) -> Option<Key> {
        let table = self.table.lock();
        let mut hidden = table.hidden.iter();
        hidden
            .find(|(_, owner)| **owner == ino)
            .map(|(key, _)| key.clone())
    }

    /// Returns all drafts.
    pub fn all(&self) -> Vec<Arc<Draft>> {
        let table = self.table.lock();
        table
            .by_ino
            .values()
            .filter_map(|entry| match entry {
                Entry::Ready(draft) => Some(Arc::clone(draft)),
                Entry::Making => None,
            })
            .collect()
    }
}

impl Table {
    fn ready(&self, ino: Ino) -> Option<Arc<Draft>> {
        match self.by_ino.get(&ino)? {
            Entry::Ready(draft) => Some(Arc::clone(draft)),
            Entry::Making => None,
        }
    }

    fn insert(&mut self, draft: &Arc<Draft>, named: bool) {
        self.by_ino
            .insert(draft.ino, Entry::Ready(Arc::clone(draft)));
        match draft.place() {
            Place::Record(key) if named => {
                self.by_key.insert(key, draft.ino);
            }
            Place::Scratch(name) if named => {
                self.scratch.insert(name, draft.ino);
            }
            _ => {}
        }
    }

    fn unname(&mut self, draft: &Draft) {
        match draft.place() {
            Place::Record(key) if self.by_key.get(&key) == Some(&draft.ino) => {
                self.by_key.remove(&key);
            }
            Place::Scratch(name) if self.scratch.get(&name) == Some(&draft.ino) => {
                self.scratch.remove(&name);
            }
            _ => {}
        }
    }
}

impl Making<'_> {
    /// Adds the draft that was made; `named` unless its inode has lost its name.
    pub fn done(self, draft: &Arc<Draft>, named: bool) {
        self.drafts.table.lock().insert(draft, named);
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        let mut table = self.drafts.table.lock();
        if matches!(table.by_ino.get(&self.ino), Some(Entry::Making)) {
            table.by_ino.remove(&self.ino);
        }
        drop(table);
        self.drafts.made.notify_all();
    }
}

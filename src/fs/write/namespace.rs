//! Makes and removes names; refuses kinds of files that a store cannot have.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use super::WriteSide;
use super::draft::{Draft, DraftFacts, Place};
use super::scratch::Class;
use crate::base::caller;
use crate::base::clock::{Deadline, Wait};
use crate::fs::attributes::Existence;
use crate::fs::name::{self, Meaning};
use crate::fs::types::{Created, Ino};
use crate::fs::{FsError, KvFs, Result};
use crate::metrics::origin::{self, Origin};
use crate::store::Key;
use crate::upload::{Change as Changing, Entered, Expected, may_have_arrived};

/// What a key may consist of, for people.
const KEY_RULE: &str =
    "a record's name may have 1 to 256 of the characters a-z A-Z 0-9 ! - _ . ' ( )";

/// How often a file that is deleted or replaced meanwhile is looked for again.
const CREATIONS: u32 = 8;

impl KvFs {
    /// Makes a file and opens it for writing. The store hears of it when it is closed.
    ///
    /// Makes no request unless `exclusive` asks for certainty that memory does not have; the
    /// kernel has looked the name up just before.
    ///
    /// # Errors
    /// `EEXIST` for an exclusive creation of what exists, `EINVAL` for names that no record can
    /// have, [`FsError::ReadOnly`], and those of opening what exists.
    pub fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        mode: u32,
        exclusive: bool,
        truncate: bool,
        wait: Wait,
    ) -> Result<Created> {
        self.about(name);
        let side = self.write_side()?;
        Self::check_root(parent)?;
        for _ in 1..CREATIONS {
            let created = self.create_once(side, name, mode, (exclusive, truncate), wait);
            // What was found has been deleted or replaced before it could be opened.
            if !matches!(created, Err(FsError::Stale)) {
                return created;
            }
        }
        self.create_once(side, name, mode, (exclusive, truncate), wait)
    }

    fn create_once(
        &self,
        side: &WriteSide,
        name: &OsStr,
        mode: u32,
        (exclusive, truncate): (bool, bool),
        wait: Wait,
    ) -> Result<Created> {
        if let Some(key) = self.key_of_name(name) {
            self.await_names(side, &key, wait)?;
        }
        let (place, temporary) = self.place_for(side, name)?;
        if let Some(entry) = self.present(side, &place) {
            if exclusive {
                self.forget(entry.attr.ino, 1);
                return Err(FsError::WrongKind(libc::EEXIST));
            }
            let ino = entry.attr.ino;
            return match self.open_writing(ino, truncate, wait) {
                Ok(opened) => Ok(Created { entry, opened }),
                Err(error) => {
                    self.forget(ino, 1);
                    Err(error)
                }
            };
        }
        let mut facts = DraftFacts {
            exclusive,
            ..DraftFacts::default()
        };
        if let Place::Record(key) = &place
            && side.drafts.is_hidden(key)
        {
            // It was renamed to a scratch file and is in the store still: this replaces it.
            facts.base = self.records.describe(key, wait)?;
            facts.exclusive = false;
        }
        let file = side.new_file()?;
        if !caller::claim() {
            return Err(FsError::Interrupted);
        }
        if let Place::Record(key) = &place {
            side.drafts.unhide(key);
        }
        let now = self.clock.wall();
        let key = match &place {
            Place::Record(key) => key.clone(),
            _ => Key::new(name.to_string_lossy()).ok_or(FsError::NoEntry)?,
        };
        let named = matches!(place, Place::Record(_));
        let mut inodes = self.inodes.lock();
        if named {
            // The old file is still open here, and another writer has deleted it: no writer to it
            // may believe that it was stored.
            inodes.detach_name(&key);
        }
        let ino = inodes.fresh();
        inodes.add(ino, &key, named);
        if let Some(inode) = inodes.get_mut(ino) {
            inode.opens = 1;
            inode.show(|shown| shown.mode = Some((mode & 0o7777) as u16));
        }
        drop(inodes);
        let draft = Draft::new(ino, place, file, 0, facts, now).as_new(temporary);
        side.drafts.insert(&draft);
        self.note_present(side, &draft);
        Ok(Created {
            entry: self.draft_attributes(&draft),
            opened: self.hand_out_draft(ino, true),
        })
    }

    /// Deletes a file: its name and its record are gone when this returns. Until then the file is what
    /// it was, and opens that would change it wait.
    ///
    /// # Errors
    /// [`FsError::NoEntry`], [`FsError::ReadOnly`], and those of the store; the file then stays.
    pub fn unlink(&self, parent: Ino, name: &OsStr, wait: Wait) -> Result<()> {
        self.about(name);
        let side = self.write_side()?;
        Self::check_root(parent)?;
        if let Some(draft) = side.drafts.of_scratch(name) {
            return self.unlink_scratch(side, &draft, wait);
        }
        let key = self.key_of_name(name).ok_or(FsError::NoEntry)?;
        if side.drafts.is_hidden(&key) {
            return Err(FsError::NoEntry);
        }
        let deadline = Deadline::after(side.config.deadline);
        let entered = match wait {
            // What is journalled is removed from the disk.
            Wait::Never if side.uploader.has(&key) => return Err(FsError::WouldBlock),
            Wait::Never => side.uploader.try_enter(&key, Changing::Name),
            Wait::Until(_) => Some(side.uploader.enter(&[&key], Changing::Name, deadline)?),
        };
        let entered = entered.ok_or(FsError::WouldBlock)?;
        let in_store = match side.drafts.of_key(&key) {
            // Also by an upload that only seemed to fail.
            Some(draft) => {
                draft.is_stored() || draft.may_be_stored() || !entered.unanswered(&key).is_empty()
            }
            None if matches!(self.existence(&key), Existence::Absent(_)) => {
                return Err(FsError::NoEntry);
            }
            None => true,
        };
        if in_store {
            if wait == Wait::Never {
                return Err(FsError::WouldBlock);
            }
            if !caller::waits() {
                return Err(FsError::Interrupted);
            }
            self.delete(&entered, &key, deadline)?;
        } else if !caller::claim() {
            return Err(FsError::Interrupted);
        }
        entered.discard(&key, || {
            if let Some(draft) = side.drafts.of_key(&key) {
                side.drafts.unname(&draft);
                self.note_deleted(side, &key);
                self.settle(&draft);
            } else {
                self.note_deleted(side, &key);
            }
            true
        });
        Ok(())
    }

    fn unlink_scratch(&self, side: &WriteSide, draft: &Arc<Draft>, wait: Wait) -> Result<()> {
        if let Some(key) = side.drafts.hidden_by(draft.ino) {
            if wait == Wait::Never {
                return Err(FsError::WouldBlock);
            }
            let deadline = Deadline::after(side.config.deadline);
            let entered = side.uploader.enter(&[&key], Changing::Name, deadline)?;
            // Another file may have taken the name meanwhile.
            if side.drafts.hidden_by(draft.ino).as_ref() == Some(&key) {
                if !caller::waits() {
                    return Err(FsError::Interrupted);
                }
                self.delete_hidden(side, &entered, draft, &key, deadline)?;
            }
        }
        let place = draft.place();
        side.drafts.unname(draft);
        self.note_absent(side, &place);
        if let Some(inode) = self.inodes.lock().get_mut(draft.ino) {
            inode.gone = true;
        }
        self.settle(draft);
        Ok(())
    }

    /// Waits while `key` is being deleted, renamed, or stored as something else.
    ///
    /// # Errors
    /// [`FsError::WouldBlock`], and that it took too long.
    pub(in crate::fs) fn await_names(&self, side: &WriteSide, key: &Key, wait: Wait) -> Result<()> {
        if !side.uploader.is_renaming(key) {
            return Ok(());
        }
        let deadline = wait.deadline().ok_or(FsError::WouldBlock)?;
        Ok(side.uploader.await_names(key, deadline)?)
    }

    /// Deletes a record from the store; the caller is inside its gate.
    pub(in crate::fs) fn delete(
        &self,
        entered: &Entered,
        key: &Key,
        deadline: Deadline,
    ) -> Result<()> {
        origin::note(Origin::Network);
        entered.delete(key, deadline).map_err(|error| {
            if may_have_arrived(&error) {
                // It may be gone, or go; what is remembered of it says nothing.
                self.records.invalidate(key);
            }
            error.into()
        })
    }

    /// Deletes the record that a scratch file hides, unless another writer has changed it since: then
    /// it is shown again.
    pub(in crate::fs) fn delete_hidden(
        &self,
        side: &WriteSide,
        entered: &Entered,
        draft: &Draft,
        key: &Key,
        deadline: Deadline,
    ) -> Result<()> {
        match self.delete_expected(entered, key, &draft.expected(), false, deadline)? {
            true => self.note_hidden_gone(side, key),
            false => {
                side.drafts.unhide(key);
            }
        }
        Ok(())
    }

    /// Deletes a record unless another writer has changed it (see [`Entered::delete_expected`]).
    pub(in crate::fs) fn delete_expected(
        &self,
        entered: &Entered,
        key: &Key,
        expected: &Expected,
        is_known: bool,
        deadline: Deadline,
    ) -> Result<bool> {
        origin::note(Origin::Network);
        let deleted = entered.delete_expected(key, expected, is_known, deadline);
        let is_certain = match &deleted {
            Ok(deleted) => *deleted,
            Err(error) => !may_have_arrived(error),
        };
        if !is_certain {
            self.records.invalidate(key);
        }
        Ok(deleted?)
    }

    /// Makes it known here that a record is gone from the store that was not shown any more.
    pub(in crate::fs) fn note_hidden_gone(&self, side: &WriteSide, key: &Key) {
        side.drafts.unhide(key);
        self.records.removed(key);
        self.note_absent(side, &Place::Record(key.clone()));
    }

    /// Makes it known here that a record and its name are gone.
    pub(in crate::fs) fn note_deleted(&self, side: &WriteSide, key: &Key) {
        self.records.removed(key);
        self.note_absent(side, &Place::Record(key.clone()));
        self.inodes.lock().lose_name(key);
    }

    /// Refuses what a key-value store has none of: directories, links, special files.
    ///
    /// # Errors
    /// Always: [`FsError::ReadOnly`] on a mount that cannot be changed, else `EPERM`.
    pub fn refuse(&self, what: &str) -> Result<()> {
        self.write_side()?;
        Err(FsError::refused(
            libc::EPERM,
            format!("a key-value store has no {what}"),
            "only files can be made in the mount",
        ))
    }

    /// Refuses to remove a directory: there is only the root.
    ///
    /// # Errors
    /// Always.
    pub fn rmdir(&self, parent: Ino, name: &OsStr, wait: Wait) -> Result<()> {
        self.about(name);
        self.write_side()?;
        match self.lookup(parent, name, wait)? {
            crate::fs::types::Lookup::Found(reply) => {
                self.forget(reply.attr.ino, 1);
                Err(FsError::WrongKind(libc::ENOTDIR))
            }
            crate::fs::types::Lookup::Absent(_) => Err(FsError::NoEntry),
        }
    }

    pub(in crate::fs) fn check_root(parent: Ino) -> Result<()> {
        if parent == Ino::ROOT {
            Ok(())
        } else {
            Err(FsError::WrongKind(libc::ENOTDIR))
        }
    }

    /// Returns the key that a name of an existing record means.
    pub(in crate::fs) fn key_of_name(&self, name: &OsStr) -> Option<Key> {
        match name::meaning(name) {
            Meaning::Key(key) => Some(key),
            Meaning::Listed => self.listed_name(name),
            Meaning::Nothing => None,
        }
    }

    /// Returns what a file of this name is, or will be, and whether the name is temporary.
    pub(in crate::fs) fn place_for(&self, side: &WriteSide, name: &OsStr) -> Result<(Place, bool)> {
        if side.drafts.of_scratch(name).is_some() {
            return Ok((Place::Scratch(name.to_owned()), false));
        }
        let key = self.key_of_name(name);
        if let Some(key) = &key
            && matches!(self.existence(key), Existence::Present(_))
        {
            return Ok((Place::Record(key.clone()), false));
        }
        let exists = |other: &str| {
            let key = self.key_of_name(OsStr::new(other));
            key.is_some_and(|key| {
                side.drafts.of_key(&key).is_some()
                    || matches!(self.existence(&key), Existence::Present(_))
            })
        };
        let class = side.config.scratch.classify(name, exists);
        if class == Class::Scratch {
            if name.len() > name::MAX_NAME {
                return Err(FsError::WrongKind(libc::ENAMETOOLONG));
            }
            return Ok((Place::Scratch(OsString::from(name)), false));
        }
        let shown = name.to_string_lossy();
        let key = key.filter(Key::is_valid).ok_or_else(|| {
            if name.len() > crate::store::record::MAX_KEY_LEN {
                return FsError::refused(
                    libc::ENAMETOOLONG,
                    format!("'{shown}' is too long for a record"),
                    KEY_RULE,
                );
            }
            FsError::refused(
                libc::EINVAL,
                format!("no record can have the name '{shown}'"),
                KEY_RULE,
            )
        })?;
        if let Some(prefix) = &self.config.prefix
            && !key.as_str().starts_with(&**prefix)
        {
            return Err(FsError::refused(
                libc::EINVAL,
                format!("'{shown}' does not begin with '{prefix}'"),
                "the mount shows only records with that prefix; mount without --prefix",
            ));
        }
        Ok((Place::Record(key), class == Class::Temporary))
    }

    /// Returns the entry of a place that exists as far as memory knows, counted as looked up.
    fn present(&self, side: &WriteSide, place: &Place) -> Option<crate::fs::types::AttrReply> {
        match place {
            Place::Scratch(name) => {
                let draft = side.drafts.of_scratch(name)?;
                Some(self.enter_draft(&draft))
            }
            Place::Record(key) => match self.existence(key) {
                Existence::Present(facts) => Some(self.enter(key, &facts)),
                _ => None,
            },
            Place::Gone => None,
        }
    }
}

//! Renaming. A store cannot rename: what is in it is stored under the new key and then deleted
//! under the old one. What was only written here so far just gets another name, and one upload.

use std::ffi::OsStr;
use std::sync::Arc;

use super::WriteSide;
use super::draft::{Draft, DraftFacts, Paused, Place, Why};
use super::overlay::{Change, Name};
use crate::base::clock::Wait;
use crate::fs::attributes::Existence;
use crate::fs::types::Ino;
use crate::fs::{FsError, KvFs, Result};
use crate::metrics::origin;
use crate::store::{Key, RecordMeta};

impl KvFs {
    /// Renames a file, replacing what has the new name unless `keep_existing`.
    ///
    /// # Errors
    /// [`FsError::NoEntry`]; `EEXIST` when there is something that is to be kept; `EINVAL` for
    /// names that no record can have; those of the store. When the old record could not be
    /// deleted, both exist and the error says so; else nothing has changed.
    pub fn rename(
        &self,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        keep_existing: bool,
        wait: Wait,
    ) -> Result<()> {
        if self.metrics.tracer.is_active() {
            let names = [name, new_name].map(OsStr::to_string_lossy);
            origin::about(names.join(" -> "));
        }
        let side = self.write_side()?;
        Self::check_root(parent)?;
        Self::check_root(new_parent)?;
        let Wait::Until(_) = wait else {
            return Err(FsError::WouldBlock);
        };
        let source = match side.drafts.of_scratch(name) {
            Some(draft) => draft.place(),
            None => {
                let key = self.key_of_name(name).ok_or(FsError::NoEntry)?;
                if !self.exists(&key, wait)? {
                    return Err(FsError::NoEntry);
                }
                Place::Record(key)
            }
        };
        let (target, temporary) = self.place_for(side, new_name)?;
        if keep_existing {
            let taken = match &target {
                Place::Record(key) => self.exists(key, wait)?,
                Place::Scratch(name) => side.drafts.of_scratch(name).is_some(),
                Place::Gone => false,
            };
            if taken {
                return Err(FsError::WrongKind(libc::EEXIST));
            }
        }
        if source == target {
            return Ok(());
        }
        let draft = match &source {
            Place::Record(key) => side.drafts.of_key(key),
            Place::Scratch(name) => side.drafts.of_scratch(name),
            Place::Gone => None,
        };
        let replaced = match &target {
            Place::Record(key) => side.drafts.of_key(key),
            _ => None,
        };
        // An upload that begins meanwhile, because somebody has closed a file just now, would
        // bring back the old name, or the bytes that are replaced.
        let mut pauses = Pauses::of(draft.as_ref(), replaced.as_ref());
        let renamed = match (source, target, draft) {
            (source, Place::Record(to), Some(draft)) => {
                self.rename_draft(side, &draft, source, (to, temporary), &mut pauses, wait)
            }
            (Place::Record(from), Place::Record(to), None) => {
                self.rename_record(side, &from, &to, wait)
            }
            (source, Place::Scratch(to), draft) => {
                let draft = match (draft, &source) {
                    (Some(draft), _) => draft,
                    (None, Place::Record(key)) => self.draft_of_record(side, key, wait)?,
                    (None, _) => return Err(FsError::NoEntry),
                };
                self.rename_to_scratch(side, &draft, source, to)
            }
            _ => Err(FsError::NoEntry),
        };
        drop(pauses);
        renamed
    }

    /// Returns what is known of a record, asking for its metadata if need be; `None` when it does
    /// not exist.
    pub(in crate::fs) fn describe(&self, key: &Key, wait: Wait) -> Result<Option<RecordMeta>> {
        let hidden = self.write_side()?.drafts.is_hidden(key);
        match self.existence(key) {
            Existence::Absent(_) if !hidden => Ok(None),
            _ => Ok(self.records.describe(key, wait)?),
        }
    }

    fn exists(&self, key: &Key, wait: Wait) -> Result<bool> {
        Ok(match self.existence(key) {
            Existence::Present(_) => true,
            Existence::Absent(_) => false,
            Existence::Unknown => match self.find_out(key, wait) {
                Ok(_) => true,
                Err(FsError::NoEntry) => false,
                Err(error) => return Err(error),
            },
        })
    }

    /// Gives a changed file the name of a record.
    fn rename_draft(
        &self,
        side: &WriteSide,
        draft: &Arc<Draft>,
        source: Place,
        (to, temporary): (Key, bool),
        pauses: &mut Pauses,
        wait: Wait,
    ) -> Result<()> {
        let from = match &source {
            Place::Record(key) => Some(key.clone()),
            _ => None,
        };
        // What is journalled under the old name is not to be uploaded once the new one has it.
        let hold = match &from {
            Some(from) => self.hold_uploads(side, &[from])?,
            None => None,
        };
        let journalled = draft.is_journalled();
        let before = draft.facts();
        let was_stored = draft.is_stored() && matches!(source, Place::Record(_));
        // Also by an upload that only seemed to fail.
        let held = from.as_ref().zip(hold.as_ref());
        let perhaps_stored = was_stored
            || draft.may_be_stored()
            || held.is_some_and(|(from, hold)| hold.may_be_stored(from));
        // What a scratch file hides was renamed to it: it goes when its bytes are stored.
        let hidden = side.drafts.hidden_by(draft.ino).filter(|key| *key != to);
        let replaced = self.describe(&to, wait)?;
        // Replacing is what renaming is for: no matter which version there is.
        let base = replaced.map(|meta| RecordMeta { etag: None, ..meta });
        if was_stored && let Some(own) = &before.base {
            let (kind, encoding) = (own.content_type.clone(), own.encoding.clone());
            draft.set_facts(|facts| {
                facts.content_type = facts.content_type.take().or(kind);
                facts.encoding = facts.encoding.take().or(Some(encoding));
            });
        }
        let other = side
            .drafts
            .rename(draft, Place::Record(to.clone()), temporary);
        draft.set_unstored(base);
        // Whatever begins now is for the new name.
        pauses.end();
        let being_written = !was_stored && self.is_being_written(draft.ino);
        let later = being_written || temporary && !was_stored;
        // Its old name was promised to be safe.
        let stored_now = journalled || !later;
        if stored_now && let Err(error) = self.commit(draft, Why::Now) {
            side.drafts.rename(draft, source, false);
            draft.set_base(before.base);
            if let Some(other) = other {
                side.drafts.rename(&other, Place::Record(to), false);
            }
            return Err(error);
        }
        if let (Some(hold), Some(from)) = (&hold, &from) {
            hold.discard(from);
        }
        side.drafts.unhide(&to);
        let old = match (&source, perhaps_stored) {
            (Place::Record(key), true) => Some(key.clone()),
            _ => hidden,
        };
        if let Some(old) = &old
            && let Err(error) = self.delete(side, old)
        {
            return Err(self.half_renamed(side, draft, source, before, &to, error));
        }
        if let Some(old) = &old {
            self.note_hidden_gone(side, old);
        }
        self.note_renamed(side, draft.ino, &source, &to);
        self.note_present(side, draft);
        if let Some(other) = other {
            self.settle(&other);
        }
        if temporary && !being_written && draft.is_dirty() && !side.config.scratch_delay.is_zero() {
            side.drafts
                .hold(draft, self.clock.now() + side.config.scratch_delay);
        }
        self.settle(draft);
        Ok(())
    }

    /// Puts the names right after the old record could not be deleted: both exist.
    fn half_renamed(
        &self,
        side: &WriteSide,
        draft: &Arc<Draft>,
        source: Place,
        before: DraftFacts,
        to: &Key,
        error: FsError,
    ) -> FsError {
        side.drafts.rename(draft, source, false);
        draft.set_base(before.base);
        draft.set_committed();
        draft.forget_journalled();
        let ino = self.inodes.lock().fresh();
        let change = Change::Present {
            ino,
            size: draft.size(),
            modified: draft.modified(),
        };
        self.note(side, Name::Record(to.clone()), change);
        self.settle(draft);
        both_exist(error, to)
    }

    fn is_being_written(&self, ino: Ino) -> bool {
        self.handles.lock().is_being_written(ino)
    }

    /// Renames a record that this mount has not changed: its stored bytes are copied as they are.
    fn rename_record(&self, side: &WriteSide, from: &Key, to: &Key, wait: Wait) -> Result<()> {
        let hold = self.hold_uploads(side, &[from, to])?;
        let size = self.resend(side, from, to, |_| {}, wait)?.unwrap_or(1);
        if let Some(hold) = hold {
            hold.discard(to);
        }
        let ino = self.inodes.lock().ino_of(from.as_str());
        if let Err(error) = self.delete(side, from) {
            let ino = self.inodes.lock().fresh();
            let change = Change::Present {
                ino,
                size,
                modified: self.clock.wall(),
            };
            self.note(side, Name::Record(to.clone()), change);
            return Err(both_exist(error, to));
        }
        let other = side.drafts.of_key(to);
        if let Some(other) = &other {
            side.drafts.unname(other);
        }
        side.drafts.unhide(to);
        self.records.removed(from);
        let ino = ino.unwrap_or_else(|| self.inodes.lock().fresh());
        self.note_renamed(side, ino, &Place::Record(from.clone()), to);
        let change = Change::Present {
            ino,
            size,
            modified: self.clock.wall(),
        };
        self.note(side, Name::Record(to.clone()), change);
        if let Some(other) = other {
            self.settle(&other);
        }
        Ok(())
    }

    /// Makes a scratch file of a file. A record stays in the store: nobody else should lose it
    /// because an editor keeps its backup here.
    fn rename_to_scratch(
        &self,
        side: &WriteSide,
        draft: &Arc<Draft>,
        source: Place,
        to: std::ffi::OsString,
    ) -> Result<()> {
        if draft.is_journalled() {
            // What was closed as a record is promised to be one: a scratch file is in no journal.
            self.wait_uploaded(draft.ino)?;
        }
        if let Some(other) = side.drafts.of_scratch(&to)
            && let Some(hidden) = side.drafts.hidden_by(other.ino)
        {
            self.delete(side, &hidden)?;
            self.note_hidden_gone(side, &hidden);
        }
        let other = side.drafts.rename(draft, Place::Scratch(to), false);
        if let Place::Record(key) = &source {
            if draft.is_stored() || draft.may_be_stored() {
                side.drafts.hide(key, draft.ino);
                side.overlay.lock().forget(&Name::Record(key.clone()));
            } else {
                self.note_absent(side, &source);
            }
        } else {
            self.note_absent(side, &source);
        }
        self.inodes.lock().detach(draft.ino);
        self.note_present(side, draft);
        if let Some(other) = other {
            if let Some(inode) = self.inodes.lock().get_mut(other.ino) {
                inode.gone = true;
            }
            self.settle(&other);
        }
        Ok(())
    }

    fn draft_of_record(&self, side: &WriteSide, key: &Key, wait: Wait) -> Result<Arc<Draft>> {
        let reader = self.records.content(key, wait)?.reader()?;
        let (file, size) = self.copy_of(side, &reader)?;
        let content = reader.content();
        let facts = DraftFacts {
            base: Some(content.meta.clone()),
            ..DraftFacts::default()
        };
        let ino = {
            let mut inodes = self.inodes.lock();
            match inodes.ino_of(key.as_str()) {
                Some(ino) => ino,
                None => inodes.fresh(),
            }
        };
        let place = Place::Record(key.clone());
        let draft = Draft::new(ino, place, file, size, facts, content.modified);
        side.drafts.insert(&draft);
        Ok(draft)
    }

    /// Makes it known here that an inode has a record's name now.
    fn note_renamed(&self, side: &WriteSide, ino: Ino, source: &Place, to: &Key) {
        self.note_absent(side, source);
        let mut inodes = self.inodes.lock();
        inodes.lose_name(to);
        inodes.rename(ino, to);
    }
}

/// The pauses of what is renamed and of what it replaces.
struct Pauses([Option<Paused>; 2]);

impl Pauses {
    fn of(renamed: Option<&Arc<Draft>>, replaced: Option<&Arc<Draft>>) -> Self {
        let mut drafts = [renamed, replaced];
        drafts.sort_by_key(|draft| draft.map(|draft| draft.ino));
        Self(drafts.map(|draft| draft.map(Draft::pause)))
    }

    fn end(&mut self) {
        self.0 = [None, None];
    }
}

/// Says in an error that a rename got half way.
fn both_exist(error: FsError, to: &Key) -> FsError {
    match error {
        FsError::Store(error) => {
            let hint = format!(
                "the record was stored as {to} but could not be deleted under its old name: both exist now; delete one of them"
            );
            FsError::Store(error.with_hint(hint))
        }
        other => other,
    }
}

//! Renames. A store cannot rename: a record is stored under the new key and then deleted under the
//! old one. A file that is only here so far just gets another name, and one upload.

use std::ffi::OsStr;
use std::sync::Arc;

use super::commit::Unfinished;
use super::content_type::says_nothing;
use super::draft::{Begin, Draft, DraftFacts, Journalled, Place, Ticket, Why};
use super::overlay::{Change, Name};
use super::{Overwrite, WriteSide};
use crate::base::caller;
use crate::base::clock::{Deadline, Wait};
use crate::fs::attributes::Existence;
use crate::fs::inode::Inode;
use crate::fs::types::Ino;
use crate::fs::{FsError, KvFs, Result};
use crate::metrics::origin::{self, Origin};
use crate::staging::{Began, EntryId};
use crate::store::{ErrorKind, Key, RecordMeta, StoreError};
use crate::upload::{Change as Changing, Entered, Expected, Submission, may_have_arrived};

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
            None => Place::Record(self.key_of_name(name).ok_or(FsError::NoEntry)?),
        };
        let (target, _) = self.place_for(side, new_name)?;
        let deadline = Deadline::after(side.config.deadline);
        let entered = self.enter_names(side, &source, &target, deadline)?;
        // Only now is it certain what the names lead to.
        match &source {
            Place::Record(key) if !self.exists(key, wait)? => return Err(FsError::NoEntry),
            Place::Scratch(name) if side.drafts.of_scratch(name).is_none() => {
                return Err(FsError::NoEntry);
            }
            _ => {}
        }
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
        let (target, temporary) = match target {
            Place::Record(key) => (Place::Record(key), self.place_for(side, new_name)?.1),
            other => (other, false),
        };
        let renaming = Renaming {
            entered,
            deadline,
            side,
            to: target.clone(),
        };
        match (source, target, draft) {
            (source, Place::Record(to), Some(draft)) => {
                self.rename_draft(side, &renaming, &draft, source, (to, temporary), wait)
            }
            (Place::Record(from), Place::Record(to), None) => {
                self.rename_record(side, &renaming, &from, &to, wait)
            }
            (source, Place::Scratch(to), draft) => {
                let draft = match (draft, &source) {
                    (Some(draft), _) => draft,
                    (None, Place::Record(key)) => self.draft_of_record(side, key, wait)?,
                    (None, _) => return Err(FsError::NoEntry),
                };
                self.rename_to_scratch(side, &renaming, &draft, source, to)
            }
            _ => Err(FsError::NoEntry),
        }
    }

    /// Enters the gates of all records that a rename gives other names. A closed file that would be
    /// nowhere but here afterwards is uploaded first.
    fn enter_names(
        &self,
        side: &WriteSide,
        source: &Place,
        target: &Place,
        deadline: Deadline,
    ) -> Result<Entered> {
        loop {
            let mut keys = Vec::new();
            let mut hidden = Vec::new();
            for place in [source, target] {
                match place {
                    Place::Record(key) => keys.push(key),
                    Place::Scratch(name) => {
                        let draft = side.drafts.of_scratch(name);
                        hidden.extend(draft.and_then(|draft| side.drafts.hidden_by(draft.ino)));
                    }
                    Place::Gone => {}
                }
            }
            keys.extend(&hidden);
            let first = match (source, target) {
                (Place::Record(from), Place::Scratch(_)) => Some(from),
                // Without a draft, what waits is nothing that this mount could give another name.
                (Place::Record(from), _) if side.drafts.of_key(from).is_none() => Some(from),
                _ => None,
            };
            let waits = first.filter(|from| side.uploader.has(from));
            if let Some(from) = waits {
                side.uploader.wait_key(from, deadline)?;
            }
            let entered = side.uploader.enter(&keys, Changing::Name, deadline)?;
            if first.is_none_or(|from| !side.uploader.has(from)) {
                return Ok(entered);
            }
        }
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

    /// The same for one that is to be replaced in whole.
    pub(in crate::fs) fn describe_replaced(
        &self,
        key: &Key,
        wait: Wait,
    ) -> Result<Option<RecordMeta>> {
        let hidden = self.write_side()?.drafts.is_hidden(key);
        match self.existence(key) {
            Existence::Absent(_) if !hidden => Ok(None),
            Existence::Present(_) if !hidden => Ok(self.records.describe_replaced(key, wait)?),
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

    /// Gives a changed file the name of a record: it is stored, or journalled, under the new name
    /// before the old one goes. Until that has succeeded all names are what they were.
    fn rename_draft(
        &self,
        side: &WriteSide,
        renaming: &Renaming<'_>,
        draft: &Arc<Draft>,
        source: Place,
        (to, temporary): (Key, bool),
        wait: Wait,
    ) -> Result<()> {
        let from = match &source {
            Place::Record(key) => Some(key),
            _ => None,
        };
        let before = draft.facts();
        let was_stored = draft.is_stored() && from.is_some();
        // Also by an upload that only seemed to fail.
        let perhaps_stored = was_stored
            || draft.may_be_stored()
            || from.is_some_and(|from| !renaming.entered.unanswered(from).is_empty());
        // What a scratch file hides was renamed to it: it goes when its bytes are stored.
        let hidden = side.drafts.hidden_by(draft.ino).filter(|key| *key != to);
        // Replacing is what renaming is for: no matter which version there is.
        let replaced = self.describe(&to, wait)?;
        let base = replaced.map(|meta| RecordMeta { etag: None, ..meta });
        let mut facts = DraftFacts {
            base: base.clone(),
            exclusive: false,
            ..before.clone()
        };
        // A scratch file that was a record is of its type still.
        if let Some(own) = before.base.as_ref()
            && (was_stored || from.is_none())
        {
            let says_nothing = says_nothing(own.content_type.as_deref(), own.stored_size);
            let kept = own.content_type.clone().filter(|_| !says_nothing);
            facts.content_type = facts.content_type.or(kept);
            facts.encoding = facts.encoding.or_else(|| Some(own.encoding.clone()));
        }
        let held_back = temporary && !was_stored && !side.config.scratch_delay.is_zero();
        let how = Submission {
            durable: side.config.write_back,
            not_before: held_back.then(|| self.clock.now() + side.config.scratch_delay),
            run_here: false,
        };
        let mut old = match from.filter(|_| perhaps_stored) {
            Some(from) => Some(Old::Named(from)),
            None => hidden.as_ref().map(Old::Hidden),
        };
        // What is journalled is stored whatever is found out later.
        let mut is_same = match &old {
            Some(old) if !side.stores_at_once(how) => Some(self.is_same(renaming, draft, old)?),
            _ => None,
        };
        if let (Some(Old::Named(from)), Some(false)) = (&old, is_same) {
            return Err(changed_meanwhile(from));
        }
        if !caller::waits() {
            return Err(FsError::Interrupted);
        }
        let mut is_first = true;
        loop {
            // What is being written is stored when it is closed, unless its old name was safe already.
            let being_written = !was_stored && self.is_being_written(draft.ino);
            let stored = if draft.is_journalled() || !being_written {
                let stored = self.store_draft_as(side, renaming, draft, (&to, &facts), how);
                let stored = stored.map_err(|error| {
                    if is_first {
                        return error;
                    }
                    // What it was before is stored under the new name, and no more under the old one.
                    self.replace(side, &to);
                    draft.set_deleted();
                    if let Some(from) = from {
                        renaming.entered.forget_version(from);
                    }
                    both_exist(error, &to)
                });
                Some(stored?)
            } else {
                None
            };
            is_first = false;
            if let Some(old) = old.take()
                && let Err(error) = self.delete_old(side, renaming, draft, &old, is_same.take())
            {
                self.half_renamed(side, draft, &to, stored);
                return Err(both_exist(error, &to));
            }
            if !matches!(stored, Some((_, Stored::InStore(..)))) {
                // What is stored of it later is of the same type.
                draft.keep_type(&facts);
            }
            let switched = self.switch(
                side,
                renaming,
                draft,
                &source,
                (&to, temporary, &base),
                stored,
            );
            if switched {
                break;
            }
        }
        if !self.is_open(draft.ino) && draft.needs_commit(Why::Release) {
            // It was closed meanwhile, and could not be stored under its old name.
            self.release_end(Unfinished(Arc::clone(draft)));
        } else {
            self.settle(draft);
        }
        Ok(())
    }

    /// Returns whether the record of a changed file is still what this mount knows of it.
    fn is_same(&self, renaming: &Renaming<'_>, draft: &Draft, old: &Old<'_>) -> Result<bool> {
        let (Old::Named(key) | Old::Hidden(key)) = old;
        let expected = expected_of(renaming, draft, key);
        self.is_expected(&renaming.entered, key, &expected, renaming.deadline)
    }

    /// Deletes the record of a changed file that is safe under its new name, unless another writer has
    /// changed it since.
    fn delete_old(
        &self,
        side: &WriteSide,
        renaming: &Renaming<'_>,
        draft: &Draft,
        old: &Old<'_>,
        is_same: Option<bool>,
    ) -> Result<()> {
        let (Old::Named(key) | Old::Hidden(key)) = old;
        let (entered, is_known) = (&renaming.entered, is_same.is_some());
        let expected = expected_of(renaming, draft, key);
        let deleted = is_same != Some(false)
            && self.delete_expected(entered, key, &expected, is_known, renaming.deadline)?;
        match (old, deleted) {
            (Old::Named(key), true) => self.records.removed(key),
            (Old::Named(key), false) => return Err(changed_meanwhile(key)),
            (Old::Hidden(key), true) => self.note_hidden_gone(side, key),
            (Old::Hidden(key), false) => {
                side.drafts.unhide(key);
            }
        }
        Ok(())
    }

    /// Returns whether a record is still what is `expected`.
    pub(super) fn is_expected(
        &self,
        entered: &Entered,
        key: &Key,
        expected: &Expected,
        deadline: Deadline,
    ) -> Result<bool> {
        origin::note(Origin::Network);
        let is_same = entered.is_still(key, expected, deadline)?;
        if !is_same {
            self.records.invalidate(key);
        }
        Ok(is_same)
    }

    /// Stores or journals a file as it is now under its new name; returns up to which change.
    fn store_draft_as(
        &self,
        side: &WriteSide,
        renaming: &Renaming<'_>,
        draft: &Arc<Draft>,
        (to, facts): (&Key, &DraftFacts),
        how: Submission,
    ) -> Result<(u64, Stored)> {
        let ticket = match draft.begin_as(to, facts.clone(), side.stamp()) {
            Begin::Go(ticket) => *ticket,
            Begin::Refused(error) => return Err(error),
            Begin::Nothing => return Err(FsError::Stale),
        };
        let stored = self.store_as(side, renaming, &ticket, how);
        let change = ticket.change;
        ticket.give_back();
        Ok((change, stored?))
    }

    /// Stores or journals a file under its new name. Whatever had that name is replaced: what is closed
    /// of it from then on is stored nowhere.
    fn store_as(
        &self,
        side: &WriteSide,
        renaming: &Renaming<'_>,
        ticket: &Ticket,
        how: Submission,
    ) -> Result<Stored> {
        if side.stores_at_once(how) {
            let sent = self.send_ticket(side, &renaming.entered, ticket, renaming.deadline, false);
            let meta = sent.inspect_err(|error| {
                if may_have_arrived(error) {
                    self.records.invalidate(&ticket.key);
                }
            });
            // Whatever it is, it is not that a name is absent.
            let (meta, began) = meta.map_err(FsError::Store)?;
            self.stored(side, ticket, &meta);
            renaming.take(&ticket.key, ticket.ino());
            return Ok(Stored::InStore(meta, began));
        }
        let taken = |_: &EntryId| side.drafts.take_key(&ticket.key, ticket.ino());
        let submitted = self.submit(side, ticket, how, |_, _| true, taken);
        let id = submitted.map_err(|error| FsError::staging("cannot journal", &error))?;
        id.map(|id| Stored::Journalled(ticket.journalled(&id)))
            .ok_or(FsError::Stale)
    }

    /// Gives a file its new name in this mount. Returns false, having changed nothing, if something
    /// newer of it was journalled under the old name meanwhile.
    fn switch(
        &self,
        side: &WriteSide,
        renaming: &Renaming<'_>,
        draft: &Arc<Draft>,
        source: &Place,
        (to, temporary, base): (&Key, bool, &Option<RecordMeta>),
        stored: Option<(u64, Stored)>,
    ) -> bool {
        let switch = || {
            match stored {
                Some((change, _)) if draft.committed() > change => return false,
                Some((change, Stored::InStore(meta, began))) => {
                    draft.set_stored_as(change, meta, began);
                }
                Some((_, Stored::Journalled(journalled))) => {
                    draft.set_journalled_as(journalled, base.clone());
                }
                // It was closed meanwhile, and is safe under its old name.
                None if draft.is_journalled() => return false,
                None => draft.set_unstored(base.clone()),
            }
            let place = Place::Record(to.clone());
            let other = side.drafts.rename(draft, place, temporary);
            side.drafts.unhide(to);
            self.note_renamed(side, draft.ino, source, to);
            self.note_present(side, draft);
            if let Some(other) = other {
                self.settle(&other);
            }
            true
        };
        match source {
            Place::Record(from) => renaming.entered.discard(from, switch),
            _ => switch(),
        }
    }

    /// Shows what a rename has made under the new name, after the old record could not be deleted:
    /// both exist.
    fn half_renamed(
        &self,
        side: &WriteSide,
        draft: &Arc<Draft>,
        to: &Key,
        stored: Option<(u64, Stored)>,
    ) {
        let ino = self.inodes.lock().fresh();
        self.replace(side, to);
        match stored {
            Some((_, Stored::Journalled(mut journalled))) => {
                // Of the copy, which nothing has changed yet.
                journalled.change = 0;
                let (bytes, size) = (Arc::clone(&journalled.bytes), journalled.size);
                let id = journalled.id.clone();
                let facts = DraftFacts::default();
                let place = Place::Record(to.clone());
                let copy = Draft::new(ino, place, bytes, size, facts, journalled.modified);
                copy.set_journalled_as(journalled, None);
                side.drafts.insert(&copy);
                side.drafts.note_entry(&id, ino);
                self.note_present(side, &copy);
            }
            Some((_, Stored::InStore(..))) => self.note_copy(side, to, draft.size()),
            None => {}
        }
    }

    /// Takes a name from the file that this mount has changed, because its record is another file's now.
    fn replace(&self, side: &WriteSide, to: &Key) {
        if let Some(other) = side.drafts.of_key(to) {
            side.drafts.unname(&other);
            self.inodes.lock().lose_name(to);
            self.settle(&other);
        }
    }

    fn note_copy(&self, side: &WriteSide, to: &Key, size: u64) {
        let ino = self.inodes.lock().fresh();
        let change = Change::Present {
            ino,
            size,
            modified: self.clock.wall(),
        };
        self.note(side, Name::Record(to.clone()), change);
    }

    fn is_being_written(&self, ino: Ino) -> bool {
        self.handles.lock().is_being_written(ino)
    }

    /// Renames a record that this mount has not changed: its stored bytes are copied as they are now,
    /// and deleted only if they are still those.
    fn rename_record(
        &self,
        side: &WriteSide,
        renaming: &Renaming<'_>,
        from: &Key,
        to: &Key,
        wait: Wait,
    ) -> Result<()> {
        let (entered, deadline) = (&renaming.entered, &renaming.deadline);
        let copied = self.store_again(side, entered, (from, to), |_| {}, wait)?;
        let size = copied.size.unwrap_or(1);
        let ino = {
            let mut inodes = self.inodes.lock();
            match inodes.ino_of(from.as_str()) {
                Some(ino) => ino,
                None => inodes.fresh(),
            }
        };
        renaming.take(to, ino);
        let half = |error| {
            self.replace(side, to);
            self.note_copy(side, to, size);
            both_exist(error, to)
        };
        let expected = Expected {
            exists: true,
            etag: copied.of.etag.clone(),
            began: copied.began.clone(),
            size: (side.config.overwrite == Overwrite::Unchanged).then_some(copied.stored_size),
            ..Expected::default()
        };
        let deleted = self.delete_expected(entered, from, &expected, false, *deadline);
        if !deleted.map_err(half)? {
            return Err(half(changed_meanwhile(from)));
        }
        self.show_copied(from, &copied);
        // A program may have begun to change either meanwhile: the one goes along, the other is
        // gone.
        let mut closed = None;
        entered.discard(from, || {
            self.records.removed(from);
            match side.drafts.of_key(from) {
                Some(draft) if draft.is_journalled() => {
                    closed = Some(draft);
                    return false;
                }
                Some(draft) => {
                    draft.follows(&copied.of, &copied.now);
                    if let Some(other) =
                        side.drafts.rename(&draft, Place::Record(to.clone()), false)
                    {
                        self.settle(&other);
                    }
                }
                None => {
                    if let Some(other) = side.drafts.of_key(to) {
                        side.drafts.unname(&other);
                        self.settle(&other);
                    }
                }
            }
            side.drafts.unhide(to);
            self.note_renamed(side, ino, &Place::Record(from.clone()), to);
            true
        });
        if let Some(draft) = closed {
            let (source, to) = (Place::Record(from.clone()), to.clone());
            return self.rename_draft(side, renaming, &draft, source, (to, false), wait);
        }
        let change = Change::Present {
            ino,
            size,
            modified: self.clock.wall(),
        };
        self.note(side, Name::Record(to.clone()), change);
        Ok(())
    }

    /// Makes a scratch file of a file. A record stays in the store: other users must not lose it
    /// because an editor keeps its backup here.
    fn rename_to_scratch(
        &self,
        side: &WriteSide,
        renaming: &Renaming<'_>,
        draft: &Arc<Draft>,
        source: Place,
        to: std::ffi::OsString,
    ) -> Result<()> {
        if let Some(other) = side.drafts.of_scratch(&to)
            && let Some(hidden) = side.drafts.hidden_by(other.ino)
        {
            if !caller::waits() {
                return Err(FsError::Interrupted);
            }
            self.delete_hidden(side, &renaming.entered, &other, &hidden, renaming.deadline)?;
        } else if !caller::claim() {
            return Err(FsError::Interrupted);
        }
        let switch = || {
            let stays = draft.is_stored() || draft.may_be_stored();
            let other = side.drafts.rename(draft, Place::Scratch(to), false);
            match &source {
                Place::Record(key) if stays => {
                    side.drafts.hide(key, draft.ino);
                    side.overlay.lock().forget(&Name::Record(key.clone()));
                }
                _ => self.note_absent(side, &source),
            }
            {
                let mut inodes = self.inodes.lock();
                inodes.detach(draft.ino);
                note_moved(inodes.get_mut(draft.ino));
            }
            self.note_present(side, draft);
            if let Some(other) = other {
                if let Some(inode) = self.inodes.lock().get_mut(other.ino) {
                    inode.gone = true;
                }
                self.settle(&other);
            }
            true
        };
        match &source {
            Place::Record(from) => renaming.entered.discard(from, switch),
            _ => switch(),
        };
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
        let began = self.began(side, content, &file, size)?;
        let place = Place::Record(key.clone());
        let draft = Draft::new(ino, place, file, size, facts, content.modified);
        draft.set_began(began);
        side.drafts.insert(&draft);
        Ok(draft)
    }

    /// Makes it known here that an inode has a record's name now.
    fn note_renamed(&self, side: &WriteSide, ino: Ino, source: &Place, to: &Key) {
        self.note_absent(side, source);
        let mut inodes = self.inodes.lock();
        inodes.lose_name(to);
        inodes.rename(ino, to);
        note_moved(inodes.get_mut(ino));
    }
}

/// Returns what the record of a changed file has, as far as this mount knows.
fn expected_of(renaming: &Renaming<'_>, draft: &Draft, key: &Key) -> Expected {
    let mut expected = draft.expected();
    expected
        .unanswered
        .extend(&renaming.entered.unanswered(key));
    expected
}

/// The gates that a rename is inside of, until when it may take, and the name that it gives.
struct Renaming<'a> {
    entered: Entered,
    deadline: Deadline,
    side: &'a WriteSide,
    to: Place,
}

impl Renaming<'_> {
    /// Gives a key to a file whose bytes the store has under it: drops what is queued of the file that
    /// had it, of which nothing more is stored from then on.
    fn take(&self, key: &Key, ino: Ino) {
        self.entered.discard(key, || {
            self.side.drafts.take_key(key, ino);
            true
        });
    }
}

impl Drop for Renaming<'_> {
    fn drop(&mut self) {
        if let Place::Record(key) = &self.to {
            self.side.drafts.give_key(key);
        }
    }
}

/// The record that a changed file was before it is renamed.
enum Old<'a> {
    /// It has the file's name.
    Named(&'a Key),
    /// The scratch file hides it.
    Hidden(&'a Key),
}

/// Where the bytes are that a rename has stored under the new name.
enum Stored {
    /// With the bytes that the next change begins from.
    InStore(RecordMeta, Option<Began>),
    Journalled(Journalled),
}

/// Notes that a file is renamed now, and whether the kernel learns that.
fn note_moved(inode: Option<&mut Inode>) {
    if let Some(inode) = inode {
        inode.moves(caller::claim());
    }
}

fn changed_meanwhile(key: &Key) -> FsError {
    let message = "the record has changed in the store meanwhile";
    StoreError::new(ErrorKind::Changed, message)
        .with_key(key)
        .into()
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

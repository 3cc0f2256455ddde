//! Submits closed files: sends them on the thread of the waiting program, or journals and queues
//! them.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::attempt::Patience;
use super::gate::Entered;
use super::{MOST_UNANSWERED, Uploader};
use crate::base::caller;
use crate::base::clock::Deadline;
use crate::staging::entry::{EntryId, Pending, Why};
use crate::staging::journal::JournalEntry;
use crate::staging::{Began, Unanswered, UnansweredUploads};
use crate::store::{ETag, ErrorKind, Key, RecordMeta, Result, StoreError};

/// A closed file, and how to store it.
#[derive(Debug)]
pub struct Upload<'a> {
    /// Its place among the closes of its key; the name of its journal entry if it gets one.
    pub id: EntryId,
    /// What it is.
    pub pending: Pending,
    /// Its bytes. A file of [`StagingFolder::new_file`](crate::staging::StagingFolder::new_file)
    /// becomes an entry without a copy; so no write to it may follow.
    pub file: &'a File,
}

/// How an upload is journalled.
#[derive(Clone, Copy, Debug, Default)]
pub struct Submission {
    /// Whether it survives the end of the machine, not only that of the process.
    pub durable: bool,
    /// It may wait until then, because its name is probably not the last one.
    pub not_before: Option<Instant>,
    /// Whether the calling thread sends it, if nothing is in its way.
    pub run_here: bool,
}

impl Uploader {
    /// Journals a closed file, and uploads it soon. Returns when it is safe on disk.
    ///
    /// `confirm` is asked when nothing else of the key can be journalled any more; it may change what
    /// is said of the upload, and says whether the file still has the name: if not, nothing is done,
    /// and nothing returned. It is told whether nothing of the key is on its way. `named` is told the
    /// entry's name before its upload can begin.
    ///
    /// # Errors
    /// That the disk refuses, or that too many keys wait until the deadline: then the bytes are kept
    /// as an upload that has failed.
    pub fn submit(
        self: &Arc<Self>,
        upload: &Upload<'_>,
        how: Submission,
        deadline: Deadline,
        confirm: impl FnOnce(&mut Pending, bool) -> bool,
        named: impl FnOnce(&EntryId),
    ) -> io::Result<Option<EntryId>> {
        let (mut pending, file) = (upload.pending.clone(), upload.file);
        let key = pending.key.clone();
        if let Err(full) = self.wait_for_room(&key, deadline) {
            pending.why = Why::failed(&full);
            let latched = self.latch(&key);
            self.journal.keep(file, pending, how.durable)?;
            self.supersede(&key);
            drop(latched);
            let hint = "the bytes are kept: see kvfs recover";
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{full}; {hint}"),
            ));
        }
        let latched = self.latch(&key);
        let (waiting, running) = {
            let state = self.state.lock();
            let running = state.gates.running(&key).cloned();
            (state.gates.waiting(&key), running)
        };
        if !confirm(&mut pending, waiting.is_empty() && running.is_none()) {
            return Ok(None);
        }
        if self.config.guard {
            self.follow(&mut pending, running.as_ref(), &waiting);
        }
        let id = self.journal.keep(file, pending, how.durable)?;
        named(&id);
        {
            let mut state = self.state.lock();
            for old in &waiting {
                state.gates.take(&key, old);
            }
            state.gates.push(&key, id.clone(), how.not_before);
        }
        for old in &waiting {
            if let Some(entry) = self.journal.get(old) {
                self.drop_superseded(&entry);
            }
        }
        self.supersede(&key);
        if how.run_here && latched.start(&id) {
            self.upload(&key, &id);
            // What is to be tried again, or has come behind it, needs a thread.
            self.staff();
        }
        self.count();
        self.restore_rest();
        Ok(Some(id))
    }

    /// Waits until another key may wait. One that waits already always may.
    fn wait_for_room(&self, key: &Key, deadline: Deadline) -> Result<()> {
        let mut state = self.state.lock();
        while state.gates.len() >= self.config.max_waiting && !state.gates.has(key) {
            let late = self.changed.wait_until(&mut state, deadline.instant());
            caller::moves();
            if late.timed_out() {
                let message = format!("{} uploads wait already", state.gates.len());
                return Err(StoreError::new(ErrorKind::Timeout, message).with_key(key));
            }
        }
        Ok(())
    }

    /// Sets the conditions of an upload to those of the one before it, as long as that one is not
    /// through; and what it may find in the store because of those before it.
    fn follow(&self, pending: &mut Pending, running: Option<&EntryId>, waiting: &[EntryId]) {
        let before: Vec<JournalEntry> = running
            .into_iter()
            .chain(waiting)
            .filter_map(|id| self.journal.get(id))
            .collect();
        let Some(first) = before.first() else {
            // One that failed for another reason may have arrived when it was first tried.
            for kept in self.journal.of_key(&pending.key) {
                if kept.sent && !kept.pending.why.is_conflict() {
                    pending.unanswered.extend(&kept.pending.unanswered);
                    pending.unanswered.add(kept.as_sent);
                }
            }
            return;
        };
        pending.if_match.clone_from(&first.pending.if_match);
        pending.if_absent = first.pending.if_absent;
        pending.is_new = first.pending.is_new;
        pending.began.clone_from(&first.pending.began);
        for entry in before {
            pending.unanswered.extend(&entry.pending.unanswered);
            if entry.sent || running == Some(&entry.id) {
                pending.unanswered.add(entry.as_sent);
            }
        }
    }

    /// Lets uploads of `key` after `id` replace what this one has made of the record.
    pub(super) fn tell_followers(
        &self,
        key: &Key,
        id: &EntryId,
        meta: &RecordMeta,
        began: Option<&Began>,
    ) {
        self.tell(
            key,
            |entry| *entry > *id,
            |next| {
                next.if_match = meta.etag.clone().filter(ETag::is_strong);
                next.if_absent = false;
                next.is_new = false;
                next.began = began.cloned();
                if next.if_match.is_some() || next.began.is_some() {
                    next.unanswered.clear();
                }
            },
        );
    }

    /// Lets all uploads of `key` know what uploads without an answer may have made of the record: older
    /// ones, too, are sent after this.
    fn tell_unanswered(&self, key: &Key, sent: &UnansweredUploads) {
        if !sent.is_empty() {
            self.tell(key, |_| true, |next| next.unanswered.extend(sent));
        }
    }

    /// Lets what is queued of its key know of an upload that is about to be sent, in case the daemon does
    /// not live to see its answer.
    fn announce(self: &Arc<Self>, upload: &Upload<'_>) {
        let Upload { pending, file, .. } = upload;
        if self.journal.of_key(&pending.key).is_empty() {
            return;
        }
        let _latched = self.latch(&pending.key);
        match Unanswered::new(file, pending.size, &pending.encoding) {
            Ok(this) => self.tell_unanswered(&pending.key, &[this].into_iter().collect()),
            Err(error) => tracing::warn!("cannot read what is sent of {}: {error}", pending.key),
        }
    }

    fn tell(&self, key: &Key, which: impl Fn(&EntryId) -> bool, change: impl Fn(&mut Pending)) {
        if !self.config.guard {
            return;
        }
        for entry in self.journal.of_key(key) {
            if which(&entry.id)
                && let Err(error) = self.journal.update(&entry.id, &change)
            {
                tracing::warn!("cannot save the new version of {key}: {error}");
            }
        }
    }
}

impl Entered {
    /// Sends a file's bytes on the calling thread, which is inside of its key's gate.
    ///
    /// # Errors
    /// The store's verdict. With `keep` the bytes are then kept for `kvfs recover`, and the error
    /// says so.
    pub fn run(
        &self,
        upload: &mut Upload<'_>,
        deadline: Deadline,
        keep: bool,
    ) -> Result<RecordMeta> {
        let uploader = &self.uploader;
        let key = upload.pending.key.clone();
        // It replaces what of the queue may have arrived without an answer.
        upload.pending.unanswered.extend(&self.unanswered(&key));
        uploader.announce(upload);
        let sent = uploader.send(
            upload.file,
            &mut upload.pending,
            None,
            Patience::Until(deadline),
        );
        let latched = uploader.latch(&key);
        let error = match sent {
            Ok(meta) => {
                uploader.tell_followers(&key, &upload.id, &meta, upload.pending.began.as_ref());
                uploader.supersede_older(&key, &upload.id);
                uploader.state.lock().unanswered.remove(&key);
                drop(latched);
                uploader.count();
                return Ok(meta);
            }
            Err(error) => super::attempt::explain(error.with_key(&key)),
        };
        uploader.tell_unanswered(&key, &upload.pending.unanswered);
        if keep {
            return Err(uploader.keep(upload, error));
        }
        let unanswered = &mut uploader.state.lock().unanswered;
        if !upload.pending.unanswered.is_empty() && unanswered.len() < MOST_UNANSWERED {
            unanswered.insert(key, upload.pending.unanswered.clone());
        }
        Err(error)
    }
}

impl Uploader {
    /// Stores what a program waits for: enters its key's gate, and sends it.
    ///
    /// # Errors
    /// As [`Entered::run`], and that the wait to enter took too long.
    #[cfg(feature = "testing")]
    pub fn run(
        self: &Arc<Self>,
        upload: &mut Upload<'_>,
        deadline: Deadline,
    ) -> Result<RecordMeta> {
        let key = upload.pending.key.clone();
        let entered = self.enter(&[&key], super::Change::Upload, deadline)?;
        entered.run(upload, deadline, true)
    }

    /// Keeps the bytes of an upload that failed, for `kvfs recover`; the error says so. What was kept
    /// of the key before goes.
    pub fn keep_failed(self: &Arc<Self>, upload: &mut Upload<'_>, error: StoreError) -> StoreError {
        let _latched = self.latch(&upload.pending.key);
        self.keep(upload, error)
    }

    fn keep(&self, upload: &mut Upload<'_>, error: StoreError) -> StoreError {
        let key = upload.pending.key.clone();
        let pending = Pending {
            why: Why::failed(&error),
            attempts: upload.pending.attempts.saturating_add(1),
            ..upload.pending.clone()
        };
        match self.journal.keep_as(&upload.id, upload.file, pending, true) {
            Ok(()) => {
                self.supersede(&key);
                let hint = error.hint().map(|hint| format!("{hint}; "));
                let hint = hint.unwrap_or_default();
                error.with_hint(format!("{hint}the bytes are kept: see kvfs recover"))
            }
            Err(failure) => {
                tracing::error!(
                    "the bytes of {key} are lost: they could neither be stored nor kept in the staging folder ({failure})"
                );
                error
            }
        }
    }
}

//! One attempt to store an entry's bytes, and what becomes of the entry: gone, kept, or tried again.

use std::fs::File;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::again::Files;
use super::{UploadObserver, Uploader, Verdict};
use crate::base::clock::Deadline;
use crate::staging::entry::{EntryId, Why, is_transient};
use crate::staging::journal::JournalEntry;
use crate::staging::unanswered::{self, Found, may_have_arrived};
use crate::store::{ETag, ErrorKind, Key, PutRequest, RecordMeta, StoreError, Upload};

/// The longest wait before an upload is tried again while somebody waits for it.
const WITH_WAITERS: Duration = Duration::from_secs(2);

/// How often one attempt is repeated because of what an earlier upload left in the store.
const MOST_REPEATS: u32 = 3;

impl Uploader {
    /// Makes one attempt. Afterwards the entry is gone, kept, or waits for the next attempt.
    pub(super) fn upload(self: &Arc<Self>, key: &Key, id: &EntryId) {
        let files = self.keep_again(id);
        self.keep_rest_again();
        let Some(entry) = self.journal.get(id) else {
            self.state.lock().lanes.done(key);
            return;
        };
        let (entry, open) = match files {
            Files::There | Files::Anew => (entry, None),
            Files::Open(entry, file) => (*entry, Some(file)),
            Files::Gone => return self.lost(&entry),
        };
        match self.send(&entry, open) {
            Ok((file, meta)) => self.succeeded(&entry, &file, &meta),
            Err(error) => {
                if may_have_arrived(&error) {
                    self.journal.note_sent(id);
                }
                let is_disk = error.kind() == ErrorKind::Disk;
                let may_work = match self.keep_again(id) {
                    Files::There => is_disk && self.is_unreadable(id),
                    Files::Anew | Files::Open(..) => is_disk,
                    Files::Gone => return self.lost(&entry),
                };
                if may_work || is_transient(error.kind()) {
                    self.put_off(key, &error);
                } else {
                    self.refused(&entry, &error);
                }
            }
        }
    }

    fn put_off(&self, key: &Key, error: &StoreError) {
        let mut state = self.state.lock();
        let failures = state.lanes.failures(key);
        let mut delay = self.delay(failures);
        if state.waiters > 0 {
            delay = delay.min(WITH_WAITERS);
        }
        state
            .lanes
            .retry(key, self.clock.now() + delay, error.to_string());
        drop(state);
        self.metrics.uploads_retried.one();
        if failures == 0 {
            tracing::warn!(
                "cannot upload {key} yet: {error}; it stays in the staging folder and is tried again \
                 until it works, see kvfs status"
            );
        } else {
            tracing::debug!("cannot upload {key} yet: {error}; next try in {delay:?}");
        }
    }

    /// Sends an entry's bytes: those of `open`, or of the journal.
    fn send(
        &self,
        entry: &JournalEntry,
        open: Option<Arc<File>>,
    ) -> Result<(Arc<File>, RecordMeta), StoreError> {
        let disk = |error: io::Error| {
            StoreError::new(
                ErrorKind::Disk,
                "its bytes cannot be read from the staging folder",
            )
            .with_source(error)
        };
        let pending = &entry.pending;
        if entry.adopted && open.is_none() {
            match self.journal.verify(&entry.id) {
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    self.journal.quarantine(&entry.id, &error.to_string());
                    return Err(disk(error));
                }
                result => result.map_err(disk)?,
            }
        }
        let file = match open {
            Some(file) => file,
            None => Arc::new(self.journal.open(&entry.id).map_err(disk)?),
        };
        let mut request = PutRequest {
            content_type: pending.content_type.clone(),
            encoding: pending.encoding.clone(),
            if_match: pending.if_match.clone(),
            if_absent: pending.if_absent,
        };
        let mut ours = pending.unanswered.clone();
        if entry.sent || !request.if_absent {
            ours.add(entry.as_sent.clone());
        }
        let mut repeats = 0;
        loop {
            let deadline = Deadline::after(self.config.deadline);
            let body = Upload::File(&file, pending.size);
            let error = match self.store.put(&pending.key, &request, body, deadline) {
                Err(error) if error.kind() == ErrorKind::Changed => error,
                result => return Ok((file, result?)),
            };
            // Perhaps it was an upload of ours that changed it, and only its answer was lost.
            let deadline = Deadline::after(self.config.deadline);
            match ours.look(&*self.store, &pending.key, &request, deadline) {
                Ok(Found::Ours(one, meta)) if one == entry.as_sent => return Ok((file, meta)),
                Ok(Found::Ours(_, meta)) if repeats < MOST_REPEATS => {
                    repeats += 1;
                    unanswered::replace(&mut request, &meta);
                }
                Err(unknown) if is_transient(unknown.kind()) => return Err(unknown),
                _ => return Err(error),
            }
        }
    }

    fn succeeded(self: &Arc<Self>, entry: &JournalEntry, file: &Arc<File>, meta: &RecordMeta) {
        let key = &entry.pending.key;
        self.metrics.uploads_total.one();
        tracing::debug!("uploaded {key}");
        // A file that is just being closed becomes the successor, or finds this upload gone.
        let marked = self.mark_end(key);
        let next = self.state.lock().lanes.waiting(key).into_iter().next();
        if let Some(next) = next.filter(|_| self.config.guard) {
            let told = self.journal.update(&next, |pending| {
                pending.if_match = meta.etag.clone().filter(ETag::is_strong);
                pending.if_absent = false;
                pending.unanswered.clear();
            });
            if let Err(error) = told {
                tracing::warn!("cannot note which version {key} is now: {error}");
            }
        }
        if let Some(observer) = self.observer() {
            observer.uploaded(entry, file, meta);
        }
        self.drop_entry(&entry.id);
        self.done(key, None);
        drop(marked);
    }

    fn refused(self: &Arc<Self>, entry: &JournalEntry, error: &StoreError) {
        let pending = &entry.pending;
        let key = &pending.key;
        self.metrics.uploads_failed.one();
        let hint = match error.hint() {
            Some(hint) => format!("; {hint}"),
            None => String::new(),
        };
        tracing::error!(
            "{key} was not uploaded: {error}{hint}; its {} bytes are kept, see kvfs recover",
            pending.size
        );
        let marked = self.mark_end(key);
        let failures = self.state.lock().lanes.failures(key);
        let why = Why::failed(error);
        let noted = self.journal.update(&entry.id, |pending| {
            pending.attempts = pending.attempts.saturating_add(failures).saturating_add(1);
            pending.why = why.clone();
        });
        if let Err(error) = noted
            && self.journal.get(&entry.id).is_some()
        {
            self.journal
                .note(&entry.id, |pending| pending.why = why.clone());
            tracing::warn!(
                "cannot note why {key} was not uploaded: {error}; the next mount tries again"
            );
        }
        if let Some(observer) = self.observer() {
            observer.failed(entry, error);
        }
        self.done(key, Some(Verdict::Kept(entry.id.clone())));
        drop(marked);
    }

    /// Ends an upload whose bytes somebody has removed.
    fn lost(self: &Arc<Self>, entry: &JournalEntry) {
        let key = &entry.pending.key;
        let error = StoreError::new(
            ErrorKind::Disk,
            "its bytes waited in the staging folder, and somebody has removed them",
        )
        .with_hint("write the file again; kvfs status tells what waits there")
        .with_key(key);
        let marked = self.mark_end(key);
        self.drop_entry(&entry.id);
        if !self.state.lock().lanes.waiting(key).is_empty() {
            // What comes after it is all there.
            self.done(key, None);
            return;
        }
        self.metrics.uploads_failed.one();
        tracing::error!("{key} was not uploaded: {error}");
        if let Some(observer) = self.observer() {
            observer.failed(entry, &error);
        }
        self.done(key, Some(Verdict::Lost(error)));
        drop(marked);
    }

    /// Tells whether the bytes of an entry that is still there cannot be read at the moment.
    fn is_unreadable(&self, id: &EntryId) -> bool {
        self.journal.get(id).is_some() && self.journal.open(id).is_err()
    }

    pub(super) fn observer(&self) -> Option<Arc<dyn UploadObserver>> {
        self.observer.get().and_then(Weak::upgrade)
    }

    /// Ends an upload for good; with a verdict if the store does not have it.
    fn done(&self, key: &Key, verdict: Option<Verdict>) {
        let mut state = self.state.lock();
        if let Some(verdict) = verdict {
            state.untold.insert(key.clone(), verdict);
        }
        state.lanes.done(key);
        // Before anybody who waits for the end can look at it.
        self.metrics.uploads_pending.set(state.lanes.len() as u64);
    }

    fn delay(&self, failures: u32) -> Duration {
        self.config
            .first_delay
            .saturating_mul(1 << failures.min(16))
            .min(self.config.max_delay)
            .mul_f64(1.0 + fastrand::f64() / 2.0)
    }
}

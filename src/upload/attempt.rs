//! One attempt to store an entry's bytes, and what becomes of the entry: gone, kept, or tried again.

use std::fs::File;
use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use super::indeterminate::{self, Found, may_have_arrived};
use super::restore::Files;
use super::{LAST_LOOK, UploadObserver, Uploader, Verdict};
use crate::base::caller;
use crate::base::clock::Deadline;
use crate::base::sync::thread;
use crate::metrics::origin::{self, Origin};
use crate::staging::entry::{EntryId, Pending, Why, is_transient};
use crate::staging::journal::JournalEntry;
use crate::staging::unanswered::{Began, Unanswered};
use crate::store::{
    ErrorKind, Key, PutRequest, RecordMeta, StoreError, Upload as Body, upload_allowance,
};

/// The longest wait before an upload is tried again while a program waits for it.
const WITH_WAITERS: Duration = Duration::from_secs(2);

/// How often an upload is sent again because of what an earlier one left in the store.
const MOST_REPEATS: u32 = 3;
/// The shortest pause before an upload that was refused for a passing reason is sent again.
const REFUSED: Duration = Duration::from_secs(1);
/// The longest pause before an upload that did not arrive is sent again while a program waits.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// How long an upload is tried.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Patience {
    /// Once; the queue tries again later.
    OneTry,
    /// Until then, as it is not tried again later.
    Until(Deadline),
}

impl Uploader {
    /// Makes one attempt. Afterwards the entry is gone, kept, or waits for the next attempt.
    pub(super) fn upload(self: &Arc<Self>, key: &Key, id: &EntryId) {
        let files = self.restore(id);
        self.restore_rest();
        let Some(entry) = self.journal.get(id) else {
            self.state.lock().gates.done(key);
            return;
        };
        let (entry, open) = match files {
            Files::There | Files::Rewritten => (entry, None),
            Files::Open(entry, file) => (*entry, Some(file)),
            Files::Gone => return self.lost(&entry),
        };
        match self.send_entry(&entry, open) {
            Ok((file, meta)) => self.succeeded(&entry, &file, &meta),
            Err(error) => {
                if may_have_arrived(&error) {
                    self.journal.note_sent(id);
                }
                let is_disk = error.kind() == ErrorKind::Disk;
                let may_work = match self.restore(id) {
                    Files::There => is_disk && self.is_unreadable(id),
                    Files::Rewritten | Files::Open(..) => is_disk,
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
        let failures = state.gates.failures(key);
        let mut delay = self.delay(failures);
        if state.waiters > 0 {
            delay = delay.min(WITH_WAITERS);
        }
        state
            .gates
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
    fn send_entry(
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
        let mut pending = entry.pending.clone();
        if entry.sent || !pending.if_absent {
            pending.unanswered.add(entry.as_sent.clone());
        }
        if entry.adopted && self.config.guard {
            self.guard_adopted(&mut pending)?;
        }
        let this = Some(entry.as_sent.clone());
        let meta = self.send(&file, &mut pending, this, Patience::OneTry)?;
        Ok((file, meta))
    }

    /// Sets the conditions of an upload that an earlier process closed without any: it replaces nothing
    /// that was stored since, as far as that can be told.
    fn guard_adopted(&self, pending: &mut Pending) -> Result<(), StoreError> {
        if pending.if_match.is_some() || pending.if_absent || pending.began.is_some() {
            return Ok(());
        }
        if pending.is_new {
            pending.if_absent = true;
            return Ok(());
        }
        let deadline = Deadline::after(self.config.deadline);
        let stored = match self.store.head(&pending.key, deadline) {
            Ok(meta) => meta.modified(),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        // Servers tell whole seconds.
        let closed = SystemTime::from(pending.closed_at) + Duration::from_secs(1);
        if stored.is_none_or(|stored| stored <= closed) {
            return Ok(());
        }
        let request = PutRequest::default();
        let sent = &pending.unanswered;
        match indeterminate::look(sent, &*self.store, &pending.key, &request, deadline)? {
            Found::Ours(..) => Ok(()),
            Found::Before | Found::Other => Err(indeterminate::changed(&pending.key)),
        }
    }

    /// Sends bytes until it is known what became of them, as far as `patience` goes. What the store
    /// may have of them in the end is added to what `pending` says.
    ///
    /// A plain upload is simply sent again by the store. One under a condition must not be, as the
    /// first attempt may have changed the record: the store is asked what it has now.
    pub(super) fn send(
        &self,
        file: &File,
        pending: &mut Pending,
        this: Option<Unanswered>,
        patience: Patience,
    ) -> Result<RecordMeta, StoreError> {
        // For all of it: a server that says nothing is not waited for twice.
        let deadline = match patience {
            Patience::OneTry => Deadline::after(self.config.deadline),
            Patience::Until(deadline) => deadline,
        };
        let mut request = PutRequest {
            content_type: pending.content_type.clone(),
            encoding: pending.encoding.clone(),
            if_match: pending.if_match.clone(),
            if_absent: pending.if_absent,
        };
        // A program waits: no longer than it must.
        let (mut repeats, mut pause, mut this) = (0, self.config.first_delay / 4, this);
        // What the server does not compare is compared here, before each attempt.
        let checks =
            self.config.guard && (pending.began.is_some() || pending.if_absent && self.tagless());
        let show = || {
            let now = self.clock.now();
            self.absences
                .show(&*self.store, &pending.key, now, deadline)
        };
        let mut is_new = pending.if_absent && self.tagless() && caller::asking(show);
        loop {
            let checks = checks && request.if_match.is_none();
            if checks && !std::mem::take(&mut is_new) {
                let compare =
                    || indeterminate::compare(&*self.store, pending, self.tagless(), deadline);
                if let Some(error) = caller::asking(compare)? {
                    return Err(error);
                }
            }
            origin::note(Origin::Network);
            let body = Body::File(file, pending.size);
            let put = || match checks {
                true => self.store.put_once(&pending.key, &request, body, deadline),
                false => self.store.put(&pending.key, &request, body, deadline),
            };
            let error = match caller::sending(upload_allowance(pending.size), put) {
                Ok(meta) => {
                    self.note_tags(&meta);
                    pending.began = None;
                    if self.compares(&meta, pending.size) {
                        let bytes = match this {
                            Some(this) => this,
                            None => Unanswered::new(file, pending.size, &request.encoding)
                                .map_err(unreadable)?,
                        };
                        pending.began = Some(Began {
                            bytes,
                            decoded: false,
                        });
                    }
                    return Ok(RecordMeta {
                        content_type: meta.content_type.or_else(|| request.content_type.clone()),
                        encoding: request.encoding.clone(),
                        stored_size: Some(pending.size),
                        ..meta
                    });
                }
                Err(error) => error,
            };
            let refused = error.kind() == ErrorKind::Changed;
            let arrived = !refused && may_have_arrived(&error);
            if checks && !arrived && is_transient(error.kind()) && patience != Patience::OneTry {
                let Some(left) = deadline.remaining() else {
                    return Err(error);
                };
                thread::sleep(pause.max(REFUSED).min(left));
                pause = (2 * pause).min(LONGEST_PAUSE);
                continue;
            }
            if !arrived && (!refused || pending.unanswered.is_empty()) {
                return Err(error);
            }
            let this = match &this {
                Some(this) => this,
                None => {
                    let described = Unanswered::new(file, pending.size, &request.encoding);
                    this.insert(described.map_err(unreadable)?)
                }
            };
            if arrived {
                pending.unanswered.add(this.clone());
            }
            let is_conditional = request.if_match.is_some() || request.if_absent;
            if arrived && (!is_conditional && !checks || patience == Patience::OneTry) {
                return Err(error);
            }
            // An upload that went on for long has left nothing of it.
            let until = match deadline.remaining() {
                Some(_) => deadline,
                None => Deadline::after(LAST_LOOK.min(self.config.deadline)),
            };
            let (sent, store) = (&pending.unanswered, &*self.store);
            let look = || indeterminate::look(sent, store, &pending.key, &request, until);
            match caller::asking(look) {
                Ok(Found::Ours(one, meta)) if one == *this => {
                    self.note_tags(&meta);
                    let compares = self.compares(&meta, pending.size);
                    pending.began = compares.then_some(Began {
                        bytes: one,
                        decoded: false,
                    });
                    return Ok(meta);
                }
                Ok(Found::Ours(_, meta)) => indeterminate::replace(&mut request, &meta),
                Ok(Found::Before) if arrived => {}
                // What there is now is compared before the next attempt.
                Ok(Found::Other) if arrived && checks => {}
                // As long as that is unknown, no other writer is to blame.
                Err(unknown)
                    if refused
                        && (patience != Patience::OneTry || is_transient(unknown.kind())) =>
                {
                    return Err(unknown);
                }
                Ok(Found::Other | Found::Before) | Err(_) => return Err(error),
            }
            if refused {
                // What our own uploads leave behind changes a few times at most.
                repeats += 1;
                if repeats > MOST_REPEATS {
                    return Err(error);
                }
            } else {
                let Some(left) = deadline.remaining() else {
                    return Err(error);
                };
                thread::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0).min(left));
                pause = (2 * pause).min(LONGEST_PAUSE);
            }
        }
    }

    fn succeeded(self: &Arc<Self>, entry: &JournalEntry, file: &Arc<File>, meta: &RecordMeta) {
        let key = &entry.pending.key;
        self.metrics.uploads_total.one();
        tracing::debug!("uploaded {key}");
        // A file that is just being closed becomes the successor, or finds this upload gone.
        let latched = self.latch(key);
        let began = self.compares(meta, entry.pending.size).then(|| Began {
            bytes: entry.as_sent.clone(),
            decoded: false,
        });
        self.tell_followers(key, &entry.id, meta, began.as_ref());
        if let Some(observer) = self.observer() {
            observer.uploaded(entry, file, meta);
        }
        self.drop_entry(&entry.id);
        self.supersede_older(key, &entry.id);
        self.state.lock().unanswered.remove(key);
        self.done(key, None);
        drop(latched);
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
        let latched = self.latch(key);
        let failures = self.state.lock().gates.failures(key);
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
        self.done(
            key,
            Some(Verdict::Kept(entry.id.clone(), error.duplicate())),
        );
        self.supersede(key);
        drop(latched);
    }

    /// Ends an upload after its bytes were removed.
    fn lost(self: &Arc<Self>, entry: &JournalEntry) {
        let key = &entry.pending.key;
        let error = StoreError::new(
            ErrorKind::Disk,
            "its bytes waited in the staging folder, and were removed",
        )
        .with_hint("write the file again; kvfs status lists waiting files")
        .with_key(key);
        let latched = self.latch(key);
        self.drop_entry(&entry.id);
        if !self.state.lock().gates.waiting(key).is_empty() {
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
        drop(latched);
    }

    /// Returns whether the bytes of an entry that is still there cannot be read at the moment.
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
        state.gates.done(key);
        // Before a waiting thread can look at it.
        self.metrics.uploads_pending.set(state.gates.len() as u64);
    }

    fn delay(&self, failures: u32) -> Duration {
        self.config
            .first_delay
            .saturating_mul(1 << failures.min(16))
            .min(self.config.max_delay)
            .mul_f64(1.0 + fastrand::f64() / 2.0)
    }
}

fn unreadable(error: io::Error) -> StoreError {
    StoreError::new(ErrorKind::Disk, "cannot read the staging file").with_source(error)
}

/// Says what a refused upload means for the writer of the file.
pub(super) fn explain(error: StoreError) -> StoreError {
    match error.kind() {
        ErrorKind::Changed => error.with_hint(
            "the record has changed in the store since it was opened here; open it again and repeat the change, or mount with --overwrite=always to let the last writer win",
        ),
        ErrorKind::Denied => {
            error.with_hint("check that the account of the token may write to the store")
        }
        ErrorKind::NotFound => {
            error.with_hint("the server does not know the store any more: was it deleted?")
        }
        ErrorKind::TooLarge => error.with_hint("the server accepts no records of that size"),
        ErrorKind::Quota => error.with_hint("the account is out of quota: see its limits in Apify Console"),
        _ => error,
    }
}

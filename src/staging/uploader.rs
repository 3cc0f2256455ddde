//! Uploads what is in the journal: in order for each key, several keys at a time, again and again
//! while the store cannot be reached. What the store refuses for good is kept for `kvfs recover`.
//!
//! An upload that was closed while an older one of the same key still waits replaces it: only the
//! newest is sent. One that was closed while an older one is being sent follows it, and its
//! precondition is the version that the older one became.
//!
//! INVARIANT: an entry leaves the journal only after the store has its bytes, or a newer entry of
//! its key is durable, or somebody asked for it to be dropped. A successor's precondition is
//! durable before its predecessor leaves the journal, so that a crash at any moment repeats an
//! upload at worst.
//!
//! Lock order: `state` alone; held across neither network nor disk I/O. Whoever changes a lane and
//! the journal together has a mark on the lane instead: who closes a file, and the upload that
//! ends, exclude each other; a hold excludes who closes, and waits for the upload that ends.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::entry::{self, EntryId, Pending, Why, is_transient};
use super::journal::{Journal, JournalEntry};
use super::lanes::{LaneState, Lanes, Mark};
use super::report::Item;
use super::unanswered::{self, Found, may_have_arrived};
use crate::clock::{Clock, Deadline};
use crate::metrics::Metrics;
use crate::store::{ETag, ErrorKind, Key, PutRequest, RecordMeta, Store, StoreError, Upload};
use crate::workers::Workers;

/// The longest wait before an upload is tried again while somebody waits for it.
const WITH_WAITERS: Duration = Duration::from_secs(2);

/// How often one attempt is repeated because of what an earlier upload left in the store.
const MOST_REPEATS: u32 = 3;

/// How uploads are made.
#[derive(Clone, Copy, Debug)]
pub struct UploaderConfig {
    /// How many keys are uploaded at a time.
    pub parallel: usize,
    /// The longest that one attempt may take, the store's own retries included.
    pub deadline: Duration,
    /// The wait before an upload that failed for a passing reason is tried again; it doubles.
    pub first_delay: Duration,
    /// The longest such wait.
    pub max_delay: Duration,
    /// How many uploads may wait; closing a file then waits for room.
    pub max_waiting: usize,
    /// Whether an upload that follows another of its key is made only if nobody else changed the
    /// record in between.
    pub guard: bool,
}

impl UploaderConfig {
    /// Returns the usual numbers: 16 at a time over a link of 50 ms use up the request budget.
    pub fn new(deadline: Duration) -> Self {
        Self {
            parallel: 16,
            deadline,
            first_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(60),
            max_waiting: 10_000,
            guard: true,
        }
    }
}

/// Is told what became of uploads, before they are forgotten.
pub trait UploadObserver: Send + Sync {
    /// The store has it.
    fn uploaded(&self, entry: &JournalEntry, bytes: &Arc<File>, meta: &RecordMeta);

    /// The store refused it for good; it is kept.
    fn failed(&self, entry: &JournalEntry, error: &StoreError);
}

/// Uploads what is in the journal.
pub struct Uploader {
    store: Arc<dyn Store>,
    journal: Arc<Journal>,
    config: UploaderConfig,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    workers: Arc<Workers>,
    state: Mutex<State>,
    changed: Condvar,
    observer: OnceLock<Weak<dyn UploadObserver>>,
}

#[derive(Default)]
struct State {
    lanes: Lanes,
    /// Threads that look for work or wait for some.
    threads: usize,
    idle: usize,
    stopped: bool,
    /// How many wait for uploads: then they are tried again sooner.
    waiters: usize,
    /// Refused uploads of which nobody who waits has been told yet: the last of each key.
    untold: HashMap<Key, EntryId>,
}

/// An upload that waits or runs, as `kvfs status` shows it.
#[derive(Clone, Debug)]
pub struct PendingUpload {
    /// What it is.
    pub entry: JournalEntry,
    /// Where it stands.
    pub state: LaneState,
}

impl fmt::Debug for Uploader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uploader").finish_non_exhaustive()
    }
}

impl Uploader {
    /// Makes an uploader. Nothing is sent before [`Uploader::start`].
    pub fn new(
        store: Arc<dyn Store>,
        journal: Arc<Journal>,
        config: UploaderConfig,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let workers = Workers::new(
            "kvfs-upload",
            config.parallel,
            2 * config.parallel,
            Arc::clone(&metrics),
        );
        Arc::new(Self {
            store,
            journal,
            config,
            clock,
            metrics,
            workers,
            state: Mutex::default(),
            changed: Condvar::new(),
            observer: OnceLock::new(),
        })
    }

    /// Starts with what earlier mounts left in the journal. `observer` is told of every end.
    pub fn start(self: &Arc<Self>, observer: Weak<dyn UploadObserver>) {
        let _ = self.observer.set(observer);
        let waiting = self.enqueue(&[]);
        if waiting > 0 {
            tracing::info!("uploading {waiting} files that an earlier mount had not finished");
        }
    }

    /// Uploads what waits in the journal: what `wanted` names by key or id, or all; returns how
    /// many.
    pub fn enqueue(self: &Arc<Self>, wanted: &[String]) -> usize {
        let mut state = self.state.lock();
        for entry in self.journal.entries() {
            let key = &entry.pending.key;
            let waits =
                !entry.pending.why.is_failed() && state.lanes.state(key, &entry.id).is_none();
            if waits && Item::is_named(wanted, &entry.id, key) {
                state.lanes.push(key, entry.id.clone());
            }
        }
        let waiting = state.lanes.len();
        drop(state);
        self.count();
        self.staff();
        waiting
    }

    /// Uploads a kept entry once more, whatever the record has become meanwhile.
    ///
    /// # Errors
    /// That there is none, or the disk refuses.
    pub fn send_again(self: &Arc<Self>, id: &EntryId) -> io::Result<()> {
        self.journal.update(id, |pending| {
            pending.why = Why::WriteBack;
            pending.if_match = None;
            pending.if_absent = false;
            pending.unanswered.clear();
        })?;
        let entry = self.journal.get(id).ok_or(io::ErrorKind::NotFound)?;
        self.state.lock().lanes.push(&entry.pending.key, entry.id);
        self.count();
        self.staff();
        Ok(())
    }

    /// Returns the journal.
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// Journals a closed file and uploads it soon. Returns when it is safe on disk.
    ///
    /// The file is treated as by [`Journal::keep`]: nobody may write to it any more. `named` is
    /// told the entry's name before its upload can begin. `current` sets the conditions when
    /// nothing of the key is on its way: an upload may have ended since `pending` was made.
    ///
    /// # Errors
    /// That the disk refuses, or that too many uploads wait until the deadline.
    pub fn submit(
        self: &Arc<Self>,
        file: &File,
        pending: Pending,
        deadline: Deadline,
        current: impl FnOnce(&mut Pending),
        named: impl FnOnce(&EntryId),
    ) -> io::Result<EntryId> {
        let key = pending.key.clone();
        let mut pending = pending;
        {
            let mut state = self.state.lock();
            while state.lanes.len() >= self.config.max_waiting {
                if self
                    .changed
                    .wait_until(&mut state, deadline.instant())
                    .timed_out()
                {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("{} uploads wait already", state.lanes.len()),
                    ));
                }
            }
        }
        let marked = self
            .mark(&key, Mark::Add, deadline)
            .map_err(io::Error::other)?;
        let (waiting, running) = {
            let state = self.state.lock();
            let running = state.lanes.running(&key).cloned();
            (state.lanes.waiting(&key), running)
        };
        if waiting.is_empty() && running.is_none() {
            current(&mut pending);
        }
        if self.config.guard {
            self.follow(&mut pending, running.as_ref(), &waiting);
        }
        let id = self.journal.keep(file, pending, true)?;
        named(&id);
        {
            let mut state = self.state.lock();
            for old in &waiting {
                state.lanes.take(&key, old);
            }
            state.lanes.push(&key, id.clone());
        }
        for old in &waiting {
            self.drop_entry(old);
        }
        drop(marked);
        self.count();
        Ok(id)
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
        for entry in before {
            pending.unanswered.extend(&entry.pending.unanswered);
            if entry.sent || running == Some(&entry.id) {
                pending.unanswered.add(entry.as_sent);
            }
        }
    }

    /// Waits until nothing of `key` is left to be uploaded.
    ///
    /// # Errors
    /// Why one of them was refused for good, now or since this was last asked; and
    /// [`ErrorKind::Timeout`] when the deadline passed first.
    pub fn wait_key(&self, key: &Key, deadline: Deadline) -> Result<(), StoreError> {
        let _waits = Waits::new(self);
        let mut state = self.state.lock();
        state.lanes.hurry(Some(key));
        self.changed.notify_all();
        while state.lanes.has(key) {
            if self
                .changed
                .wait_until(&mut state, deadline.instant())
                .timed_out()
            {
                let error = state.lanes.error(key).map(ToOwned::to_owned);
                return Err(not_yet(key, error.as_deref()));
            }
        }
        let refused = state.untold.remove(key);
        drop(state);
        match refused.and_then(|id| kept_error(&self.journal.get(&id)?)) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Waits until nothing is left to be uploaded; returns what still is when the deadline passed.
    pub fn wait_all(&self, deadline: Deadline) -> Vec<PendingUpload> {
        let _waits = Waits::new(self);
        let mut state = self.state.lock();
        state.lanes.hurry(None);
        self.changed.notify_all();
        while !state.lanes.is_empty() {
            if self
                .changed
                .wait_until(&mut state, deadline.instant())
                .timed_out()
                || state.stopped
            {
                break;
            }
        }
        let settled = state.lanes.is_empty();
        drop(state);
        if settled {
            self.settle();
        }
        self.pending()
    }

    /// Starts nothing any more and lets [`Uploader::wait_all`] return; what is left stays in the
    /// journal.
    pub fn stop(&self) {
        self.state.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Returns what waits and runs, the first closed first.
    pub fn pending(&self) -> Vec<PendingUpload> {
        let entries = self.journal.entries();
        let state = self.state.lock();
        // One that was just refused has not left its lane yet.
        let entries = entries
            .into_iter()
            .filter(|entry| !entry.pending.why.is_failed());
        let with_state = entries.filter_map(|entry| {
            let state = state.lanes.state(&entry.pending.key, &entry.id)?;
            Some(PendingUpload { entry, state })
        });
        with_state.collect()
    }

    /// Returns the newest upload of `key` that waits or runs: what a reader must see.
    pub fn newest(&self, key: &Key) -> Option<JournalEntry> {
        let newest = self.state.lock().lanes.ids(key).pop()?;
        self.journal.get(&newest)
    }

    /// Tells whether anything of `key` waits or runs.
    pub fn has(&self, key: &Key) -> bool {
        self.state.lock().lanes.has(key)
    }

    /// Waits for the uploads of `keys` that run, and lets none start until the result is dropped:
    /// for a deletion, or a change of name.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`].
    pub fn hold(self: &Arc<Self>, keys: &[&Key], deadline: Deadline) -> Result<Hold, StoreError> {
        let mut sorted = keys.to_vec();
        // Two that hold the same keys must not wait for each other.
        sorted.sort();
        sorted.dedup();
        let mut marks = Vec::new();
        for key in &sorted {
            marks.push(self.mark(key, Mark::Hold, deadline)?);
        }
        let mut state = self.state.lock();
        for key in sorted {
            while state.lanes.running(key).is_some() {
                if self
                    .changed
                    .wait_until(&mut state, deadline.instant())
                    .timed_out()
                {
                    return Err(not_yet(key, None));
                }
            }
        }
        drop(state);
        Ok(Hold {
            uploader: Arc::clone(self),
            _marks: marks,
        })
    }

    fn mark(
        self: &Arc<Self>,
        key: &Key,
        mark: Mark,
        deadline: Deadline,
    ) -> Result<Marked, StoreError> {
        let mut state = self.state.lock();
        while !state.lanes.try_mark(key, mark) {
            if self
                .changed
                .wait_until(&mut state, deadline.instant())
                .timed_out()
            {
                return Err(not_yet(key, None));
            }
        }
        drop(state);
        Ok(Marked {
            uploader: Arc::clone(self),
            key: key.clone(),
            mark,
        })
    }

    /// Sees to it that there are threads for what can start.
    fn staff(self: &Arc<Self>) {
        let mut state = self.state.lock();
        let wanted = state.lanes.startable() + usize::from(state.lanes.next_start().is_some());
        let missing = wanted
            .saturating_sub(state.idle)
            .min(self.config.parallel.saturating_sub(state.threads));
        state.threads += missing;
        drop(state);
        self.changed.notify_all();
        for _ in 0..missing {
            let this = Arc::clone(self);
            if self.workers.spawn(move || this.work()).is_err() {
                self.state.lock().threads -= 1;
            }
        }
    }

    /// Uploads until nothing is left.
    fn work(self: &Arc<Self>) {
        let mut state = self.state.lock();
        while !state.stopped {
            if let Some((key, id)) = state.lanes.start(self.clock.now()) {
                drop(state);
                let attempt = Attempt(self, key);
                self.upload(&attempt.1, &id);
                drop(attempt);
                self.count();
                state = self.state.lock();
                continue;
            }
            let Some(at) = state.lanes.next_start() else {
                break;
            };
            state.idle += 1;
            let wait = at.saturating_duration_since(self.clock.now());
            self.changed.wait_for(&mut state, wait);
            state.idle -= 1;
        }
        state.threads -= 1;
        let last = state.threads == 0 && state.lanes.is_empty();
        drop(state);
        if last {
            self.settle();
        }
    }

    /// Makes one attempt. Afterwards the entry is gone, kept, or waits for the next attempt.
    fn upload(self: &Arc<Self>, key: &Key, id: &EntryId) {
        let Some(entry) = self.journal.get(id) else {
            self.state.lock().lanes.done(key);
            return;
        };
        match self.send(&entry) {
            Ok((file, meta)) => self.succeeded(&entry, &file, &meta),
            Err(error) => {
                if may_have_arrived(error.kind()) {
                    self.journal.note_sent(id);
                }
                if is_transient(error.kind()) {
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
                "cannot upload {key} yet: {error}; it is safe on disk and is tried again until it \
                 works, see kvfs status"
            );
        } else {
            tracing::debug!("cannot upload {key} yet: {error}; next try in {delay:?}");
        }
    }

    fn send(&self, entry: &JournalEntry) -> Result<(Arc<File>, RecordMeta), StoreError> {
        let disk = |error: io::Error| {
            StoreError::new(
                ErrorKind::Disk,
                "its bytes cannot be read from the staging folder",
            )
            .with_source(error)
        };
        let pending = &entry.pending;
        if entry.adopted {
            match self.journal.verify(&entry.id) {
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    self.journal.quarantine(&entry.id, &error.to_string());
                    return Err(disk(error));
                }
                result => result.map_err(disk)?,
            }
        }
        let file = Arc::new(self.journal.open(&entry.id).map_err(disk)?);
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
        if let Some(observer) = self.observer.get().and_then(Weak::upgrade) {
            observer.uploaded(entry, file, meta);
        }
        self.drop_entry(&entry.id);
        self.done(key, None);
        drop(marked);
    }

    /// Marks the lane of an upload that ends. Waits for who is just closing a file: that takes no
    /// longer than writing to the disk.
    fn mark_end(self: &Arc<Self>, key: &Key) -> Marked {
        let mut state = self.state.lock();
        while !state.lanes.try_mark(key, Mark::End) {
            self.changed.wait(&mut state);
        }
        drop(state);
        Marked {
            uploader: Arc::clone(self),
            key: key.clone(),
            mark: Mark::End,
        }
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
        let noted = self.journal.update(&entry.id, |pending| {
            pending.attempts = pending.attempts.saturating_add(failures).saturating_add(1);
            pending.why = Why::failed(error);
        });
        if let Err(error) = noted
            && self.journal.get(&entry.id).is_some()
        {
            tracing::warn!(
                "cannot note why {key} was not uploaded: {error}; the next mount tries again"
            );
        }
        if let Some(observer) = self.observer.get().and_then(Weak::upgrade) {
            observer.failed(entry, error);
        }
        self.done(key, Some(&entry.id));
        drop(marked);
    }

    /// Ends an upload for good; `refused` names it if the store refused it.
    fn done(&self, key: &Key, refused: Option<&EntryId>) {
        let mut state = self.state.lock();
        if let Some(id) = refused {
            state.untold.insert(key.clone(), id.clone());
        }
        state.lanes.done(key);
        // Before anybody who waits for the end can look at it.
        self.metrics.uploads_pending.set(state.lanes.len() as u64);
    }

    fn drop_entry(&self, id: &EntryId) {
        if let Err(error) = self.journal.remove(id) {
            tracing::warn!(
                "cannot remove {id} from the journal: {error}; the next mount uploads it again"
            );
        }
    }

    fn settle(&self) {
        if let Err(error) = self.journal.settle() {
            tracing::warn!("cannot sync the staging folder: {error}");
        }
    }

    fn delay(&self, failures: u32) -> Duration {
        self.config
            .first_delay
            .saturating_mul(1 << failures.min(16))
            .min(self.config.max_delay)
            .mul_f64(1.0 + fastrand::f64() / 2.0)
    }

    fn count(&self) {
        let state = self.state.lock();
        self.metrics.uploads_pending.set(state.lanes.len() as u64);
    }
}

/// Somebody waits for uploads, until this is dropped.
struct Waits<'a>(&'a Uploader);

impl<'a> Waits<'a> {
    fn new(uploader: &'a Uploader) -> Self {
        uploader.state.lock().waiters += 1;
        Self(uploader)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.state.lock().waiters -= 1;
    }
}

/// A mark on a lane; dropping it takes it away.
struct Marked {
    uploader: Arc<Uploader>,
    key: Key,
    mark: Mark,
}

impl Drop for Marked {
    fn drop(&mut self) {
        self.uploader
            .state
            .lock()
            .lanes
            .unmark(&self.key, self.mark);
        self.uploader.staff();
    }
}

/// An attempt under way; one that panicked is made again later.
struct Attempt<'a>(&'a Arc<Uploader>, Key);

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let Self(uploader, key) = self;
        // Otherwise it has ended, and what runs by now is another thread's.
        if std::thread::panicking() {
            let running = uploader.state.lock().lanes.running(key).cloned();
            if let Some(id) = running {
                uploader.journal.note_sent(&id);
            }
            {
                let mut state = uploader.state.lock();
                let next = uploader.clock.now() + uploader.config.max_delay;
                let error = "kvfs has a bug; see the log".to_owned();
                state.lanes.retry(key, next, error);
                state.threads -= 1;
            }
        }
        uploader.staff();
    }
}

/// Uploads that stand still. Dropping it lets them go on.
pub struct Hold {
    uploader: Arc<Uploader>,
    _marks: Vec<Marked>,
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").finish_non_exhaustive()
    }
}

impl Hold {
    /// Forgets what waits of `key`, one of those held: the record has been deleted or replaced.
    pub fn discard(&self, key: &Key) {
        let gone = self.take(key);
        for id in &gone {
            self.uploader.drop_entry(id);
        }
        self.uploader.count();
    }

    /// Tells whether the store may have something of `key`, one of those held, because of what
    /// waits, though no answer said so.
    pub fn may_be_stored(&self, key: &Key) -> bool {
        let waiting = self.uploader.state.lock().lanes.waiting(key);
        waiting.iter().any(|id| {
            let entry = self.uploader.journal.get(id);
            entry.is_some_and(|entry| entry.sent || !entry.pending.unanswered.is_empty())
        })
    }

    /// Makes the newest that waits of `from` an upload of `to`, in place of all that waits of both,
    /// which are held. Returns whether anything waited.
    ///
    /// # Errors
    /// That the disk refuses; everything is then as it was.
    pub fn rename(&self, from: &Key, to: &Key) -> io::Result<bool> {
        let uploader = &self.uploader;
        let Some(newest) = uploader.state.lock().lanes.waiting(from).pop() else {
            return Ok(false);
        };
        let renamed = uploader.journal.renew(&newest, |pending| {
            pending.key = to.clone();
            pending.if_match = None;
            pending.if_absent = false;
            pending.unanswered.clear();
        })?;
        let mut gone = self.take(from);
        gone.extend(self.take(to));
        uploader.state.lock().lanes.push(to, renamed);
        for id in &gone {
            uploader.drop_entry(id);
        }
        uploader.count();
        Ok(true)
    }

    fn take(&self, key: &Key) -> Vec<EntryId> {
        let mut state = self.uploader.state.lock();
        let gone = state.lanes.waiting(key);
        for id in &gone {
            state.lanes.take(key, id);
        }
        gone
    }
}

fn not_yet(key: &Key, error: Option<&str>) -> StoreError {
    let why = error.map_or_else(String::new, |error| format!(": {error}"));
    StoreError::new(
        ErrorKind::Timeout,
        format!("an upload is still under way{why}"),
    )
    .with_key(key)
    .with_hint("its bytes are safe on disk and the upload goes on; see kvfs status")
}

/// Returns why an entry was refused.
fn kept_error(entry: &JournalEntry) -> Option<StoreError> {
    let Why::Failed { kind, message } = &entry.pending.why else {
        return None;
    };
    let kind = entry::kind_of(kind);
    Some(
        StoreError::new(kind, message.clone())
            .with_key(&entry.pending.key)
            .with_hint("its bytes are kept: see kvfs recover"),
    )
}

#[cfg(test)]
#[path = "uploader_tests.rs"]
mod tests;

//! The one way from a file that was written to the store: uploads, deletions, and the gate of each key
//! that all of them pass.
//!
//! Every close makes an [`Upload`]. An upload that a program waits for is sent on its own thread
//! ([`Entered::run`]) and journalled only if the store does not take it. All others, and all with
//! `--write-back`, are journalled first ([`Uploader::submit`]) and sent from the queue of their key:
//! in the order of closing, several keys at a time, again and again while the store cannot be reached.
//! Uploads that the store refuses for good are kept for `kvfs recover`. An upload that was closed
//! while an older one of its key still waits replaces it; one that was closed while an older one is
//! being sent follows it, and its precondition is the version that the older one became.
//!
//! It holds at every moment:
//!
//! * W1 What `close`, `fsync` or `sync` acknowledged is in the store or in the journal, byte for byte:
//!   an entry leaves the journal only after the store has its bytes, or a younger entry of its key is
//!   durable, or a person asked for it to be dropped.
//! * W2 At most one change of a key is under way: it is inside the key's gate (`gates`), and leaves it
//!   when its outcome is known, or written down as unknown (`indeterminate`).
//! * W3 What fails or is interrupted before its request was sent has no effect. What is interrupted
//!   after that goes on inside the gate, and any later change of the key waits for it.
//! * W4 Older bytes never replace newer ones: entries are sent in the order of closing, and one is
//!   dropped when a younger one of its key is journalled or stored, or the key is deleted.
//! * W5 A precondition is dropped only by a person who was told what is overwritten
//!   ([`Uploader::send_again`]); what follows an upload of ours has the version that this made.
//! * W6 A wait to enter ends with the caller's deadline, and the bytes are then in the journal.
//!
//! Lock order: `state` alone; held across neither network nor disk I/O. A thread that changes a queue
//! and the journal together has latched the gate (`gate`).

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use crate::base::clock::{Clock, Deadline};
use crate::base::sync::atomic::{AtomicBool, Ordering};
use crate::base::sync::{Condvar, Mutex};
use crate::base::workers::Workers;
use crate::metrics::Metrics;
use crate::staging::UnansweredUploads;
use crate::staging::entry::{EntryId, Why};
use crate::staging::journal::{Journal, JournalEntry};
use crate::staging::report::Item;
use crate::staging::unanswered::MOST_COMPARED;
use crate::store::{Encoding, ErrorKind, Key, RecordMeta, Store, StoreError};

mod absent;
mod attempt;
mod gate;
pub mod gates;
mod indeterminate;
mod restore;
pub mod status;
mod submit;
#[cfg(test)]
mod tests;
mod threads;
mod waiting;

pub use gate::Entered;
pub use gates::{Change, Progress};
pub use indeterminate::{Expected, may_have_arrived};
pub use status::Uploads;
pub use submit::{Submission, Upload};

use gates::Gates;

/// How long the store may be asked what it has, once the deadline of a change is over.
const LAST_LOOK: Duration = Duration::from_secs(5);

/// Of so many records it is remembered that they may have arrived although nothing is kept of them.
const MOST_UNANSWERED: usize = 1000;

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
    /// How many keys may wait; closing another file then waits for room.
    pub max_waiting: usize,
    /// How many of the files that wait may be open; the others are opened when they are read.
    pub max_open: usize,
    /// Whether an upload that follows another of its key is made only if no other writer changed
    /// the record in between.
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
            max_waiting: 100_000,
            max_open: 64,
            guard: true,
        }
    }
}

/// Is told what became of the queue's uploads, before they are forgotten.
pub trait UploadObserver: Send + Sync {
    /// The store has it.
    fn uploaded(&self, entry: &JournalEntry, bytes: &Arc<File>, meta: &RecordMeta);

    /// It is dropped unsent: something younger of its key is journalled or stored, or the key is
    /// deleted.
    fn superseded(&self, _entry: &JournalEntry) {}

    /// The store refused it for good, and it is kept; or its bytes are gone.
    fn failed(&self, entry: &JournalEntry, error: &StoreError);

    /// Journals what was closed and is not in the journal yet.
    fn journal_closed(&self) {}

    /// Returns its bytes, their number, and their encoding, if they are at hand although they were
    /// removed from the journal.
    fn bytes(&self, _entry: &JournalEntry) -> Option<(File, u64, Encoding)> {
        None
    }
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
    /// Held to write removed entries again, while the local disk works, by a thread that holds no
    /// other lock.
    again: Mutex<()>,
    changed: Condvar,
    observer: OnceLock<Weak<dyn UploadObserver>>,
    /// Whether the server has ever told a version by a tag: then it heeds conditions.
    tagged: AtomicBool,
    absences: absent::Absences,
}

#[derive(Default)]
struct State {
    gates: Gates,
    /// Threads that look for work or wait for some.
    threads: usize,
    idle: usize,
    stopped: bool,
    /// How many wait for uploads: then they are tried again sooner.
    waiters: usize,
    /// Failed uploads that no waiting program has been told of yet: the last of each key.
    untold: HashMap<Key, Verdict>,
    /// What uploads without an answer, of which nothing is kept, may have made of records.
    unanswered: HashMap<Key, UnansweredUploads>,
}

/// Why an upload has failed for good.
enum Verdict {
    /// The store refused it, and keeps it as this entry.
    Kept(EntryId, StoreError),
    /// Its bytes are gone.
    Lost(StoreError),
}

/// An upload that waits or runs, as `kvfs status` shows it.
#[derive(Clone, Debug)]
pub struct PendingUpload {
    /// What it is.
    pub entry: JournalEntry,
    /// Where it stands.
    pub state: Progress,
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
            again: Mutex::default(),
            changed: Condvar::new(),
            observer: OnceLock::new(),
            tagged: AtomicBool::new(false),
            absences: absent::Absences::default(),
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
                !entry.pending.why.is_failed() && state.gates.progress(key, &entry.id).is_none();
            if waits && Item::is_named(wanted, &entry.id, key) {
                state.gates.push(key, entry.id.clone(), None);
            }
        }
        let waiting = state.gates.len();
        drop(state);
        self.count();
        self.staff();
        waiting
    }

    /// Uploads a kept entry once more, in its place among those of its key. Returns whether it does:
    /// not if a younger upload has superseded it, nor, unless `overwrite`, if it was refused because
    /// the record has changed in the store.
    ///
    /// With `overwrite` a conflict replaces whatever the record has become: only a person who knows
    /// of that may decide it. Any other condition stays.
    ///
    /// # Errors
    /// That the disk refuses.
    pub fn send_again(self: &Arc<Self>, id: &EntryId, overwrite: bool) -> io::Result<bool> {
        let Some(entry) = self.journal.get(id) else {
            return Ok(false);
        };
        let key = &entry.pending.key;
        let latched = self.latch(key);
        self.supersede(key);
        let still = self.journal.get(id);
        if still.is_none_or(|entry| !entry.pending.why.is_failed()) {
            return Ok(false);
        }
        let is_conflict = entry.pending.why.is_conflict();
        if is_conflict && !overwrite {
            return Ok(false);
        }
        self.journal.update(id, |pending| {
            pending.why = Why::WriteBack;
            if is_conflict {
                pending.began = None;
                pending.if_match = None;
                pending.if_absent = false;
                // Whatever was stored until now.
                pending.is_new = false;
                pending.closed_at =
                    jiff::Timestamp::try_from(self.clock.wall()).unwrap_or_default();
                pending.unanswered.clear();
            }
        })?;
        self.state.lock().gates.push(key, id.clone(), None);
        drop(latched);
        self.count();
        Ok(true)
    }

    /// Drops what is kept of `key`, which the caller has latched, and is older than something else of
    /// it. Returns how many those were.
    fn supersede(&self, key: &Key) -> usize {
        let entries = self.journal.of_key(key);
        let Some(youngest) = entries.iter().map(|entry| &entry.id).max() else {
            return 0;
        };
        let older = |entry: &&JournalEntry| entry.id < *youngest && entry.pending.why.is_failed();
        let gone: Vec<&JournalEntry> = entries.iter().filter(older).collect();
        for entry in &gone {
            tracing::info!(
                "what was kept of {key} from {} is dropped: it was written again since",
                entry.pending.closed_at
            );
            self.drop_superseded(entry);
        }
        gone.len()
    }

    /// Drops everything of `key`, which the caller has latched, that is older than `id`: the store has
    /// something newer.
    fn supersede_older(&self, key: &Key, id: &EntryId) {
        for entry in self.journal.of_key(key) {
            if entry.id < *id {
                self.state.lock().gates.take(key, &entry.id);
                self.drop_superseded(&entry);
            }
        }
    }

    fn drop_superseded(&self, entry: &JournalEntry) {
        if let Some(observer) = self.observer() {
            observer.superseded(entry);
        }
        self.drop_entry(&entry.id);
    }

    /// Deletes a record. An answer that is lost is looked for.
    fn delete(&self, key: &Key, deadline: Deadline) -> Result<(), StoreError> {
        let error = match self.store.delete(key, deadline) {
            Err(error) if may_have_arrived(&error) => error,
            result => return result,
        };
        if self.is_gone(key) {
            return Ok(());
        }
        Err(error)
    }

    /// Returns whether the store says that it has no such record, whatever the time.
    fn is_gone(&self, key: &Key) -> bool {
        let look = Deadline::after(LAST_LOOK.min(self.config.deadline));
        let found = self.store.head(key, look);
        found.is_err_and(|gone| gone.kind() == ErrorKind::NotFound)
    }

    /// Returns whether the next upload after one of this many bytes, which has made this of the
    /// record, is compared with it before it replaces it.
    pub fn compares(&self, meta: &RecordMeta, size: u64) -> bool {
        self.config.guard && meta.strong_etag().is_none() && size <= MOST_COMPARED
    }

    fn tagless(&self) -> bool {
        !self.tagged.load(Ordering::Relaxed)
    }

    /// Notes whether the server tells versions by tags: then it heeds conditions.
    pub fn note_tags(&self, meta: &RecordMeta) {
        if meta.strong_etag().is_some() {
            self.tagged.store(true, Ordering::Relaxed);
        }
    }

    /// Returns the journal.
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
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
            let state = state.gates.progress(&entry.pending.key, &entry.id)?;
            Some(PendingUpload { entry, state })
        });
        with_state.collect()
    }

    /// Returns whether more files wait than may be open.
    pub fn is_crowded(&self) -> bool {
        self.state.lock().gates.len() > self.config.max_open
    }

    /// Returns whether anything of `key` waits or runs.
    pub fn has(&self, key: &Key) -> bool {
        self.state.lock().gates.has(key)
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

    fn count(&self) {
        let state = self.state.lock();
        self.metrics.uploads_pending.set(state.gates.len() as u64);
    }
}

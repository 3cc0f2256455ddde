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

use self::lanes::{LaneState, Lanes};
use crate::base::clock::Clock;
use crate::base::workers::Workers;
use crate::metrics::Metrics;
use crate::staging::entry::{EntryId, Why};
use crate::staging::journal::{Journal, JournalEntry};
use crate::staging::report::Item;
use crate::store::{Encoding, Key, RecordMeta, Store, StoreError};

mod again;
mod attempt;
mod hold;
pub mod lanes;
mod mark;
mod submit;
#[cfg(test)]
mod tests;
mod threads;
pub mod uploads;
mod waiting;

pub use hold::Hold;
pub use uploads::Uploads;

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

    /// The store refused it for good, and it is kept; or its bytes are gone.
    fn failed(&self, entry: &JournalEntry, error: &StoreError);

    /// Returns its bytes, how many, and how they are encoded, if they are at hand although somebody
    /// has removed them from the journal.
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
    /// Whoever has it writes what was removed anew: held while the local disk works, by nobody who
    /// holds another lock.
    again: Mutex<()>,
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
    /// Failed uploads of which nobody who waits has been told yet: the last of each key.
    untold: HashMap<Key, Verdict>,
}

/// Why an upload has failed for good.
enum Verdict {
    /// The store refused it, and this entry says why.
    Kept(EntryId),
    /// Its bytes are gone.
    Lost(StoreError),
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
            again: Mutex::default(),
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
        self.metrics.uploads_pending.set(state.lanes.len() as u64);
    }
}

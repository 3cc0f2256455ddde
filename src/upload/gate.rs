//! Enters the gates of keys, and latches them.
//!
//! A thread inside may wait for the store. A thread that has latched a gate changes its queue and
//! the journal together, which takes no longer than the local disk; it does not wait for the store,
//! or for another gate, meanwhile. So no thread inside ever waits for one that waits to enter.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::Uploader;
use super::gates::Change;
use super::indeterminate::{self, Expected, may_have_arrived};
use crate::base::caller;
use crate::base::clock::Deadline;
use crate::base::sync::thread;
use crate::staging::entry::is_transient;
use crate::staging::{EntryId, UnansweredUploads};
use crate::store::{ErrorKind, Key, RecordMeta, Result, StoreError};

/// The pause before a deletion that was refused for a passing reason is tried again.
const PAUSE: Duration = Duration::from_secs(1);

impl Uploader {
    /// Enters the gates of `keys`; waits until they are empty.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] when the deadline passed first.
    pub fn enter(
        self: &Arc<Self>,
        keys: &[&Key],
        change: Change,
        deadline: Deadline,
    ) -> Result<Entered> {
        let mut sorted = keys.to_vec();
        // Two that enter the same gates must not wait for each other.
        sorted.sort();
        sorted.dedup();
        let mut entered = Entered {
            uploader: Arc::clone(self),
            keys: Vec::new(),
            waited: false,
        };
        for key in sorted {
            let mut state = self.state.lock();
            state.gates.want(key, true);
            let let_in = loop {
                if state.gates.try_enter(key, change) {
                    break true;
                }
                entered.waited = true;
                let late = self.changed.wait_until(&mut state, deadline.instant());
                if late.timed_out() {
                    break state.gates.try_enter(key, change);
                }
            };
            state.gates.want(key, false);
            drop(state);
            // Whatever follows has its own time.
            caller::moves();
            if !let_in {
                self.staff();
                return Err(StoreError::new(
                    ErrorKind::Timeout,
                    "the deadline passed while another change of the record was under way",
                )
                .with_key(key)
                .with_hint(
                    "see kvfs status for uploads under way; a longer --deadline waits longer",
                ));
            }
            entered.keys.push(key.clone());
        }
        Ok(entered)
    }

    /// Enters the gates of `keys` unless a thread is inside one of them.
    pub fn try_enter(self: &Arc<Self>, key: &Key, change: Change) -> Option<Entered> {
        let let_in = self.state.lock().gates.try_enter(key, change);
        let_in.then(|| Entered {
            uploader: Arc::clone(self),
            keys: vec![key.clone()],
            waited: false,
        })
    }

    /// Returns whether a thread is deleting or renaming `key`, or storing it as something else.
    pub fn is_renaming(&self, key: &Key) -> bool {
        self.state.lock().gates.is_renaming(key)
    }

    /// Waits until the names of `key` are not changing.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] when the deadline passed first.
    pub fn await_names(&self, key: &Key, deadline: Deadline) -> Result<()> {
        self.wait_for(key, deadline, |gates| !gates.is_renaming(key))
    }

    /// Latches the gate of `key`. Waits until it is free: its holder works on the local disk.
    pub(super) fn latch(self: &Arc<Self>, key: &Key) -> Latched {
        let mut state = self.state.lock();
        while !state.gates.try_latch(key) {
            self.changed.wait(&mut state);
        }
        drop(state);
        self.latched(key)
    }

    /// The same, but waits no longer than this.
    pub(super) fn latch_until(self: &Arc<Self>, key: &Key, deadline: Deadline) -> Option<Latched> {
        self.wait_for(key, deadline, |gates| gates.try_latch(key))
            .ok()?;
        Some(self.latched(key))
    }

    fn latched(self: &Arc<Self>, key: &Key) -> Latched {
        Latched {
            uploader: Arc::clone(self),
            key: Some(key.clone()),
        }
    }
}

/// Gates that this thread is inside. Dropping it leaves them.
pub struct Entered {
    pub(super) uploader: Arc<Uploader>,
    keys: Vec<Key>,
    waited: bool,
}

impl fmt::Debug for Entered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Entered").field(&self.keys).finish()
    }
}

impl Entered {
    /// Returns whether another thread was inside before.
    pub fn waited(&self) -> bool {
        self.waited
    }

    /// Returns what the store may have of `key` because of what is queued or has failed, though no answer
    /// said so.
    pub fn unanswered(&self, key: &Key) -> UnansweredUploads {
        let failed = self.uploader.state.lock().unanswered.get(key).cloned();
        let mut all = failed.unwrap_or_default();
        for entry in self.uploader.journal.of_key(key) {
            all.extend(&entry.pending.unanswered);
            if entry.sent {
                all.add(entry.as_sent);
            }
        }
        all
    }

    /// Takes the name `key` from whichever file has it, which `unname` does, and drops everything
    /// that is queued or kept under it: no close comes in between. Durable when this returns.
    ///
    /// Nothing is dropped when `unname` returns false.
    pub fn discard(&self, key: &Key, unname: impl FnOnce() -> bool) -> bool {
        let latched = self.uploader.latch(key);
        if !unname() {
            return false;
        }
        let gone = self.uploader.journal.of_key(key);
        self.uploader.state.lock().unanswered.remove(key);
        for entry in &gone {
            self.uploader.state.lock().gates.take(key, &entry.id);
            self.uploader.drop_superseded(entry);
        }
        drop(latched);
        if !gone.is_empty() {
            self.uploader.count();
            self.uploader.settle();
        }
        true
    }

    /// Deletes a record. An answer that is lost is looked for.
    ///
    /// # Errors
    /// Those of the store.
    pub fn delete(&self, key: &Key, deadline: Deadline) -> Result<()> {
        caller::asking(|| self.uploader.delete(key, deadline)).map_err(|error| error.with_key(key))
    }

    /// Deletes a record that is still what is `expected`, or is known to be as nothing else was asked since;
    /// before each attempt it is compared. Returns whether it was still that.
    ///
    /// # Errors
    /// Those of the store.
    pub fn delete_expected(
        &self,
        key: &Key,
        expected: &Expected,
        mut is_known: bool,
        deadline: Deadline,
    ) -> Result<bool> {
        let store = &*self.uploader.store;
        loop {
            if !std::mem::take(&mut is_known) && !self.is_still(key, expected, deadline)? {
                return Ok(false);
            }
            let error = match caller::asking(|| store.delete_once(key, deadline)) {
                Ok(()) => return Ok(true),
                Err(error) => error,
            };
            if may_have_arrived(&error) && self.uploader.is_gone(key) {
                return Ok(true);
            }
            match deadline.remaining() {
                Some(left) if left > PAUSE && is_transient(error.kind()) => thread::sleep(PAUSE),
                _ => return Err(error.with_key(key)),
            }
        }
    }

    /// Lets what is queued of `key` replace no version any more: the record was deleted, and its file has
    /// its name still.
    pub fn forget_version(&self, key: &Key) {
        let latched = self.uploader.latch(key);
        let all = EntryId::new(0, 0);
        self.uploader
            .tell_followers(key, &all, &RecordMeta::default(), None);
        drop(latched);
    }

    /// Returns whether a record is still what is `expected`, or gone, as far as the server's versions or
    /// its bytes tell.
    ///
    /// # Errors
    /// Those of the store.
    pub fn is_still(&self, key: &Key, expected: &Expected, deadline: Deadline) -> Result<bool> {
        let store = &*self.uploader.store;
        caller::asking(|| indeterminate::is_still(store, key, expected, deadline))
            .map_err(|error| error.with_key(key))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut state = self.uploader.state.lock();
        for key in &self.keys {
            state.gates.leave(key);
        }
        drop(state);
        self.uploader.staff();
    }
}

/// A latched gate; dropping it takes the latch off.
pub(super) struct Latched {
    uploader: Arc<Uploader>,
    /// Which, until the latch is off.
    key: Option<Key>,
}

impl Latched {
    /// Takes the latch off, and lets this upload enter on the calling thread if nothing is in its
    /// way. Returns whether it has.
    pub(super) fn start(mut self, id: &EntryId) -> bool {
        let Some(key) = self.key.take() else {
            return false;
        };
        let mut state = self.uploader.state.lock();
        state.gates.unlatch(&key);
        let started = state.gates.start_this(&key, id);
        drop(state);
        self.uploader.staff();
        started
    }
}

impl Drop for Latched {
    fn drop(&mut self) {
        if let Some(key) = &self.key {
            self.uploader.state.lock().gates.unlatch(key);
            self.uploader.staff();
        }
    }
}

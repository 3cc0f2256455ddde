//! Waits for uploads: for those of one key, and returns their verdict, or for all.

use super::{PendingUpload, Uploader, Verdict};
use crate::base::caller;
use crate::base::clock::Deadline;
use crate::store::{ErrorKind, Key, StoreError};
use crate::upload::gates::Gates;

impl Uploader {
    /// Waits until nothing of `key` is left to be uploaded.
    ///
    /// # Errors
    /// Why one of them was refused for good, now or since this was last asked; and
    /// [`ErrorKind::Timeout`] when the deadline passed first.
    pub fn wait_key(&self, key: &Key, deadline: Deadline) -> Result<(), StoreError> {
        let _waits = Waits::new(self);
        caller::moves();
        let mut state = self.state.lock();
        state.gates.hurry(Some(key));
        self.changed.notify_all();
        while state.gates.has(key) {
            if self
                .changed
                .wait_until(&mut state, deadline.instant())
                .timed_out()
            {
                let error = state.gates.error(key).map(ToOwned::to_owned);
                return Err(not_yet(key, error.as_deref()));
            }
        }
        let verdict = state.untold.remove(key);
        drop(state);
        let error = match verdict {
            // Unless another thread has seen to it since.
            Some(Verdict::Kept(id, error)) => self.journal.get(&id).map(|_| {
                error
                    .with_key(key)
                    .with_hint("its bytes are kept: see kvfs recover")
            }),
            Some(Verdict::Lost(error)) => Some(error),
            None => None,
        };
        error.map_or(Ok(()), Err)
    }

    /// Returns the lost files that have not been reported yet.
    pub fn take_lost(&self) -> Vec<Key> {
        let mut state = self.state.lock();
        let lost = state
            .untold
            .extract_if(|_, verdict| matches!(verdict, Verdict::Lost(_)));
        lost.map(|(key, _)| key).collect()
    }

    /// Waits until nothing is left to be uploaded; returns what still is when the deadline passed.
    pub fn wait_all(&self, deadline: Deadline) -> Vec<PendingUpload> {
        if let Some(observer) = self.observer() {
            observer.journal_closed();
        }
        let _waits = Waits::new(self);
        let mut state = self.state.lock();
        state.gates.hurry(None);
        self.changed.notify_all();
        while !state.gates.is_empty() {
            if self
                .changed
                .wait_until(&mut state, deadline.instant())
                .timed_out()
                || state.stopped
            {
                break;
            }
        }
        let settled = state.gates.is_empty();
        drop(state);
        if settled {
            self.settle();
        }
        self.pending()
    }

    /// Waits until the gates allow what is to be done with that of `key`; `ready` may change them.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`]
    pub(super) fn wait_for(
        &self,
        key: &Key,
        deadline: Deadline,
        mut ready: impl FnMut(&mut Gates) -> bool,
    ) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        while !ready(&mut state.gates) {
            if self
                .changed
                .wait_until(&mut state, deadline.instant())
                .timed_out()
            {
                return Err(not_yet(key, None));
            }
        }
        Ok(())
    }
}

/// A thread waits for uploads, until this is dropped.
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

fn not_yet(key: &Key, error: Option<&str>) -> StoreError {
    let why = error.map_or_else(String::new, |error| format!(": {error}"));
    StoreError::new(
        ErrorKind::Timeout,
        format!("an upload is still under way{why}"),
    )
    .with_key(key)
    .with_hint("its bytes are safe on disk and the upload goes on; see kvfs status")
}

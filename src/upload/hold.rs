//! Uploads that stand still, for who deletes a record or gives it another name.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::Uploader;
use super::mark::Marked;
use crate::base::clock::Deadline;
use crate::staging::entry::EntryId;
use crate::store::{Key, StoreError};
use crate::upload::lanes::Mark;

impl Uploader {
    /// Waits for the uploads of `keys` that run, and lets none start until the result is dropped:
    /// for a deletion, or a change of name.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`](crate::store::ErrorKind::Timeout).
    pub fn hold(self: &Arc<Self>, keys: &[&Key], deadline: Deadline) -> Result<Hold, StoreError> {
        let mut sorted = keys.to_vec();
        // Two that hold the same keys must not wait for each other.
        sorted.sort();
        sorted.dedup();
        let mut marks = Vec::new();
        for key in &sorted {
            marks.push(self.mark(key, Mark::Hold, deadline)?);
        }
        for key in sorted {
            self.wait_for(key, deadline, |lanes| lanes.running(key).is_none())?;
        }
        Ok(Hold {
            uploader: Arc::clone(self),
            _marks: marks,
        })
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

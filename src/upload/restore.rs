//! Restores the files of a removed staging folder: writes them again from the descriptors that are
//! still open, before they are uploaded, and before the process ends.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::Uploader;
use crate::base::clock::Deadline;
use crate::staging::entry::{EntryId, Pending};
use crate::staging::journal::JournalEntry;

/// How long a gate that others are changing is waited for: they see to its entry themselves.
const BUSY: Duration = Duration::from_secs(1);

/// Where an entry's bytes are.
pub(super) enum Files {
    /// In the journal.
    There,
    /// There again.
    Rewritten,
    /// In a descriptor only: the disk does not take them. What they are by that.
    Open(Box<JournalEntry>, Arc<File>),
    /// Nowhere.
    Gone,
}

impl Uploader {
    /// Writes an entry again if its files were removed. The caller keeps other threads from removing
    /// the entry: it is being uploaded, or its gate is latched.
    pub(super) fn restore(&self, id: &EntryId) -> Files {
        // Two that do it at the same time would be in each other's way.
        let _one = self.again.lock();
        if !self.journal.is_lost(id) {
            return Files::There;
        }
        let Some(mut entry) = self.journal.get(id) else {
            return Files::There;
        };
        let bytes = self.observer().and_then(|observer| observer.bytes(&entry));
        let Some((file, size, encoding)) = bytes else {
            return Files::Gone;
        };
        let as_sent = entry.as_sent.clone();
        let change = |pending: &mut Pending| {
            if pending.encoding != encoding {
                // As it was encoded it may have arrived, or be on its way.
                pending.unanswered.add(as_sent.clone());
            }
            (pending.encoding, pending.size) = (encoding.clone(), size);
        };
        let key = entry.pending.key.clone();
        match self.journal.keep_again(id, &file, change) {
            Ok(()) => {
                tracing::warn!("the waiting file of {key} was removed; it is written again");
                Files::Rewritten
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Files::Gone,
            Err(error) => {
                tracing::warn!("cannot write the waiting file of {key} again: {error}");
                change(&mut entry.pending);
                Files::Open(Box::new(entry), Arc::new(file))
            }
        }
    }

    /// Schedules all waiting files to be written again, if the folder was made again.
    pub(super) fn restore_rest(self: &Arc<Self>) {
        if self.journal.take_remade() {
            let this = Arc::clone(self);
            if self.workers.spawn(move || this.restore_all()).is_err() {
                // The threads are busy, and each looks here when it has done.
                self.journal.set_remade();
            }
        }
    }

    /// Writes all waiting entries again that had their files removed.
    pub fn restore_all(self: &Arc<Self>) {
        for pending in self.pending() {
            let entry = pending.entry;
            if self.journal.is_lost(&entry.id)
                && let Some(_latched) = self.latch_until(&entry.pending.key, Deadline::after(BUSY))
            {
                self.restore(&entry.id);
            }
        }
    }
}

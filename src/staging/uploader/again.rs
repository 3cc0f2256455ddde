//! What waits in a staging folder that somebody has removed: written anew from the descriptors that
//! are still open, before it is uploaded, and before the process ends.

use super::Uploader;
use crate::staging::entry::EntryId;

impl Uploader {
    /// Writes an entry anew if its files were removed; `false` if they were and cannot be.
    pub(super) fn keep_again(&self, id: &EntryId) -> bool {
        if !self.journal.is_lost(id) {
            return true;
        }
        let Some(entry) = self.journal.get(id) else {
            return true;
        };
        let bytes = self.observer().and_then(|observer| observer.bytes(&entry));
        let Some((file, size, encoding)) = bytes else {
            return false;
        };
        let kept = self.journal.keep_again(id, &file, |pending| {
            if pending.encoding != encoding && entry.sent {
                // As it was encoded it may have arrived.
                pending.unanswered.add(entry.as_sent.clone());
            }
            (pending.encoding, pending.size) = (encoding, size);
        });
        match kept {
            Ok(()) => {
                let key = &entry.pending.key;
                tracing::warn!("somebody has removed what waited of {key}: it is written anew");
                true
            }
            Err(error) => {
                tracing::warn!(
                    "cannot write what waits of {} anew: {error}",
                    entry.pending.key
                );
                false
            }
        }
    }

    /// Does so for all that waits.
    pub fn keep_all_again(&self) {
        for pending in self.pending() {
            self.keep_again(&pending.entry.id);
        }
    }
}

//! A file that was closed: into the journal, and behind or in place of what is on its way of its key.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::Uploader;
use crate::base::clock::Deadline;
use crate::staging::entry::{EntryId, Pending};
use crate::staging::journal::JournalEntry;
use crate::upload::lanes::Mark;

impl Uploader {
    /// Journals a closed file and uploads it soon. Returns when it is safe on disk.
    ///
    /// The file is treated as by [`Journal::keep`](crate::staging::Journal::keep): nobody may write
    /// to it any more. `named` is told the entry's name before its upload can begin. `current` sets
    /// the conditions when nothing of the key is on its way: an upload may have ended since
    /// `pending` was made.
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
        self.keep_rest_again();
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
}

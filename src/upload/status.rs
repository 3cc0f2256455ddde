//! The uploads of one mount, for `kvfs status`, `sync`, `recover` and the end of the mount.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::Progress;
use super::Uploader;
use crate::base::clock::Deadline;
use crate::staging::folder::StagingFolder;
use crate::staging::report::{Item, State};

/// How many uploads `kvfs status` names.
const NAMED: usize = 50;

/// The uploads of one mount.
#[derive(Clone, Debug)]
pub struct Uploads {
    folder: Arc<StagingFolder>,
    uploader: Arc<Uploader>,
    patience: Duration,
}

impl Uploads {
    /// Returns the uploads of a mount that waits for them this long at its end.
    pub fn new(folder: Arc<StagingFolder>, uploader: Arc<Uploader>, patience: Duration) -> Self {
        Self {
            folder,
            uploader,
            patience,
        }
    }

    /// Returns what uploads.
    #[cfg(feature = "testing")]
    pub fn uploader(&self) -> &Arc<Uploader> {
        &self.uploader
    }

    /// Returns everything that is not in the store, the first closed first.
    pub fn items(&self) -> Vec<Item> {
        let pid = Some(std::process::id());
        let mut items: Vec<Item> = Vec::new();
        for pending in self.uploader.pending() {
            let state = match pending.state {
                Progress::Waiting => State::Waiting,
                Progress::Running => State::Uploading,
                Progress::Retrying(..) => State::Retrying,
            };
            let mut item = Item::of(&pending.entry.id, &pending.entry.pending, state, pid);
            if let Progress::Retrying(failures, error, _) = pending.state {
                item.attempts = failures;
                item.reason = Some(error);
            }
            items.push(item);
        }
        for kept in self.uploader.journal().kept() {
            items.push(Item::of(&kept.id, &kept.pending, State::Kept, pid));
        }
        items.extend(self.folder.damaged().iter().map(Item::damaged));
        items.sort_by(|a, b| a.id.cmp(&b.id));
        items
    }

    /// Returns the part of `kvfs status` that is about uploads.
    pub fn status(&self) -> Value {
        let items = self.items();
        let of = |state: fn(State) -> bool| items.iter().filter(move |item| state(item.state));
        let bytes: u64 = of(State::is_pending).map(|item| item.size).sum();
        json!({
            "pending": of(State::is_pending).count(),
            "pending_bytes": bytes,
            "kept": of(|state| state == State::Kept).count(),
            "damaged": of(|state| state == State::Damaged).count(),
            "staged_bytes": self.folder.budget().used(),
            "folder": self.folder.path().to_string_lossy(),
            "unmount_waits_s": self.patience.as_secs_f64(),
            "items": items.iter().take(NAMED).collect::<Vec<_>>(),
        })
    }

    /// Waits until everything closed so far is in the store.
    ///
    /// # Errors
    /// What is not, in a sentence.
    pub fn sync(&self, deadline: Deadline) -> Result<(), String> {
        let left = self.uploader.wait_all(deadline);
        let kept = self.uploader.journal().kept();
        let lost = self.uploader.take_lost();
        if let Some(first) = lost.first() {
            return Err(format!(
                "{} lost, the first of them {first}: the staging folder was removed",
                files(lost.len(), "is", "are"),
            ));
        }
        if let Some(first) = left.first() {
            let why = match &first.state {
                Progress::Retrying(_, error, _) => format!(": {error}"),
                _ => String::new(),
            };
            return Err(format!(
                "{} not in the store yet, the first of them {}{why}",
                files(left.len(), "is", "are"),
                first.entry.pending.key
            ));
        }
        if !kept.is_empty() {
            return Err(format!(
                "{} refused by the store and kept on disk; everything else is in the store",
                files(kept.len(), "was", "were")
            ));
        }
        Ok(())
    }

    /// Tries kept uploads once more, those that `wanted` names by key or id, or all of them; returns how
    /// many. Conflicts, which overwrite a newer record, only if they are named by id.
    pub fn send_again(&self, wanted: &[String]) -> usize {
        let kept = self.uploader.journal().kept();
        kept.into_iter()
            .filter(|entry| Item::is_named(wanted, &entry.id, &entry.pending.key))
            .filter(|entry| {
                let overwrite = wanted.iter().any(|name| name == entry.id.as_str());
                self.uploader
                    .send_again(&entry.id, overwrite)
                    .inspect_err(|error| {
                        tracing::warn!("cannot upload {} again: {error}", entry.id)
                    })
                    .unwrap_or(false)
            })
            .count()
    }

    /// Drops kept uploads for good, those that `wanted` names by key or id, or all of them; returns
    /// how many.
    pub fn discard(&self, wanted: &[String]) -> usize {
        let kept = self.uploader.journal().kept();
        let mut dropped = 0;
        for entry in kept {
            if Item::is_named(wanted, &entry.id, &entry.pending.key) {
                match self.uploader.journal().remove(&entry.id) {
                    Ok(()) => dropped += 1,
                    Err(error) => tracing::warn!("cannot remove {}: {error}", entry.id),
                }
            }
        }
        dropped + self.folder.discard_damaged(wanted)
    }

    /// Ends the mount's uploads: waits for them, but no longer than it was told to, and says what
    /// is left and where.
    pub fn finish(&self) {
        let waiting = self.uploader.pending().len();
        if waiting > 0 {
            tracing::info!(
                "uploading {} before the end, for at most {:?}",
                files(waiting, "", "").trim_end(),
                self.patience
            );
        }
        let left = self.uploader.wait_all(Deadline::after(self.patience));
        self.uploader.stop();
        self.uploader.restore_all();
        self.folder.end();
        if !left.is_empty() {
            let bytes: u64 = left.iter().map(|left| left.entry.pending.size).sum();
            tracing::warn!(
                "{} ({bytes} bytes) not in the store yet; the bytes are safe in {}: the next \
                 mount of this store with --rw uploads them, or kvfs recover --upload",
                files(left.len(), "is", "are"),
                self.folder.path().display()
            );
        }
    }

    /// Lets [`Uploads::finish`] end at once.
    pub fn give_up(&self) {
        self.uploader.stop();
    }
}

/// Returns "1 file is", "2 files are".
fn files(n: usize, one: &str, many: &str) -> String {
    match n {
        1 => format!("1 file {one}"),
        n => format!("{n} files {many}"),
    }
}

//! Configuration and state that only read-write mounts have.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use self::draft::{Draft, Place};
use self::drafts::Drafts;
use self::overlay::{Change, Name, Overlay};
use self::scratch::ScratchRules;
use crate::base::clock::Clock;
use crate::fs::types::{Ino, Shown};
use crate::fs::{FsError, KvFs, Result};
use crate::metrics::Metrics;
use crate::staging::file::StagingFile;
use crate::staging::{EntryId, StagingFolder};
use crate::store::{Encoding, Key, Store};
use crate::upload::{Submission, Uploader, UploaderConfig};

pub mod commit;
pub mod content_type;
mod data;
pub mod draft;
pub mod drafts;
mod namespace;
pub mod overlay;
mod queue;
mod rename;
mod resend;
pub mod scratch;
pub mod setattr;
pub mod sharing;

/// How changes are made.
#[derive(Clone, Debug)]
pub struct WriteConfig {
    /// Whether a record that has changed in the store may be overwritten.
    pub overwrite: Overwrite,
    /// How new bytes are encoded where that is worth while; not in raw mounts.
    pub compress: Option<Encoding>,
    /// Which new names are not for the store.
    pub scratch: ScratchRules,
    /// How long an upload under a temporary name waits for the final one.
    pub scratch_delay: Duration,
    /// The largest file, in bytes; `None` for what the store takes.
    pub max_record_size: Option<u64>,
    /// The longest that an operation waits without anything moving.
    pub deadline: Duration,
    /// Where changed files are, and what could not be stored.
    pub staging: Arc<StagingFolder>,
    /// The one way to the store; `None` for one of its own.
    pub uploader: Option<Arc<Uploader>>,
    /// Whether closing a file waits for the journal only (`--write-back`).
    pub write_back: bool,
}

/// Whether a record that has changed in the store since it was opened may be overwritten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Overwrite {
    /// No, where the server can tell.
    #[default]
    Unchanged,
    /// Yes: the last writer wins.
    Always,
}

/// The state of the changing side.
#[derive(Debug)]
pub(in crate::fs) struct WriteSide {
    pub(super) config: WriteConfig,
    /// The one way to the store.
    pub(super) uploader: Arc<Uploader>,
    pub(super) drafts: Drafts,
    pub(super) overlay: Mutex<Overlay>,
    /// What programs have set on the root, and when its names last changed.
    pub(super) root: Mutex<(Shown, Option<SystemTime>)>,
}

impl WriteSide {
    /// Returns whether what is submitted so is sent at once, and not journalled first.
    fn stores_at_once(&self, how: Submission) -> bool {
        !self.config.write_back && how.not_before.is_none()
    }

    pub(in crate::fs) fn new(
        config: WriteConfig,
        store: &Arc<dyn Store>,
        clock: &Arc<dyn Clock>,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let uploader = config.uploader.clone().unwrap_or_else(|| {
            Uploader::new(
                Arc::clone(store),
                Arc::clone(config.staging.journal()),
                UploaderConfig {
                    guard: config.overwrite == Overwrite::Unchanged,
                    ..UploaderConfig::new(config.deadline)
                },
                Arc::clone(clock),
                Arc::clone(metrics),
            )
        });
        Self {
            config,
            uploader,
            drafts: Drafts::default(),
            overlay: Mutex::default(),
            root: Mutex::default(),
        }
    }

    /// Returns the place of a close among all of them.
    pub(in crate::fs) fn stamp(&self) -> EntryId {
        self.folder().journal().stamp()
    }

    pub(in crate::fs) fn folder(&self) -> &StagingFolder {
        &self.config.staging
    }

    /// Makes an empty staging file.
    pub(in crate::fs) fn new_file(&self) -> Result<Arc<StagingFile>> {
        StagingFile::new(self.folder())
            .map_err(|error| FsError::staging("cannot make a file", &error))
    }

    /// Fails for a file that would be larger than allowed.
    pub(in crate::fs) fn check_size(&self, size: u64) -> Result<()> {
        match self.config.max_record_size {
            Some(most) if size > most => Err(FsError::refused(
                libc::EFBIG,
                format!("a file of {size} bytes is larger than --max-record-size allows ({most})"),
                "mount with a larger --max-record-size",
            )),
            _ if size > i64::MAX as u64 => Err(FsError::WrongKind(libc::EFBIG)),
            _ => Ok(()),
        }
    }
}

impl KvFs {
    /// Returns the changing side.
    ///
    /// # Errors
    /// [`FsError::ReadOnly`] where there is none.
    pub(in crate::fs) fn write_side(&self) -> Result<&WriteSide> {
        self.writing.as_ref().ok_or(FsError::ReadOnly)
    }

    /// Returns the draft that a record's name leads to, if it has changes that the store lacks.
    pub(in crate::fs) fn dirty_draft(&self, key: &Key) -> Option<Arc<Draft>> {
        let draft = self.writing.as_ref()?.drafts.of_key(key)?;
        draft.is_dirty().then_some(draft)
    }

    /// Returns the draft of an inode.
    pub(in crate::fs) fn draft(&self, ino: Ino) -> Option<Arc<Draft>> {
        self.writing.as_ref()?.drafts.get(ino)
    }

    /// Notes that a name leads to a draft now.
    pub(in crate::fs) fn note_present(&self, side: &WriteSide, draft: &Draft) {
        let name = match draft.place() {
            Place::Record(key) => Name::Record(key),
            Place::Scratch(name) => Name::Scratch(name),
            Place::Gone => return,
        };
        let change = Change::Present {
            ino: draft.ino,
            size: draft.size(),
            modified: draft.modified(),
        };
        self.note(side, name, change);
    }

    /// Notes that a name is gone.
    pub(in crate::fs) fn note_absent(&self, side: &WriteSide, place: &Place) {
        match place {
            Place::Record(key) => self.note(side, Name::Record(key.clone()), Change::Absent),
            Place::Scratch(name) => {
                side.overlay.lock().forget(&Name::Scratch(name.clone()));
                side.root.lock().1 = Some(self.clock.wall());
            }
            Place::Gone => {}
        }
    }

    pub(in crate::fs) fn note(&self, side: &WriteSide, name: Name, change: Change) {
        side.root.lock().1 = Some(self.clock.wall());
        self.note_quietly(side, name, change);
    }

    /// Notes what has become of a name that was there and stays there.
    pub(in crate::fs) fn note_quietly(&self, side: &WriteSide, name: Name, change: Change) {
        let now = self.clock.now();
        let mut overlay = side.overlay.lock();
        overlay.set(name, now, change);
        let full = overlay.count() > self::overlay::MOST;
        drop(overlay);
        if full {
            // The next listing shows most of it.
            self.listing.clear();
            self.prune_overlay(self.clock.now());
        }
    }

    /// Drops from the overlay what a listing begun at `started` shows itself.
    pub(in crate::fs) fn prune_overlay(&self, started: std::time::Instant) {
        let Some(side) = &self.writing else { return };
        let pinned = |name: &Name, change: Change| match (name, change) {
            (Name::Scratch(_), _) => true,
            (Name::Record(_), Change::Absent) => false,
            (Name::Record(key), Change::Present { .. }) => {
                // Not `is_dirty`: what is about to be stored may not be in that listing either.
                side.drafts.of_key(key).is_some()
            }
        };
        // The table of drafts is asked outside of the overlay's lock.
        let names: Vec<(Name, Change)> = {
            let overlay = side.overlay.lock();
            let mut at = 0;
            let mut names = Vec::new();
            while let Some((number, name, change)) = overlay.next(at) {
                at = number;
                names.push((name, change));
            }
            names
        };
        let kept: std::collections::HashSet<Name> = names
            .into_iter()
            .filter(|(name, change)| pinned(name, *change))
            .map(|(name, _)| name)
            .collect();
        side.overlay
            .lock()
            .prune(started, |name, _| kept.contains(name));
    }
}

//! One inode: what the kernel holds of it, and what it was told.

use std::time::{Instant, SystemTime};

use super::types::Shown;
use crate::cache::content::VersionId;
use crate::store::Key;

/// An inode that the kernel or an open handle refers to.
#[derive(Debug)]
pub struct Inode {
    /// The record.
    pub key: Key,
    /// References of the kernel: grows with every entry reply, shrinks by *forget*.
    pub lookups: u64,
    /// Open handles.
    pub opens: u32,
    /// Whether the name now belongs to another inode, because the record changed while this one
    /// was open.
    pub detached: bool,
    /// Whether that is all: its record is there, in a newer version.
    pub superseded: bool,
    /// Whether its file was deleted or replaced here.
    pub gone: bool,
    /// The size last told to the kernel.
    pub(super) told_size: u64,
    /// Whether answers with different sizes are on their way to the kernel. They overtake each
    /// other, and of two questions under way at once it believes whichever answer comes first.
    told_several: bool,
    /// What most of those that are listed do not have.
    more: Option<Box<More>>,
}

/// What is known of an inode that was opened or changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct More {
    version: Option<(VersionId, u64)>,
    /// Whether an open is telling the kernel of this version at the moment.
    ///
    /// INVARIANT: while set, that open is the only one, and the kernel has no pages that a program
    /// reads: other opens wait, so that none is told to keep pages that are about to be dropped.
    settling: bool,
    /// Whether the kernel reads the open handles' content from its file: all or none of them.
    direct: bool,
    /// Whether the kernel does not know that its file was renamed, deleted or replaced: the program that
    /// did had been ended.
    moved_unseen: bool,
    shown: Shown,
    opened: OpenedVersion,
}

/// The store's data of the version that is, or was last, open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenedVersion {
    /// Bytes as stored.
    pub stored: Option<u64>,
    /// The time that it shows, as long as it is open.
    pub modified: Option<SystemTime>,
    /// When the store was last asked for it.
    pub asked: Option<Instant>,
}

impl Inode {
    /// Makes the inode of a record, to which nothing refers yet.
    pub(super) fn new(key: Key, told_size: u64) -> Self {
        Self {
            key,
            lookups: 0,
            opens: 0,
            detached: false,
            superseded: false,
            gone: false,
            told_size,
            told_several: false,
            more: None,
        }
    }

    fn more(&self) -> More {
        self.more.as_deref().copied().unwrap_or_default()
    }

    fn change(&mut self, change: impl FnOnce(&mut More)) {
        let mut more = self.more();
        change(&mut more);
        if more == More::default() {
            self.more = None;
        } else {
            **self.more.get_or_insert_default() = more;
        }
    }

    /// Returns the version that the kernel may hold pages of, and its exact size.
    ///
    /// INVARIANT: while `opens > 0`, every handle of this inode reads this version.
    pub fn version(&self) -> Option<(VersionId, u64)> {
        self.more.as_ref()?.version
    }

    /// Returns what programs have set.
    pub fn shown(&self) -> Shown {
        self.more().shown
    }

    /// Changes what programs have set.
    pub fn show(&mut self, change: impl FnOnce(&mut Shown)) {
        self.change(|more| change(&mut more.shown));
    }

    /// Returns the size that the kernel believes; `None` if it may be one of several.
    pub fn told_size(&self) -> Option<u64> {
        (!self.told_several).then_some(self.told_size)
    }

    /// Notes that an answer with this size goes to the kernel.
    pub fn tell_size(&mut self, size: u64) {
        self.told_several |= self.told_size != size;
        self.told_size = size;
    }

    /// Notes that the kernel has this size, whatever is still on its way to it.
    pub fn settle_size(&mut self, size: u64) {
        self.told_several = false;
        self.told_size = size;
    }

    /// Notes that the kernel has changed the size itself, or asks for it each time.
    pub fn follow_size(&mut self, size: u64) {
        self.told_size = size;
    }

    /// Changes the version, of which nothing else is known.
    pub fn set_version(&mut self, version: Option<(VersionId, u64)>) {
        self.change(|more| {
            more.version = version;
            more.opened = OpenedVersion::default();
        });
    }

    /// Returns the store's data of the version.
    pub fn opened(&self) -> OpenedVersion {
        self.more().opened
    }

    /// Changes the version to one that is being opened.
    pub fn open_version(&mut self, version: (VersionId, u64), opened: OpenedVersion) {
        self.change(|more| {
            more.version = Some(version);
            more.opened = opened;
        });
    }

    /// Returns whether an open is telling the kernel of its version: others then wait.
    pub fn is_settling(&self) -> bool {
        self.more().settling
    }

    /// Begins or ends that.
    pub fn set_settling(&mut self, settling: bool) {
        self.change(|more| more.settling = settling);
    }

    /// Returns whether the kernel reads the open handles' content from its file.
    pub fn is_direct(&self) -> bool {
        self.more().direct
    }

    /// Notes whether it does. Not while any handle is open.
    pub fn set_direct(&mut self, direct: bool) {
        self.change(|more| more.direct = direct);
    }

    /// Returns whether the kernel does not know that its file was renamed, deleted or replaced.
    pub fn moved_unseen(&self) -> bool {
        self.more().moved_unseen
    }

    /// Notes whether the kernel does not know that.
    pub fn set_moved_unseen(&mut self, moved_unseen: bool) {
        self.change(|more| more.moved_unseen = moved_unseen);
    }
}

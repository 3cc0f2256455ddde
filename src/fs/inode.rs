//! One inode: what the kernel holds of it, and what it was told.

use std::time::{Duration, Instant, SystemTime};

use super::types::{Resolved, Shown};
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
    /// Whether the kernel is being told of this version at the moment: by an open, or because what was
    /// written was given up.
    ///
    /// INVARIANT: while set, that open is the only one, and the kernel has no pages that a program
    /// reads: other opens wait, so that none is told to keep pages that are about to be dropped.
    settling: bool,
    /// Whether the kernel reads the open handles' content from its file: all or none of them.
    direct: bool,
    /// When its file was last renamed, deleted or replaced here.
    moved: Option<Instant>,
    /// When that last happened without the kernel's knowledge: the program that did it had been ended.
    moved_unseen: Option<Instant>,
    /// When the kernel was first told of the inode since.
    found: Option<Instant>,
    /// Whether the kernel may believe another size than that of the file.
    doubt: Doubt,
    /// Whether pages of the kernel have bytes at a wrong place: opens wait until it has forgotten them.
    misplaced: Misplaced,
    shown: Shown,
    opened: OpenedVersion,
}

/// Whether the kernel may believe another size than that of the file, until an answer tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Doubt {
    /// It believes what it was told.
    #[default]
    Nothing,
    /// It may believe a larger size: only answers make it smaller.
    Larger,
    /// It may believe any: what it wrote was given up, or is at another place.
    Any,
}

/// Whether the kernel has pages with bytes at a wrong place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Misplaced {
    /// It has none.
    #[default]
    Nothing,
    /// It has.
    Pages,
    /// A thread has it forget them.
    BeingForgotten,
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

impl More {
    fn lacks_found(&self) -> bool {
        self.moved_unseen.is_some() && self.found.is_none()
    }
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
        let is_known = !self.told_several && self.doubt() != Doubt::Any;
        is_known.then_some(self.told_size)
    }

    /// Notes that an answer with this size goes to the kernel.
    pub fn tell_size(&mut self, size: u64) {
        self.told_several |= self.told_size != size;
        self.told_size = size;
        self.trust_size();
    }

    /// Notes that the kernel may believe any size, and has forgotten all that it was told.
    pub fn lose_size(&mut self) {
        self.change(|more| more.doubt = Doubt::Any);
    }

    /// Notes that the kernel may believe a larger size.
    pub fn doubt_size(&mut self) {
        self.change(|more| more.doubt = Doubt::Larger);
    }

    /// Notes that an answer tells the kernel the size.
    pub fn trust_size(&mut self) {
        let doubt = self.doubt();
        if doubt != Doubt::Nothing {
            // It was not told any since it has forgotten all.
            self.told_several &= doubt != Doubt::Any;
            self.change(|more| more.doubt = Doubt::Nothing);
        }
    }

    fn doubt(&self) -> Doubt {
        self.more.as_ref().map_or(Doubt::Nothing, |more| more.doubt)
    }

    /// Returns whether the kernel may believe another size than that of the file.
    pub fn is_size_doubted(&self) -> bool {
        self.doubt() != Doubt::Nothing
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

    /// Returns whether the kernel is being told of the version: opens then wait.
    pub fn is_settling(&self) -> bool {
        let more = self.more();
        more.settling || more.misplaced != Misplaced::Nothing
    }

    /// Begins or ends that.
    pub fn set_settling(&mut self, settling: bool) {
        self.change(|more| more.settling = settling);
    }

    /// Notes that the kernel is getting pages with bytes at a wrong place, and believes a wrong size.
    /// Returns whether it is to be told; else a thread is about to.
    pub fn misplace(&mut self) -> bool {
        self.lose_size();
        let before = self.more().misplaced;
        self.change(|more| more.misplaced = Misplaced::Pages);
        before == Misplaced::Nothing
    }

    /// Begins to have the kernel forget such pages; returns whether there are any.
    pub fn begin_forgetting(&mut self) -> bool {
        let any = self.more().misplaced == Misplaced::Pages;
        if any {
            self.change(|more| more.misplaced = Misplaced::BeingForgotten);
        }
        any
    }

    /// Notes that the kernel has forgotten them, if there are no more of them since.
    pub fn end_forgetting(&mut self) {
        self.lose_size();
        self.change(|more| {
            if more.misplaced == Misplaced::BeingForgotten {
                more.misplaced = Misplaced::Nothing;
            }
        });
    }

    /// Returns whether the kernel reads the open handles' content from its file.
    pub fn is_direct(&self) -> bool {
        self.more().direct
    }

    /// Notes whether it does. Not while any handle is open.
    pub fn set_direct(&mut self, direct: bool) {
        self.change(|more| more.direct = direct);
    }

    /// Notes that its file is being renamed, deleted or replaced, and whether the kernel learns that.
    pub fn moves(&mut self, seen: bool) {
        let now = Some(Instant::now());
        self.change(|more| {
            more.moved = now;
            if !seen {
                (more.moved_unseen, more.found) = (now, None);
            }
        });
    }

    /// Notes that an answer tells the kernel a name of the inode.
    pub fn told_name(&mut self) {
        if self.more.as_ref().is_some_and(|more| more.lacks_found()) {
            self.change(|more| more.found = Some(Instant::now()));
        }
    }

    /// Returns whether the kernel may mean another file by this inode: it came to it by a name that has
    /// led elsewhere since. Entries that it is told hold for `entries`; `None` is forever.
    pub fn is_misnamed(&self, resolved: Resolved, entries: Option<Duration>) -> bool {
        let Some(more) = self.more.as_deref() else {
            return false;
        };
        let since = |at: Instant| more.moved.is_some_and(|moved| moved > at);
        match (resolved, more.moved_unseen) {
            (Resolved::Entry(came), None) | (Resolved::Unknown(came), None) => since(came),
            (Resolved::Entry(came), Some(unseen)) => {
                let may_be_older = |hold| came.saturating_duration_since(unseen) <= hold;
                since(came) || entries.is_none_or(may_be_older)
            }
            (Resolved::Unknown(came), Some(_)) => {
                since(came) || more.found.is_none_or(|found| found > came)
            }
            // Whoever sees a rename may as well have opened the file before it: a second stale answer
            // would be an error.
            (Resolved::LookedUp(_), None) => false,
            (Resolved::LookedUp(at), Some(unseen)) => unseen > at,
        }
    }
}

//! What `stat` shows.

use std::time::{Duration, SystemTime};

use super::inode::Inode;
use super::types::{Attr, AttrReply, FileKind, Ino, Shown};
pub(super) use super::view::Existence;
use super::view::Facts;
use super::write::draft::{Draft, Place};
use super::{FOREVER, FsError, KvFs, Result};
use crate::base::clock::Wait;
use crate::cache::content::VersionId;
use crate::cache::records::Peek;
use crate::listing::Found;
use crate::store::Key;

impl KvFs {
    /// Returns the attributes of an inode.
    ///
    /// Those of an open file are of the version that is open; others are asked for again when
    /// they are older than the metadata TTL.
    ///
    /// # Errors
    /// [`FsError::NoEntry`] when the record is gone; errors of the store.
    pub fn getattr(&self, ino: Ino, wait: Wait) -> Result<AttrReply> {
        if ino == Ino::ROOT {
            return Ok(self.root_attributes());
        }
        if let Some(draft) = self.draft(ino) {
            return Ok(self.draft_attributes(&draft));
        }
        let (key, open, modified) = {
            let inodes = self.inodes.lock();
            let inode = inodes.get(ino).ok_or(FsError::Stale)?;
            let open = inode
                .version()
                .filter(|_| inode.opens > 0 || inode.detached);
            (inode.key.clone(), open, inode.opened().modified)
        };
        let mut reply = if let Some((version, size)) = open {
            let modified = modified.unwrap_or_else(|| self.modified_of(&key, version));
            let ttl = self.records.config().ttl.unwrap_or(FOREVER);
            let mut attr = Attr {
                ino,
                size,
                modified,
                kind: FileKind::File,
                links: 1,
                shown: Shown::default(),
            };
            apply_overrides(&mut attr, self.inodes.lock().get(ino));
            AttrReply { attr, ttl }
        } else {
            let facts = match self.existence(&key) {
                Existence::Present(facts) if !self.wants_exact(&key, &facts) => facts,
                Existence::Absent(_) => return Err(FsError::NoEntry),
                _ => self.find_out(&key, wait)?,
            };
            let mut reply = self.attributes_of(ino, &facts);
            apply_overrides(&mut reply.attr, self.inodes.lock().get(ino));
            reply
        };
        if let Some(inode) = self.inodes.lock().get_mut(ino) {
            // A program may have opened it meanwhile.
            if let Some((_, size)) = inode.version().filter(|_| inode.opens > 0) {
                reply.attr.size = size;
            }
            inode.tell_size(reply.attr.size);
        }
        Ok(reply)
    }

    /// Returns the time of an open version of which the inode does not know it.
    fn modified_of(&self, key: &Key, version: VersionId) -> SystemTime {
        match self.records.recall(key) {
            Peek::Present(known) if known.version == version => known.modified,
            _ => self.records.unknown_time(),
        }
    }

    pub(super) fn root_attributes(&self) -> AttrReply {
        let mut attr = Attr {
            ino: Ino::ROOT,
            size: 0,
            modified: self.records.store_modified(),
            kind: FileKind::Directory,
            links: 2,
            shown: Shown::default(),
        };
        let mut ttl = FOREVER;
        if let Some(side) = &self.writing {
            let (shown, changed) = *side.root.lock();
            attr.modified = shown.modified.or(changed).unwrap_or(attr.modified);
            attr.shown = shown;
            ttl = Duration::ZERO;
        }
        AttrReply { attr, ttl }
    }

    /// Returns the attributes of a file that this mount has changed.
    pub(super) fn draft_attributes(&self, draft: &Draft) -> AttrReply {
        let mut inodes = self.inodes.lock();
        let mut attr = Attr {
            ino: draft.ino,
            size: draft.size(),
            modified: draft.modified(),
            kind: FileKind::File,
            links: 1,
            shown: Shown::default(),
        };
        // It may have been given up meanwhile.
        let is_current = self
            .draft(draft.ino)
            .is_some_and(|current| std::ptr::eq(&*current, draft));
        if let Some(inode) = inodes.get_mut(draft.ino) {
            inode.follow_size(attr.size);
            if is_current {
                inode.trust_size();
            }
        }
        apply_overrides(&mut attr, inodes.get(draft.ino));
        // The kernel sees its own writes; others must be asked for.
        AttrReply {
            attr,
            ttl: Duration::ZERO,
        }
    }

    /// Gives a changed file its entry, counted as held by the kernel.
    pub(super) fn enter_draft(&self, draft: &Draft) -> AttrReply {
        let (key, named) = match draft.place() {
            Place::Record(key) => (Some(key), true),
            Place::Scratch(name) => (Key::new(name.to_string_lossy()), false),
            Place::Gone => (None, false),
        };
        if let Some(key) = key {
            self.inodes.lock().add(draft.ino, &key, named);
        }
        self.draft_attributes(draft)
    }

    pub(super) fn attributes_of(&self, ino: Ino, facts: &Facts) -> AttrReply {
        let attr = Attr {
            ino,
            // Never 0 for a size that is not known: tar would not even open the file.
            size: facts.size.unwrap_or(1),
            modified: facts
                .modified
                .unwrap_or_else(|| self.records.unknown_time()),
            kind: FileKind::File,
            links: 1,
            shown: Shown::default(),
        };
        AttrReply {
            attr,
            ttl: facts.ttl,
        }
    }

    /// Returns whether this size must first be made exact (`--exact-sizes`).
    pub(super) fn wants_exact(&self, key: &Key, facts: &Facts) -> bool {
        self.config.exact_sizes && !facts.staged && !self.records.config().raw && {
            let exact = match facts.version {
                Some(_) => self.records.recall(key).known_size(),
                None => None,
            };
            exact
                .or_else(|| self.records.exact_size(key, facts.stored))
                .is_none()
        }
    }

    /// Asks the store about a record.
    pub(super) fn ask(&self, key: &Key, wait: Wait) -> Result<Facts> {
        let learnt = if self.config.exact_sizes {
            let learnt = self.records.learn_size(key, wait)?;
            if learnt.is_none()
                && let Existence::Present(facts) = self.existence(key)
            {
                return Ok(facts);
            }
            learnt
        } else {
            None
        };
        let known = match learnt {
            Some(known) => known,
            None => self.records.attributes(key, wait)?,
        };
        let listed = match self.listing.find(key) {
            Found::Listed(entry, _) => Some(Ino(entry.ino)),
            _ => None,
        };
        Ok(self.facts_of_known(&known, listed))
    }
}

/// Adds what an inode remembers besides its record.
pub(super) fn apply_overrides(attr: &mut Attr, inode: Option<&Inode>) {
    let Some(inode) = inode else { return };
    attr.links = u32::from(!inode.gone);
    attr.shown = inode.shown();
    attr.modified = attr.shown.modified.unwrap_or(attr.modified);
}

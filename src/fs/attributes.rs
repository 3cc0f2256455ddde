//! What `stat` shows.

use std::time::{Duration, Instant, SystemTime};

use super::inode::Inode;
use super::types::{Attr, AttrReply, FileKind, Ino, Shown};
use super::write::draft::{Draft, Place};
use super::write::overlay::{Change, Name};
use super::{FOREVER, FsError, KvFs, Result};
use crate::base::clock::Wait;
use crate::cache::records::{Known, Peek};
use crate::listing::{Entry, Found};
use crate::store::Key;

/// What is known of a record at the moment, for its attributes.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) size: Option<u64>,
    pub(super) modified: Option<SystemTime>,
    /// Its number in the listing.
    pub(super) listed: Option<Ino>,
    /// For so long this may be believed.
    pub(super) ttl: Duration,
    /// Whether the size is that of a staging file.
    pub(super) staged: bool,
}

/// Whether a record exists, as far as memory knows.
#[derive(Debug)]
pub(super) enum Existence {
    Present(Facts),
    Absent(Duration),
    Unknown,
}

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
        let (key, open) = {
            let inodes = self.inodes.lock();
            let inode = inodes.get(ino).ok_or(FsError::Stale)?;
            (
                inode.key.clone(),
                inode
                    .version()
                    .filter(|_| inode.opens > 0 || inode.detached),
            )
        };
        let mut reply = if let Some((version, size)) = open {
            let modified = match self.records.peek(&key) {
                Peek::Present(known) if known.version == version => known.modified,
                _ => self.modified_of(&key),
            };
            let ttl = self.records.config().ttl.unwrap_or(FOREVER);
            let mut attr = Attr {
                ino,
                size,
                modified,
                kind: FileKind::File,
                links: 1,
                shown: Shown::default(),
            };
            dress(&mut attr, self.inodes.lock().get(ino));
            AttrReply { attr, ttl }
        } else {
            let facts = match self.existence(&key) {
                Existence::Present(facts) if !self.wants_exact(&key, &facts) => facts,
                Existence::Absent(_) => return Err(FsError::NoEntry),
                _ => self.ask(&key, wait)?,
            };
            let mut reply = self.attributes_of(ino, &facts);
            dress(&mut reply.attr, self.inodes.lock().get(ino));
            reply
        };
        if let Some(inode) = self.inodes.lock().get_mut(ino) {
            // Somebody may have opened it meanwhile.
            if let Some((_, size)) = inode.version().filter(|_| inode.opens > 0) {
                reply.attr.size = size;
            }
            inode.tell_size(reply.attr.size);
        }
        Ok(reply)
    }

    fn modified_of(&self, key: &Key) -> SystemTime {
        let listing = self.listing.lock().clone();
        match listing.map(|listing| listing.find(key)) {
            Some(Found::Listed(
                Entry {
                    modified: Some(modified),
                    ..
                },
                _,
            )) => modified,
            _ => self.records.store_modified(),
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
        let mut attr = Attr {
            ino: draft.ino,
            size: draft.size(),
            modified: draft.modified(),
            kind: FileKind::File,
            links: 1,
            shown: Shown::default(),
        };
        let mut inodes = self.inodes.lock();
        if let Some(inode) = inodes.get_mut(draft.ino) {
            inode.follow_size(attr.size);
        }
        dress(&mut attr, inodes.get(draft.ino));
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
                .unwrap_or_else(|| self.records.store_modified()),
            kind: FileKind::File,
            links: 1,
            shown: Shown::default(),
        };
        AttrReply {
            attr,
            ttl: facts.ttl,
        }
    }

    /// Tells whether these sizes must first be made exact (`--exact-sizes`).
    pub(super) fn wants_exact(&self, key: &Key, facts: &Facts) -> bool {
        self.config.exact_sizes && !facts.staged && !self.records.config().raw && {
            let exact = match self.records.peek(key) {
                Peek::Present(known) => known.size.is_some(),
                _ => self.records.exact_size(key, facts.size).is_some(),
            };
            !exact
        }
    }

    /// Returns what memory knows of a record; makes no request.
    pub(super) fn existence(&self, key: &Key) -> Existence {
        let listing = self.listing.lock().clone();
        let found = listing
            .as_ref()
            .map_or(Found::Unknown, |listing| listing.find(key));
        let peek = self.records.peek(key);
        let since = listing.as_ref().map(|listing| listing.started);
        if let Some(known) = self.changed_here(key, since, &peek) {
            return known;
        }
        match (peek, found) {
            (Peek::Present(known), found) => Existence::Present(self.facts(&known, &found)),
            // Whichever is younger decides; both are within the TTL.
            (Peek::Unknown | Peek::Absent, Found::Listed(entry, at))
                if self.records.is_fresh(at) =>
            {
                Existence::Present(self.facts_of_entry(&entry, self.believed(at)))
            }
            (Peek::Absent, _) => Existence::Absent(self.records.config().ttl.unwrap_or(FOREVER)),
            (Peek::Unknown, Found::Absent(at)) if self.records.is_fresh(at) => {
                Existence::Absent(self.believed(at))
            }
            _ => Existence::Unknown,
        }
    }

    /// Returns what this mount knows of a record because it has changed it itself, as far as
    /// that is younger than a listing begun at `since`.
    fn changed_here(&self, key: &Key, since: Option<Instant>, peek: &Peek) -> Option<Existence> {
        let side = self.writing.as_ref()?;
        if let Some(draft) = self.dirty_draft(key) {
            return Some(Existence::Present(staged_facts(&draft)));
        }
        if side.drafts.is_hidden(key) {
            return Some(Existence::Absent(Duration::ZERO));
        }
        if matches!(peek, Peek::Present(_)) {
            return None;
        }
        let name = Name::Record(key.clone());
        let (at, change) = side.overlay.lock().get(&name, since)?;
        if !self.records.is_fresh(at) {
            return None;
        }
        Some(match change {
            Change::Absent => Existence::Absent(self.believed(at)),
            Change::Present {
                ino,
                size,
                modified,
            } => Existence::Present(Facts {
                size: Some(size),
                modified: Some(modified),
                listed: Some(ino),
                ttl: self.believed(at),
                staged: true,
            }),
        })
    }

    /// Returns the facts of a listed record, or `None` if it is gone by now; `since` is when the
    /// listing was begun.
    pub(super) fn facts_of_listed(
        &self,
        entry: &Entry,
        ttl: Duration,
        since: Instant,
    ) -> Option<Facts> {
        let Some(side) = &self.writing else {
            return Some(self.facts_of_entry(entry, ttl));
        };
        if let Some(draft) = self.dirty_draft(&entry.key) {
            return Some(staged_facts(&draft));
        }
        if side.drafts.is_hidden(&entry.key) {
            return None;
        }
        let name = Name::Record(entry.key.clone());
        let change = side.overlay.lock().get(&name, Some(since));
        match (change, self.records.peek(&entry.key)) {
            (Some((_, Change::Absent)), Peek::Present(_)) | (None, _) => {
                Some(self.facts_of_entry(entry, ttl))
            }
            (Some((_, Change::Absent)), _) => None,
            (Some((_, Change::Present { ino, .. })), Peek::Present(known)) => Some(Facts {
                listed: Some(ino),
                ..self.facts(&known, &Found::Unknown)
            }),
            (
                Some((
                    _,
                    Change::Present {
                        ino,
                        size,
                        modified,
                    },
                )),
                _,
            ) => Some(Facts {
                size: Some(size),
                modified: Some(modified),
                listed: Some(ino),
                ttl: Duration::ZERO,
                staged: true,
            }),
        }
    }

    pub(super) fn facts_of_entry(&self, entry: &Entry, ttl: Duration) -> Facts {
        let size = self
            .records
            .exact_size(&entry.key, entry.stored_size)
            .or(entry.stored_size);
        let modified = match self.records.peek(&entry.key) {
            Peek::Present(known) => Some(known.modified),
            _ => entry.modified,
        };
        Facts {
            size,
            modified,
            listed: Some(Ino(entry.ino)),
            ttl,
            staged: false,
        }
    }

    fn facts(&self, known: &Known, found: &Found) -> Facts {
        Facts {
            size: known.size.or(known.meta.stored_size),
            modified: Some(known.modified),
            listed: match found {
                Found::Listed(entry, _) => Some(Ino(entry.ino)),
                _ => None,
            },
            ttl: self.believed(known.validated),
            staged: false,
        }
    }

    /// Asks the store about a record.
    pub(super) fn ask(&self, key: &Key, wait: Wait) -> Result<Facts> {
        if self.config.exact_sizes {
            self.records.content(key, wait)?;
        }
        let known = self.records.attributes(key, wait)?;
        let listing = self.listing.lock().clone();
        let found = listing.map_or(Found::Unknown, |listing| listing.find(key));
        Ok(self.facts(&known, &found))
    }
}

/// Returns what is known of a file whose newest bytes are in a staging file.
fn staged_facts(draft: &Draft) -> Facts {
    Facts {
        size: Some(draft.size()),
        modified: Some(draft.modified()),
        listed: Some(draft.ino),
        ttl: Duration::ZERO,
        staged: true,
    }
}

/// Adds what an inode remembers beside its record.
pub(super) fn dress(attr: &mut Attr, inode: Option<&Inode>) {
    let Some(inode) = inode else { return };
    attr.links = u32::from(!inode.gone);
    attr.shown = inode.shown();
    attr.modified = attr.shown.modified.unwrap_or(attr.modified);
}

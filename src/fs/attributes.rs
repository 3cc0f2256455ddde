//! What `stat` shows.

use std::time::{Duration, SystemTime};

use super::types::{Attr, AttrReply, FileKind, Ino};
use super::{FOREVER, FsError, KvFs, Result};
use crate::cache::listing::{Entry, Found};
use crate::cache::records::{Known, Peek};
use crate::clock::Wait;
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
        let reply = if let Some((version, size)) = open {
            let modified = match self.records.peek(&key) {
                Peek::Present(known) if known.version == version => known.modified,
                _ => self.modified_of(&key),
            };
            let ttl = self.records.config().ttl.unwrap_or(FOREVER);
            AttrReply {
                attr: Attr {
                    ino,
                    size,
                    modified,
                    kind: FileKind::File,
                },
                ttl,
            }
        } else {
            let facts = match self.existence(&key) {
                Existence::Present(facts) if !self.wants_exact(&key, &facts) => facts,
                Existence::Absent(_) => return Err(FsError::NoEntry),
                _ => self.ask(&key, wait)?,
            };
            self.attributes_of(ino, &facts)
        };
        if let Some(inode) = self.inodes.lock().get_mut(ino) {
            inode.told_size = reply.attr.size;
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
        let attr = Attr {
            ino: Ino::ROOT,
            size: 0,
            modified: self.records.store_modified(),
            kind: FileKind::Directory,
        };
        AttrReply { attr, ttl: FOREVER }
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
        };
        AttrReply {
            attr,
            ttl: facts.ttl,
        }
    }

    /// Tells whether these sizes must first be made exact (`--exact-sizes`).
    pub(super) fn wants_exact(&self, key: &Key, facts: &Facts) -> bool {
        self.config.exact_sizes && !self.records.config().raw && {
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

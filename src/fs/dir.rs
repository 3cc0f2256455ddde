//! Reading the directory: one paged listing, shared by all who read it within the TTL.

use std::ffi::OsStr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::attributes::{Existence, Facts};
use super::handle::DirHandle;
use super::types::{Attr, AttrReply, DirSink, Fh, FileKind, Ino, Shown};
use super::write::overlay::{Change, Name};
use super::{FsError, KvFs, Result, name};
use crate::base::clock::Wait;
use crate::listing::{Entry, Found, Listing, Page};
use crate::metrics::origin::{self, Origin};
use crate::store::Key;

/// Offsets 1 and 2 follow `.` and `..`; entry `i` of the listing is followed by offset `i + 3`.
const DOTS: u64 = 2;
/// Offsets from here on follow names that this mount has made since the listing was begun.
const MADE_HERE: u64 = 1 << 48;
/// With `--exact-sizes`, records asked about at once.
const EXACT_AT_ONCE: usize = 16;
/// With `--exact-sizes`, records asked about before the first is shown.
const EXACT_BATCH: usize = 128;

impl KvFs {
    /// Opens a directory. A listing older than the TTL is begun anew; nothing is requested yet.
    ///
    /// # Errors
    /// [`FsError::WrongKind`] for anything but a directory.
    pub fn opendir(&self, ino: Ino) -> Result<Fh> {
        if ino != Ino::ROOT {
            return Err(FsError::WrongKind(libc::ENOTDIR));
        }
        let listing = self.current_listing();
        Ok(self.handles.lock().add_dir(DirHandle { listing }))
    }

    pub(super) fn current_listing(&self) -> Arc<Listing> {
        let mut current = self.listing.lock();
        match &*current {
            Some(listing) if self.records.is_fresh(listing.started) => Arc::clone(listing),
            _ => {
                let listing = Listing::new(self.source(), self.clock.now(), current.take());
                *current = Some(Arc::clone(&listing));
                drop(current);
                self.prune_overlay(listing.started);
                listing
            }
        }
    }

    /// Closes a directory.
    pub fn releasedir(&self, fh: Fh) {
        let handle = self.handles.lock().remove_dir(fh);
        drop(handle);
    }

    /// Writes entries from `offset` on into `sink` until it is full or the listing ends.
    ///
    /// With `plus`, every entry counts as a lookup of the kernel's.
    ///
    /// # Errors
    /// Those of the store, when not a single entry could be had.
    pub fn readdir(
        &self,
        fh: Fh,
        offset: u64,
        plus: bool,
        sink: &mut dyn DirSink,
        wait: Wait,
    ) -> Result<()> {
        let handle = self.handles.lock().dir(fh).ok_or(FsError::BadHandle)?;
        if offset >= MADE_HERE {
            self.add_made_here(&handle.listing, offset - MADE_HERE, plus, sink);
            return Ok(());
        }
        let mut index = offset.saturating_sub(DOTS);
        let start = index;
        // Before the first entry goes out: a call that would block must have added nothing.
        let mut next_page = self.page(&handle.listing, index, wait)?;
        let root = self.root_attributes();
        for (at, dot) in [".", ".."]
            .iter()
            .enumerate()
            .skip(usize::try_from(offset).unwrap_or(usize::MAX))
        {
            if sink.add(
                Ino::ROOT,
                at as u64 + 1,
                FileKind::Directory,
                OsStr::new(dot),
                &root,
            ) {
                return Ok(());
            }
        }
        while let Some(page) = next_page {
            let first = usize::try_from(index - page.first).unwrap_or(usize::MAX);
            for (at, entry) in page.entries(first).enumerate() {
                if plus
                    && self.config.exact_sizes
                    && at % EXACT_BATCH == 0
                    && let Err(error) = self.make_exact(first + at, &page, wait)
                {
                    return if index > start { Ok(()) } else { Err(error) };
                }
                let since = handle.listing.started;
                if self.add_entry(&entry, &page, since, index + DOTS + 1, plus, sink) {
                    return Ok(());
                }
                index += 1;
            }
            next_page = match self.page(&handle.listing, index, wait) {
                // What is there is handed out; the next call waits, or gets the error.
                Err(_) if index > start => return Ok(()),
                page => page?,
            };
        }
        self.add_made_here(&handle.listing, 0, plus, sink);
        Ok(())
    }

    /// Adds the names that this mount has made and the listing does not show, after place `after`.
    fn add_made_here(&self, listing: &Listing, after: u64, plus: bool, sink: &mut dyn DirSink) {
        let Some(side) = &self.writing else { return };
        let is_younger = |made: &Name| {
            let overlay = side.overlay.lock();
            overlay.get(made, Some(listing.started)).is_some()
        };
        let mut at = after;
        loop {
            let Some((number, made, change)) = side.overlay.lock().next(at) else {
                return;
            };
            at = number;
            let Change::Present {
                ino,
                size,
                modified,
            } = change
            else {
                continue;
            };
            let (name, reply) = match &made {
                Name::Scratch(name) => {
                    let Some(draft) = side.drafts.of_scratch(name) else {
                        continue;
                    };
                    (name.clone(), plus.then(|| self.enter_draft(&draft)))
                }
                Name::Record(key) => {
                    if matches!(listing.find(key), Found::Listed(..)) {
                        continue;
                    }
                    let facts = match self.existence(key) {
                        Existence::Present(facts) => facts,
                        Existence::Absent(_) => continue,
                        // Begun after this mount stored it, the listing would show it if nobody
                        // else had deleted it.
                        Existence::Unknown if !is_younger(&made) => continue,
                        Existence::Unknown => Facts {
                            size: Some(size),
                            modified: Some(modified),
                            listed: Some(ino),
                            ttl: Duration::ZERO,
                            staged: true,
                        },
                    };
                    let reply = plus.then(|| self.enter(key, &facts));
                    (name::of_key(key).into(), reply)
                }
            };
            let ino = reply.as_ref().map_or(ino, |reply| reply.attr.ino);
            let shown = reply.unwrap_or_else(|| nameless(ino));
            if sink.add(ino, MADE_HERE + number, FileKind::File, &name, &shown) {
                if plus {
                    self.forget(ino, 1);
                }
                return;
            }
        }
    }

    /// Waits until [`KvFs::readdir`] can answer from memory.
    ///
    /// # Errors
    /// Those that it would return.
    pub fn await_dir(&self, fh: Fh, offset: u64, plus: bool, wait: Wait) -> Result<()> {
        self.readdir(fh, offset, plus, &mut Unwilling, wait)
    }

    /// Adds one entry; `true` when it did not fit.
    fn add_entry(
        &self,
        entry: &Entry,
        page: &Page,
        since: Instant,
        next: u64,
        plus: bool,
        sink: &mut dyn DirSink,
    ) -> bool {
        let name = name::of_key(&entry.key);
        let Some(facts) = self.facts_of_listed(entry, self.believed(page.fetched), since) else {
            return false;
        };
        if !plus {
            let ino = self.inodes.lock().number(&entry.key, facts.listed);
            let reply = nameless(ino);
            return sink.add(ino, next, FileKind::File, OsStr::new(&name), &reply);
        }
        let reply = self.enter(&entry.key, &facts);
        let full = sink.add(
            reply.attr.ino,
            next,
            FileKind::File,
            OsStr::new(&name),
            &reply,
        );
        if full {
            self.forget(reply.attr.ino, 1);
        }
        full
    }

    pub(super) fn page(
        &self,
        listing: &Arc<Listing>,
        index: u64,
        wait: Wait,
    ) -> Result<Option<Arc<Page>>> {
        if !Self::no_wait(wait) {
            // Memory did not have it.
            origin::note(Origin::Network);
        }
        let number = |key: &str, before: Option<u64>| {
            let mut inodes = self.inodes.lock();
            match inodes.ino_of(key) {
                Some(ino) => ino.0,
                None => before.unwrap_or_else(|| inodes.fresh().0),
            }
        };
        Ok(listing.page(index, wait, &|| self.clock.now(), &number)?)
    }

    /// Lists until past `key`.
    pub(super) fn list_past(&self, key: &Key, wait: Wait) -> Result<()> {
        let listing = self.current_listing();
        while matches!(listing.find(key), Found::Unknown) {
            if self.page(&listing, listing.len(), wait)?.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// Learns the exact sizes of a few records of a page at once, from `from` on.
    fn make_exact(&self, from: usize, page: &Page, wait: Wait) -> Result<()> {
        let vague: Vec<Entry> = page
            .entries(from)
            .take(EXACT_BATCH)
            .filter(|entry| {
                let facts: Facts = self.facts_of_entry(entry, self.believed(page.fetched));
                self.wants_exact(&entry.key, &facts)
            })
            .collect();
        if vague.is_empty() {
            return Ok(());
        }
        if Self::no_wait(wait) {
            return Err(FsError::WouldBlock);
        }
        let ask = |entries: &[Entry]| {
            for entry in entries {
                // A record that cannot be had is listed all the same, as without the flag.
                match self.ask(&entry.key, wait) {
                    Ok(_) | Err(FsError::NoEntry) => {}
                    Err(error) => self.report("readdir", None, &error),
                }
            }
        };
        thread::scope(|scope| {
            for part in vague.chunks(vague.len().div_ceil(EXACT_AT_ONCE)) {
                scope.spawn(move || ask(part));
            }
        });
        Ok(())
    }
}

/// Returns what is said of an entry whose attributes nobody asked for.
fn nameless(ino: Ino) -> AttrReply {
    let attr = Attr {
        ino,
        size: 0,
        modified: std::time::SystemTime::UNIX_EPOCH,
        kind: FileKind::File,
        links: 1,
        shown: Shown::default(),
    };
    AttrReply {
        attr,
        ttl: std::time::Duration::ZERO,
    }
}

/// Takes no record: what is left of reading a directory is the waiting.
struct Unwilling;

impl DirSink for Unwilling {
    fn add(
        &mut self,
        _ino: Ino,
        _next: u64,
        kind: FileKind,
        _name: &OsStr,
        _attr: &AttrReply,
    ) -> bool {
        kind == FileKind::File
    }
}

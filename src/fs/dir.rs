//! Reads the directory: one paged listing, shared by all readers within the TTL.

use std::ffi::OsStr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use super::handle::DirHandle;
use super::types::{Attr, AttrReply, DirSink, Fh, FileKind, Ino, Shown};
use super::view::{Existence, Facts};
use super::write::overlay::{Change, Name};
use super::{FsError, KvFs, Result, name};
use crate::base::clock::Wait;
use crate::listing::{Entry, Found, Listing, Page};
use crate::metrics::origin::{self, Origin};
use crate::store::{ErrorKind, Key, StoreError};

/// Offsets 1 and 2 follow `.` and `..`; entry `i` of the listing is followed by offset `i + 3`.
const DOTS: u64 = 2;
/// Offsets from here on follow names that this mount has made since the listing was begun.
const MADE_HERE: u64 = 1 << 48;
/// With `--exact-sizes`, records asked about at once.
const EXACT_AT_ONCE: usize = 16;
/// With `--exact-sizes`, records asked about before the first is shown.
const EXACT_BATCH: usize = 128;

impl KvFs {
    /// Opens a directory. A listing older than the TTL is begun again; nothing is requested yet.
    ///
    /// # Errors
    /// [`FsError::WrongKind`] for anything but a directory.
    pub fn opendir(&self, ino: Ino) -> Result<Fh> {
        if ino != Ino::ROOT {
            return Err(FsError::WrongKind(libc::ENOTDIR));
        }
        let listing = self.current_listing();
        Ok(self.handles.lock().add_dir(DirHandle {
            listing: Mutex::new(listing),
        }))
    }

    pub(super) fn current_listing(&self) -> Arc<Listing> {
        let begin = |before| Listing::new(self.source(), self.clock.now(), before);
        let (listing, is_new) = self
            .listing
            .fresh(|listing| self.records.is_fresh(listing.started), begin);
        if is_new {
            self.prune_overlay(listing.started);
        }
        listing
    }

    /// Closes a directory.
    pub fn releasedir(&self, fh: Fh) {
        let handle = self.handles.lock().remove_dir(fh);
        drop(handle);
    }

    /// Writes entries from `offset` on into `sink` until it is full or the listing ends; waits for
    /// what the listing has not come to yet.
    ///
    /// # Errors
    /// As [`KvFs::await_dir`].
    #[cfg(feature = "testing")]
    pub fn readdir(
        &self,
        fh: Fh,
        offset: u64,
        plus: bool,
        sink: &mut dyn DirSink,
        wait: Wait,
    ) -> Result<()> {
        self.await_dir(fh, offset, plus, wait)?;
        let mut offset = offset;
        loop {
            let mut counting = Counting { sink, last: None };
            match self.fill_dir(fh, offset, plus, &mut counting) {
                Ok(true) if counting.last.is_some_and(|last| last != offset) => {
                    offset = counting.last.unwrap_or(offset);
                    self.await_dir(fh, offset, plus, wait)?;
                }
                Ok(_) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until [`KvFs::fill_dir`] can hand out an entry, or knows that there are no more.
    ///
    /// From the start, a listing that has become older than the TTL is replaced by the current one,
    /// so that reading a directory again shows what has come since.
    ///
    /// With `plus` on a mount with exact sizes, also until those of the first entries are known.
    ///
    /// # Errors
    /// Those of the store; never one that means the end of a directory.
    pub fn await_dir(&self, fh: Fh, offset: u64, plus: bool, wait: Wait) -> Result<()> {
        let handle = self.handles.lock().dir(fh).ok_or(FsError::BadHandle)?;
        if offset == 0 {
            let mut listing = handle.listing.lock();
            if !self.records.is_fresh_name(listing.started) {
                *listing = self.current_listing();
            }
        }
        let exact = (plus && self.config.exact_sizes).then_some(wait);
        self.walk(&handle, offset, false, &mut Unwilling, wait, exact)
            .map(drop)
            .map_err(not_the_end)
    }

    /// Writes entries from `offset` on into `sink`, as many as it takes and memory has; returns
    /// whether there may be more of them to wait for.
    ///
    /// With `plus`, every entry counts as a lookup of the kernel's.
    ///
    /// # Errors
    /// [`FsError::WouldBlock`] when memory has none: [`KvFs::await_dir`] waits for one.
    pub fn fill_dir(
        &self,
        fh: Fh,
        offset: u64,
        plus: bool,
        sink: &mut dyn DirSink,
    ) -> Result<bool> {
        let handle = self.handles.lock().dir(fh).ok_or(FsError::BadHandle)?;
        self.walk(&handle, offset, plus, sink, Wait::Never, None)
            .map_err(not_the_end)
    }

    /// Walks over the entries from `offset` on until `sink` has enough or, once it has some, until
    /// the next page must be waited for; returns whether it is that. `exact` is how long exact sizes
    /// may take, where they are wanted.
    fn walk(
        &self,
        handle: &DirHandle,
        offset: u64,
        plus: bool,
        sink: &mut dyn DirSink,
        wait: Wait,
        exact: Option<Wait>,
    ) -> Result<bool> {
        let listing = Arc::clone(&handle.listing.lock());
        if offset >= MADE_HERE {
            self.add_made_here(&listing, offset - MADE_HERE, plus, sink);
            return Ok(false);
        }
        let mut index = offset.saturating_sub(DOTS);
        let batch_end = index + EXACT_BATCH as u64;
        // Before the first entry goes out: a call that would block must have added nothing.
        let mut next_page = self.page(&listing, index, wait)?;
        let root = self.root_attributes();
        let mut has_some = false;
        for (at, dot) in [".", ".."]
            .iter()
            .enumerate()
            .skip(usize::try_from(offset).unwrap_or(usize::MAX))
        {
            let next = at as u64 + 1;
            if sink.add(Ino::ROOT, next, FileKind::Directory, OsStr::new(dot), &root) {
                return Ok(false);
            }
            has_some = true;
        }
        while let Some(page) = next_page {
            let first = usize::try_from(index - page.first).unwrap_or(usize::MAX);
            if let Some(wait) = exact {
                self.make_exact(first, &page, wait)?;
            }
            for entry in page.entries(first) {
                index += 1;
                match self.add_entry(&entry, &page, index + DOTS, plus, sink) {
                    Added::Full => return Ok(false),
                    Added::Gone => {}
                    Added::Yes => has_some = true,
                }
                // What lies behind has not been waited for.
                if plus && self.config.exact_sizes && has_some && index == batch_end {
                    return Ok(true);
                }
            }
            next_page = match self.page(&listing, index, wait) {
                // What is there is handed out; the next call waits, or gets the error.
                Err(_) if has_some => return Ok(true),
                page => page?,
            };
        }
        self.add_made_here(&listing, 0, plus, sink);
        Ok(false)
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
                        // Begun after this mount stored it, the listing would show it unless
                        // another writer had deleted it.
                        Existence::Unknown if !is_younger(&made) => continue,
                        Existence::Unknown => Facts {
                            size: Some(size),
                            stored: None,
                            modified: Some(modified),
                            listed: Some(ino),
                            version: None,
                            at: self.clock.now(),
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

    /// Adds one entry, unless it is gone by now.
    fn add_entry(
        &self,
        entry: &Entry,
        page: &Page,
        next: u64,
        plus: bool,
        sink: &mut dyn DirSink,
    ) -> Added {
        let name = name::of_key(&entry.key);
        let Some(facts) = self.facts_of_listed(entry, page.fetched) else {
            return Added::Gone;
        };
        let (ino, reply) = if plus {
            let reply = self.enter(&entry.key, &facts);
            (reply.attr.ino, reply)
        } else {
            let ino = self.inodes.lock().number(&entry.key, facts.listed);
            (ino, nameless(ino))
        };
        if !sink.add(ino, next, FileKind::File, OsStr::new(&name), &reply) {
            return Added::Yes;
        }
        if plus {
            self.forget(ino, 1);
        }
        Added::Full
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
        Ok(listing.page(index, wait, &number)?)
    }

    /// Lists until past `key`.
    pub(super) fn list_past(&self, key: &Key, wait: Wait) -> Result<()> {
        let listing = self.current_listing();
        while matches!(listing.find(key), Found::Unknown) {
            if self.page(&listing, listing.count(), wait)?.is_none() {
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
                let facts = self.facts_of_entry(entry, page.fetched);
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
                // A record that cannot be fetched is listed all the same, as without the flag.
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

/// Returns the reply for an entry without its attributes.
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

/// What became of an entry.
enum Added {
    Yes,
    /// It did not fit.
    Full,
    /// There is no such name any more.
    Gone,
}

/// Returns an error in a form that readers of a directory understand: `ENOENT` means its end there,
/// to every C library, and `EAGAIN` nothing at all.
fn not_the_end(error: FsError) -> FsError {
    match error {
        FsError::NoEntry => FsError::Store(StoreError::new(
            ErrorKind::StoreNotFound,
            "the server says that there is no such store",
        )),
        other => other,
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

/// Notes where what has been handed out ends.
#[cfg(feature = "testing")]
struct Counting<'a> {
    sink: &'a mut dyn DirSink,
    last: Option<u64>,
}

#[cfg(feature = "testing")]
impl DirSink for Counting<'_> {
    fn add(&mut self, ino: Ino, next: u64, kind: FileKind, name: &OsStr, attr: &AttrReply) -> bool {
        let full = self.sink.add(ino, next, kind, name, attr);
        if !full {
            self.last = Some(next);
        }
        full
    }
}

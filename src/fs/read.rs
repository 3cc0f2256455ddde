//! Opening, reading and closing files.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};

use super::handle::FileHandle;
use super::inode::{Inode, OpenedVersion};
use super::inodes::InodeTable;
use super::types::{Fh, Ino, KernelCache, NoKernel, Opened};
use super::write::draft::Place;
use super::{FsError, KvFs, Result};
use crate::base::clock::Wait;
use crate::cache::content::{Content, ContentReader, VersionId};
use crate::metrics::origin::{self, Origin};
use crate::store::{ErrorKind, StoreError};

/// The largest content that is pushed into the page cache when it is opened, in bytes: what one
/// message to the kernel carries well, and most records.
const PUSHED: usize = 128 << 10;
/// How often an open tries again when the download it found is given up at that moment.
const TRIES: u32 = 3;

/// What opening means for the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pages {
    /// They are of this version, and the kernel knows its size.
    Keep,
    /// There are none of another version, but the kernel may believe another size: this one, or
    /// any of several.
    Resize(Option<u64>),
    /// They are of another version, and so may be the size.
    Replace(Option<u64>),
}

/// What became of an open.
enum Entered {
    /// It is counted; so are its pages, and whether the kernel reads the file by itself.
    As(Pages, bool),
    /// Others have this version open, which is young enough.
    Beside(Arc<Content>),
    /// The file has become another version since its content was asked for: this mount has stored it.
    Outdated,
    /// It is not: the kernel may believe a larger size, and a program is about to write.
    Doubted,
}

/// The version that a file shows, if any, and its size.
type Shown = Option<(VersionId, u64)>;

/// Ends the time in which an open has an inode to itself, whatever came of it.
pub(super) struct Settling<'a>(pub(super) &'a KvFs, pub(super) Ino);

impl Drop for Settling<'_> {
    fn drop(&mut self) {
        if let Some(inode) = self.0.inodes.lock().get_mut(self.1) {
            inode.set_settling(false);
        }
        self.0.settled.notify_all();
    }
}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
    /// To write, by a system call that has got a stale open already: another one would be its error.
    WriteAgain,
}

impl KvFs {
    /// Opens a file for reading or writing, for a system call that begins now.
    ///
    /// # Errors
    /// As [`KvFs::open_since`] and [`KvFs::open_writing`].
    #[cfg(feature = "testing")]
    pub fn open(&self, ino: Ino, writing: bool, wait: Wait) -> Result<Opened> {
        if ino == Ino::ROOT {
            return Err(FsError::WrongKind(libc::EISDIR));
        }
        if writing {
            return self.open_writing(ino, false, wait);
        }
        self.open_since(ino, Some(Duration::ZERO), wait)
    }

    /// Opens a file for reading, for a system call that began `age` ago: its current version; the exact
    /// size is known from here on. Without `age` an open of the call was stale: the version that a
    /// program has open will do.
    ///
    /// When the record changed while other handles are on an older version, the name is taken
    /// from this inode and the open fails as stale: the kernel then looks the name up again,
    /// gets a new inode, and the two versions never share pages.
    ///
    /// # Errors
    /// [`FsError::Stale`] as said, and errors of the store.
    pub fn open_since(&self, ino: Ino, age: Option<Duration>, wait: Wait) -> Result<Opened> {
        if ino == Ino::ROOT {
            return Err(FsError::WrongKind(libc::EISDIR));
        }
        let now = self.clock.now();
        let since = age.map(|age| now.checked_sub(age).unwrap_or(now));
        self.open_as(ino, Access::Read, since, wait)
    }

    /// Opens the version that there is, as far as the store was asked for it at `since` or later, if
    /// that matters.
    pub(super) fn open_as(
        &self,
        ino: Ino,
        access: Access,
        since: Option<Instant>,
        wait: Wait,
    ) -> Result<Opened> {
        let writing = access != Access::Read;
        if let Some(opened) = self.open_draft(ino, access, wait)? {
            return Ok(opened);
        }
        let key = {
            let inodes = self.inodes.lock();
            let inode = inodes.get(ino).ok_or(FsError::Stale)?;
            // The name has led elsewhere since it was looked up, to the same record.
            if inode.detached && (writing || !inode.superseded) {
                return Err(FsError::Stale);
            }
            inode.key.clone()
        };
        let mut tries = 0;
        let (reader, size, pages, direct) = loop {
            tries += 1;
            // The last time, what there is will do.
            let shown =
                (tries < TRIES).then(|| self.inodes.lock().get(ino).and_then(Inode::version));
            let (content, asked) = self.records.content_asked(&key, wait)?;
            let reader = match content.reader() {
                Ok(reader) => reader,
                Err(error) if error.kind() != Some(ErrorKind::Changed) || tries == TRIES => {
                    return Err(error.into());
                }
                Err(_) => continue,
            };
            let size = content.known_size().ok_or(FsError::WouldBlock)?;
            let shared = (shown, access, since);
            match self.enter_version(ino, (&content, size), Some(asked), shared, wait)? {
                Entered::As(pages, direct) => break (reader, size, pages, direct),
                Entered::Outdated => {}
                Entered::Doubted => return Err(self.have_looked_up(ino)),
                // A program has the version open that the store had when this call had begun.
                Entered::Beside(content) => {
                    if let (Ok(reader), Some(size)) = (content.reader(), content.known_size())
                        && let Entered::As(pages, direct) =
                            self.enter_version(ino, (&content, size), None, shared, wait)?
                    {
                        break (reader, size, pages, direct);
                    }
                    if tries == TRIES {
                        return Err(FsError::Stale);
                    }
                }
            }
        };
        let content = reader.content();
        let settling = (pages != Pages::Keep).then(|| Settling(self, ino));
        let keep_cache = self.tell_kernel(ino, content, size, pages);
        if pages == Pages::Keep {
            self.metrics.cache_kernel_hits.one();
            origin::note(Origin::Kernel);
        }
        let opened = self.hand_out(ino, reader, writing, keep_cache, direct);
        // Waiting threads find the handle.
        drop(settling);
        self.prefetch_next(&key);
        Ok(opened)
    }

    /// From now on, whole contents in files may be read by the kernel itself. Not for mounts
    /// that write: the kernel then refuses to open such a file for writing as usual.
    pub fn allow_direct(&self) {
        self.direct.store(true, Ordering::Relaxed);
    }

    /// Notes that the kernel does not read an opened file by itself after all. Only before the open
    /// is answered, and not when another handle of the inode is read so.
    pub fn refuse_direct(&self, fh: Fh) {
        self.direct.store(false, Ordering::Relaxed);
        let Some(handle) = self.handles.lock().file(fh) else {
            return;
        };
        if let Some(inode) = self.inodes.lock().get_mut(handle.ino) {
            inode.set_direct(false);
        }
    }

    /// Opens a file that has changes which the store lacks; `None` for any other.
    fn open_draft(&self, ino: Ino, access: Access, wait: Wait) -> Result<Option<Opened>> {
        let changed = |fs: &Self| {
            let draft = fs.draft(ino)?;
            (draft.is_dirty() || !matches!(draft.place(), Place::Record(_))).then_some(())
        };
        if changed(self).is_none() {
            return Ok(None);
        }
        self.hold_open(ino, wait)?;
        // Only now it cannot be forgotten.
        if changed(self).is_none() {
            self.inodes.lock().closed(ino);
            return Ok(None);
        }
        let is_doubted = |inodes: &InodeTable| inodes.get(ino).is_some_and(Inode::is_size_doubted);
        if access == Access::Write && is_doubted(&self.inodes.lock()) {
            self.let_go(ino);
            return Err(self.have_looked_up(ino));
        }
        Ok(Some(self.hand_out_draft(ino, access != Access::Read)))
    }

    /// Has the kernel ask for the size of a file that a program opens to write to it: it puts what is
    /// appended where it believes the end to be. Returns the error that makes it look the name up again,
    /// which sets the size.
    fn have_looked_up(&self, ino: Ino) -> FsError {
        // Answers to earlier questions count no more.
        self.kernel().invalidate_attributes(ino);
        FsError::Stale
    }

    pub(super) fn kernel(&self) -> &dyn KernelCache {
        match self.kernel.get() {
            Some(kernel) => &**kernel,
            None => &NoKernel,
        }
    }

    /// Waits until the kernel has been told what there is of a file.
    pub(super) fn await_told(
        &self,
        inodes: &mut MutexGuard<'_, InodeTable>,
        ino: Ino,
        wait: Wait,
    ) -> Result<()> {
        while inodes.get(ino).is_some_and(Inode::is_settling) {
            let deadline = wait.deadline().ok_or(FsError::WouldBlock)?;
            if self
                .settled
                .wait_until(inodes, deadline.instant())
                .timed_out()
            {
                return Err(StoreError::new(
                    ErrorKind::Timeout,
                    "the kernel does not accept the record's new version",
                )
                .into());
            }
        }
        Ok(())
    }

    /// Counts an open of `content`, about which the store was asked at `asked`; of `shared` the first is
    /// which version the file was then, if that matters. Unless the pages can be kept, the caller then has
    /// the inode to itself and must let go of it when the kernel has been told.
    fn enter_version(
        &self,
        ino: Ino,
        (content, size): (&Content, u64),
        asked: Option<Instant>,
        shared: (Option<Shown>, Access, Option<Instant>),
        wait: Wait,
    ) -> Result<Entered> {
        let (shown, access, since) = shared;
        let version = Some((content.version, size));
        let mut inodes = self.inodes.lock();
        self.await_told(&mut inodes, ino, wait)?;
        let inode = inodes.get_mut(ino).ok_or(FsError::Stale)?;
        if inode.detached && !inode.superseded {
            return Err(FsError::Stale);
        }
        let now = inode.version();
        if shown.is_some_and(|shown| now != shown && now != version) {
            return Ok(Entered::Outdated);
        }
        let told = inode.told_size();
        let pages = match now {
            // While handles are open, it is their size that the kernel was told.
            before if before == version && (inode.opens > 0 || told == Some(size)) => Pages::Keep,
            Some((open, _)) if inode.opens > 0 => {
                let asked = inode.opened().asked;
                let is_young = since.is_none_or(|since| asked.is_some_and(|asked| asked >= since));
                let young = is_young.then(|| self.handles.lock().content(ino, open));
                if let Some(content) = young.flatten() {
                    return Ok(Entered::Beside(content));
                }
                inodes.detach(ino);
                if let Some(side) = &self.writing {
                    side.drafts.detach(ino);
                }
                return Err(FsError::Stale);
            }
            before if before.is_none() || before == version => Pages::Resize(told),
            _ => Pages::Replace(told),
        };
        let shrinks = pages != Pages::Keep && told.is_none_or(|told| told > size);
        if access == Access::Write && (shrinks || inode.is_size_doubted()) {
            inode.settle_size(size);
            return Ok(Entered::Doubted);
        }
        if inode.opens == 0 {
            let direct = self.direct.load(Ordering::Relaxed) && content.whole_file().is_some();
            inode.set_direct(direct);
        }
        inode.opens += 1;
        let before = inode.opened();
        let same = inode.version() == version;
        inode.open_version(
            (content.version, size),
            OpenedVersion {
                stored: content.meta.stored_size,
                // Pages that are kept are shown with the time that they had.
                modified: before.modified.filter(|_| same).or(Some(content.modified)),
                asked: asked.max(before.asked.filter(|_| same)),
            },
        );
        inode.settle_size(size);
        if shrinks {
            inode.doubt_size();
        }
        inode.set_settling(pages != Pages::Keep);
        Ok(Entered::As(pages, inode.is_direct()))
    }

    /// Fetches ahead what a scan will open next.
    fn prefetch_next(&self, key: &crate::store::Key) {
        if let Some(prefetcher) = &self.prefetcher
            && let Some(listing) = self.listing.farthest(key)
        {
            prefetcher.opened(&listing, key);
        }
    }

    fn hand_out(
        &self,
        ino: Ino,
        reader: ContentReader,
        writing: bool,
        keep_cache: bool,
        direct: bool,
    ) -> Opened {
        let file = reader.content().whole_file().filter(|_| direct).cloned();
        let mut handles = self.handles.lock();
        let fh = handles.add_file(FileHandle {
            ino,
            reader: Some(reader),
            writing,
            sharers: Mutex::default(),
        });
        self.metrics.open_files.set(handles.open_files() as u64);
        Opened {
            fh,
            keep_cache,
            direct,
            file,
        }
    }

    /// Makes the kernel believe the exact size before the open returns, drops pages of another
    /// version, and gives it those of a small content. Returns whether it may keep what it has.
    ///
    /// The order matters: `store` raises the size at once and is the only thing that `sendfile`
    /// and `mmap` without a prior `fstat` notice, but it never lowers it; forgetting the
    /// attributes makes every `fstat` ask for the exact size, lower or higher. Either has the
    /// kernel turn down answers to questions that it asked before. And it is all done
    /// before any other open of this version is answered: the kernel acts on an open's reply only
    /// some time after it, and a second open would meanwhile keep, and read, what the first drops.
    fn tell_kernel(&self, ino: Ino, content: &Content, size: u64, pages: Pages) -> bool {
        let kernel = self.kernel();
        let (replaces, told_size) = match pages {
            Pages::Keep => return true,
            Pages::Resize(told) => (false, told),
            Pages::Replace(told) => (true, told),
        };
        let small = content
            .in_memory()
            .filter(|bytes| !bytes.is_empty() && bytes.len() <= PUSHED);
        let raises = small.is_none() && size > told_size.unwrap_or(0);
        if raises {
            // A wrong byte, which is dropped with its page.
            kernel.store(ino, size - 1, &[0]);
        }
        let mut clean = true;
        if replaces || raises {
            clean = kernel.invalidate_pages(ino);
        } else if told_size != Some(size) {
            kernel.invalidate_attributes(ino);
        }
        if let Some(bytes) = small.filter(|_| clean) {
            kernel.store(ino, 0, bytes);
        }
        clean
    }

    /// Reads from an open file: `len` bytes at `offset`, fewer only at its end.
    ///
    /// # Errors
    /// [`FsError::BadHandle`] and errors of the transfer; never short or wrong bytes.
    pub fn read(&self, fh: Fh, offset: u64, len: usize, wait: Wait) -> Result<Bytes> {
        let handle = self.handles.lock().file(fh).ok_or(FsError::BadHandle)?;
        let bytes = match (self.draft(handle.ino), &handle.reader) {
            // What was written here is seen here, through any handle.
            (Some(draft), _) => draft.read(offset, len, wait)?,
            (None, Some(reader)) => reader.read_at(offset, len, wait)?,
            (None, None) => return Err(FsError::Stale),
        };
        self.metrics.read_bytes.add(bytes.len() as u64);
        Ok(bytes)
    }
}

//! Opening for writing, writing, closing.
//!
//! A file gets a staging file when it is first changed. From then on all its handles read and
//! write that; the store sees it when a descriptor is closed or synced (`commit`).

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;

use super::WriteSide;
use super::commit::Unfinished;
use super::draft::{Draft, DraftFacts, Place, Why};
use super::drafts::{Found, Making};
use crate::base::caller;
use crate::base::clock::{Deadline, Wait};
use crate::cache::content::{Content, ContentReader, Data};
use crate::cache::records::Peek;
use crate::fs::handle::FileHandle;
use crate::fs::inode::Inode;
use crate::fs::read::Access;
use crate::fs::types::{By, Fh, Ino, Opened, Resolved};
use crate::fs::{FsError, KvFs, Result};
use crate::staging::file::StagingFile;
use crate::staging::unanswered::MOST_COMPARED;
use crate::staging::{Began, Unanswered};
use crate::store::{Encoding, Key, RecordMeta};

/// Bytes fetched at once when a record's content is copied to be changed.
const CHUNK: usize = 1 << 20;
/// The most that one `copy_file_range` copies; programs ask again for the rest.
const COPY_MOST: u64 = 8 << 20;

impl KvFs {
    /// Opens a file for writing. Its bytes are fetched, unless it is to be emptied; they are
    /// copied only when it is changed.
    ///
    /// # Errors
    /// As [`KvFs::open_since`]; [`FsError::ReadOnly`] on a mount that cannot be changed.
    pub fn open_writing(&self, ino: Ino, truncate: bool, wait: Wait) -> Result<Opened> {
        self.open_to_write(
            ino,
            Resolved::Unknown(Instant::now()),
            (truncate, false),
            wait,
        )
    }

    /// The same for a system call that has got a stale open already: a second one would be an error for
    /// the program. A file that was deleted or replaced since it was looked up is emptied all the same,
    /// as if it had been opened before that.
    ///
    /// # Errors
    /// As [`KvFs::open_writing`]; [`FsError::NoEntry`] for such a file if it is not to be emptied.
    #[cfg(feature = "testing")]
    pub fn open_writing_again(&self, ino: Ino, truncate: bool, wait: Wait) -> Result<Opened> {
        self.open_to_write(
            ino,
            Resolved::Unknown(Instant::now()),
            (truncate, true),
            wait,
        )
    }

    /// The same for the file of a name, to which the kernel came so. With `is_again` it is the second
    /// try of an open that was stale.
    ///
    /// # Errors
    /// As those two; [`FsError::Stale`] if the name may lead to another file by now.
    pub fn open_to_write(
        &self,
        ino: Ino,
        resolved: Resolved,
        (truncate, is_again): (bool, bool),
        wait: Wait,
    ) -> Result<Opened> {
        let side = self.write_side()?;
        if ino == Ino::ROOT {
            return Err(FsError::WrongKind(libc::EISDIR));
        }
        self.await_name(side, ino, resolved, wait)?;
        let is_gone = self.inodes.lock().get(ino).is_none_or(|inode| inode.gone);
        if is_gone && !(truncate && is_again) {
            // The kernel looks the name up again.
            return Err(if is_again {
                FsError::NoEntry
            } else {
                FsError::Stale
            });
        }
        if !truncate {
            let access = if is_again {
                Access::WriteAgain
            } else {
                Access::Write
            };
            let opened = self.open_as(ino, access, Some(self.clock.now()), wait)?;
            // It may have been renamed while its bytes were fetched.
            return match self.check_name(ino, resolved) {
                Ok(()) => Ok(opened),
                Err(error) => {
                    self.release(opened.fh);
                    Err(error)
                }
            };
        }
        // First, so that the draft is not dropped meanwhile.
        self.hold_open(ino, wait)?;
        match self.draft_emptied(side, ino, Some(resolved), wait) {
            Ok(_) => Ok(self.hand_out_draft(ino, true)),
            Err(error) => {
                self.let_go(ino);
                Err(error)
            }
        }
    }

    /// Waits until a file's name is certain: an open of one that is being deleted would write to
    /// nothing.
    fn await_names_of(&self, side: &WriteSide, ino: Ino, wait: Wait) -> Result<()> {
        let key = {
            let inodes = self.inodes.lock();
            let inode = inodes.get(ino).ok_or(FsError::Stale)?;
            (!inode.detached).then(|| inode.key.clone())
        };
        let Some(key) = key else { return Ok(()) };
        self.await_names(side, &key, wait)
    }

    /// The same for a file that a program means by its name. Where that may be another by now, and the
    /// kernel does not know, it is to look the name up again.
    fn await_name(&self, side: &WriteSide, ino: Ino, resolved: Resolved, wait: Wait) -> Result<()> {
        self.await_names_of(side, ino, wait)?;
        self.check_name(ino, resolved)
    }

    /// Makes sure that a name by which the kernel came to a file leads to it still.
    ///
    /// # Errors
    /// [`FsError::Stale`] if it may not: the kernel then looks the name up.
    pub fn check_name(&self, ino: Ino, resolved: Resolved) -> Result<()> {
        let entries = self.records.config().ttl;
        match self.inodes.lock().get(ino) {
            Some(inode) if !inode.is_misnamed(resolved, entries) => Ok(()),
            _ => Err(FsError::Stale),
        }
    }

    /// Takes back an open that [`KvFs::hold_open`] has counted; stores what others have left of the
    /// file meanwhile, on a thread that no program waits for.
    pub(in crate::fs) fn let_go(&self, ino: Ino) {
        if let Some(unfinished) = self.closed(ino) {
            self.release_end(unfinished);
        }
    }

    /// Returns a file's draft after everything has been cut off; fetches nothing of it. `by_name` unless a
    /// descriptor of it was used.
    fn draft_emptied(
        &self,
        side: &WriteSide,
        ino: Ino,
        by_name: Option<Resolved>,
        wait: Wait,
    ) -> Result<Arc<Draft>> {
        loop {
            if let Some(draft) = self.try_draft_emptied(side, ino, by_name, wait)? {
                return Ok(draft);
            }
        }
    }

    fn try_draft_emptied(
        &self,
        side: &WriteSide,
        ino: Ino,
        by_name: Option<Resolved>,
        wait: Wait,
    ) -> Result<Option<Arc<Draft>>> {
        let check_name = || by_name.map_or(Ok(()), |resolved| self.check_name(ino, resolved));
        let now = self.clock.wall();
        match side.drafts.find_or_make(ino, wait)? {
            Found::Draft(draft) => {
                let (place, rebased) = (draft.place(), draft.rebased());
                if let Place::Record(key) = &place
                    && !draft.is_dirty()
                    && !self
                        .inodes
                        .lock()
                        .get(ino)
                        .is_none_or(|inode| inode.detached)
                {
                    // What is replaced is what there is now, whatever other handles have open.
                    let base = self.describe_replaced(key, wait)?;
                    draft.replaces(&place, base, rebased);
                }
                check_name()?;
                if !caller::claim() {
                    return Err(FsError::Interrupted);
                }
                draft.set_size(0, now, side.folder(), wait)?;
                Ok(Some(draft))
            }
            Found::Missing(making) => {
                let (key, detached, gone) = {
                    let inodes = self.inodes.lock();
                    let inode = inodes.get(ino).ok_or(FsError::Stale)?;
                    (inode.key.clone(), inode.detached, inode.gone)
                };
                if detached && !gone && self.version_of(ino).is_none() {
                    return Err(FsError::Stale);
                }
                let base = if gone {
                    None
                } else {
                    check_name()?;
                    let base = self.describe_replaced(&key, wait)?;
                    self.note_emptied();
                    base
                };
                let file = side.new_file()?;
                let facts = DraftFacts {
                    base,
                    ..DraftFacts::default()
                };
                if !caller::claim() {
                    return Err(FsError::Interrupted);
                }
                let place = Place::Record(key);
                let draft = Draft::new(ino, place, file, 0, facts, now);
                draft.set_size(0, now, side.folder(), wait)?;
                self.add_draft(making, draft, detached)
            }
        }
    }

    /// Adds a draft that was made of an inode, and returns it; `None` if the file has got another name
    /// meanwhile: what the draft is to replace is then another record.
    fn add_draft(
        &self,
        making: Making<'_>,
        draft: Arc<Draft>,
        detached: bool,
    ) -> Result<Option<Arc<Draft>>> {
        let inodes = self.inodes.lock();
        let inode = inodes.get(draft.ino).ok_or(FsError::Stale)?;
        if inode.gone {
            draft.set_place(Place::Gone, false);
        } else if matches!(draft.place(), Place::Record(key) if key != inode.key) {
            return Ok(None);
        }
        making.done(&draft, !detached && !inode.detached);
        Ok(Some(draft))
    }

    fn version_of(&self, ino: Ino) -> Option<u64> {
        let inodes = self.inodes.lock();
        inodes.get(ino)?.version().map(|(_, size)| size)
    }

    /// Counts an open of an inode with its bytes in a staging file.
    pub(in crate::fs) fn hold_open(&self, ino: Ino, wait: Wait) -> Result<()> {
        let mut inodes = self.inodes.lock();
        self.await_told(&mut inodes, ino, wait)?;
        inodes.get_mut(ino).ok_or(FsError::Stale)?.opens += 1;
        Ok(())
    }

    pub(in crate::fs) fn hand_out_draft(&self, ino: Ino, writing: bool) -> Opened {
        let mut handles = self.handles.lock();
        let fh = handles.add_file(FileHandle {
            ino,
            reader: None,
            writing,
            sharers: Mutex::default(),
        });
        self.metrics.open_files.set(handles.open_files() as u64);
        Opened {
            fh,
            keep_cache: true,
            direct: false,
            file: None,
        }
    }

    /// Writes to an open file.
    ///
    /// # Errors
    /// [`FsError::BadHandle`] for one not opened for writing; that the file would become too
    /// large; errors of the fetch (at the first write) and of the local disk.
    pub fn write(&self, fh: Fh, offset: u64, bytes: &[u8], wait: Wait) -> Result<()> {
        let (side, handle) = self.writable(fh)?;
        let end = offset.saturating_add(bytes.len() as u64);
        side.check_size(end).inspect_err(|error| {
            if let Some(draft) = self.draft(handle.ino) {
                draft.lose(offset..end, error);
            }
        })?;
        let draft = self.draft_to_change(side, handle.ino, handle.reader.as_ref(), wait)?;
        self.write_draft(side, &draft, offset, bytes, wait)
    }

    /// Appends to an open file, where the kernel believes its end to be: if the file ends before that,
    /// the bytes follow its end all the same, and there is no hole. Then the kernel is to forget
    /// what it believes of the returned file, by [`KvFs::forget_misplaced`] once the write is answered.
    ///
    /// # Errors
    /// As [`KvFs::write`].
    pub fn append(&self, fh: Fh, offset: u64, bytes: &[u8], wait: Wait) -> Result<Option<Ino>> {
        let (side, handle) = self.writable(fh)?;
        let draft = self.draft_to_change(side, handle.ino, handle.reader.as_ref(), wait)?;
        // The kernel has one writer at a time.
        let at = offset.min(draft.size());
        let end = at.saturating_add(bytes.len() as u64);
        side.check_size(end)
            .inspect_err(|error| draft.lose(at..end, error))?;
        self.write_draft(side, &draft, at, bytes, wait)?;
        if at == offset {
            return Ok(None);
        }
        let mut inodes = self.inodes.lock();
        let tells = inodes.get_mut(handle.ino).is_some_and(Inode::misplace);
        Ok(tells.then_some(handle.ino))
    }

    /// Has the kernel forget pages in which [`KvFs::append`] has left bytes at a wrong place. Not on a
    /// thread that answers a request.
    pub fn forget_misplaced(&self, ino: Ino) {
        let begins = |inode: &mut Inode| inode.begin_forgetting();
        while self.inodes.lock().get_mut(ino).is_some_and(begins) {
            self.kernel().invalidate_pages(ino);
            if let Some(inode) = self.inodes.lock().get_mut(ino) {
                inode.end_forgetting();
            }
        }
        self.settled.notify_all();
    }

    fn write_draft(
        &self,
        side: &WriteSide,
        draft: &Arc<Draft>,
        offset: u64,
        bytes: &[u8],
        wait: Wait,
    ) -> Result<()> {
        let _changing = Changing::new(self, draft)?;
        let write = || draft.write(offset, bytes, self.clock.wall(), side.folder(), wait);
        match write() {
            Err(error) if error.errno() == libc::ENOSPC && self.records.drop_staged() => write()?,
            done => done?,
        }
        self.changed_by_writing(draft.ino);
        self.metrics.written_bytes.add(bytes.len() as u64);
        Ok(())
    }

    /// Sets room aside in an open file, or clears a part of it, as `fallocate` does.
    ///
    /// # Errors
    /// [`FsError::NotSupported`] for modes that move bytes; else as [`KvFs::write`].
    pub fn fallocate(&self, fh: Fh, offset: u64, len: u64, mode: i32, wait: Wait) -> Result<()> {
        const KEEP_SIZE: i32 = libc::FALLOC_FL_KEEP_SIZE;
        let (side, handle) = self.writable(fh)?;
        let end = offset.saturating_add(len);
        let clears = match mode & !KEEP_SIZE {
            0 => false,
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE => true,
            _ => return Err(FsError::NotSupported),
        };
        if mode & KEEP_SIZE == 0 {
            side.check_size(end)?;
        }
        let draft = self.draft_to_change(side, handle.ino, handle.reader.as_ref(), wait)?;
        let _changing = Changing::new(self, &draft)?;
        let now = self.clock.wall();
        draft.edit(now, side.folder(), wait, |file, size| {
            if clears && offset < size {
                file.clear(offset, end.min(size) - offset)?;
            }
            if mode & KEEP_SIZE != 0 || end <= size {
                return Ok(size);
            }
            file.reserve(size, end - size)?;
            Ok(end)
        })?;
        self.changed_by_writing(handle.ino);
        Ok(())
    }

    /// Copies bytes between two open files; returns how many, fewer than asked for where that
    /// is much.
    ///
    /// # Errors
    /// As [`KvFs::read`] and [`KvFs::write`].
    pub fn copy_file_range(
        &self,
        from: (Fh, u64),
        to: (Fh, u64),
        len: u64,
        wait: Wait,
    ) -> Result<u64> {
        let deadline = wait.deadline().ok_or(FsError::WouldBlock)?;
        let len = len.min(COPY_MOST);
        let mut done = 0;
        while done < len {
            let part = usize::try_from(len - done).map_or(CHUNK, |left| left.min(CHUNK));
            let bytes = self.read(from.0, from.1 + done, part, Wait::Until(deadline))?;
            if bytes.is_empty() {
                break;
            }
            self.write(to.0, to.1 + done, &bytes, Wait::Until(deadline))?;
            done += bytes.len() as u64;
        }
        Ok(done)
    }

    /// Finds data or a hole from `offset` on: all of a file is data, and a hole follows its end.
    ///
    /// # Errors
    /// `ENXIO` behind the end, as `lseek` has it.
    pub fn seek_data(&self, fh: Fh, offset: u64, data: bool, wait: Wait) -> Result<u64> {
        let ino = self.handles.lock().file(fh).ok_or(FsError::BadHandle)?.ino;
        let size = self.getattr(ino, wait)?.attr.size;
        match (offset < size, data) {
            (true, true) => Ok(offset),
            (true, false) => Ok(size),
            (false, _) => Err(FsError::WrongKind(libc::ENXIO)),
        }
    }

    /// Cuts off or lengthens a file; without a handle it is stored at once.
    ///
    /// # Errors
    /// As [`KvFs::write`]; without a handle also those of the store.
    pub(in crate::fs) fn set_size(&self, ino: Ino, size: u64, by: By, wait: Wait) -> Result<()> {
        let side = self.write_side()?;
        side.check_size(size)?;
        let resolved = match by {
            By::Handle(_) => return self.resize(side, ino, size, by, wait).map(drop),
            By::Name(resolved) => resolved,
        };
        if wait == Wait::Never {
            return Err(FsError::WouldBlock);
        }
        self.await_name(side, ino, resolved, wait)?;
        // First, so that the draft is not dropped meanwhile.
        self.hold_open(ino, wait)?;
        let resized = self.resize(side, ino, size, by, wait);
        // It is of this size by now, and is stored though its program is ended then.
        caller::leave_once_sent();
        let stored = resized.and_then(|draft| self.commit(&draft, Why::Now));
        self.let_go(ino);
        if stored.is_err() {
            // Where others have it open, it is of this size all the same.
            self.kernel().invalidate_attributes(ino);
            if let Some(inode) = self.inodes.lock().get_mut(ino) {
                inode.lose_size();
            }
        }
        stored
    }

    fn resize(
        &self,
        side: &WriteSide,
        ino: Ino,
        size: u64,
        by: By,
        wait: Wait,
    ) -> Result<Arc<Draft>> {
        let (fh, resolved) = match by {
            By::Handle(fh) => (Some(fh), None),
            By::Name(resolved) => (None, Some(resolved)),
        };
        let draft = if size == 0 {
            self.draft_emptied(side, ino, resolved, wait)?
        } else {
            let handle = fh.and_then(|fh| self.handles.lock().file(fh));
            let reader = handle.as_ref().and_then(|handle| handle.reader.as_ref());
            let draft = self.draft_to_change(side, ino, reader, wait)?;
            if let Some(resolved) = resolved {
                self.check_name(ino, resolved)?;
            }
            let changing = Changing::new(self, &draft)?;
            if draft.size() == size {
                draft.cut_off(size);
            } else {
                draft.set_size(size, self.clock.wall(), side.folder(), wait)?;
            }
            drop(changing);
            draft
        };
        self.changed_by_writing(ino);
        Ok(draft)
    }

    /// A program that has set a file's time and then writes to it sees the time of the write.
    fn changed_by_writing(&self, ino: Ino) {
        if let Some(inode) = self.inodes.lock().get_mut(ino) {
            inode.show(|shown| (shown.modified, shown.changed) = (None, None));
        }
    }

    fn writable(&self, fh: Fh) -> Result<(&WriteSide, Arc<FileHandle>)> {
        let handle = self.handles.lock().file(fh).ok_or(FsError::BadHandle)?;
        if !handle.writing {
            return Err(FsError::BadHandle);
        }
        Ok((self.write_side()?, handle))
    }

    /// Returns a file's draft, made of its content if there is none.
    fn draft_to_change(
        &self,
        side: &WriteSide,
        ino: Ino,
        reader: Option<&ContentReader>,
        wait: Wait,
    ) -> Result<Arc<Draft>> {
        loop {
            if let Some(draft) = self.try_draft(side, ino, reader, wait)? {
                return Ok(draft);
            }
        }
    }

    fn try_draft(
        &self,
        side: &WriteSide,
        ino: Ino,
        reader: Option<&ContentReader>,
        wait: Wait,
    ) -> Result<Option<Arc<Draft>>> {
        let making = match side.drafts.find_or_make(ino, wait)? {
            Found::Draft(draft) => return Ok(Some(draft)),
            Found::Missing(making) => making,
        };
        self.await_names_of(side, ino, wait)?;
        let (key, detached) = {
            let inodes = self.inodes.lock();
            let inode = inodes.get(ino).ok_or(FsError::Stale)?;
            (inode.key.clone(), inode.detached)
        };
        let own;
        let (reader, is_current) = match reader {
            Some(reader) => (reader, false),
            None if detached => return Err(FsError::Stale),
            None => {
                own = self.records.content(&key, wait)?.reader()?;
                (&own, true)
            }
        };
        let content = Arc::clone(reader.content());
        let (file, size) = self.copy_of(side, reader)?;
        let base = if is_current {
            content.meta.clone()
        } else {
            self.replaced_by_change(ino, &key, &content)
        };
        let facts = DraftFacts {
            base: Some(base),
            ..DraftFacts::default()
        };
        let gone = self.inodes.lock().get(ino).is_some_and(|inode| inode.gone);
        let place = if gone {
            Place::Gone
        } else {
            Place::Record(key)
        };
        let began = self.began(side, &content, &file, size)?;
        let draft = Draft::new(ino, place, file, size, facts, content.modified);
        draft.set_began(began);
        self.add_draft(making, draft, detached)
    }

    /// Returns the bytes that a change of an open content begins from, where there is no version to name:
    /// they are compared with what the record has before they are replaced.
    pub(super) fn began(
        &self,
        side: &WriteSide,
        content: &Content,
        file: &StagingFile,
        size: u64,
    ) -> Result<Option<Began>> {
        let unguarded = side.config.overwrite != super::Overwrite::Unchanged;
        if unguarded || content.meta.strong_etag().is_some() || size > MOST_COMPARED {
            return Ok(None);
        }
        let raw = self.records.config().raw;
        let encoding = if raw {
            content.meta.encoding.clone()
        } else {
            Encoding::Identity
        };
        let bytes = file
            .open()
            .and_then(|file| Unanswered::new(&file, size, &encoding));
        let bytes = bytes.map_err(|error| FsError::staging("cannot read", &error))?;
        Ok(Some(Began {
            bytes,
            decoded: !raw,
        }))
    }

    /// Returns what is known of the version that a change of an open content replaces: that of the
    /// content, unless this mount has stored the same bytes again since, under another name say.
    fn replaced_by_change(&self, ino: Ino, key: &Key, content: &Content) -> RecordMeta {
        let version = self.inodes.lock().get(ino).and_then(Inode::version);
        let version = version.map(|(version, _)| version);
        if content.key == *key && version == Some(content.version) {
            return content.meta.clone();
        }
        match self.records.peek(key) {
            Peek::Present(known) if Some(known.version) == version => known.meta,
            _ => RecordMeta {
                etag: None,
                ..content.meta.clone()
            },
        }
    }

    /// Copies a whole content to a new staging file. It may take as long as bytes keep coming.
    pub(in crate::fs) fn copy_of(
        &self,
        side: &WriteSide,
        reader: &ContentReader,
    ) -> Result<(Arc<StagingFile>, u64)> {
        let failed = |error| FsError::staging("cannot copy", &error);
        let size = reader.content().known_size().ok_or(FsError::Stale)?;
        side.check_size(size)?;
        let from = match &reader.content().data {
            Data::File(kept) => Some(Arc::clone(&kept.file)),
            Data::Staged(bytes, _) => Some(bytes.open().map_err(failed)?),
            _ => None,
        };
        let file = match from {
            Some(from) => StagingFile::copy_of(&from, size, side.folder()).map_err(failed)?,
            None => {
                let file = side.new_file()?;
                let mut at = 0;
                while at < size {
                    let wait = Wait::Until(Deadline::after(side.config.deadline));
                    let bytes: Bytes = caller::asking(|| reader.read_at(at, CHUNK, wait))?;
                    if bytes.is_empty() {
                        return Err(FsError::Stale);
                    }
                    file.write_at(at, &bytes).map_err(failed)?;
                    at += bytes.len() as u64;
                }
                file
            }
        };
        Ok((file, size))
    }

    /// Stores a file because a descriptor of it was closed; returns the store's verdict.
    ///
    /// # Errors
    /// Those of the store. The handle stays usable; what is changed later is stored later.
    pub fn flush(&self, fh: Fh, wait: Wait) -> Result<()> {
        self.commit_handle(fh, Why::Close, wait)
    }

    /// The same for the last descriptor of the process that opened it: also what is empty is safe then.
    pub(super) fn flush_last(&self, fh: Fh, wait: Wait) -> Result<()> {
        self.commit_handle(fh, Why::Last, wait)
    }

    /// Stores a file because a program wants to be sure of it.
    ///
    /// A file that waits for its final name is only journalled.
    ///
    /// # Errors
    /// As [`KvFs::flush`].
    pub fn fsync(&self, fh: Fh, wait: Wait) -> Result<()> {
        self.commit_handle(fh, Why::Sync, wait)
    }

    fn commit_handle(&self, fh: Fh, why: Why, wait: Wait) -> Result<()> {
        let handle = self.handles.lock().file(fh).ok_or(FsError::BadHandle)?;
        let write_back = |side: &WriteSide| side.config.write_back;
        let waits = why == Why::Sync && self.writing.as_ref().is_some_and(write_back);
        if waits && wait == Wait::Never {
            return Err(FsError::WouldBlock);
        }
        // Also for a file that was opened only to be sure of what was written before.
        let Some(draft) = self.draft(handle.ino).filter(|_| handle.writing) else {
            return if waits {
                self.wait_uploaded(handle.ino)
            } else {
                Ok(())
            };
        };
        let waits = waits && !draft.is_temporary();
        if draft.is_settled(why) {
            return if waits {
                self.wait_uploaded(handle.ino)
            } else {
                Ok(())
            };
        }
        if wait == Wait::Never {
            return Err(FsError::WouldBlock);
        }
        self.commit(&draft, why)?;
        if waits {
            return self.wait_uploaded(handle.ino);
        }
        Ok(())
    }

    /// Closes an open file, and stores what is not stored yet.
    pub fn release(&self, fh: Fh) {
        if let Some(unfinished) = self.release_begin(fh) {
            self.release_end(unfinished);
        }
    }

    /// Closes an open file; what is left to do on the local disk and in the store is for
    /// [`KvFs::release_end`].
    pub fn release_begin(&self, fh: Fh) -> Option<Unfinished> {
        let handle = self.handles.lock().remove_file(fh)?;
        let unfinished = self.closed(handle.ino);
        let content = handle
            .reader
            .as_ref()
            .map(|reader| Arc::clone(reader.content()));
        drop(handle);
        if let Some(content) = content {
            self.records.let_go(content);
        }
        let settles = |unfinished: &Unfinished| !unfinished.has_rest();
        if !unfinished.as_ref().is_some_and(settles) {
            self.count_open();
        }
        unfinished
    }

    /// Counts the open files. Last: a thread that sees the number sees what closing has changed.
    pub(super) fn count_open(&self) {
        let handles = self.handles.lock();
        self.metrics.open_files.set(handles.open_files() as u64);
    }

    fn closed(&self, ino: Ino) -> Option<Unfinished> {
        let left = self.inodes.lock().closed(ino);
        let side = self.writing.as_ref()?;
        let draft = side.drafts.get(ino).filter(|_| left == 0)?;
        Some(Unfinished(draft))
    }
}

/// A change of a file's bytes that takes effect. What was changed after the last handle was closed, by
/// a program that has been given up, is stored all the same.
struct Changing<'a>(&'a KvFs, &'a Arc<Draft>);

impl<'a> Changing<'a> {
    fn new(fs: &'a KvFs, draft: &'a Arc<Draft>) -> Result<Self> {
        if caller::claim() {
            return Ok(Self(fs, draft));
        }
        fs.settle(draft);
        Err(FsError::Interrupted)
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let Self(fs, draft) = self;
        if !fs.is_open(draft.ino) && draft.needs_commit(Why::Release) {
            fs.release_end(Unfinished(Arc::clone(draft)));
        }
    }
}

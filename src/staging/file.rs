//! The bytes of a file that is being written, on the local disk.
//!
//! INVARIANT: the bytes of a [`Frozen`] never change. A writer makes a copy of a frozen file first
//! ([`StagingFile::copy`]), so that an upload never sees half of a later write.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, copy_file_range, fallocate, ioctl_ficlone};

use super::StagingFolder;
use super::adopted::{Adopted, Decode};
use super::budget::Space;
use super::entry::EntryId;
use crate::base::page_cache;
use crate::base::sync::Mutex;
use crate::base::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Bytes copied at once where the disk cannot share or copy them itself.
const CHUNK: usize = 1 << 20;

/// A staging file. It has no name: what it holds goes away with its last user.
#[derive(Debug)]
pub struct StagingFile {
    source: Source,
    /// What it takes of the folder's budget: its whole length, holes included, since that is what
    /// is going to be uploaded.
    space: Mutex<Space>,
    frozen: AtomicU32,
    /// What a write has left behind the end of the file that failed half way.
    torn: AtomicBool,
}

#[derive(Debug)]
enum Source {
    Own(Arc<File>),
    Adopted(Box<Adopted>),
}

impl StagingFile {
    /// Makes an empty one.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn new(folder: &StagingFolder) -> io::Result<Arc<Self>> {
        let file = folder.new_file()?;
        let space = folder.budget().space_of(&file);
        Ok(Arc::new(Self {
            source: Source::Own(Arc::new(file)),
            space: Mutex::new(space),
            frozen: AtomicU32::new(0),
            torn: AtomicBool::new(false),
        }))
    }

    /// Wraps the bytes of an entry that an earlier process journalled, which counts them; they must
    /// not change. They are opened, and `decode`d, when they are read.
    pub fn of_entry(id: &EntryId, decode: Option<Decode>, folder: &StagingFolder) -> Frozen {
        let adopted = Adopted::new(folder.journal(), id, decode, folder.open_files());
        let this = Arc::new(Self {
            source: Source::Adopted(Box::new(adopted)),
            space: Mutex::new(folder.budget().space()),
            frozen: AtomicU32::new(0),
            torn: AtomicBool::new(false),
        });
        this.freeze()
    }

    /// Returns whether they are an entry's, and opened only when they are read.
    pub fn is_adopted(&self) -> bool {
        matches!(self.source, Source::Adopted(_))
    }

    /// Keeps the bytes readable although their entry goes.
    pub fn pin(&self) {
        if let Source::Adopted(adopted) = &self.source {
            adopted.pin();
        }
    }

    /// Makes one of the first `len` bytes of another file.
    ///
    /// # Errors
    /// Those of the disk; `ENOSPC` when there is no room.
    pub fn copy_of(from: &File, len: u64, folder: &StagingFolder) -> io::Result<Arc<Self>> {
        let made = Self::new(folder)?;
        made.space.lock().grow_to(len)?;
        copy(from, &*made.open()?, len)?;
        Ok(made)
    }

    /// Returns the file itself, for reading and for keeping it.
    ///
    /// # Errors
    /// That the bytes of an earlier process cannot be opened, or are not what it wrote.
    pub fn open(&self) -> io::Result<Arc<File>> {
        match &self.source {
            Source::Own(file) => Ok(Arc::clone(file)),
            Source::Adopted(adopted) => adopted.open(),
        }
    }

    /// Keeps the bytes as they are until the result is dropped.
    pub fn freeze(self: &Arc<Self>) -> Frozen {
        self.frozen.fetch_add(1, Ordering::AcqRel);
        Frozen(Arc::clone(self))
    }

    /// Returns whether an upload or reader relies on the bytes as they are.
    pub fn is_frozen(&self) -> bool {
        matches!(self.source, Source::Adopted(_)) || self.frozen.load(Ordering::Acquire) > 0
    }

    /// Copies the first `len` bytes: shared with this file where the disk can do that.
    ///
    /// # Errors
    /// Those of the disk; `ENOSPC` when there is no room.
    pub fn copy(&self, len: u64, folder: &StagingFolder) -> io::Result<Arc<Self>> {
        Self::copy_of(&*self.open()?, len, folder)
    }

    /// Reads what the kernel has in memory, as [`StagingFile::read_at`]; `None` if that would take the
    /// disk.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn read_now(&self, offset: u64, len: usize) -> io::Result<Option<Vec<u8>>> {
        let file = match &self.source {
            Source::Own(file) => Arc::clone(file),
            Source::Adopted(adopted) => match adopted.opened() {
                Some(file) => file,
                None => return Ok(None),
            },
        };
        page_cache::read(&file, offset..offset.saturating_add(len as u64))
    }

    /// Reads `len` bytes at `offset`, fewer only at the end of the file.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; len];
        let mut filled = 0;
        let file = self.open()?;
        while filled < len {
            match file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer.truncate(filled);
        Ok(buffer)
    }

    /// Writes bytes; what lies between the end of the file and `offset` becomes zeros.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset.saturating_add(bytes.len() as u64);
        self.space.lock().grow_to(end)?;
        let written = self.open()?.write_all_at(bytes, offset);
        if written.is_err() {
            self.torn.store(true, Ordering::Relaxed);
        }
        written
    }

    /// Takes away what a write that failed half way has left behind the first `len` bytes: it must not
    /// become content when the file grows. To be called before a file of that length is changed.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn mend(&self, len: u64) -> io::Result<()> {
        if !self.torn.load(Ordering::Relaxed) {
            return Ok(());
        }
        let file = self.open()?;
        if file.metadata()?.len() > len {
            file.set_len(len)?;
        }
        self.torn.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Cuts the file off, or lengthens it with zeros.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn set_len(&self, len: u64) -> io::Result<()> {
        self.space.lock().grow_to(len)?;
        self.open()?.set_len(len)?;
        self.space.lock().shrink_to(len);
        Ok(())
    }

    /// Sets room aside for a range, and makes the file so long.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        self.space.lock().grow_to(offset.saturating_add(len))?;
        let file = self.open()?;
        match fallocate(&*file, FallocateFlags::empty(), offset, len) {
            Err(rustix::io::Errno::OPNOTSUPP) => {
                let end = offset.saturating_add(len);
                if file.metadata()?.len() < end {
                    file.set_len(end)?;
                }
                Ok(())
            }
            result => Ok(result?),
        }
    }

    /// Overwrites a range, which lies within the file, with zeros.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn clear(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let file = self.open()?;
        match fallocate(&*file, flags, offset, len) {
            Err(rustix::io::Errno::OPNOTSUPP) => {
                let zeros = vec![0; CHUNK];
                let mut at = offset;
                let end = offset.saturating_add(len);
                while at < end {
                    let part = usize::try_from(end - at).map_or(CHUNK, |left| left.min(CHUNK));
                    file.write_all_at(&zeros[..part], at)?;
                    at += part as u64;
                }
                Ok(())
            }
            result => Ok(result?),
        }
    }
}

/// A staging file with bytes that no longer change.
#[derive(Debug)]
pub struct Frozen(Arc<StagingFile>);

impl Deref for Frozen {
    type Target = Arc<StagingFile>;

    fn deref(&self) -> &Arc<StagingFile> {
        &self.0
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.0.frozen.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Copies the first `len` bytes of one file to another, empty one.
///
/// # Errors
/// Those of the disk; a source that is shorter is one.
pub fn copy(from: &File, to: &File, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    if ioctl_ficlone(to, from).is_ok() {
        return to.set_len(len);
    }
    let (mut source, mut target) = (0, 0);
    while target < len {
        let part = usize::try_from(len - target)
            .unwrap_or(usize::MAX)
            .min(1 << 30);
        match copy_file_range(from, Some(&mut source), to, Some(&mut target), part) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::NOSPC) => return Err(rustix::io::Errno::NOSPC.into()),
            // Other filesystems on the two sides, or one that does not know how.
            Err(_) => break,
        }
    }
    let mut buffer = vec![0; if target < len { CHUNK } else { 0 }];
    while target < len {
        let part = usize::try_from(len - target).map_or(CHUNK, |left| left.min(CHUNK));
        from.read_exact_at(&mut buffer[..part], target)?;
        to.write_all_at(&buffer[..part], target)?;
        target += part as u64;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use super::super::StagingConfig;
    use super::super::folder::StoreFile;
    use super::*;

    pub(in crate::staging) fn folder(
        limit: Option<u64>,
    ) -> (tempfile::TempDir, Arc<StagingFolder>) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let folder = StagingFolder::open(&config(dir.path(), limit)).expect("a staging folder");
        (dir, folder)
    }

    pub(in crate::staging) fn config(dir: &Path, limit: Option<u64>) -> StagingConfig {
        StagingConfig {
            dir: dir.into(),
            scope: "test".into(),
            store: StoreFile {
                reference: "test".into(),
                open: crate::store::reference::StoreRef::Directory("/test".into()),
                api_url: None,
            },
            limit,
        }
    }

    #[test]
    fn a_frozen_file_says_so_until_nobody_relies_on_it() {
        let (_dir, folder) = folder(None);
        let staged = StagingFile::new(&folder).expect("a file");
        staged.write_at(0, b"abc").expect("written");
        let first = staged.freeze();
        let second = staged.freeze();
        drop(first);
        assert!(staged.is_frozen());
        let copy = second.copy(3, &folder).expect("a copy");
        assert!(!copy.is_frozen());
        copy.write_at(1, b"X").expect("written");
        assert_eq!(second.read_at(0, 10).expect("read"), b"abc");
        assert_eq!(copy.read_at(0, 10).expect("read"), b"aXc");
        drop(second);
        assert!(!staged.is_frozen());
    }

    #[test]
    fn a_copy_is_as_long_as_it_was_asked_for() {
        let (_dir, folder) = folder(None);
        let staged = StagingFile::new(&folder).expect("a file");
        staged.write_at(5, b"end").expect("written");
        let copy = staged.copy(6, &folder).expect("a copy");
        assert_eq!(copy.read_at(0, 100).expect("read"), b"\0\0\0\0\0e");
        assert!(staged.copy(100, &folder).is_err(), "nothing is made up");
    }

    #[test]
    fn cleared_ranges_are_zeros_and_reserved_ones_lengthen_the_file() {
        let (_dir, folder) = folder(None);
        let staged = StagingFile::new(&folder).expect("a file");
        staged.write_at(0, b"abcdef").expect("written");
        staged.clear(1, 3).expect("cleared");
        staged.reserve(4, 4).expect("reserved");
        assert_eq!(staged.read_at(0, 100).expect("read"), b"a\0\0\0ef\0\0");
    }

    #[test]
    fn what_a_failed_write_has_left_behind_the_end_never_becomes_content() {
        let (_dir, folder) = folder(None);
        let staged = StagingFile::new(&folder).expect("a file");
        staged.write_at(0, b"abc").expect("written");
        // As a write does that the disk has no room for all of.
        let file = staged.open().expect("it");
        file.write_all_at(b"garbage", 3).expect("room");
        staged.torn.store(true, Ordering::Relaxed);
        staged.mend(3).expect("mended");
        staged.set_len(6).expect("longer");
        assert_eq!(staged.read_at(0, 100).expect("read"), b"abc\0\0\0");
    }

    #[test]
    fn what_is_staged_counts_and_what_has_no_room_is_refused() {
        let (_dir, folder) = folder(Some(10));
        let staged = StagingFile::new(&folder).expect("a file");
        staged.write_at(2, b"123456").expect("room");
        assert_eq!(folder.budget().used(), 8);
        let full = |result: io::Result<()>| result.expect_err("no room").raw_os_error();
        assert_eq!(full(staged.write_at(5, b"123456")), Some(libc::ENOSPC));
        assert_eq!(full(staged.set_len(11)), Some(libc::ENOSPC));
        assert_eq!(full(staged.copy(8, &folder).map(drop)), Some(libc::ENOSPC));
        staged.set_len(1).expect("cut off");
        assert_eq!(folder.budget().used(), 1);
        drop(staged);
        assert_eq!(folder.budget().used(), 0);
    }
}

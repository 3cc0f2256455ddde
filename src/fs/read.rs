//! Opening, reading and closing files.

use bytes::Bytes;

use super::handle::FileHandle;
use super::types::{Fh, Ino, KernelCache, NoKernel, Opened};
use super::{FsError, KvFs, Result};
use crate::cache::content::{Content, ContentReader};
use crate::clock::Wait;
use crate::store::ErrorKind;

/// The largest content that is pushed into the page cache when it is opened, in bytes: what one
/// message to the kernel carries well, and most records.
const PUSHED: usize = 128 << 10;
/// How often an open tries again when the download it found is given up at that moment.
const TRIES: u32 = 3;

/// What opening means for the page cache.
enum Pages {
    /// They are of this version already.
    Keep,
    /// There are none yet: the whole content can be pushed.
    None,
    /// They are of another version, or cannot be trusted: dropped by not keeping them.
    Drop,
}

impl KvFs {
    /// Opens a file for reading: its current version, whose exact size is known from here on.
    ///
    /// When the record changed while other handles are on an older version, the name is taken
    /// from this inode and the open fails as stale: the kernel then looks the name up again,
    /// gets a new inode, and the two versions never share pages.
    ///
    /// # Errors
    /// [`FsError::ReadOnly`] for anything but reading, [`FsError::Stale`] as said, and errors of
    /// the store.
    pub fn open(&self, ino: Ino, writing: bool, wait: Wait) -> Result<Opened> {
        if ino == Ino::ROOT {
            return Err(FsError::WrongKind(libc::EISDIR));
        }
        if writing {
            return Err(FsError::ReadOnly);
        }
        let key = {
            let inodes = self.inodes.lock();
            let inode = inodes.get(ino).ok_or(FsError::Stale)?;
            if inode.detached {
                return Err(FsError::Stale);
            }
            inode.key.clone()
        };
        let mut tries = 0;
        let reader = loop {
            tries += 1;
            let content = self.records.content(&key, wait)?;
            match content.reader() {
                Ok(reader) => break reader,
                Err(error) if error.kind() != Some(ErrorKind::Changed) || tries == TRIES => {
                    return Err(error.into());
                }
                Err(_) => {}
            }
        };
        let content = reader.content();
        let size = content.known_size().ok_or(FsError::WouldBlock)?;
        let (pages, told_size) = {
            let mut inodes = self.inodes.lock();
            let inode = inodes.get_mut(ino).ok_or(FsError::Stale)?;
            let version = Some((content.version, size));
            let pages = match inode.version {
                before if before == version => Pages::Keep,
                Some(_) if inode.opens > 0 => {
                    inodes.detach(ino);
                    return Err(FsError::Stale);
                }
                Some(_) => Pages::Drop,
                None => Pages::None,
            };
            inode.opens += 1;
            inode.version = version;
            (pages, std::mem::replace(&mut inode.told_size, size))
        };
        self.foresee(&key);
        let keep_cache = self.tell_kernel(ino, content, size, told_size, &pages);
        Ok(self.hand_out(ino, reader, keep_cache))
    }

    /// Fetches ahead what a scan will open next.
    fn foresee(&self, key: &crate::store::Key) {
        if let Some(prefetcher) = &self.prefetcher
            && let Some(listing) = self.listing.lock().clone()
        {
            prefetcher.opened(&listing, key);
        }
    }

    fn hand_out(&self, ino: Ino, reader: ContentReader, keep_cache: bool) -> Opened {
        let mut handles = self.handles.lock();
        let fh = handles.add_file(FileHandle { ino, reader });
        self.metrics.open_files.set(handles.open_files() as u64);
        Opened { fh, keep_cache }
    }

    /// Makes the kernel believe the exact size before the open returns, and gives it the pages
    /// of a small content. Returns whether it may keep its pages.
    ///
    /// The order matters: `store` raises the size at once and is the only thing that `sendfile`
    /// and `mmap` without a prior `fstat` notice, but it never lowers it; forgetting the
    /// attributes makes every `fstat` ask for the exact size, lower or higher.
    fn tell_kernel(
        &self,
        ino: Ino,
        content: &Content,
        size: u64,
        told_size: u64,
        pages: &Pages,
    ) -> bool {
        let kernel: &dyn KernelCache = match self.kernel.get() {
            Some(kernel) => &**kernel,
            None => &NoKernel,
        };
        match pages {
            Pages::Keep => {
                if told_size != size {
                    kernel.forget_attributes(ino);
                }
                true
            }
            Pages::None
                if content
                    .in_memory()
                    .is_some_and(|bytes| !bytes.is_empty() && bytes.len() <= PUSHED) =>
            {
                if let Some(bytes) = content.in_memory() {
                    kernel.store(ino, 0, bytes);
                }
                if told_size != size {
                    kernel.forget_attributes(ino);
                }
                true
            }
            Pages::None | Pages::Drop => {
                if told_size != size {
                    if size > told_size {
                        // The page with this byte is dropped when the open returns.
                        kernel.store(ino, size - 1, &[0]);
                    }
                    kernel.forget_attributes(ino);
                }
                false
            }
        }
    }

    /// Reads from an open file: `len` bytes at `offset`, fewer only at its end.
    ///
    /// # Errors
    /// [`FsError::BadHandle`] and errors of the transfer; never short or wrong bytes.
    pub fn read(&self, fh: Fh, offset: u64, len: usize, wait: Wait) -> Result<Bytes> {
        let handle = self.handles.lock().file(fh).ok_or(FsError::BadHandle)?;
        let bytes = handle.reader.read_at(offset, len, wait)?;
        self.metrics.read_bytes.add(bytes.len() as u64);
        Ok(bytes)
    }

    /// Closes an open file.
    pub fn release(&self, fh: Fh) {
        let mut handles = self.handles.lock();
        let handle = handles.remove_file(fh);
        self.metrics.open_files.set(handles.open_files() as u64);
        drop(handles);
        if let Some(handle) = handle {
            self.inodes.lock().closed(handle.ino);
        }
    }
}

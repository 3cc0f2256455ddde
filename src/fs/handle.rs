//! Open files and directories.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::types::{Fh, Ino};
use super::write::sharing::Sharers;
use crate::cache::content::{Content, ContentReader, VersionId};
use crate::listing::Listing;

/// An open file: stays on the version it opened.
#[derive(Debug)]
pub struct FileHandle {
    /// Its inode.
    pub ino: Ino,
    /// Its bytes; `None` if they have been in a staging file from the start.
    pub reader: Option<ContentReader>,
    /// Whether it may change the file.
    pub writing: bool,
    /// The processes that write through it.
    pub sharers: Mutex<Sharers>,
}

/// An open directory: shows one listing from its start to its end.
#[derive(Debug)]
pub struct DirHandle {
    /// The listing; another one once the directory is read from its start again.
    pub listing: Mutex<Arc<Listing>>,
}

/// All open handles; numbers are never reused.
#[derive(Debug, Default)]
pub struct HandleTable {
    files: HashMap<Fh, Arc<FileHandle>>,
    dirs: HashMap<Fh, Arc<DirHandle>>,
    last: u64,
}

impl HandleTable {
    fn next(&mut self) -> Fh {
        self.last += 1;
        Fh(self.last)
    }

    /// Adds an open file.
    pub fn add_file(&mut self, handle: FileHandle) -> Fh {
        let fh = self.next();
        self.files.insert(fh, Arc::new(handle));
        fh
    }

    /// Adds an open directory.
    pub fn add_dir(&mut self, handle: DirHandle) -> Fh {
        let fh = self.next();
        self.dirs.insert(fh, Arc::new(handle));
        fh
    }

    /// Returns an open file.
    pub fn file(&self, fh: Fh) -> Option<Arc<FileHandle>> {
        self.files.get(&fh).cloned()
    }

    /// Returns the content that handles of an inode have open, if it is that version and another
    /// handle can read it.
    pub fn content(&self, ino: Ino, version: VersionId) -> Option<Arc<Content>> {
        let readers = self.files.values().filter(|handle| handle.ino == ino);
        readers
            .filter_map(|handle| handle.reader.as_ref())
            .map(ContentReader::content)
            .find(|content| content.version == version && content.is_usable())
            .cloned()
    }

    /// Returns an open directory.
    pub fn dir(&self, fh: Fh) -> Option<Arc<DirHandle>> {
        self.dirs.get(&fh).cloned()
    }

    /// Takes a file out.
    pub fn remove_file(&mut self, fh: Fh) -> Option<Arc<FileHandle>> {
        self.files.remove(&fh)
    }

    /// Takes a directory out.
    pub fn remove_dir(&mut self, fh: Fh) -> Option<Arc<DirHandle>> {
        self.dirs.remove(&fh)
    }

    /// Returns whether an open handle may change this inode's bytes.
    pub fn is_being_written(&self, ino: Ino) -> bool {
        self.files
            .values()
            .any(|handle| handle.ino == ino && handle.writing)
    }

    /// Returns how many files are open.
    pub fn open_files(&self) -> usize {
        self.files.len()
    }
}

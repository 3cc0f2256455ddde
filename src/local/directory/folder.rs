//! One folder: opening files that lie beneath it, replacing files whole, one committer at a time.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lru::LruCache;
use parking_lot::Mutex;
use rustix::fs::Stat;
use rustix::io::Errno;

use super::dir::{Dir, split};
use super::sidecar::{Identity, Sidecar};
use crate::base::clock::Deadline;

/// Sidecars larger than this many bytes are none.
const MAX_SIDECAR: u64 = 64 * 1024;

/// Sidecars that are kept in memory for each folder, some hundred bytes each.
const KNOWN_SIDECARS: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");

/// How far apart two versions of a file may be and still have the same time.
const SETTLED: Duration = Duration::from_secs(2);

/// A folder. It is opened again for each use: crawlers remove and re-create theirs. Its path is
/// canonical, and is never followed once a link has been put into it.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// Sidecars that were read, by their paths: most are read again and again.
    sidecars: Mutex<LruCache<String, (Identity, Sidecar)>>,
}

impl Folder {
    /// Looks at the folder at `path`, which has no symbolic links in it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let folder = Self {
            path: path.to_owned(),
            sidecars: Mutex::new(LruCache::new(KNOWN_SIDECARS)),
        };
        folder.dir()?;
        Ok(folder)
    }

    /// Opens the folder.
    pub(super) fn dir(&self) -> io::Result<Dir> {
        Dir::open(&self.path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns when an entry of the folder was last made, renamed or removed.
    pub(super) fn modified(&self) -> io::Result<SystemTime> {
        modified(&self.dir()?.metadata()?)
    }

    /// Opens a regular file beneath the folder; symbolic links that lead out are refused.
    pub(super) fn file(&self, relative: &str) -> io::Result<File> {
        self.opened(relative).map(|(file, _)| file)
    }

    /// Opens a file as [`Folder::file`] does; tells which version of it that is.
    pub(super) fn opened(&self, relative: &str) -> io::Result<(File, Identity)> {
        let file = self.open_beneath(relative)?;
        let metadata = file.metadata()?;
        if metadata.is_file() {
            Ok((file, identity_of(&metadata)))
        } else {
            Err(io::Error::from(io::ErrorKind::NotFound))
        }
    }

    fn open_beneath(&self, relative: &str) -> io::Result<File> {
        // A path without links and without `..` cannot lead out: one call instead of three.
        if !relative.split('/').any(|part| part == "..") {
            match Dir::file_without_links(&self.path.join(relative)) {
                // There are links, which may stay inside, or the call is forbidden.
                Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {}
                Ok(None) => {}
                Ok(Some(file)) => return Ok(file),
                Err(error) => return Err(error),
            }
        }
        self.dir()?.file(relative)
    }

    /// Returns size and modification time of a file.
    pub(super) fn stat(&self, dir: &Dir, relative: &str) -> io::Result<(u64, SystemTime)> {
        let found = dir.stat(relative)?;
        let size = u64::try_from(found.st_size).unwrap_or_default();
        Ok((size, modified(&found)?))
    }

    /// Reads a sidecar; `None` if there is none that can be understood.
    pub(super) fn sidecar(&self, relative: &str) -> io::Result<Option<Sidecar>> {
        if let Some(known) = self.known_sidecar(relative) {
            return Ok(Some(known));
        }
        let (file, identity) = match self.opened(relative) {
            Ok(opened) => opened,
            Err(error) if is_absence(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut text = Vec::new();
        file.take(MAX_SIDECAR).read_to_end(&mut text)?;
        let sidecar = Sidecar::parse(&text);
        if let Some(sidecar) = &sidecar
            && is_settled(&identity)
        {
            let known = (identity, sidecar.clone());
            self.sidecars.lock().put(relative.to_owned(), known);
        }
        Ok(sidecar)
    }

    /// Returns a sidecar that was read before, if the file is still the same.
    fn known_sidecar(&self, relative: &str) -> Option<Sidecar> {
        let identity = self.sidecars.lock().get(relative)?.0;
        let (_, found) = self.opened(relative).ok()?;
        if found != identity {
            return None;
        }
        let mut sidecars = self.sidecars.lock();
        let (known, sidecar) = sidecars.get(relative)?;
        (*known == identity).then(|| sidecar.clone())
    }

    /// Removes a file; an absent one is fine.
    pub(super) fn remove(&self, relative: &str) -> io::Result<()> {
        let (parent, name) = split(relative);
        let removed = self
            .dir()
            .and_then(|dir| dir.dir(parent))
            .and_then(|parent| parent.remove(name));
        match removed {
            Err(error) if is_absence(&error) => Ok(()),
            done => done,
        }
    }

    /// Makes renames and removals in the folder durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.dir()?.sync()
    }

    /// Waits to be the only committer in this folder, in all processes that use kvfs.
    ///
    /// `None` when the deadline passed.
    pub(super) fn lock(&self, deadline: Deadline) -> io::Result<Option<FolderLock>> {
        let dir = self.dir()?;
        let locked = dir.lock(deadline)?;
        Ok(locked.then_some(FolderLock { _dir: dir }))
    }
}

/// The right to change the folder; closing the descriptor gives it back.
#[derive(Debug)]
pub(super) struct FolderLock {
    _dir: Dir,
}

/// Returns the identity of an open file's present version.
pub(super) fn identity(file: &File) -> io::Result<Identity> {
    Ok(identity_of(&file.metadata()?))
}

fn identity_of(metadata: &Metadata) -> Identity {
    Identity {
        inode: metadata.ino(),
        mtime_ns: i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()),
        size: metadata.len(),
    }
}

/// Returns when a file was last changed.
fn modified(found: &Stat) -> io::Result<SystemTime> {
    // Before 1970 is as good as then.
    let seconds = u64::try_from(found.st_mtime).unwrap_or_default();
    let nanos = u32::try_from(found.st_mtime_nsec).unwrap_or_default();
    UNIX_EPOCH
        .checked_add(Duration::new(seconds, nanos))
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// Returns whether a version is so old that the next one is certain to have another time.
fn is_settled(identity: &Identity) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.is_ok_and(|now| now.as_nanos() as i128 - identity.mtime_ns > SETTLED.as_nanos() as i128)
}

/// Returns whether an error means that there is no such file here.
pub(super) fn is_absence(error: &io::Error) -> bool {
    match error.kind() {
        io::ErrorKind::NotFound
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory
        | io::ErrorKind::InvalidFilename => true,
        // Links that lead out of the folder, links in a circle, sockets.
        _ => [
            rustix::io::Errno::XDEV,
            rustix::io::Errno::LOOP,
            rustix::io::Errno::NXIO,
        ]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error())),
    }
}

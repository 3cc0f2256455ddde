//! One folder: opening files that lie beneath it, replacing files whole, one committer at a time.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lru::LruCache;
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, Mode, OFlags, ResolveFlags};

use super::sidecar::{Identity, Sidecar};
use crate::base::clock::Deadline;

/// Sidecars larger than this many bytes are none.
const MAX_SIDECAR: u64 = 64 * 1024;

/// Sidecars that are kept in memory for each folder, some hundred bytes each.
const KNOWN_SIDECARS: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");

/// How far apart two versions of a file may be and still have the same time.
const SETTLED: Duration = Duration::from_secs(2);

/// Waits between two tries for the lock of the folder.
const LOCK_WAIT: [Duration; 2] = [Duration::from_micros(200), Duration::from_millis(5)];

/// A folder. It is opened anew for each use: crawlers remove and re-create theirs.
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
        folder.fd(OFlags::RDONLY)?;
        Ok(folder)
    }

    fn fd(&self, flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(&self.path, flags, Mode::empty())?)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns what is known of the folder itself.
    pub(super) fn metadata(&self) -> io::Result<Metadata> {
        std::fs::metadata(&self.path)
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
        // A named pipe would block without NONBLOCK; it has no effect on regular files.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        // A path without links and without `..` cannot lead out: one call instead of three.
        if !relative.split('/').any(|part| part == "..") {
            let mut path = self.path.clone().into_os_string();
            path.push("/");
            path.push(relative);
            let opened = rustix::fs::openat2(
                rustix::fs::CWD,
                path,
                flags,
                Mode::empty(),
                ResolveFlags::NO_SYMLINKS,
            );
            match opened {
                Ok(fd) => return Ok(File::from(fd)),
                // There are links, or the call is forbidden.
                Err(
                    rustix::io::Errno::LOOP | rustix::io::Errno::NOSYS | rustix::io::Errno::PERM,
                ) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let folder = self.fd(OFlags::PATH)?;
        let opened = rustix::fs::openat2(
            &folder,
            relative,
            flags,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
        );
        let fd = match opened {
            Ok(fd) => fd,
            // Containers may forbid the system call.
            Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {
                self.check_beneath(relative)?;
                rustix::fs::openat(&folder, relative, flags, Mode::empty())?
            }
            Err(error) => return Err(error.into()),
        };
        Ok(File::from(fd))
    }

    fn check_beneath(&self, relative: &str) -> io::Result<()> {
        let real = self.path.join(relative).canonicalize()?;
        if real.starts_with(&self.path) {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::NotFound))
        }
    }

    /// Returns size and modification time of a file.
    pub(super) fn stat(&self, relative: &str) -> io::Result<(u64, SystemTime)> {
        let metadata = std::fs::metadata(self.path.join(relative))?;
        Ok((metadata.len(), metadata.modified()?))
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
        let metadata = std::fs::metadata(self.path.join(relative)).ok()?;
        if identity_of(&metadata) != identity {
            return None;
        }
        let mut sidecars = self.sidecars.lock();
        let (known, sidecar) = sidecars.get(relative)?;
        (*known == identity).then(|| sidecar.clone())
    }

    /// Removes a file; an absent one is fine.
    pub(super) fn remove(&self, relative: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path.join(relative)) {
            Err(error) if is_absence(&error) => Ok(()),
            done => done,
        }
    }

    /// Makes renames and removals in the folder durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(self.fd(OFlags::RDONLY)?)?)
    }

    /// Waits to be the only committer in this folder, in all processes that use kvfs.
    ///
    /// `None` when the deadline passed. File systems without such locks do without.
    pub(super) fn lock(&self, deadline: Deadline) -> io::Result<Option<FolderLock>> {
        let [mut wait, longest] = LOCK_WAIT;
        let fd = self.fd(OFlags::RDONLY)?;
        loop {
            match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(FolderLock { _fd: fd })),
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => {
                    tracing::debug!(%error, "the folder cannot be locked");
                    return Ok(Some(FolderLock { _fd: fd }));
                }
            }
            if deadline.remaining().is_none() {
                return Ok(None);
            }
            std::thread::sleep(wait);
            wait = (wait * 2).min(longest);
        }
    }
}

/// The right to change the folder; closing the descriptor gives it back.
#[derive(Debug)]
pub(super) struct FolderLock {
    _fd: OwnedFd,
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

/// Tells whether a version is so old that the next one is certain to have another time.
fn is_settled(identity: &Identity) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.is_ok_and(|now| now.as_nanos() as i128 - identity.mtime_ns > SETTLED.as_nanos() as i128)
}

/// Tells whether an error means that there is no such file here.
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

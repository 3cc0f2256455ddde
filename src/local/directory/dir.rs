//! A directory by its descriptor. Everything opened, listed, renamed or removed through it lies
//! beneath it, whatever links replace its parts meanwhile.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path};
use std::time::Duration;

use rustix::fs::{
    AtFlags, CWD, Dir as Entries, FileType, FlockOperation, Mode, OFlags, RenameFlags,
    ResolveFlags, Stat, flock,
};
use rustix::io::Errno;

use crate::base::clock::Deadline;

/// How often the kernel is asked again when a rename was under way in the path.
const ATTEMPTS: usize = 8;

/// Waits between two tries for the lock of a directory.
const LOCK_WAIT: [Duration; 2] = [Duration::from_micros(200), Duration::from_millis(5)];

/// What a directory is opened with, to read its entries and to lock it.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// A named pipe would block without NONBLOCK, which has no effect on regular files.
const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY);

/// An open directory.
#[derive(Debug)]
pub(crate) struct Dir(OwnedFd);

/// An entry of a directory.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The name; `None` if it is not UTF-8.
    pub(crate) name: Option<String>,
    /// The inode.
    pub(crate) inode: u64,
    /// What it is; links are not followed.
    pub(crate) kind: FileType,
}

impl Dir {
    /// Opens the directory at an absolute path. A symbolic link in the path is an error
    /// (`ELOOP`): the path is one that was made canonical earlier.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        match rustix::fs::openat2(
            CWD,
            path,
            DIRECTORY,
            Mode::empty(),
            ResolveFlags::NO_SYMLINKS,
        ) {
            Err(error) if is_forbidden(error) => {
                let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
                walk(&root, path, DIRECTORY).map(Self)
            }
            opened => Ok(Self(opened?)),
        }
    }

    /// Opens a file by an absolute path without links in it (else `ELOOP`); `None` if the kernel
    /// has no such call here.
    pub(crate) fn file_without_links(path: &Path) -> io::Result<Option<File>> {
        match rustix::fs::openat2(CWD, path, FILE, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
            Err(error) if is_forbidden(error) => Ok(None),
            opened => Ok(Some(File::from(opened?))),
        }
    }

    /// Opens a directory beneath this one; links that lead out are refused (`EXDEV`).
    pub(crate) fn dir(&self, relative: &str) -> io::Result<Self> {
        if relative.is_empty() {
            return self.again();
        }
        self.beneath(relative, DIRECTORY).map(Self)
    }

    /// Opens a file of any kind beneath this directory, without waiting for one that is a pipe.
    pub(crate) fn file(&self, relative: &str) -> io::Result<File> {
        self.beneath(relative, FILE).map(File::from)
    }

    /// Returns what is known of a file beneath this directory without opening it.
    pub(crate) fn stat(&self, relative: &str) -> io::Result<Stat> {
        let path = self.beneath(relative, OFlags::PATH | OFlags::CLOEXEC)?;
        Ok(rustix::fs::fstat(path)?)
    }

    /// Returns what is known of the entry of this name, a link itself if it is one; `None` if
    /// there is none.
    pub(crate) fn entry(&self, name: &str) -> io::Result<Option<FileType>> {
        match rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(Some(FileType::from_raw_mode(found.st_mode))),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a file, for writing; with `EEXIST` if there is one.
    pub(crate) fn create(&self, name: &str) -> io::Result<File> {
        self.create_as(name, 0o666)
    }

    /// The same, for its owner only.
    pub(crate) fn create_private(&self, name: &str) -> io::Result<File> {
        self.create_as(name, 0o600)
    }

    fn create_as(&self, name: &str, mode: u32) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let made = rustix::fs::openat(&self.0, name, flags, Mode::from_raw_mode(mode))?;
        Ok(File::from(made))
    }

    /// Makes a directory; with `EEXIST` if there is one.
    pub(crate) fn create_dir(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(
            &self.0,
            name,
            Mode::from_raw_mode(0o777),
        )?)
    }

    /// Gives an entry another name, replacing what has it.
    pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.0, from, &self.0, to)?)
    }

    /// Gives an entry another name that must be free (`EEXIST`).
    pub(crate) fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        match rustix::fs::renameat_with(&self.0, from, &self.0, to, RenameFlags::NOREPLACE) {
            // A file system without this: directories replace empty ones only.
            Err(Errno::INVAL | Errno::NOSYS) if self.entry(to)?.is_none() => self.rename(from, to),
            done => Ok(done?),
        }
    }

    /// Removes the entry of this name, a link itself if it is one.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name, AtFlags::empty())?)
    }

    /// Returns the entries, in any order, but for `.` and `..`.
    pub(crate) fn entries(&self) -> io::Result<impl Iterator<Item = io::Result<Entry>> + '_> {
        let entries = Entries::read_from(&self.0)?;
        let known = move |entry: rustix::io::Result<rustix::fs::DirEntry>| {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                return Ok(None);
            }
            let kind = match entry.file_type() {
                // Some file systems do not say.
                FileType::Unknown => {
                    let found = rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW);
                    found.map_or(FileType::Unknown, |found| {
                        FileType::from_raw_mode(found.st_mode)
                    })
                }
                kind => kind,
            };
            Ok(Some(Entry {
                name: name.to_str().ok().map(str::to_owned),
                inode: entry.ino(),
                kind,
            }))
        };
        Ok(entries.filter_map(move |entry| known(entry).transpose()))
    }

    /// Removes a directory with all that is in it, or a link.
    pub(crate) fn remove_tree(&self, name: &str) -> io::Result<()> {
        if self.entry(name)?.is_some_and(|kind| kind.is_dir()) {
            // The standard library follows no links beneath what it is given.
            let here = format!("/proc/self/fd/{}/{name}", self.0.as_raw_fd());
            for _ in 1..ATTEMPTS {
                match std::fs::remove_dir_all(&here) {
                    // Another program writes into it meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                    done => return done,
                }
            }
            std::fs::remove_dir_all(here)
        } else {
            self.remove(name)
        }
    }

    /// Takes the directory's advisory lock until this descriptor is closed. Returns whether it came
    /// before the deadline. File systems without such locks do without.
    pub(crate) fn lock(&self, deadline: Deadline) -> io::Result<bool> {
        let [mut wait, longest] = LOCK_WAIT;
        loop {
            match flock(&self.0, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(true),
                Err(Errno::WOULDBLOCK) => {}
                Err(Errno::INTR) => continue,
                Err(error) => {
                    tracing::debug!(%error, "the folder cannot be locked");
                    return Ok(true);
                }
            }
            if deadline.remaining().is_none() {
                return Ok(false);
            }
            std::thread::sleep(wait);
            wait = (wait * 2).min(longest);
        }
    }

    /// Makes renames and removals durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.0)?)
    }

    /// Returns what is known of the directory itself.
    pub(crate) fn metadata(&self) -> io::Result<Stat> {
        Ok(rustix::fs::fstat(&self.0)?)
    }

    /// Returns another descriptor of this directory.
    pub(crate) fn again(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    fn beneath(&self, relative: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..ATTEMPTS {
            match rustix::fs::openat2(&self.0, relative, flags, Mode::empty(), resolve) {
                Err(error) if is_forbidden(error) => {
                    return walk(&self.0, Path::new(relative), flags);
                }
                // A directory on the way was renamed meanwhile.
                Err(Errno::AGAIN) => {}
                opened => return Ok(opened?),
            }
        }
        Err(Errno::AGAIN.into())
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Splits a relative path into its folder, empty if it has none, and its last part.
pub(crate) fn split(relative: &str) -> (&str, &str) {
    relative.rsplit_once('/').unwrap_or(("", relative))
}

/// Returns whether the kernel does not know `openat2`, or a container forbids it.
fn is_forbidden(error: Errno) -> bool {
    matches!(error, Errno::NOSYS | Errno::PERM)
}

/// Opens a path part by part and follows no links at all: how it is done without `openat2`.
fn walk(start: &OwnedFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => parts.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(Errno::XDEV.into()),
        }
    }
    let way = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let Some((last, parents)) = parts.split_last() else {
        return Ok(rustix::fs::openat(start, ".", flags, Mode::empty())?);
    };
    let mut at = start.try_clone()?;
    for name in parents {
        at = rustix::fs::openat(&at, *name, way, Mode::empty())?;
    }
    Ok(rustix::fs::openat(
        &at,
        *last,
        flags | OFlags::NOFOLLOW,
        Mode::empty(),
    )?)
}

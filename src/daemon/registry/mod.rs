//! The live mounts of this user on this machine: one state file per mount point.
//!
//! On disk, in a folder only its owner may enter, `HASH` being of the canonical mount point:
//!
//! - `HASH.json`: the [`Entry`], there while the daemon runs;
//! - `HASH.lock`: held with `flock` for the daemon's life, so that two never mount one place;
//! - `HASH.sock`: the daemon's control socket ([`crate::daemon::control`]).
//!
//! INVARIANT: a process that removes or replaces these files holds the lock. A daemon that was
//! killed leaves them behind; the next reader of the registry removes them.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub mod mount_point;
pub mod mounts;
pub mod process;
pub mod unmount;
pub mod users;

/// A mount as its daemon registered it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The canonical mount point.
    pub mount_point: PathBuf,
    /// The store reference, without secrets.
    pub store: String,
    /// The daemon's process.
    pub process: process::ProcessId,
    /// When the mount began, in seconds since 1970.
    pub started_unix_s: u64,
    /// Where the daemon logs; `None` for its standard error.
    pub log_file: Option<PathBuf>,
    /// Where the daemon listens for requests.
    pub control: PathBuf,
    /// The version of kvfs that serves the mount.
    pub version: String,
}

/// The folders in which daemons register.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Registry {
    /// Where this process registers.
    dir: PathBuf,
    /// Where mounts made in other circumstances (another login session, a service) may be.
    others: Vec<PathBuf>,
}

impl Registry {
    /// Returns the registry in `dir` that also finds what is registered in `others`.
    pub fn new(dir: PathBuf, others: Vec<PathBuf>) -> Self {
        Self { dir, others }
    }

    /// Takes the lock of a mount point and with it the right to mount there.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when another process holds it; else that the folder cannot
    /// be used.
    pub fn lock(&self, mount_point: &Path) -> io::Result<MountLock> {
        make_private_dir(&self.dir)?;
        let files = Files::of(&self.dir, mount_point);
        // The holder removes the file before it lets go, so a lock on an unlinked file is void.
        for _ in 0..100 {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
                .open(&files.lock)?;
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            let held = file.metadata()?;
            if fs::symlink_metadata(&files.lock).is_ok_and(|now| now.ino() == held.ino()) {
                return Ok(MountLock { files, _file: file });
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Returns the folder in which this process registers mounts.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the folder in which mounts register, and returns it.
    ///
    /// # Errors
    /// That it cannot be used.
    pub fn prepare(&self) -> io::Result<&Path> {
        make_private_dir(&self.dir)?;
        Ok(&self.dir)
    }

    /// Returns the registered mounts, those of dead daemons included.
    pub fn entries(&self) -> Vec<Entry> {
        let mut entries: Vec<Entry> = Vec::new();
        for dir in self.dirs() {
            let Ok(listing) = fs::read_dir(dir) else {
                continue;
            };
            for path in listing.filter_map(|item| Some(item.ok()?.path())) {
                if path
                    .extension()
                    .is_some_and(|extension| extension == "json")
                    && let Some(entry) = read_entry(&path)
                    && !entries
                        .iter()
                        .any(|known| known.mount_point == entry.mount_point && known.is_alive())
                {
                    entries.retain(|known| known.mount_point != entry.mount_point);
                    entries.push(entry);
                }
            }
        }
        entries.sort_by(|a, b| a.mount_point.cmp(&b.mount_point));
        entries
    }

    /// Returns the entry of a mount point, if there is one; its daemon may be dead.
    pub fn find(&self, mount_point: &Path) -> Option<Entry> {
        let found: Vec<Entry> = self
            .dirs()
            .filter_map(|dir| read_entry(&Files::of(dir, mount_point).entry))
            .collect();
        let live = found.iter().position(Entry::is_alive).unwrap_or(0);
        found.into_iter().nth(live)
    }

    /// Removes what a dead daemon left behind for a mount point; does nothing while one lives.
    pub fn clean(&self, mount_point: &Path) {
        for dir in self.dirs() {
            let files = Files::of(dir, mount_point);
            let stale = read_entry(&files.entry).is_some_and(|entry| !entry.is_alive());
            if stale && let Ok(lock) = Self::new(dir.to_path_buf(), Vec::new()).lock(mount_point) {
                tracing::debug!(mount_point = %mount_point.display(), "removing a stale registration");
                drop(lock);
            }
        }
    }

    fn dirs(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(self.dir.as_path())
            .chain(self.others.iter().map(PathBuf::as_path))
            .filter(|dir| check_private_dir(dir).is_ok())
    }
}

impl Entry {
    /// Returns whether the daemon that registered this still runs.
    pub fn is_alive(&self) -> bool {
        self.process.is_alive()
    }
}

/// The right to mount at one place. Dropping it removes everything registered there.
#[derive(Debug)]
pub struct MountLock {
    files: Files,
    _file: File,
}

impl MountLock {
    /// Returns where the control socket of this mount belongs.
    pub fn control_path(&self) -> &Path {
        &self.files.control
    }

    /// Registers the mount, replacing what a dead daemon left behind.
    ///
    /// # Errors
    /// That the state file cannot be written.
    pub fn register(&self, entry: &Entry) -> io::Result<()> {
        let temporary = self.files.entry.with_extension("new");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&temporary)?;
        serde_json::to_writer(&mut file, entry)?;
        file.flush()?;
        fs::rename(&temporary, &self.files.entry)
    }
}

impl Drop for MountLock {
    fn drop(&mut self) {
        // The lock file goes last: until then no other process may register here.
        for path in [&self.files.entry, &self.files.control, &self.files.lock] {
            if let Err(error) = fs::remove_file(path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "cannot remove a state file");
            }
        }
    }
}

/// The files of one mount point.
#[derive(Debug)]
struct Files {
    entry: PathBuf,
    lock: PathBuf,
    control: PathBuf,
}

impl Files {
    fn of(dir: &Path, mount_point: &Path) -> Self {
        let name = hash(mount_point);
        Self {
            entry: dir.join(format!("{name}.json")),
            lock: dir.join(format!("{name}.lock")),
            control: dir.join(format!("{name}.sock")),
        }
    }
}

/// Returns 16 hexadecimal digits that stand for `mount_point` in file names.
pub fn hash(mount_point: &Path) -> String {
    // One name for all spellings: with a slash at the end, say.
    let mount_point: PathBuf = mount_point.components().collect();
    let digest = Sha256::digest(mount_point.as_os_str().as_encoded_bytes());
    digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Makes `dir` with mode 0700 where it is missing, and checks that no other user can write to it.
///
/// # Errors
/// That it cannot be made, or is a symbolic link, another user's or open to others.
pub fn make_private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    check_private_dir(dir)
}

fn check_private_dir(dir: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(dir)?;
    let problem = if !found.is_dir() {
        "is not a directory of its own"
    } else if found.uid() != rustix::process::geteuid().as_raw() {
        "belongs to another user"
    } else if found.mode() & 0o077 != 0 {
        "is open to other users (its mode must be 0700)"
    } else {
        return Ok(());
    };
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!("the state folder {} {problem}", dir.display()),
    ))
}

fn read_entry(path: &Path) -> Option<Entry> {
    // A file that is being replaced or that another version wrote is as good as absent.
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests;

//! Files that are still being written, under names that are never listed.
//!
//! INVARIANT: the writer of a file holds its lock until the file has its name or is gone. A file
//! without a lock is what a dead process left, and is removed by the next scan of a folder that may
//! be written to: at once if it was made on this machine, since this boot, whichever container that
//! was in. Other machines' locks may not be seen here, on network filesystems: theirs must be old as
//! well.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::dir::Dir;
use super::folder::{Folder, identity};
use super::names::UNFINISHED;
use super::sidecar::Identity;

/// No writer takes this long without getting any further.
const ABANDONED: Duration = Duration::from_secs(600);

/// How often a file is made again because a scan has taken it for abandoned. On file systems that
/// count no links that happens each time.
const ATTEMPTS: usize = 5;

/// Numbers unfinished files.
static SERIAL: AtomicU64 = AtomicU64::new(0);

/// The newest modification time given to a file, in nanoseconds since 1970. File systems stamp
/// files by a clock that ticks every few milliseconds; validators need better.
static NEWEST_MTIME: AtomicU64 = AtomicU64::new(0);

/// The permission bits of new files; none: as the process's umask has it.
static FILE_MODE: AtomicU32 = AtomicU32::new(0);

/// Gives new files of all folders these permission bits from now on, whatever the umask of this
/// process: that of a daemon is not its user's.
pub fn set_file_mode(mode: u32) {
    FILE_MODE.store(mode, Ordering::Relaxed);
}

/// A file on its way into a folder; it vanishes unless it is [`Unfinished::publish`]ed.
#[derive(Debug)]
pub(super) struct Unfinished {
    folder: Dir,
    /// `None` once it has its own name.
    name: Option<String>,
    file: File,
}

impl Unfinished {
    /// Makes an empty one in a folder.
    pub(super) fn create(folder: Dir) -> io::Result<Self> {
        let (mut folder, mut attempts) = (folder, 0);
        loop {
            attempts += 1;
            let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
            let name = format!(
                "{}{}-{serial}-{:x}.tmp",
                of_this_boot(),
                std::process::id(),
                fastrand::u32(..)
            );
            let file = match folder.create(&name) {
                Ok(file) => file,
                Err(error)
                    if error.kind() == io::ErrorKind::AlreadyExists && attempts < ATTEMPTS =>
                {
                    continue;
                }
                Err(error) => return Err(error),
            };
            match FILE_MODE.load(Ordering::Relaxed) {
                0 => {}
                mode => file.set_permissions(Permissions::from_mode(mode))?,
            }
            let made = Self {
                folder,
                name: Some(name),
                file,
            };
            if made.is_held()? || attempts == ATTEMPTS {
                return Ok(made);
            }
            folder = made.folder.again()?;
        }
    }

    /// Takes the lock; tells whether no scan took the file for abandoned before.
    fn is_held(&self) -> io::Result<bool> {
        match flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(self.file.metadata()?.nlink() > 0),
            Err(Errno::WOULDBLOCK) => Ok(false),
            // File systems without locks do without: nothing is taken for abandoned there.
            Err(error) => {
                tracing::debug!(%error, "an unfinished file cannot be locked");
                Ok(true)
            }
        }
    }

    /// Ends writing: gives the file a modification time of its own and makes it durable.
    pub(super) fn finish(&mut self) -> io::Result<Identity> {
        self.file
            .set_modified(UNIX_EPOCH + Duration::from_nanos(next_mtime()))?;
        self.file.sync_all()?;
        identity(&self.file)
    }

    /// Gives the file the permission bits of the one that it is going to replace.
    pub(super) fn take_mode_of(&self, replaced: &File) -> io::Result<()> {
        let mode = replaced.metadata()?.mode() & 0o777;
        self.file.set_permissions(Permissions::from_mode(mode))
    }

    /// Gives the file its name, replacing what has it.
    pub(super) fn publish(mut self, name: &str) -> io::Result<()> {
        if let Some(unfinished) = &self.name {
            self.folder.rename(unfinished, name)?;
            self.name = None;
        }
        Ok(())
    }
}

impl Write for Unfinished {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(name) = &self.name
            && let Err(error) = self.folder.remove(name)
        {
            tracing::debug!(%error, "an unfinished file stays behind");
        }
    }
}

/// Removes those of the named files of a folder that no process is writing any more.
pub(super) fn remove_abandoned(folder: &Folder, names: &[String]) {
    for name in names {
        let Ok(file) = folder.file(name) else {
            continue;
        };
        if !name.starts_with(of_this_boot()) && !is_old(&file) {
            continue;
        }
        if flock(&file, FlockOperation::NonBlockingLockShared).is_err() {
            continue;
        }
        match folder.remove(name) {
            Ok(()) => tracing::debug!(file = name, "removed a file of a killed process"),
            Err(error) => tracing::debug!(%error, file = name, "an abandoned file stays behind"),
        }
    }
}

fn is_old(file: &File) -> bool {
    let modified = file.metadata().and_then(|metadata| metadata.modified());
    modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > ABANDONED))
}

/// How the names of the files begin that were made by this kernel, since it was booted.
fn of_this_boot() -> &'static str {
    static PREFIX: OnceLock<String> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let (id, _) = boot.trim().split_once('-').unwrap_or_default();
        format!("{UNFINISHED}{id}-")
    })
}

fn next_mtime() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64);
    let newest = NEWEST_MTIME
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |newest| {
            Some(now.max(newest + 1))
        })
        .unwrap_or(now);
    now.max(newest + 1)
}

//! Mount points: from what the user typed to a directory that can be mounted on.
//!
//! Touching a mount with a hanging daemon blocks the caller too, so this module reads the kernel's
//! list of mounts first, and touches a mount only from a thread that may be left behind.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::unmount::{UnmountError, UnmountMode, unmount};
use super::{MountLock, Registry, mounts};

/// How long a mount may take to answer before it counts as hung.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a daemon may take to end after its mount is gone.
const ENDING_TIMEOUT: Duration = Duration::from_secs(10);

/// How many dead mounts on top of each other are cleared away.
const MAX_STACKED: usize = 16;

/// How many symbolic links lead to a mount point at most, as in the kernel.
const MAX_LINKS: usize = 40;

/// Whether a mount answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Answers,
    /// Its daemon is gone.
    Dead,
    /// It has not within [`ANSWER_TIMEOUT`].
    Hangs,
}

/// Why a place cannot be mounted on.
#[derive(Debug)]
pub enum MountPointError {
    /// There is no such directory.
    Missing(PathBuf),
    /// It is not a directory.
    NotADirectory(PathBuf),
    /// kvfs is mounted there.
    AlreadyMounted {
        /// Where.
        path: PathBuf,
        /// The daemon and what it mounted, where known.
        by: Option<(u32, String)>,
        /// Whether it answers.
        health: Health,
    },
    /// The daemon of an earlier mount, now detached, has not ended.
    NotEnded {
        /// Where.
        path: PathBuf,
        /// The daemon, where known.
        pid: Option<u32>,
        /// What it still uploads, such as `1 file (2.9 MiB)`; `None` where it serves open files.
        uploads: Option<String>,
    },
    /// The mount cannot be registered in the runtime folder.
    Registry(PathBuf, io::Error),
    /// A dead mount there could not be cleared away.
    Stale(PathBuf, UnmountError),
    /// It cannot be looked at.
    Io(PathBuf, io::Error),
}

impl MountPointError {
    /// Returns what the person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing(path) => Some(format!("make it with: mkdir -p {}", quoted(path))),
            Self::NotADirectory(_) => Some("mount on an empty directory".to_owned()),
            Self::AlreadyMounted { path, health, .. } => Some(match health {
                Health::Hangs => format!("end it with: kvfs unmount --force {}", quoted(path)),
                _ => format!("unmount it first: kvfs unmount {}", quoted(path)),
            }),
            Self::NotEnded { pid, uploads, .. } => Some(match (uploads, pid) {
                (Some(_), _) => {
                    "wait until it is done, or see what is left with: kvfs recover".to_owned()
                }
                (None, Some(pid)) => format!("close those files, or end it with: kill -9 {pid}"),
                (None, None) => "close those files, or mount on another directory".to_owned(),
            }),
            Self::Registry(..) => Some(
                "set XDG_RUNTIME_DIR to a folder of yours that can be written to, of mode 0700"
                    .to_owned(),
            ),
            Self::Stale(path, error) => error.hint(path),
            Self::Io(..) => None,
        }
    }
}

impl fmt::Display for MountPointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(path) => write!(f, "the mount point {} does not exist", path.display()),
            Self::NotADirectory(path) => {
                write!(f, "the mount point {} is not a directory", path.display())
            }
            Self::AlreadyMounted { path, by, health } => {
                write!(f, "{} is already mounted", path.display())?;
                if let Some((pid, store)) = by {
                    write!(f, ": {store}, by process {pid}")?;
                }
                if *health == Health::Hangs {
                    f.write_str(", and does not answer")?;
                }
                Ok(())
            }
            Self::NotEnded { path, pid, uploads } => {
                write!(f, "the last mount on {} has not ended", path.display())?;
                match (pid, uploads) {
                    (Some(pid), Some(what)) => write!(f, ": process {pid} still uploads {what}"),
                    (Some(pid), None) => {
                        write!(f, ": process {pid} serves files that are still open")
                    }
                    (None, _) => Ok(()),
                }
            }
            Self::Registry(dir, error) => {
                write!(f, "cannot register the mount in {}: {error}", dir.display())
            }
            Self::Stale(path, error) => {
                write!(
                    f,
                    "cannot clear away the dead mount at {}: {error}",
                    path.display()
                )
            }
            Self::Io(path, error) => {
                write!(f, "cannot use the mount point {}: {error}", path.display())
            }
        }
    }
}

impl std::error::Error for MountPointError {}

/// Returns the canonical form of `path`, without touching a kvfs mount that may be there.
///
/// # Errors
/// [`MountPointError::Missing`] or [`MountPointError::Io`].
pub fn resolve(path: &Path) -> Result<PathBuf, MountPointError> {
    let fail = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => MountPointError::Missing(path.to_path_buf()),
        _ => MountPointError::Io(path.to_path_buf(), error),
    };
    // Without the slash that completion of names appends: registrations go by the bytes of a path.
    let mut next: PathBuf = std::path::absolute(path)
        .map_err(fail)?
        .components()
        .collect();
    for _ in 0..MAX_LINKS {
        if is_kvfs(&next) {
            return Ok(next);
        }
        // Only the last part can be the mount: everything before it is safe to follow.
        let (Some(parent), Some(name)) = (next.parent(), next.file_name()) else {
            return fs::canonicalize(&next).map_err(fail);
        };
        let parent = fs::canonicalize(parent).map_err(fail)?;
        let whole = parent.join(name);
        if is_kvfs(&whole) {
            return Ok(whole);
        }
        match fs::read_link(&whole) {
            Ok(target) => next = parent.join(target).components().collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(fail(error)),
            Err(_) => return Ok(whole),
        }
    }
    Err(fail(io::Error::from_raw_os_error(libc::ELOOP)))
}

/// Takes the right to mount at `path`, which [`resolve`] returned: a directory without a live
/// kvfs mount. Mounts of dead daemons are cleared away.
///
/// # Errors
/// See [`MountPointError`].
pub fn claim(registry: &Registry, path: &Path) -> Result<MountLock, MountPointError> {
    let until = Instant::now() + ENDING_TIMEOUT;
    let lock = loop {
        match registry.lock(path) {
            Ok(lock) => break lock,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                return Err(MountPointError::Registry(
                    registry.dir().to_path_buf(),
                    error,
                ));
            }
            Err(_) if is_kvfs(path) || Instant::now() >= until => {
                return Err(already_mounted(registry, path));
            }
            // Its mount is gone, so that daemon is about to end.
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    };
    for _ in 0..MAX_STACKED {
        if !is_kvfs(path) {
            break;
        }
        if health(path) != Health::Dead {
            return Err(already_mounted(registry, path));
        }
        tracing::warn!(mount_point = %path.display(), "clearing away a dead mount");
        match unmount(path, UnmountMode::Lazy) {
            Ok(()) | Err(UnmountError::NotMounted) => {}
            Err(error) => return Err(MountPointError::Stale(path.to_path_buf(), error)),
        }
    }
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(lock),
        Ok(_) => Err(MountPointError::NotADirectory(path.to_path_buf())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(MountPointError::Missing(path.to_path_buf()))
        }
        Err(error) => Err(MountPointError::Io(path.to_path_buf(), error)),
    }
}

/// Returns whether the mount at `path` answers, within [`ANSWER_TIMEOUT`].
pub fn health(path: &Path) -> Health {
    let (sender, answer) = mpsc::channel();
    let path = path.to_path_buf();
    // statfs and not stat: the kernel answers stat from its cache even if the daemon is dead.
    let asked = thread::Builder::new()
        .name("ask-mount".into())
        .spawn(move || sender.send(rustix::fs::statfs(&path).map(drop)));
    if asked.is_err() {
        return Health::Hangs;
    }
    match answer.recv_timeout(ANSWER_TIMEOUT) {
        Ok(Err(rustix::io::Errno::NOTCONN | rustix::io::Errno::CONNABORTED)) => Health::Dead,
        Ok(_) => Health::Answers,
        Err(_) => Health::Hangs,
    }
}

/// Returns whether a kvfs mount is on top at exactly `path`.
pub fn is_kvfs(path: &Path) -> bool {
    mounts::find(path)
        .ok()
        .flatten()
        .is_some_and(|mount| mount.is_kvfs())
}

/// Returns `path` as a shell takes it.
pub fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

fn already_mounted(registry: &Registry, path: &Path) -> MountPointError {
    let path = path.to_path_buf();
    let daemon = registry.find(&path).filter(super::Entry::is_alive);
    if !is_kvfs(&path) {
        let pid = daemon.map(|entry| entry.process.pid);
        return MountPointError::NotEnded {
            path,
            pid,
            uploads: None,
        };
    }
    MountPointError::AlreadyMounted {
        by: daemon.map(|entry| (entry.process.pid, entry.store)),
        health: health(&path),
        path,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn registry() -> (tempfile::TempDir, Registry) {
        let dir = tempfile::tempdir().expect("a folder");
        let registry = Registry::new(dir.path().join("state"), Vec::new());
        (dir, registry)
    }

    #[test]
    fn paths_are_made_canonical() {
        let (dir, _) = registry();
        let real = fs::canonicalize(dir.path()).expect("a path");
        fs::create_dir(real.join("d")).expect("a folder");
        symlink("d", real.join("link")).expect("a link");
        symlink("loop", real.join("loop")).expect("a link");
        for typed in [
            "d",
            "d/",
            "d//",
            "d/.",
            "./d/",
            "link",
            "link/",
            "d/../link",
        ] {
            assert_eq!(
                resolve(&real.join(typed)).expect(typed),
                real.join("d"),
                "{typed}"
            );
        }
        assert!(matches!(
            resolve(&real.join("none")),
            Err(MountPointError::Missing(_))
        ));
        assert!(matches!(
            resolve(&real.join("none/at/all")),
            Err(MountPointError::Missing(_))
        ));
        assert!(resolve(&real.join("loop")).is_err());
        assert_eq!(resolve(Path::new("/")).expect("the root"), Path::new("/"));
    }

    #[test]
    fn only_a_directory_can_be_claimed_and_only_once() {
        let (dir, registry) = registry();
        let file = dir.path().join("file");
        fs::write(&file, "x").expect("a file");
        let error = claim(&registry, &file).expect_err("a file");
        assert!(error.to_string().contains("is not a directory"), "{error}");
        let missing = dir.path().join("it's missing");
        let error = claim(&registry, &missing).expect_err("nothing");
        assert!(
            error
                .hint()
                .is_some_and(|hint| hint.contains(r"'\''s missing'"))
        );
        let lock = claim(&registry, dir.path()).expect("a folder");
        assert!(registry.lock(dir.path()).is_err());
        drop(lock);
        assert!(registry.lock(dir.path()).is_ok());
    }

    #[test]
    fn a_plain_directory_answers() {
        assert_eq!(health(Path::new("/")), Health::Answers);
        assert!(!is_kvfs(Path::new("/")));
    }
}

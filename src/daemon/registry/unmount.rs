//! Unmounting through the kernel: `umount2` where this user may, else `fusermount3`.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use serde::{Deserialize, Serialize};

use super::mount_point::quoted;
use super::mounts;
use super::users::{listed, users_of};

/// The program that mounts and unmounts for users.
const HELPER: &str = "fusermount3";

/// Where it is on most systems: a service may have been started with a PATH of its own.
const HELPER_FOLDERS: &str = "/usr/bin:/bin:/usr/local/bin:/usr/sbin:/sbin";

/// How to unmount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnmountMode {
    /// Only if no program uses the mount.
    #[default]
    Graceful,
    /// Take it out of the tree at once; files that are open stay usable until closed.
    Lazy,
    /// Take it out of the tree and fail everything that still waits for it.
    Force,
}

/// Why a mount could not be unmounted.
#[derive(Debug)]
pub enum UnmountError {
    /// A program has a file open or its working directory there.
    Busy,
    /// Nothing is mounted there.
    NotMounted,
    /// This user needs `fusermount3`, which is not installed.
    NoHelper,
    /// The helper failed; what it said.
    Helper(String),
    /// The helper could not be started.
    Unstarted(io::Error),
    /// The kernel refused.
    Os(io::Error),
}

impl UnmountError {
    /// Returns what the person can do about it; `mount_point` is the one that this is about.
    pub fn hint(&self, mount_point: &Path) -> Option<String> {
        match self {
            Self::Busy => {
                let quoted = quoted(mount_point);
                let users = users_of(mount_point);
                let end = match users.as_slice() {
                    [] => format!("see what uses it with: fuser -vm {quoted}"),
                    users => format!("it is in use by {}: end that", listed(users)),
                };
                Some(format!(
                    "{end}; or detach the mount: kvfs unmount --lazy {quoted}"
                ))
            }
            Self::NoHelper => Some(
                "install the package fuse3 (Debian, Ubuntu: apt install fuse3; Fedora: dnf install fuse3), or have its folder in PATH"
                    .to_owned(),
            ),
            Self::NotMounted | Self::Helper(_) | Self::Unstarted(_) | Self::Os(_) => None,
        }
    }
}

impl fmt::Display for UnmountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy => f.write_str("the mount point is in use"),
            Self::NotMounted => f.write_str("nothing is mounted there"),
            Self::NoHelper => f.write_str("the program fusermount3 is missing"),
            Self::Helper(said) => write!(f, "fusermount3 failed: {said}"),
            Self::Unstarted(error) => write!(f, "cannot start fusermount3: {error}"),
            Self::Os(error) => write!(f, "the kernel refused: {error}"),
        }
    }
}

impl std::error::Error for UnmountError {}

impl From<UnmountError> for io::Error {
    fn from(error: UnmountError) -> Self {
        match error {
            UnmountError::Busy => Self::from_raw_os_error(libc::EBUSY),
            UnmountError::NotMounted => Self::new(io::ErrorKind::NotFound, error),
            UnmountError::Os(error) => error,
            other => Self::other(other),
        }
    }
}

/// Unmounts what is on top at `mount_point`.
///
/// # Errors
/// See [`UnmountError`].
pub fn unmount(mount_point: &Path, mode: UnmountMode) -> Result<(), UnmountError> {
    let flags = UnmountFlags::NOFOLLOW
        | match mode {
            UnmountMode::Graceful => UnmountFlags::empty(),
            UnmountMode::Lazy => UnmountFlags::DETACH,
            UnmountMode::Force => UnmountFlags::FORCE | UnmountFlags::DETACH,
        };
    match unmount_at(mount_point, flags) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(UnmountError::Busy),
        Err(Errno::INVAL | Errno::NOENT | Errno::LOOP) => Err(UnmountError::NotMounted),
        Err(Errno::PERM) => unmount_as_user(mount_point, mode),
        Err(error) => Err(UnmountError::Os(error.into())),
    }
}

/// Unmounts at a canonical path. The owner of a folder in it may replace the folder by a link at
/// any time, so the folder is opened first, without links, and the mount named by that.
fn unmount_at(mount_point: &Path, flags: UnmountFlags) -> Result<(), Errno> {
    let (Some(parent), Some(name)) = (mount_point.parent(), mount_point.file_name()) else {
        return rustix::mount::unmount(mount_point, flags);
    };
    let how = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = openat2(CWD, parent, how, Mode::empty(), ResolveFlags::NO_SYMLINKS);
    let parent = match opened {
        Ok(parent) => parent,
        // The kernel does not know the call, or a container forbids it.
        Err(Errno::NOSYS | Errno::PERM) => return rustix::mount::unmount(mount_point, flags),
        Err(error) => return Err(error),
    };
    let here = format!("/proc/self/fd/{}", parent.as_raw_fd());
    match Path::new(&here).exists() {
        true => rustix::mount::unmount(Path::new(&here).join(name), flags),
        false => rustix::mount::unmount(mount_point, flags),
    }
}

fn unmount_as_user(mount_point: &Path, mode: UnmountMode) -> Result<(), UnmountError> {
    if mode == UnmountMode::Force {
        abort_connection(mount_point);
    }
    let mut command = Command::new(HELPER);
    command.env("PATH", path_of_helper());
    command.arg("-u");
    if mode != UnmountMode::Graceful {
        command.arg("-z");
    }
    let output = command
        .arg("--")
        .arg(mount_point)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => UnmountError::NoHelper,
            _ => UnmountError::Unstarted(error),
        })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim();
    if said.contains("busy") {
        Err(UnmountError::Busy)
    } else if said.contains("not found in") {
        Err(UnmountError::NotMounted)
    } else {
        Err(UnmountError::Helper(said.to_owned()))
    }
}

/// Returns the search path, the usual folders at its end.
#[expect(
    clippy::disallowed_methods,
    reason = "the search path of the programs that this one starts, no setting of kvfs"
)]
fn path_of_helper() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    if !path.is_empty() {
        path.push(":");
    }
    path.push(HELPER_FOLDERS);
    path
}

/// Fails everything that waits for the mount. The kernel lets its owner do so where the control
/// filesystem is mounted; where it is not, detaching has to do.
fn abort_connection(mount_point: &Path) {
    if let Ok(Some(mount)) = mounts::find(mount_point)
        && let Err(error) = fs::write(
            format!("/sys/fs/fuse/connections/{}/abort", mount.minor),
            "1",
        )
    {
        tracing::debug!(%error, "cannot abort the FUSE connection");
    }
}

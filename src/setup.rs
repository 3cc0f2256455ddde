//! Puts a mount together: settings in, running filesystem out. Used by the command line and by tests.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::open::OpenConfig;
use crate::units::ByteSize;

/// Everything a mount needs to know; the parent process hands it to the daemon through a pipe.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MountConfig {
    /// What to mount, and with which credentials.
    pub open: OpenConfig,
    /// Where: an absolute path of an existing directory.
    pub mount_point: PathBuf,
    /// Whether files show stored bytes instead of decoded ones.
    pub raw: bool,
    /// Only keys that begin so.
    pub prefix: Option<String>,
    /// Only keys of this collection.
    pub collection: Option<String>,
    /// How long names, sizes and absence are believed; `None` (`--immutable`): for ever.
    pub ttl: Option<Duration>,
    /// Whether every record is asked for its exact size when it is listed.
    pub exact_sizes: bool,
    /// The content cache in memory.
    pub memory_cache: ByteSize,
    /// The content cache on disk; `None` for no disk cache.
    pub disk_cache: Option<DiskCacheConfig>,
    /// The longest that one filesystem operation may take.
    pub deadline: Duration,
    /// Owner shown for all files.
    pub uid: u32,
    /// Group shown for all files.
    pub gid: u32,
    /// Permission bits of files.
    pub file_mode: u32,
    /// Permission bits of directories.
    pub dir_mode: u32,
    /// Who besides the mounting user may use the mount.
    pub access: MountAccess,
}

/// Where and how much the disk cache may store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiskCacheConfig {
    /// The folder; kvfs uses a sub-folder of its own in it.
    pub dir: PathBuf,
    /// The most bytes that it holds.
    pub size: ByteSize,
}

/// Who may use a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountAccess {
    /// Only the user who mounted it.
    #[default]
    Owner,
    /// That user and root.
    OwnerAndRoot,
    /// Everybody, as far as the permission bits allow.
    Everybody,
}

//! The settings of a mount, which travel from the parent process to the daemon.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::open::OpenConfig;
use crate::base::units::ByteSize;
use crate::fs::write::Overwrite;

/// Everything a mount needs to know; the parent process hands it to the daemon through a pipe.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MountConfig {
    /// What to mount, and with which credentials.
    pub open: OpenConfig,
    /// Where: an absolute path of an existing directory.
    pub mount_point: PathBuf,
    /// What mount(8) and df show as the source; `None` for `kvfs:` and the reference.
    ///
    /// A mount of fstab has there what fstab says: by that `mount -a` knows that it is up.
    #[serde(default)]
    pub source: Option<String>,
    /// Whether files show stored bytes instead of decoded ones.
    pub raw: bool,
    /// How large a decoded content may be; `None` for as large as honest ones of what is stored.
    #[serde(default)]
    pub max_content: Option<ByteSize>,
    /// Only keys that begin so.
    pub prefix: Option<String>,
    /// Only keys of this collection.
    pub collection: Option<String>,
    /// How long names, sizes and absence are believed; `None` (`--immutable`): for ever.
    pub ttl: Option<Duration>,
    /// How much later than a write the store's `modifiedAt` may tell of it; `None` never looks at it.
    #[serde(default)]
    pub clock_lag: Option<Duration>,
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
    /// The users besides the mounting one who may use the mount.
    pub access: MountAccess,
    /// How the store may be changed through the mount; `None`: not at all.
    pub write: Option<WriteSettings>,
}

/// How a store may be changed through a mount.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WriteSettings {
    /// Whether a record that has changed in the store may be overwritten.
    pub overwrite: Overwrite,
    /// How new bytes are encoded, as `Content-Encoding` names it.
    pub compress: Option<String>,
    /// Patterns of scratch names besides the known ones.
    pub scratch: Vec<String>,
    /// How long an upload under a temporary name waits for the final one.
    pub scratch_delay: Duration,
    /// The largest file.
    pub max_record_size: Option<ByteSize>,
    /// Where changed files are; kvfs uses a sub-folder of its own in it.
    pub staging_dir: PathBuf,
    /// Staging folders in which earlier mounts may have left files, of which newer ones are not to be
    /// written.
    #[serde(default)]
    pub other_staging: Vec<PathBuf>,
    /// The most bytes there; `None` for what the disk can spare.
    pub staging_size: Option<ByteSize>,
    /// Whether closing a file waits for the local disk only.
    pub write_back: bool,
    /// How long the end of the mount waits for uploads.
    pub unmount_timeout: Duration,
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
    /// All users, as far as the permission bits allow.
    Everybody,
}

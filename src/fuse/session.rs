//! Mounting and unmounting.
//!
//! Root, and other users who may mount (CAP_SYS_ADMIN, in containers), mount directly and hand the
//! descriptor to `fuser`: its own way of mounting unmounts the path once more on the way out,
//! whatever is mounted there by then, and drops the subtype by which kvfs knows its mounts. Other
//! users mount through `fusermount3`.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::{Config, MountOption, Session, SessionACL};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Resource, getrlimit};

use super::adapter::Adapter;
use super::notify::Kernel;
use crate::fs::types::KernelCache;

/// Threads that take requests from the kernel. They never wait, so a few are enough.
const THREADS: usize = 4;
/// The same where addresses are limited: fuser sets 16 MiB of them aside for each.
const FEW_THREADS: usize = 2;
/// The filesystem type that the mount shows, as in `fuse.kvfs`.
pub const SUBTYPE: &str = "kvfs";
/// Kernel readahead in KiB: what makes it ask for 1 MiB at once.
const READ_AHEAD_KIB: &str = "1024";

/// Who may use a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only the user who mounted it.
    Owner,
    /// That user and root.
    OwnerAndRoot,
    /// All users, as far as the permission bits allow.
    Everybody,
}

/// Where and how to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// An existing directory, as an absolute path.
    pub mount_point: PathBuf,
    /// What `mount` and `df` show as the device.
    pub source: String,
    /// The users who may use it.
    pub access: Access,
    /// Whether the kernel lets changes through.
    pub writable: bool,
}

/// A mount that answers; [`Mounted::run`] serves it.
pub struct Mounted {
    session: Session<Adapter>,
}

impl std::fmt::Debug for Mounted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mounted")
    }
}

impl Mounted {
    /// Returns the way to the kernel's caches.
    pub fn kernel(&self) -> Arc<dyn KernelCache> {
        Arc::new(Kernel(self.session.notifier()))
    }

    /// Serves the mount until it is unmounted.
    ///
    /// # Errors
    /// When the connection to the kernel breaks otherwise.
    pub fn run(self) -> io::Result<()> {
        self.session.run()
    }
}

/// Returns how many threads read the kernel's requests.
pub(super) fn threads() -> usize {
    match getrlimit(Resource::As).current {
        Some(_) => FEW_THREADS,
        None => THREADS,
    }
}

/// Mounts. The mount answers when this returns.
///
/// # Errors
/// A sentence that says what is missing, with the cause.
pub fn mount(adapter: Adapter, options: &MountOptions) -> io::Result<Mounted> {
    let acl = match options.access {
        Access::Owner => SessionACL::Owner,
        Access::OwnerAndRoot => SessionACL::RootAndOwner,
        Access::Everybody => SessionACL::All,
    };
    let mut config = Config::default();
    config.n_threads = Some(threads());
    config.acl = acl;
    let device = match mount_directly(options) {
        Some(Err(error)) if is_forbidden(&error) && !rustix::process::geteuid().is_root() => None,
        mounted => mounted
            .transpose()
            .map_err(|error| explain(error, options))?,
    };
    let session = if let Some(device) = device {
        Session::from_fd(adapter, device, acl, config).inspect_err(|_| {
            // Nothing answers there: take the mount away again.
            let _ = rustix::mount::unmount(
                &options.mount_point,
                UnmountFlags::DETACH | UnmountFlags::NOFOLLOW,
            );
        })?
    } else {
        config.mount_options = vec![
            // Commas would start the next option.
            MountOption::FSName(options.source.replace([',', '\\'], "_")),
            MountOption::Subtype(SUBTYPE.into()),
            if options.writable {
                MountOption::RW
            } else {
                MountOption::RO
            },
            MountOption::NoExec,
            MountOption::NoSuid,
            MountOption::NoDev,
            MountOption::DefaultPermissions,
        ];
        Session::new(adapter, &options.mount_point, &config)
            .map_err(|error| explain(error, options))?
    };
    raise_read_ahead(&options.mount_point);
    Ok(Mounted { session })
}

/// Mounts without a helper; `None` where this process may not.
fn mount_directly(options: &MountOptions) -> Option<io::Result<OwnedFd>> {
    may_mount().then(|| mount_by_call(options))
}

/// Returns whether this process may call mount(2): CAP_SYS_ADMIN is bit 21 (capabilities(7)).
fn may_mount() -> bool {
    const CAP_SYS_ADMIN: u32 = 21;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    effective.map_or(rustix::process::geteuid().is_root(), |bits| {
        bits & (1 << CAP_SYS_ADMIN) != 0
    })
}

fn is_forbidden(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

fn mount_by_call(options: &MountOptions) -> io::Result<OwnedFd> {
    let device: OwnedFd = File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")?
        .into();
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    if options.access != Access::Owner {
        data.push_str(",allow_other");
    }
    let data = std::ffi::CString::new(data)?;
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    flags.set(MountFlags::RDONLY, !options.writable);
    rustix::mount::mount(
        &options.source,
        &options.mount_point,
        format!("fuse.{SUBTYPE}"),
        flags,
        &*data,
    )
    .map_err(io::Error::from)?;
    Ok(device)
}

/// Adds to an error what people can do about it.
fn explain(error: io::Error, options: &MountOptions) -> io::Error {
    let said = error.to_string();
    // What fusermount3 says is all there is of its error.
    let is_refused =
        error.kind() == io::ErrorKind::PermissionDenied || said.contains("not permitted");
    let hint = match error.kind() {
        io::ErrorKind::NotFound if !Path::new("/dev/fuse").exists() => {
            "there is no /dev/fuse: load the module (modprobe fuse); in a container start it with --device /dev/fuse --cap-add SYS_ADMIN"
        }
        io::ErrorKind::NotFound => {
            "fusermount3 is missing: install the package fuse3 (Debian, Ubuntu: apt install fuse3; Fedora: dnf install fuse3)"
        }
        _ if is_refused && said.contains("allow_other") => {
            "uncomment user_allow_other in /etc/fuse.conf, or mount without --allow-other and --allow-root"
        }
        _ if is_refused && !may_write(&options.mount_point) => {
            "you may not write to the mount point, as fusermount3 demands: mount on a folder of yours"
        }
        _ if is_refused && said.contains("fusermount") => {
            "this process may not mount: fusermount3 has no effect where setuid programs have none; in a systemd unit, turn off NoNewPrivileges and the settings that imply it, in a container start it with --device /dev/fuse --cap-add SYS_ADMIN"
        }
        _ if is_refused => {
            "this process may not mount: check the permissions of /dev/fuse; in a container start it with --device /dev/fuse --cap-add SYS_ADMIN"
        }
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{}; {hint}", said.trim_end()))
}

fn may_write(folder: &Path) -> bool {
    use rustix::fs::Access;
    rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

/// Raises the kernel's readahead for this mount. Only root may; without it reads are smaller.
fn raise_read_ahead(mount_point: &Path) {
    let Ok(text) = std::fs::read_to_string("/proc/self/mountinfo") else {
        return;
    };
    let wanted = mount_point
        .as_os_str()
        .to_string_lossy()
        .replace('\\', "\\134")
        .replace(' ', "\\040");
    // Fields: id, parent, major:minor, root, mount point (proc(5)); the last line is the topmost.
    let device = text.lines().rev().find_map(|line| {
        let mut fields = line.split(' ');
        let device = fields.nth(2)?;
        (fields.nth(1)? == wanted).then_some(device)
    });
    if let Some(device) = device
        && let Err(error) = std::fs::write(
            format!("/sys/class/bdi/{device}/read_ahead_kb"),
            READ_AHEAD_KIB,
        )
    {
        tracing::debug!("readahead stays as it is: {error}");
    }
}

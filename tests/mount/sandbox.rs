//! kvfs on a system that a test has prepared: in mount and process namespaces of its own, so that
//! files such as `/dev/fuse` can be others there, and nothing outlives the script that is run.
//!
//! What is mounted there may be the real system's, seen from elsewhere: scripts never change owners
//! or modes below their folder, and see programs through read-only views.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::mounted::Running;

/// The longest that a script may take.
const LIMIT: Duration = Duration::from_secs(60);
/// As a fresh login has it: of folders that only root may enter, nobody else makes use.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The user and group `nobody`.
const NOBODY: u32 = 65534;

/// A new namespace has a copy of each mount of the other tests, which could not end before it does.
const ALONE: &str =
    "umount --all --lazy --internal-only --no-canonicalize --types fuse.kvfs 2> /dev/null";

/// Prepares `/dev/fuse` with the mode that is said instead of `MODE`.
const DEVICE: &str = "mkdir device; mount -t tmpfs none device
    mknod -m MODE device/fuse c 10 229; mount --bind device/fuse /dev/fuse
    ";

/// Where scripts are run: each in a new folder with `store/a`, an empty `mnt` and a copy of the
/// program, which belongs to whoever runs it; `$KVFS` is the program.
pub(super) struct Sandbox {
    prepare: String,
}

impl Sandbox {
    /// Has root run a script first, which may change what it likes of the system by mounts.
    pub(super) fn prepared(prepare: &str) -> Self {
        Self {
            prepare: prepare.to_owned(),
        }
    }

    /// The same with a device of this mode in the place of `/dev/fuse`.
    pub(super) fn with_device(mode: &str, prepare: &str) -> Self {
        Self {
            prepare: DEVICE.replace("MODE", mode) + prepare,
        }
    }

    /// Runs a script as root; returns whether it worked and what it said.
    pub(super) fn as_root(&self, script: &str) -> (bool, String) {
        self.run(0, script)
    }

    /// The same as `nobody`.
    pub(super) fn as_nobody(&self, script: &str) -> (bool, String) {
        self.run(NOBODY, script)
    }

    fn run(&self, user: u32, script: &str) -> (bool, String) {
        let folder = tempfile::tempdir().expect("a folder");
        let home = folder.path();
        for name in ["store", "mnt", "run"] {
            fs::create_dir(home.join(name)).expect("a folder");
        }
        fs::write(home.join("store/a"), "hi\n").expect("a record");
        fs::write(home.join("script"), script).expect("a script");
        // The build folder need not be open to others.
        fs::copy(env!("CARGO_BIN_EXE_kvfs"), home.join("kvfs")).expect("a copy");
        fs::set_permissions(home, fs::Permissions::from_mode(0o755)).expect("a mode");
        for name in ["", "store", "store/a", "mnt", "run"] {
            chown(home.join(name), Some(user), Some(user)).expect("an owner");
        }
        let outer = format!(
            "{ALONE}
            set -e; cd {home}
            {prepare}
            export HOME={home} XDG_RUNTIME_DIR={home}/run KVFS={home}/kvfs
            exec setpriv --reuid {user} --regid {user} --clear-groups sh script",
            home = home.display(),
            prepare = self.prepare,
        );
        let output = Running::start(
            Command::new("unshare")
                .args(["--mount", "--propagation", "private"])
                .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
                .args(["sh", "-c", &outer])
                .env("PATH", PATH)
                .env_remove("APIFY_TOKEN"),
        )
        .wait(LIMIT);
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &output.stderr;
        (output.status.success(), said)
    }
}

/// Tells whether a program is installed where a fresh login finds it.
pub(super) fn is_installed(program: &str) -> bool {
    ["/usr/bin", "/bin", "/usr/sbin", "/sbin"]
        .iter()
        .any(|folder| Path::new(folder).join(program).exists())
}

//! Checks of the machine: version, device, `fusermount3`, `/etc/fuse.conf`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::StatVfsMountFlags;

use super::Finding;
use crate::cli::config_file::{ConfigFile, Value};
use crate::cli::settings::Environment;

/// Files that container engines leave in the root of a container.
const CONTAINER_MARKS: [&str; 2] = ["/.dockerenv", "/run/.containerenv"];

/// What is looked at; other places in tests.
#[derive(Debug)]
struct Machine {
    device: PathBuf,
    fuse_conf: PathBuf,
    /// The folders of programs.
    path: Vec<PathBuf>,
    is_root: bool,
    in_container: bool,
    /// Whether setuid bits have no effect on what this process starts.
    no_new_privileges: bool,
    /// Whether the settings ask for `--allow-other` or `--allow-root`.
    allows_others: bool,
}

/// Checks the machine.
pub fn check(environment: &Environment, file: Option<&ConfigFile>) -> Vec<Finding> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let allows = |name: &str, value: &Value| {
        matches!(name, "allow-other" | "allow-root") && matches!(value, Value::Switch(true))
    };
    let machine = Machine {
        device: "/dev/fuse".into(),
        fuse_conf: "/etc/fuse.conf".into(),
        path: environment.path().to_vec(),
        is_root: rustix::process::geteuid().is_root(),
        in_container: CONTAINER_MARKS.iter().any(|mark| Path::new(mark).exists()),
        no_new_privileges: status
            .lines()
            .any(|line| line.split_whitespace().eq(["NoNewPrivs:", "1"])),
        allows_others: file.is_some_and(|file| {
            file.defaults
                .iter()
                .any(|setting| allows(&setting.name, &setting.value))
        }),
    };
    vec![
        version(),
        machine.device(),
        machine.fusermount(),
        machine.others(),
    ]
}

fn version() -> Finding {
    let system = rustix::system::uname();
    let message = format!(
        "kvfs {} on {} {} ({})",
        env!("CARGO_PKG_VERSION"),
        system.sysname().to_string_lossy(),
        system.release().to_string_lossy(),
        system.machine().to_string_lossy(),
    );
    Finding::ok("version", message)
}

impl Machine {
    fn device(&self) -> Finding {
        let name = self.device.display();
        let bad = |message: String, fix: &str| Finding::failure("device", message, fix);
        let in_container = "start the container with --device /dev/fuse --cap-add SYS_ADMIN";
        match File::options().read(true).write(true).open(&self.device) {
            Ok(_) => Finding::ok("device", format!("{name} can be opened")),
            Err(error) if self.in_container => bad(
                format!("this container may not use {name}: {error}"),
                in_container,
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => bad(
                format!("there is no {name}"),
                "load the kernel's module: sudo modprobe fuse; in a container: --device \
                 /dev/fuse --cap-add SYS_ADMIN",
            ),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => bad(
                format!("{name} has no driver"),
                "load the kernel's module: sudo modprobe fuse",
            ),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                bad(format!("{name} is forbidden here: {error}"), in_container)
            }
            Err(error) => bad(
                format!("{name} cannot be opened: {error}"),
                "its mode is 0666 on most systems: sudo chmod 666 /dev/fuse, or join the \
                 group that it belongs to",
            ),
        }
    }

    fn fusermount(&self) -> Finding {
        let check = "fusermount3";
        if self.is_root {
            return Finding::ok(check, "not needed: root mounts by itself");
        }
        let install = "install the package fuse3: sudo apt install fuse3, or dnf install fuse3";
        let found = self
            .path
            .iter()
            .map(|dir| dir.join(check))
            .find_map(|path| Some((fs::metadata(&path).ok()?, path)));
        let Some((metadata, path)) = found else {
            return Finding::failure(
                check,
                "is not in PATH, and only root can mount without it",
                install,
            );
        };
        let name = path.display();
        let mode = metadata.permissions().mode();
        if mode & 0o111 == 0 {
            return Finding::failure(check, format!("{name} cannot be run"), install);
        }
        if mode & 0o4000 == 0 || metadata.uid() != 0 {
            let message = format!("{name} is not setuid root, so it may not mount");
            let fix = format!("sudo chown root {name}; sudo chmod u+s {name}");
            return Finding::failure(check, message, fix);
        }
        let no_setuid = rustix::fs::statvfs(&path)
            .is_ok_and(|system| system.f_flag.contains(StatVfsMountFlags::NOSUID));
        if no_setuid {
            let message = format!("{name} is on a filesystem mounted nosuid");
            return Finding::failure(check, message, "mount that without nosuid, or be root");
        }
        if self.no_new_privileges {
            return Finding::failure(
                check,
                "setuid programs have no effect in this process (no_new_privs)",
                "in a systemd unit: NoNewPrivileges=no; in a container: without \
                 --security-opt no-new-privileges",
            );
        }
        Finding::ok(check, format!("{name} is setuid root"))
    }

    fn others(&self) -> Finding {
        let check = "allow-other";
        if self.is_root {
            return Finding::ok(check, "enabled: root may let others use its mounts");
        }
        let name = self.fuse_conf.display();
        let text = fs::read_to_string(&self.fuse_conf).unwrap_or_default();
        if text.lines().any(|line| line.trim() == "user_allow_other") {
            return Finding::ok(check, format!("enabled: {name} sets user_allow_other"));
        }
        if self.allows_others {
            return Finding::failure(
                check,
                format!("the settings file asks for it, and {name} does not allow it"),
                format!("add the line user_allow_other to {name}"),
            );
        }
        Finding::ok(
            check,
            format!("disabled (rarely needed): {name} does not set user_allow_other"),
        )
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::super::State;
    use super::*;

    fn machine() -> (TempDir, Machine) {
        let dir = tempfile::tempdir().expect("a folder");
        let machine = Machine {
            device: dir.path().join("fuse"),
            fuse_conf: dir.path().join("fuse.conf"),
            path: vec!["/no/such/folder".into(), dir.path().join("bin")],
            is_root: false,
            in_container: false,
            no_new_privileges: false,
            allows_others: false,
        };
        fs::create_dir(dir.path().join("bin")).expect("a folder");
        (dir, machine)
    }

    #[track_caller]
    fn is(finding: &Finding, state: State, texts: &[&str]) {
        assert_eq!(finding.state, state, "{finding:?}");
        let said = format!("{} {:?}", finding.message, finding.fix);
        for text in texts {
            assert!(said.contains(text), "no {text} in {said}");
        }
    }

    #[test]
    fn the_device_must_be_there() {
        let (_dir, mut machine) = machine();
        is(
            &machine.device(),
            State::Failure,
            &["there is no", "modprobe fuse"],
        );
        machine.in_container = true;
        is(
            &machine.device(),
            State::Failure,
            &["container", "--device /dev/fuse"],
        );
        fs::write(&machine.device, "").expect("a file");
        is(&machine.device(), State::Ok, &["can be opened"]);
        // A folder cannot be written to, as little as a device without permission.
        machine.in_container = false;
        machine.device = machine.path[1].clone();
        is(
            &machine.device(),
            State::Failure,
            &["cannot be opened", "chmod 666"],
        );
    }

    #[test]
    fn fusermount_must_be_setuid_root_unless_root_mounts() {
        let (_dir, mut machine) = machine();
        is(
            &machine.fusermount(),
            State::Failure,
            &["not in PATH", "apt install fuse3"],
        );
        let program = machine.path[1].join("fusermount3");
        fs::write(&program, "").expect("a file");
        is(&machine.fusermount(), State::Failure, &["cannot be run"]);
        let mode = |mode| {
            fs::set_permissions(&program, fs::Permissions::from_mode(mode)).expect("a mode");
        };
        mode(0o755);
        is(
            &machine.fusermount(),
            State::Failure,
            &["not setuid root", "chmod u+s"],
        );
        mode(0o4755);
        let is_roots = fs::metadata(&program).expect("it").uid() == 0;
        let nosuid = rustix::fs::statvfs(&program)
            .is_ok_and(|system| system.f_flag.contains(StatVfsMountFlags::NOSUID));
        if is_roots && !nosuid {
            is(&machine.fusermount(), State::Ok, &["is setuid root"]);
            machine.no_new_privileges = true;
            is(
                &machine.fusermount(),
                State::Failure,
                &["NoNewPrivileges=no"],
            );
        }
        machine.is_root = true;
        is(&machine.fusermount(), State::Ok, &["root mounts by itself"]);
    }

    #[test]
    fn others_need_a_line_in_fuse_conf() {
        let (_dir, mut machine) = machine();
        is(&machine.others(), State::Ok, &["disabled"]);
        machine.allows_others = true;
        is(&machine.others(), State::Failure, &["user_allow_other"]);
        fs::write(&machine.fuse_conf, "#user_allow_other\n").expect("a file");
        is(&machine.others(), State::Failure, &["user_allow_other"]);
        fs::write(&machine.fuse_conf, "# x\nuser_allow_other\n").expect("a file");
        is(&machine.others(), State::Ok, &["enabled"]);
    }
}

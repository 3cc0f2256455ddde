//! What keeps a mount from being made on a system that lacks something, and that it can be made
//! once the page's advice has been followed.

use crate::sandbox::{Sandbox, is_installed};

use super::PAGE;

/// A `/dev` with the usual devices but `fuse`.
const NO_DEVICE: &str = "mkdir dev; mount -t tmpfs none dev
    for device in 'null 1 3' 'zero 1 5' 'random 1 8' 'urandom 1 9'; do
        set -- $device; mknod -m 666 dev/$1 c $2 $3; done
    mount --bind dev /dev";

/// A `/usr/bin` with everything but the helper.
const NO_HELPER: &str = "mkdir bin; mount --bind -o ro /usr/bin bin; mount -t tmpfs none /usr/bin
    ./bin/find $PWD/bin -mindepth 1 -maxdepth 1 ! -name 'fusermount*' -exec ./bin/ln -s -t /usr/bin {} +";

const MOUNT: &str = "$KVFS mount ./store mnt";

/// The script of a mount that works and is gone afterwards.
const WORKS: &str = "set -e; $KVFS mount $FLAGS ./store mnt; cat mnt/a; $KVFS unmount mnt";

#[track_caller]
fn says((worked, said): (bool, String), quoted: &str) {
    assert!(!worked, "{said}");
    assert!(said.contains(quoted), "no '{quoted}' in {said}");
    assert!(PAGE.contains(quoted), "'{quoted}' is not on the page");
}

#[track_caller]
fn works((worked, said): (bool, String)) {
    assert!(worked && said.contains("hi\n"), "{said}");
}

#[test]
fn a_system_without_the_device_is_told_to_load_the_module() {
    let sandbox = Sandbox::prepared(NO_DEVICE);
    says(sandbox.as_root(MOUNT), "there is no /dev/fuse");
    says(sandbox.as_nobody(MOUNT), "there is no /dev/fuse");
    let (_, said) = sandbox.as_nobody("$KVFS doctor ./store");
    assert!(
        said.contains("/dev/fuse") && said.contains("modprobe fuse")
            || said.contains("container may not use /dev/fuse"),
        "{said}"
    );
}

#[test]
fn a_user_without_the_helper_is_told_to_install_it() {
    let sandbox = Sandbox::with_device("666", NO_HELPER);
    says(sandbox.as_nobody(MOUNT), "fusermount3 is missing");
    let (_, said) = sandbox.as_nobody("$KVFS doctor ./store");
    assert!(said.contains("is not in PATH"), "{said}");
    // Root needs none.
    works(sandbox.as_root(WORKS));
}

#[test]
fn who_may_not_mount_is_told_so() {
    let closed = Sandbox::with_device("600", "");
    says(closed.as_nobody(MOUNT), "this process may not mount");
    // As root of most containers.
    let open = Sandbox::with_device("666", "");
    let container = format!("setpriv --bounding-set -sys_admin {MOUNT}");
    says(open.as_root(&container), "this process may not mount");
    assert!(is_installed("fusermount3"), "apt install fuse3");
    works(open.as_nobody(WORKS));
}

/// As units with `NoNewPrivileges=yes` and much else that implies it are run.
#[test]
fn a_helper_that_has_no_effect_is_named_with_the_reason() {
    let sandbox = Sandbox::with_device("666", "");
    let unit = "setpriv --no-new-privs $KVFS mount --foreground ./store mnt";
    says(sandbox.as_nobody(unit), "this process may not mount");
    says(sandbox.as_nobody(unit), "NoNewPrivileges");
    let doctor = "setpriv --no-new-privs $KVFS doctor ./store";
    says(sandbox.as_nobody(doctor), "NoNewPrivileges");
}

#[test]
fn mounts_for_others_need_a_line_in_the_configuration_of_fuse() {
    for (line, is_allowed) in [("#user_allow_other", false), ("user_allow_other", true)] {
        let conf = format!("echo '{line}' > fuse.conf; mount --bind fuse.conf /etc/fuse.conf");
        let sandbox = Sandbox::with_device("666", &conf);
        for flag in ["--allow-other", "--allow-root"] {
            let script = format!("FLAGS={flag}; {WORKS}");
            works(sandbox.as_root(&script));
            let as_nobody = sandbox.as_nobody(&script);
            if is_allowed {
                works(as_nobody);
            } else {
                says(as_nobody, "uncomment user_allow_other in /etc/fuse.conf");
            }
        }
    }
}

/// The line of a store in fstab, and what comes of it.
#[test]
fn a_line_of_fstab_with_defaults_can_be_written_to_and_one_with_ro_cannot() {
    assert!(is_installed("mount.fuse3"), "apt install fuse3");
    // kvfs has to be where mount.fuse3 looks for it.
    let sandbox =
        Sandbox::prepared("mount -t tmpfs none /usr/local/bin; ln -s $PWD/kvfs /usr/local/bin/");
    for (options, changes) in [("defaults", true), ("ro", false)] {
        assert!(PAGE.contains(&format!("`{options}`")), "{options}");
        let (worked, said) = sandbox.as_root(&format!(
            "set -e; echo $PWD/store $PWD/mnt fuse.kvfs {options},noauto 0 0 > fstab
            mount -T fstab $PWD/mnt
            if echo new > mnt/made; then echo changed; else echo refused; fi
            umount mnt; ls store"
        ));
        assert!(worked, "{said}");
        assert_eq!(said.contains("changed\n"), changes, "{options}: {said}");
        assert_eq!(said.contains("Read-only file system"), !changes, "{said}");
        assert_eq!(said.contains("made"), changes || said.contains("mnt/made"));
    }
}

/// Without systemd, which cannot be had in a test: what its units wait for does not come, and the
/// process ends with the reason long before systemd's 90 seconds are over.
#[test]
fn a_unit_whose_store_cannot_be_opened_ends_with_the_reason_and_is_never_ready() {
    let script = |command: &str| {
        format!(
            "mkdir -p .config/kvfs
            printf '[stores.gone]\\nstore = \"./no-such-folder\"\\n' > .config/kvfs/config.toml
            cat > listen.py <<'END'
import os, socket, subprocess, sys
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.bind('notify')
ended = subprocess.run(sys.argv[1:], env=dict(os.environ, NOTIFY_SOCKET=os.getcwd() + '/notify'))
notify.setblocking(False)
try: print('told:', notify.recv(4096).decode())
except BlockingIOError: print('told nothing')
sys.exit(ended.returncode)
END
            {command}"
        )
    };
    let sandbox = Sandbox::prepared("");
    let unit = script("exec python3 listen.py $KVFS mount --foreground @gone $PWD/mnt");
    let (worked, said) = sandbox.as_root(&unit);
    assert!(!worked, "{said}");
    assert!(said.contains("no-such-folder"), "{said}");
    assert!(said.contains("told nothing"), "{said}");
    // What the page says to look at.
    let (worked, said) = sandbox.as_root(&script("exec $KVFS doctor @gone"));
    assert!(!worked && said.contains("no-such-folder"), "{said}");
    assert!(PAGE.contains("kvfs doctor @NAME"));
}

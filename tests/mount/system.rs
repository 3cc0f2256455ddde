//! kvfs among mount(8), fstab and systemd.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::daemon::{User, soon};

#[test]
fn a_line_of_fstab_mounts_through_mount_fuse3() {
    assert!(
        Path::new("/sbin/mount.fuse3").exists(),
        "mount.fuse3 is missing: apt install fuse3"
    );
    let user = User::new();
    let fstab = format!(
        "{0}/store {0}/mnt fuse.kvfs ro,noauto,_netdev,nofail,x-systemd.automount,uid=1234 0 0\n",
        user.path("").display().to_string().trim_end_matches('/')
    );
    fs::write(user.path("fstab"), fstab).expect("a file");
    // In a mount namespace of its own, in which kvfs is where mount.fuse3 looks for it.
    let script = "set -e
        mount -t tmpfs none /usr/local/bin
        ln -s \"$KVFS\" /usr/local/bin/kvfs
        mount -T fstab \"$PWD/mnt\"
        cat mnt/a
        stat -c %u mnt/a
        kvfs status mnt > /dev/null
        umount mnt
        ls -A mnt | wc -l";
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script])
        .current_dir(user.path(""))
        .env("HOME", user.path(""))
        .env("XDG_RUNTIME_DIR", user.path("run"))
        .env("KVFS", env!("CARGO_BIN_EXE_kvfs"))
        .output()
        .expect("unshare runs");
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{err}");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "hi\n1234\n0\n",
        "{err}"
    );
    soon(|| user.nothing_left());
}

#[test]
fn systemd_is_told_when_the_mount_answers() {
    let user = User::new();
    let socket = UnixDatagram::bind(user.path("notify")).expect("a socket");
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("a timeout");
    let mut child = user
        .command(&["mount", "-f", "./store", "mnt"])
        .env("NOTIFY_SOCKET", user.path("notify"))
        .spawn()
        .expect("kvfs runs");
    let mut buffer = [0; 4096];
    let len = socket.recv(&mut buffer).expect("a word");
    let said = String::from_utf8_lossy(&buffer[..len]).into_owned();
    assert!(said.lines().any(|line| line == "READY=1"), "{said}");
    assert!(
        said.contains("STATUS=mounted ./store") || said.contains("STATUS=mounted /"),
        "{said}"
    );
    assert_eq!(fs::read_to_string(user.path("mnt/a")).expect("it"), "hi\n");
    user.works(&["unmount", "mnt"]);
    assert!(child.wait().expect("it").success());
}

/// Mounts in the foreground until it answers, and returns what went to standard error.
fn logged(user: &User, is_journal: bool, flags: &[&str]) -> String {
    let path = user.path("stderr");
    let file = File::create(&path).expect("a file");
    let found = file.metadata().expect("it");
    let inode = if is_journal { found.ino() } else { 1 };
    let args = [&["mount", "-f", "./store", "mnt"], flags].concat();
    let mut child = user
        .command(&args)
        .env("JOURNAL_STREAM", format!("{}:{inode}", found.dev()))
        .stderr(file)
        .spawn()
        .expect("kvfs runs");
    soon(|| user.path("mnt/a").exists());
    user.works(&["unmount", "mnt"]);
    assert!(child.wait().expect("it").success());
    fs::read_to_string(&path).expect("a log")
}

#[test]
fn the_log_is_as_its_reader_wants_it() {
    let user = User::new();
    let journal = logged(&user, true, &[]);
    assert!(!journal.is_empty());
    for line in journal.lines() {
        assert!(
            line.starts_with("<6>") || line.starts_with("<4>"),
            "{journal}"
        );
    }
    assert!(journal.contains("mounted"), "{journal}");
    let text = logged(&user, false, &[]);
    assert!(text.contains("INFO") && !text.contains("<6>"), "{text}");
    let json = logged(&user, true, &["--log-format", "json"]);
    let messages: Vec<String> = json
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
        .inspect(|entry| assert!(entry["timestamp"].is_string(), "{entry}"))
        .filter_map(|entry| Some(entry["message"].as_str()?.to_owned()))
        .collect();
    assert!(
        messages.iter().any(|message| message == "mounted"),
        "{json}"
    );
    let error = user.fails(2, &["mount", "--log-format", "xml", "./store", "mnt"]);
    assert!(error.contains("text or json"), "{error}");
}

#[test]
fn systemd_understands_the_unit() {
    // The only mention of a program that need not be installed here.
    let unit = fs::read_to_string("packaging/kvfs@.service").expect("the unit");
    for line in [
        "Type=notify",
        "ExecStart=/usr/bin/kvfs mount --foreground @%i %h/kvfs/%i",
    ] {
        assert!(unit.lines().any(|found| found == line), "no {line}");
    }
    let dir = tempfile::tempdir().expect("a folder");
    let unit = unit.replace("/usr/bin/kvfs", env!("CARGO_BIN_EXE_kvfs"));
    let path = dir.path().join("kvfs@prod.service");
    fs::write(&path, unit).expect("a file");
    match Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&path)
        .output()
    {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!said.contains("kvfs@"), "{said}");
        }
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
    }
}

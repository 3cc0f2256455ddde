//! The program itself: exit codes, what goes where, and that it keeps secrets.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A user who has never run kvfs.
pub struct User {
    home: TempDir,
}

/// What a run of kvfs did.
#[must_use]
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl User {
    pub fn new() -> Self {
        let home = tempfile::tempdir().expect("a folder");
        for name in ["run", "mnt"] {
            fs::create_dir(home.path().join(name)).expect("a folder");
        }
        Self { home }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the program under test runs others, too"
    )]
    pub fn kvfs(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvfs"));
        command
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap_or_default())
            .env("HOME", self.home.path())
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("XDG_STATE_HOME", self.path("state"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .current_dir(self.home.path())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        ran(self.kvfs().args(args).output().expect("kvfs runs"))
    }
}

pub fn ran(output: Output) -> Ran {
    Ran {
        code: output.status.code().expect("an exit code"),
        out: String::from_utf8(output.stdout).expect("text"),
        err: String::from_utf8(output.stderr).expect("text"),
    }
}

impl Ran {
    /// A failure: nothing on standard output, and all of `expected` on standard error.
    #[track_caller]
    pub fn fails(&self, code: i32, expected: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!(self.out, "", "{self:?}");
        assert!(self.err.contains("error: "), "{self:?}");
        for text in expected {
            assert!(self.err.contains(text), "no '{text}' in {self:?}");
        }
    }
}

#[test]
fn every_command_has_help_on_standard_output() {
    let user = User::new();
    let ran = user.run(&["--help"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(!ran.out.contains("daemon"), "hidden: {ran:?}");
    let listed = ran.out.split("Commands:").nth(1).expect("a list");
    let listed = listed.lines().skip(1).take_while(|line| !line.is_empty());
    let mut commands: Vec<&str> = listed
        .map(|line| line.split_whitespace().next().expect("a name"))
        .collect();
    assert!(commands.len() > 20, "one a line: {ran:?}");
    commands.retain(|command| *command != "help");
    commands.push("umount");
    for words in [&["help"][..], &["help", "mount"]] {
        let ran = user.run(words);
        assert!(ran.code == 0 && ran.out.contains("Usage: kvfs "), "{ran:?}");
    }
    for command in commands {
        for flag in ["--help", "-h"] {
            let ran = user.run(&[command, flag]);
            assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
            assert!(ran.out.contains("Usage: kvfs "), "{ran:?}");
            for line in ran.out.lines() {
                assert!(line.chars().count() <= 80, "{command}: {line}");
            }
        }
    }
    let ran = user.run(&["--version"]);
    assert_eq!(ran.out, format!("kvfs {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_help_of_mount_shows_every_flag_and_default() {
    let help = User::new().run(&["mount", "--help"]).out;
    for expected in [
        "--token-file",
        "--api-url",
        "--insecure-http",
        "--signature",
        "--signature-file",
        "--status",
        "--origin",
        "--prefix",
        "--collection",
        "--raw",
        "--exact-sizes",
        "--ttl",
        "10s",
        "--immutable",
        "--memory-cache",
        "64MiB",
        "--cache-dir",
        "--cache-size",
        "2GiB",
        "--no-disk-cache",
        "--uid",
        "--gid",
        "--file-mode",
        "0444",
        "--dir-mode",
        "0555",
        "--allow-other",
        "--allow-root",
        "-o",
        "--foreground",
        "--log-file",
        "--timeout",
        "30s",
        "--deadline",
        "60s",
        "APIFY_TOKEN",
        "KVFS_SIGNATURE",
        "run:ID",
        "STORE... MOUNTPOINT",
    ] {
        assert!(help.contains(expected), "no '{expected}' in {help}");
    }
}

#[test]
fn misuse_exits_with_2() {
    let user = User::new();
    for args in [
        &[][..],
        &["dance"],
        &["mount"],
        &["mount", "only-one"],
        &["mount", "--no-such-flag", "~s", "mnt"],
        &["mount", "--ttl", "1s", "--immutable", "~s", "mnt"],
        &["mount", "--allow-other", "--allow-root", "~s", "mnt"],
        &["unmount"],
        &["unmount", "--force", "--lazy", "mnt"],
        &["status", "--watch", "/", "/proc"],
        &["mount", "-o", "ro", "--rw", "~s", "mnt"],
        &["mount", "--read-only", "--rw", "~s", "mnt"],
        &["mount", "--status", "SUCCEEDED", "~s", "mnt"],
        &["mount", "-o", "remount,ro", "~s", "mnt"],
        &["cat", "~s"],
        &["rm", "~s"],
        &["ls", "~s", "[a"],
        &["serve", "--listen", "nowhere"],
        &["-q", "-v", "status"],
    ] {
        let ran = user.run(args);
        assert_eq!(ran.code, 2, "{args:?}: {ran:?}");
        assert_eq!(ran.out, "", "{args:?}: {ran:?}");
        assert!(!ran.err.is_empty(), "{args:?}");
    }
}

#[test]
fn bad_values_are_answered_with_good_ones() {
    let user = User::new();
    for (flag, value, expected) in [
        ("--ttl", "soon", "10s"),
        ("--timeout", "0", "30s"),
        ("--memory-cache", "lots", "64MiB"),
        ("--cache-size", "-1", "64MiB"),
        ("--file-mode", "rw", "0444"),
        ("--dir-mode", "0888", "0444"),
        ("--uid", "me", "invalid"),
        ("--api-url", "api.apify.com", "https://api.apify.com"),
    ] {
        let flag = format!("{flag}={value}");
        user.run(&["mount", &flag, "~s", "mnt"])
            .fails(2, &[expected]);
        let option = flag.trim_start_matches('-');
        user.run(&["mount", "~s", "mnt", "-o", option])
            .fails(2, &[expected]);
    }
}

#[test]
fn a_token_on_the_command_line_is_refused_with_the_alternatives() {
    let user = User::new();
    for args in [
        &["mount", "--token", "s3cret", "~s", "mnt"][..],
        &["mount", "--token=s3cret", "~s", "mnt"],
        &["mount", "~s", "mnt", "-o", "token=s3cret"],
    ] {
        let ran = user.run(args);
        ran.fails(2, &["token-file"]);
        assert!(!ran.err.contains("s3cret"), "{ran:?}");
    }
    user.run(&["mount", "--token", "x", "~s", "mnt"])
        .fails(2, &["APIFY_TOKEN", "hint:"]);
}

#[test]
fn mount_options_are_checked() {
    let user = User::new();
    let mount = |options: &str| user.run(&["mount", "~s", "mnt", "-o", options]);
    mount("dev").fails(2, &["nodev"]);
    mount("ro,tll=1m").fails(2, &["unknown option 'tll'", "ttl", "token-file"]);
    mount("ttl").fails(2, &["needs a value"]);
    mount("raw=yes").fails(2, &["takes no value"]);
}

#[test]
fn what_is_not_a_store_is_answered_with_the_accepted_forms() {
    let user = User::new();
    for typed in ["a b c", "run:", ""] {
        user.run(&["mount", typed, "mnt"]).fails(2, &["run:", "~"]);
    }
}

#[test]
fn the_mount_point_must_be_a_directory() {
    let user = User::new();
    fs::write(user.path("file"), "x").expect("a file");
    for flags in [&[][..], &["-f"]] {
        let mount = |point: &str| user.run(&[&["mount", "~s", point][..], flags].concat());
        mount("none").fails(1, &["does not exist", "mkdir -p"]);
        mount("no/ne").fails(1, &["does not exist", "mkdir -p"]);
        mount("file").fails(1, &["is not a directory"]);
    }
    assert!(fs::read_dir(user.path("run/kvfs")).map_or(true, |left| left.count() == 0));
}

#[test]
fn a_token_file_must_be_there() {
    let user = User::new();
    user.run(&["mount", "--token-file", "none", "~s", "mnt"])
        .fails(1, &["token file none"]);
    let ran = user.run(&["mount", "--token-file", "apify_api_s3cret", "~s", "mnt"]);
    assert!(ran.code == 1 && !ran.err.contains("s3cret"), "{ran:?}");
}

#[expect(
    clippy::print_stdout,
    reason = "a check that is left out is to be seen"
)]
/// Tells whether this machine has kvfs mounts of its own, which `status` shows to their user.
fn has_mounts() -> bool {
    let found =
        fs::read_to_string("/proc/self/mountinfo").is_ok_and(|text| text.contains("fuse.kvfs"));
    if found {
        println!("not checked in full: stores are mounted on this machine");
    }
    found
}

#[test]
fn status_without_mounts_is_no_failure() {
    let user = User::new();
    user.run(&["status", "mnt"])
        .fails(3, &["no store is mounted on"]);
    if has_mounts() {
        return;
    }
    let ran = user.run(&["status"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, ""), "{ran:?}");
    assert!(ran.err.contains("nothing is mounted"), "{ran:?}");
    let ran = user.run(&["status", "-q"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    let ran = user.run(&["status", "--json"]);
    assert_eq!(
        (ran.code, ran.out.as_str(), ran.err.as_str()),
        (0, "[]\n", "")
    );
}

#[test]
fn unmounting_what_is_not_mounted_fails() {
    let user = User::new();
    for flags in [&[][..], &["--force"], &["--lazy"]] {
        let unmount = |point: &str| user.run(&[&["unmount", point][..], flags].concat());
        unmount("mnt").fails(3, &["no store is mounted on", "kvfs status"]);
        unmount("none").fails(3, &["does not exist"]);
        unmount("/proc").fails(3, &["no store is mounted on"]);
    }
}

#[test]
fn what_a_killed_daemon_left_behind_is_not_shown() {
    let user = User::new();
    let state = user.path("run/kvfs");
    fs::create_dir(&state).expect("a folder");
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).expect("a mode");
    fs::write(state.join("0123.json"), "{\"an\": \"other version\"}").expect("a file");
    let ran = user.run(&["status", "--json"]);
    assert!(
        has_mounts() || (ran.code, ran.out.as_str()) == (0, "[]\n"),
        "{ran:?}"
    );
}

#[test]
fn a_state_folder_of_somebody_else_is_not_used() {
    let user = User::new();
    let elsewhere = user.path("elsewhere");
    fs::create_dir(&elsewhere).expect("a folder");
    std::os::unix::fs::symlink(&elsewhere, user.path("run/kvfs")).expect("a link");
    user.run(&["mount", "~s", "mnt"])
        .fails(1, &["state folder"]);
    assert_eq!(fs::read_dir(&elsewhere).expect("it").count(), 0);
}

#[test]
fn serving_other_machines_needs_a_token() {
    let user = User::new();
    user.run(&["serve", "--listen", "0.0.0.0:0"])
        .fails(2, &["token", "KVFS_SERVE_TOKEN"]);
    assert!(
        !user.path("storage").exists(),
        "refused before anything is made"
    );
}

#[test]
fn the_daemon_started_by_hand_ends() {
    let user = User::new();
    let mut child = user
        .kvfs()
        .args(["daemon", "~s", "/mnt"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("kvfs runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(b"nonsense").expect("written");
    drop(stdin);
    let ran = ran(child.wait_with_output().expect("it ends"));
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.out.starts_with("failed {"), "{ran:?}");
}

#[test]
fn help_for_somebody_who_does_not_read_it_is_quiet() {
    let user = User::new();
    let mut child = user
        .kvfs()
        .args(["mount", "--help"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kvfs runs");
    drop(child.stdout.take());
    let ran = ran(child.wait_with_output().expect("it ends"));
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
}

#[test]
fn secrets_are_never_printed() {
    let user = User::new();
    fs::write(user.path("token"), "s3cret-file").expect("a file");
    fs::create_dir(user.path(".apify")).expect("a folder");
    fs::write(
        user.path(".apify/auth.json"),
        "{\"token\": \"s3cret-login\"}",
    )
    .expect("a file");
    let url = "http://127.0.0.1:9/v2/key-value-stores/abc/keys?signature=s3cret-url";
    for args in [
        &["mount", "-vv", "~s", "mnt"][..],
        &["mount", "-vv", "-f", "~s", "mnt"],
        &[
            "mount",
            "--token-file",
            "token",
            "--signature",
            "s3cret-flag",
            "~s",
            "mnt",
        ],
        &["mount", url, "mnt"],
        &["mount", url, "none"],
        &["mount", "-o", "signature=s3cret-option,what", "~s", "mnt"],
        &["status", "--json"],
        &["serve", "--listen", "0.0.0.0:0", "--public", "/proc/none"],
    ] {
        let output = user
            .kvfs()
            .args(args)
            .args((args[0] == "mount").then_some("--deadline=1s"))
            .env("APIFY_TOKEN", "s3cret-environment")
            .env("APIFY_CLIENT_BASE_URL", "http://127.0.0.1:9")
            .env("KVFS_SIGNATURE", "s3cret-environment")
            .env("KVFS_SERVE_TOKEN", "s3cret-environment")
            .output()
            .expect("kvfs runs");
        let ran = ran(output);
        assert!(!format!("{ran:?}").contains("s3cret"), "{args:?}: {ran:?}");
    }
}

#[test]
fn a_runtime_folder_that_cannot_be_used_is_named() {
    let user = User::new();
    fs::create_dir(user.path("store")).expect("a folder");
    fs::remove_dir(user.path("run")).expect("a folder");
    fs::write(user.path("run"), "a file in its place").expect("a file");
    fs::write(user.path("state"), "a file in its place").expect("a file");
    let ran = user.run(&["mount", "./store", "mnt", "--log-file", "log"]);
    ran.fails(
        1,
        &[
            "cannot register the mount in",
            "state/kvfs",
            "XDG_RUNTIME_DIR",
        ],
    );
}

#[test]
fn each_option_has_a_variable() {
    let user = User::new();
    let config = |name: &str, value: &str| {
        let mut command = user.kvfs();
        command.args(["config", "--json"]).env(name, value);
        ran(command.output().expect("kvfs runs"))
    };
    let shown = config("KVFS_TTL", "7s");
    let shown: serde_json::Value = serde_json::from_str(&shown.out).expect("JSON");
    assert_eq!(shown["settings"]["ttl"]["value"], "7s");
    assert_eq!(shown["settings"]["ttl"]["from"], "KVFS_TTL");
    let shown = config("KVFS_EXACT_SIZES", "1");
    assert!(shown.out.contains("KVFS_EXACT_SIZES"), "{shown:?}");
    config("KVFS_RAW", "perhaps").fails(2, &["KVFS_RAW", "neither 1 nor 0"]);
    config("KVFS_TTL", "soon").fails(2, &["KVFS_TTL", "10s"]);
    let mut served = user.kvfs();
    served.arg("serve").env("KVFS_SERVE_LISTEN", "nowhere");
    ran(served.output().expect("kvfs runs")).fails(2, &["KVFS_SERVE_LISTEN"]);
}

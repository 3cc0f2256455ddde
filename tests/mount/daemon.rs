//! The background process: readiness, status, unmounting, and what a kill leaves behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// A user with a store in a folder. Dropping it unmounts by force.
pub(super) struct User {
    home: TempDir,
}

impl User {
    pub(super) fn new() -> Self {
        let home = tempfile::tempdir().expect("a folder");
        // The blank and the backslash are escaped in the kernel's list of mounts.
        for name in ["run", "store", "mnt", r"m \ t"] {
            fs::create_dir(home.path().join(name)).expect("a folder");
        }
        fs::write(home.path().join("store/a"), "hi\n").expect("a record");
        Self { home }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the program under test runs others, too"
    )]
    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvfs"));
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap_or_default())
            .env("HOME", self.home.path())
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("APIFY_TOKEN", "s3cret")
            .current_dir(self.home.path())
            .stdin(Stdio::null());
        command
    }

    pub(super) fn run(&self, args: &[&str]) -> (i32, String, String) {
        let output: Output = self.command(args).output().expect("kvfs runs");
        (
            output.status.code().expect("an exit code"),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    #[track_caller]
    pub(super) fn works(&self, args: &[&str]) -> String {
        let (code, out, err) = self.run(args);
        assert_eq!(code, 0, "{args:?}: {out}{err}");
        out + &err
    }

    #[track_caller]
    pub(super) fn fails(&self, code: i32, args: &[&str]) -> String {
        let (actual, out, err) = self.run(args);
        assert_eq!(actual, code, "{args:?}: {out}{err}");
        err
    }

    /// Returns the mounts below the user's home: those of other tests are shown, too.
    pub(super) fn status(&self) -> Vec<Value> {
        let (_, out, err) = self.run(&["status", "--json"]);
        let all: Vec<Value> =
            serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"));
        let home = self.home.path().display().to_string();
        let mine = |mount: &Value| {
            let point = mount["mount_point"].as_str();
            point.is_some_and(|point| point.starts_with(&home))
        };
        all.into_iter().filter(mine).collect()
    }

    pub(super) fn pid(&self) -> String {
        self.status()[0]["pid"].to_string()
    }

    pub(super) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.pid()]).status();
        assert!(sent.expect("kill runs").success());
    }

    fn registered(&self) -> usize {
        fs::read_dir(self.path("run/kvfs")).map_or(0, Iterator::count)
    }

    pub(super) fn is_mounted(&self) -> bool {
        mounted(self.home.path())
    }

    pub(super) fn nothing_left(&self) -> bool {
        self.registered() == 0 && !self.is_mounted()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        for mount in self.status() {
            let point = mount["mount_point"].as_str().unwrap_or_default();
            let _ = self.run(&["unmount", "--force", point]);
        }
    }
}

pub(super) fn mounted(below: &Path) -> bool {
    let below = below.display().to_string();
    fs::read_to_string("/proc/self/mountinfo").is_ok_and(|text| text.contains(&below))
}

#[track_caller]
pub(super) fn soon(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < Duration::from_secs(60), "not in time");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_mount_answers_when_the_command_returns_and_leaves_nothing_behind() {
    let user = User::new();
    for point in ["mnt", r"m \ t"] {
        let said = user.works(&["mount", "./store", point]);
        assert!(said.contains("unmount with: kvfs unmount"), "{said}");
        assert_eq!(
            fs::read_to_string(user.path(point).join("a")).expect("it"),
            "hi\n"
        );
        let status = user.status();
        assert_eq!(status.len(), 1);
        assert_eq!(status[0]["state"], "live");
        let again = user.fails(1, &["mount", "./store", point]);
        assert!(again.contains("already mounted"), "{again}");
        user.works(&["unmount", point]);
        assert!(user.nothing_left());
    }
}

#[test]
fn the_daemon_shows_no_secret_and_keeps_no_terminal() {
    let user = User::new();
    let mut command = user.command(&["mount", "--signature", "s3cret", "./store", "mnt"]);
    for (name, value) in [
        ("AWS_SECRET_ACCESS_KEY", "s3cret"),
        ("AWS_SESSION_TOKEN", "s3cret"),
        ("AZURE_STORAGE_ACCOUNT_KEY", "s3cret"),
        ("GOOGLE_SERVICE_ACCOUNT_KEY", "s3cret"),
        ("HTTPS_PROXY", "http://user:s3cret@127.0.0.1:9"),
        ("all_proxy", "http://s3cret@127.0.0.1:9"),
        ("DATABASE_PASSWORD", "s3cret"),
        ("KVFS_SERVE_TOKEN", "s3cret"),
    ] {
        command.env(name, value);
    }
    let mounted = command.output().expect("kvfs runs");
    assert!(mounted.status.success(), "{mounted:?}");
    let proc = PathBuf::from("/proc").join(user.pid());
    for file in ["cmdline", "environ"] {
        let bytes = fs::read(proc.join(file)).expect("it");
        assert!(
            !String::from_utf8_lossy(&bytes).contains("s3cret"),
            "{file}"
        );
    }
    assert_eq!(fs::read_link(proc.join("cwd")).expect("it"), Path::new("/"));
    for fd in ["0", "1"] {
        let to = fs::read_link(proc.join("fd").join(fd)).expect("it");
        assert_eq!(to, Path::new("/dev/null"));
    }
    let log = fs::read_link(proc.join("fd/2")).expect("it");
    assert!(
        log.starts_with(user.path(".local/state/kvfs/logs")),
        "{log:?}"
    );
    user.works(&["unmount", "mnt"]);
}

#[test]
fn a_mount_whose_daemon_was_killed_is_reported_and_cleaned() {
    let user = User::new();
    user.works(&["mount", "./store", "mnt"]);
    user.signal("-KILL");
    soon(|| user.status().iter().any(|mount| mount["state"] == "dead"));
    let said = user.fails(3, &["status", "mnt"]);
    assert!(said.contains("kvfs unmount"), "{said}");
    let (code, out, _) = user.run(&["doctor", "./store"]);
    assert_eq!(code, 3, "{out}");
    let mount = user.path("mnt").display().to_string();
    let stale = |line: &str| line.starts_with("failure  mount") && line.contains(&mount);
    assert!(out.lines().any(stale), "{out}");
    assert!(out.contains("daemon is gone"), "{out}");
    user.works(&["mount", "./store", "mnt"]);
    assert_eq!(user.status()[0]["state"], "live");
    user.signal("-KILL");
    soon(|| user.status().iter().any(|mount| mount["state"] == "dead"));
    user.works(&["unmount", "mnt"]);
    assert!(user.nothing_left());
}

#[test]
fn a_mount_in_use_is_only_unmounted_lazily_or_by_force() {
    let user = User::new();
    for flag in ["--lazy", "--force"] {
        user.works(&["mount", "./store", "mnt"]);
        let open = fs::File::open(user.path("mnt/a")).expect("it");
        let said = user.fails(1, &["unmount", "mnt"]);
        assert!(said.contains("in use") && said.contains("--lazy"), "{said}");
        let me = format!("({})", std::process::id());
        assert!(said.contains(&me), "the program that uses it: {said}");
        user.works(&["unmount", flag, "mnt"]);
        assert!(!mounted(&user.path("mnt")));
        drop(open);
        soon(|| user.nothing_left());
    }
}

/// What `kvfs status` waits for a daemon, and a busy machine may add.
const STATUS: Duration = Duration::from_secs(4);
/// The longest for what is to be done at once.
const AT_ONCE: Duration = Duration::from_secs(2);
/// A busy machine may be late now and then, but not each time.
const TRIES: usize = 5;

#[test]
fn a_hung_daemon_holds_nobody_up() {
    let user = User::new();
    let mut took = Vec::new();
    while took
        .last()
        .is_none_or(|(status, unmount)| *status >= STATUS || *unmount >= AT_ONCE)
    {
        assert!(took.len() < TRIES, "{took:?}");
        user.works(&["mount", "./store", "mnt"]);
        let pid = user.pid();
        user.signal("-STOP");
        let start = Instant::now();
        assert_eq!(user.status()[0]["state"], "not_answering");
        let status = start.elapsed();
        user.fails(3, &["status"]);
        let start = Instant::now();
        let said = user.works(&["unmount", "--force", "mnt"]);
        took.push((status, start.elapsed()));
        assert!(said.contains(&pid), "{said}");
        assert!(!mounted(user.home.path()));
        let sent = Command::new("kill").args(["-CONT", &pid]).status();
        assert!(sent.expect("kill runs").success());
        soon(|| user.nothing_left());
    }
}

#[test]
fn sigterm_unmounts_even_in_use() {
    let user = User::new();
    user.works(&["mount", "./store", "mnt"]);
    let open = fs::File::open(user.path("mnt/a")).expect("it");
    user.signal("-HUP");
    assert_eq!(
        user.status()[0]["state"],
        "live",
        "it outlives its terminal"
    );
    user.signal("-TERM");
    soon(|| !mounted(user.home.path()));
    drop(open);
    soon(|| user.nothing_left());
}

/// As containers, services and sandboxes do that are started while something is mounted.
#[test]
fn many_signals_end_a_daemon_whose_mount_another_namespace_holds() {
    let user = User::new();
    user.works(&["mount", "./store", "mnt"]);
    let pid = user.pid();
    let ready = user.path("ready");
    let mut holder = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c"])
        .arg(format!("touch {}; exec sleep 60", ready.display()))
        .spawn()
        .expect("unshare runs");
    soon(|| ready.exists());
    user.signal("-TERM");
    soon(|| !mounted(user.home.path()));
    let runs = || Path::new("/proc").join(&pid).join("exe").exists();
    assert!(runs(), "nothing holds it: the test proves nothing");
    for _ in 0..12 {
        let sent = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(sent.expect("kill runs").success());
        thread::sleep(Duration::from_millis(20));
    }
    let start = Instant::now();
    while runs() {
        assert!(start.elapsed() < Duration::from_secs(30), "it does not end");
        thread::sleep(Duration::from_millis(50));
    }
    holder.kill().expect("it runs");
    holder.wait().expect("it ended");
    // What it left is cleared by whoever comes next.
    user.works(&["mount", "./store", "mnt"]);
    user.works(&["unmount", "mnt"]);
    assert!(user.nothing_left());
}

#[test]
fn of_several_mounts_at_once_one_wins() {
    let user = User::new();
    let running: Vec<_> = (0..4)
        .map(|_| {
            user.command(&["mount", "./store", "mnt"])
                .spawn()
                .expect("it")
        })
        .collect();
    let won = running
        .into_iter()
        .filter_map(|mut child| child.wait().ok())
        .filter(std::process::ExitStatus::success);
    assert_eq!(won.count(), 1);
    user.works(&["unmount", "mnt"]);
    assert!(user.nothing_left());
}

#[test]
fn a_mount_in_the_foreground_ends_with_a_signal_or_an_unmount() {
    let user = User::new();
    for by_signal in [true, false] {
        let mut child = user
            .command(&["mount", "-f", "./store", "mnt"])
            .spawn()
            .expect("it");
        soon(|| !user.status().is_empty());
        assert_eq!(user.pid(), child.id().to_string());
        if by_signal {
            user.signal("-INT");
        } else {
            user.works(&["unmount", "mnt"]);
        }
        assert!(child.wait().expect("it").success());
        assert!(user.nothing_left());
    }
}

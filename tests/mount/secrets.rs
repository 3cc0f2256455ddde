//! Secrets, and what other users of the machine may reach.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use kvfs::base::signature::{sign_keys, sign_record};

use super::daemon::{User, soon};
use crate::support::mounted::Running;
use crate::support::served::{STORE, TOKEN, TestServer};

/// Somebody else on this machine.
const SOMEBODY: &str = "12345";

/// Runs a shell script with any umask but a good one; fails the test unless it works.
#[track_caller]
fn works(user: &User, server: &TestServer, script: &str) -> String {
    let output = start(user, server, script).wait(Duration::from_secs(60));
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &output.stderr;
    assert!(output.status.success(), "{script}: {said}");
    said
}

fn start(user: &User, server: &TestServer, script: &str) -> Running {
    let kvfs = user.command(&[]);
    let mut command = Command::new("sh");
    command.env_clear();
    for (name, value) in kvfs.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    Running::start(
        command
            .args(["-c", &format!("umask 000; {script}")])
            .env("KVFS", env!("CARGO_BIN_EXE_kvfs"))
            .env("APIFY_TOKEN", TOKEN)
            .env("APIFY_CLIENT_BASE_URL", server.url())
            .current_dir(user.path("")),
    )
}

/// Returns everything below a folder.
fn everything(below: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(below).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            everything(&path, found);
        }
        found.push(path);
    }
}

#[test]
fn no_secret_is_anywhere_and_nothing_is_open_to_others_under_any_umask() {
    // What is too large is refused, and kept on disk.
    let server = TestServer::start_with(|config| config.limits.record = Some(300_000));
    let user = User::new();
    let big = "all work and no play makes jack a dull boy\n".repeat(6000);
    server.put_text("big", &big);
    server.put_text("small", "small");
    let key = server.entry.signing_key.expose().to_owned();
    let signatures = [
        sign_keys(&server.entry.signing_key, &server.entry.id, None),
        sign_record(&server.entry.signing_key, "small"),
    ];
    let store = format!("~{STORE}");
    works(
        &user,
        &server,
        &format!(
            "\"$KVFS\" mount -vvv --rw --write-back --metrics 0 --scratch-delay 100ms {store} mnt 2>&1"
        ),
    );
    let trace = start(&user, &server, "exec \"$KVFS\" trace mnt");
    let shown = works(
        &user,
        &server,
        "cd mnt && ls -l && cat big | wc -c && cat small && ! cat missing
         echo new > new && mv new newer && rm newer
         head -c 400000 /dev/zero > huge
         echo again >> small; cd ..
         \"$KVFS\" sync mnt; \"$KVFS\" status mnt; \"$KVFS\" status --json mnt
         \"$KVFS\" recover --list --json; \"$KVFS\" config
         \"$KVFS\" doctor -vvv ~test-store --bundle report.txt
         getfattr -d mnt/* mnt; getfattr -n user.kvfs.stats mnt
         cat /proc/mounts /proc/self/mountinfo; df mnt; true",
    );
    let status = user.status();
    let kept = &status[0]["stats"]["uploads_failed"];
    assert_ne!(kept, 0, "nothing was refused: {status:?}");
    let metrics = status[0]["metrics_url"].as_str().expect("an address");
    let page = Command::new("curl").args(["-sf", metrics]).output();
    let page = String::from_utf8_lossy(&page.expect("curl runs").stdout).into_owned();
    assert!(page.contains("kvfs_"), "{page}");
    let mut places = vec![
        ("what commands print".to_owned(), shown.into_bytes()),
        ("metrics".to_owned(), page.into_bytes()),
    ];

    // Everything that the daemon is, and all its children.
    let pid = user.pid();
    let mut processes = vec![pid.clone()];
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    processes.extend(children.unwrap_or_default().split(' ').map(Into::into));
    for process in processes.iter().filter(|pid| !pid.is_empty()) {
        for file in ["cmdline", "environ", "comm", "maps"] {
            let path = format!("/proc/{process}/{file}");
            places.push((path.clone(), fs::read(&path).unwrap_or_default()));
        }
    }
    works(&user, &server, "\"$KVFS\" unmount mnt || true");
    soon(|| user.nothing_left());
    let traced = trace.wait(Duration::from_secs(60));
    places.push(("the trace".into(), traced.stdout));
    places.push((
        "what the trace complains".into(),
        traced.stderr.into_bytes(),
    ));

    let mut files = Vec::new();
    for below in [".cache", ".local", "run"] {
        everything(&user.path(below), &mut files);
    }
    files.push(user.path("report.txt"));
    assert!(
        files.iter().any(|path| path.ends_with("store.json")),
        "{files:?}"
    );
    assert!(
        files
            .iter()
            .any(|path| path.extension().is_some_and(|end| end == "log"))
    );
    for path in &files {
        let metadata = fs::symlink_metadata(path).expect("it is there");
        let mode = metadata.mode() & 0o777;
        let name = path.display().to_string();
        if metadata.is_dir() {
            // Those of the system's conventions are the user's own.
            let ours = name.contains("/kvfs/");
            assert!(!ours || mode == 0o700, "{name} has mode {mode:o}");
            assert!(
                mode & 0o022 == 0,
                "{name} can be written by others: {mode:o}"
            );
        } else if metadata.file_type().is_socket() {
            assert_eq!(mode & 0o077, 0, "{name} has mode {mode:o}");
        } else {
            assert_eq!(mode & 0o077, 0, "{name} has mode {mode:o}");
            places.push((name.clone(), fs::read(path).expect("a file")));
        }
        places.push((format!("the name {name}"), name.into_bytes()));
    }
    let mut secrets = vec![TOKEN, key.as_str()];
    secrets.extend(signatures.iter().map(|signature| signature.expose()));
    assert!(places.len() > 20);
    for (place, bytes) in &places {
        let text = String::from_utf8_lossy(bytes);
        for secret in &secrets {
            assert!(!text.contains(secret), "{secret} shows in {place}");
        }
    }
}

#[test]
fn a_crash_of_the_daemon_leaves_no_core_file() {
    let (user, server) = (User::new(), TestServer::start());
    works(
        &user,
        &server,
        &format!("ulimit -c unlimited; \"$KVFS\" mount ~{STORE} mnt"),
    );
    let limits = fs::read_to_string(format!("/proc/{}/limits", user.pid())).expect("limits");
    let core = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max core file size"));
    let mut words = core.expect("the limit").split_whitespace();
    assert_eq!(words.next(), Some("0"), "{limits}");
    works(&user, &server, "\"$KVFS\" unmount mnt");
}

#[test]
fn planted_folders_and_links_are_not_used_for_anything() {
    let (user, server) = (User::new(), TestServer::start());
    server.put_text("a", "mine");
    let elsewhere = user.path("elsewhere");
    fs::create_dir(&elsewhere).expect("a folder");
    symlink(&elsewhere, user.path("link")).expect("a link");
    fs::create_dir(user.path("foreign")).expect("a folder");
    let somebody = Some(SOMEBODY.parse().expect("a number"));
    std::os::unix::fs::chown(user.path("foreign"), somebody, None).expect("another owner");
    fs::set_permissions(user.path("foreign"), fs::Permissions::from_mode(0o777)).expect("a mode");
    for planted in ["link", "foreign"] {
        let asked = format!(
            "cd {}; \"$KVFS\" mount ~{STORE} mnt",
            user.path("").display()
        );
        // The cache is a comfort: reading goes on without it, or the mount says why not.
        let cached = format!("{asked} --cache-dir {planted} && cat mnt/a && \"$KVFS\" unmount mnt");
        let output = start(&user, &server, &cached).wait(Duration::from_secs(60));
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &output.stderr;
        assert!(
            said.contains("is not a folder of this user") || output.status.success(),
            "{said}"
        );
        let staged = format!("{asked} --rw --staging-dir {planted}");
        let output = start(&user, &server, &staged).wait(Duration::from_secs(60));
        assert!(!output.status.success(), "{planted}: {output:?}");
        assert!(output.stderr.contains(planted), "{}", output.stderr);
        assert!(user.nothing_left());
    }
    for folder in [elsewhere, user.path("foreign")] {
        let mut found = Vec::new();
        everything(&folder, &mut found);
        assert!(found.is_empty(), "{found:?}");
    }
}

/// Runs a shell script as somebody else; returns whether it worked and what it said.
fn as_somebody(folder: &Path, script: &str) -> (bool, String) {
    let output = Running::start(
        Command::new("setpriv")
            .args(["--reuid", SOMEBODY, "--regid", SOMEBODY, "--clear-groups"])
            .args(["sh", "-c", script])
            .current_dir(folder),
    )
    .wait(Duration::from_secs(30));
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &output.stderr;
    (output.status.success(), said)
}

/// Lets others into a user's home, as far as its folders let them.
fn open_up(user: &User) {
    for name in ["", "run"] {
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(user.path(name), open).expect("a mode");
    }
}

#[test]
fn another_user_neither_reads_a_mount_nor_reaches_its_daemon() {
    let (user, server) = (User::new(), TestServer::start());
    open_up(&user);
    server.put_text("a", "mine");
    works(
        &user,
        &server,
        &format!("\"$KVFS\" mount --rw ~{STORE} mnt && cat mnt/a"),
    );
    let home = user.path("");
    let (can_look, said) = as_somebody(&home, "ls -d run store && cat store/a");
    assert!(can_look, "the test proves nothing: {said}");
    let sockets: Vec<PathBuf> = fs::read_dir(user.path("run/kvfs"))
        .expect("the state folder")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "sock"))
        .collect();
    assert_eq!(sockets.len(), 1, "{sockets:?}");
    let connects = format!(
        "python3 -c 'import socket; socket.socket(socket.AF_UNIX).connect(\"{}\")'",
        sockets[0].display()
    );
    for refused in [
        "ls mnt",
        "cat mnt/a",
        "echo x > mnt/b",
        "cat run/kvfs/*.json",
        "cat .cache/kvfs/*/*",
        "ls .local/state/kvfs/staging",
        "cat .local/state/kvfs/logs/*",
        &connects,
    ] {
        let (worked, said) = as_somebody(&home, refused);
        assert!(!worked, "{refused}: {said}");
        assert!(!said.contains("mine"), "{refused}: {said}");
    }
    // The socket's owner can: it is not just broken.
    let own = Command::new("sh").args(["-c", &connects]).status();
    assert!(own.expect("a shell").success());
    works(&user, &server, "\"$KVFS\" unmount mnt");
}

/// Returns the port on which a process listens.
fn port_of(pid: u32) -> Option<u16> {
    let mut sockets = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten() {
        let Ok(to) = fs::read_link(entry.path()) else {
            continue;
        };
        let to = to.display().to_string();
        if let Some(inode) = to.strip_prefix("socket:[") {
            sockets.push(inode.trim_end_matches(']').to_owned());
        }
    }
    // Fields (proc(5)): number, local address, remote address, state; the tenth is the inode.
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let listens = fields.get(3) == Some(&"0A");
        let ours = sockets
            .iter()
            .any(|inode| fields.get(9) == Some(&inode.as_str()));
        let (_, port) = fields.get(1)?.split_once(':')?;
        (listens && ours).then(|| u16::from_str_radix(port, 16).ok())?
    })
}

#[test]
fn another_user_gets_nothing_from_the_server_of_the_demo() {
    let user = User::new();
    open_up(&user);
    // A program of the tour that takes its time.
    let tools = user.path("tools");
    fs::create_dir(&tools).expect("a folder");
    let slow =
        "#!/bin/sh\ntouch \"$HOME/waiting\"\nwhile [ ! -e \"$HOME/go\" ]; do sleep 0.05; done\n";
    fs::write(tools.join("jq"), slow).expect("a program");
    fs::set_permissions(tools.join("jq"), fs::Permissions::from_mode(0o755)).expect("a mode");
    let mut command = user.command(&["demo", "--exit"]);
    let path = command
        .get_envs()
        .find(|(name, _)| *name == "PATH")
        .and_then(|(_, value)| value.map(|value| value.to_string_lossy().into_owned()))
        .expect("a path");
    command
        .env("PATH", format!("{}:{path}", tools.display()))
        .stdin(Stdio::null());
    let demo = Running::start(&mut command);
    soon(|| user.path("waiting").exists());
    let port = port_of(demo.pid()).expect("it listens");
    let base = format!("http://127.0.0.1:{port}");
    for path in [
        "/v2/key-value-stores",
        "/v2/key-value-stores/local~demo",
        "/v2/key-value-stores/local~demo/keys",
        "/v2/key-value-stores/local~demo/records/INPUT",
        "/v2/users/me",
        "/_kvfs/stats",
    ] {
        let fetch = format!("curl -s -o /dev/null -w '%{{http_code}}' {base}{path}");
        let (_, code) = as_somebody(Path::new("/"), &fetch);
        assert!(
            ["401", "403", "404"].contains(&code.as_str()),
            "{path}: {code}"
        );
    }
    let listens = TcpStream::connect(("127.0.0.1", port));
    assert!(listens.is_ok(), "the test proves nothing");
    fs::write(user.path("go"), "").expect("a file");
    let output = demo.wait(Duration::from_secs(60));
    assert!(output.status.success(), "{output:?}");
}

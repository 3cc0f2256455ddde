//! Commands that are given mount points, files in mounts, and names: the same words mean the same.

use std::fs;
use std::process::Command;

use kvfs::store::Encoding;

use crate::daemon::{User, mounted};
use crate::support::served::{TOKEN, TestServer};

/// Mounts the store of a server, with its token in the daemon only.
fn mount(user: &User, server: &TestServer, more: &[&str]) {
    let url = server.url();
    let args = [
        &["mount", "--api-url", &url],
        more,
        &[&server.entry.id, "mnt"],
    ]
    .concat();
    let ran = user
        .command(&args)
        .env("APIFY_TOKEN", TOKEN)
        .output()
        .expect("kvfs runs");
    assert!(ran.status.success(), "{ran:?}");
}

#[test]
fn a_slash_behind_the_mount_point_makes_no_difference() {
    let user = User::new();
    user.works(&["mount", "./store", "mnt"]);
    let lines = |point: &str| user.works(&["status", point]).lines().count();
    assert_eq!(lines("mnt"), lines("mnt/"));
    for point in ["mnt/", "./mnt//", "mnt/.", "../mnt/"] {
        let point = match point {
            "../mnt/" => format!("{}/", user.path("mnt").display()),
            other => other.to_owned(),
        };
        for args in [
            &["sync"][..],
            &["warm"],
            &["refresh"],
            &["trace", "--for", "10ms"],
            &["ls"],
            &["info"],
        ] {
            user.works(&[args, &[&point]].concat());
        }
    }
    user.works(&["unmount", "mnt/"]);
    assert!(!mounted(&user.path("mnt")));
}

#[test]
fn commands_without_a_mount_take_mounts_and_files_in_them() {
    let (user, server) = (User::new(), TestServer::start());
    server.put_encoded("packed", "text/plain", Encoding::Gzip, b"text\n");
    server.put_text("a", "hi\n");
    mount(&user, &server, &[]);
    // No token at hand: the daemon has it.
    assert_eq!(user.works(&["ls", "mnt"]), "a\npacked\n");
    assert_eq!(user.works(&["ls", "mnt", "p*"]), "packed\n");
    assert_eq!(user.works(&["cat", "mnt", "a", "mnt/packed"]), "hi\ntext\n");
    assert_eq!(user.works(&["cat", "mnt/a", "packed"]), "hi\ntext\n");
    let info = user.works(&["info", "mnt/packed"]);
    assert!(
        info.contains("gzip") && info.contains("text/plain"),
        "{info}"
    );
    assert!(user.works(&["info", "mnt"]).contains(&server.entry.id));
    for args in [
        &["cat", "mnt/none"][..],
        &["info", "mnt/none"],
        &["share", "mnt/none"],
    ] {
        user.fails(4, args);
    }
    let said = user.fails(1, &["rm", "mnt/a"]);
    assert!(
        said.contains("read-only") && said.contains("--rw"),
        "{said}"
    );
    let said = user.fails(4, &["warm", "mnt", "zzz"]);
    assert!(said.contains("begins with 'zzz'"), "{said}");
    assert!(
        user.works(&["warm", "mnt", "mnt/a"])
            .contains("cached 1 file")
    );
    user.works(&["unmount", "mnt"]);
}

#[test]
fn records_are_stored_and_deleted_through_a_mount_for_writing() {
    let (user, server) = (User::new(), TestServer::start());
    mount(&user, &server, &["--rw"]);
    fs::write(user.path("page.html"), "<p>").expect("a file");
    user.works(&["put", "mnt", "page", "page.html"]);
    let meta = server.store().head(
        &crate::support::served::key("page"),
        crate::support::served::soon(),
    );
    let content_type = meta.expect("a record").content_type;
    assert_eq!(content_type.as_deref(), Some("text/html; charset=utf-8"));
    user.works(&["rm", "mnt/page"]);
    assert!(!user.path("mnt/page").exists());
    user.fails(4, &["rm", "mnt/page"]);
    user.works(&["unmount", "mnt"]);
}

#[test]
fn several_mounts_and_named_stores_are_ended_at_once() {
    let user = User::new();
    let config = user.path(".config/kvfs");
    fs::create_dir_all(&config).expect("a folder");
    let store = user.path("store");
    let text = format!("[stores.mine]\nstore = {:?}\n", store.display().to_string());
    fs::write(config.join("config.toml"), text).expect("a file");
    for point in ["one", "two", "three"] {
        fs::create_dir(user.path(point)).expect("a folder");
    }
    user.works(&["mount", "@mine", "one"]);
    user.works(&["mount", "./store", "two"]);
    assert!(
        user.works(&["status", "one", "two"])
            .matches(" on ")
            .count()
            == 2
    );
    assert!(user.works(&["status", "@mine"]).contains("/one"));
    let said = user.fails(2, &["warm", "@mine"]);
    assert!(said.contains("several times"), "{said}");
    user.works(&["unmount", "one", "two/"]);
    user.fails(3, &["unmount", "@mine"]);
    for point in ["one", "two", "three"] {
        user.works(&["mount", "./store", point]);
    }
    user.works(&["sync", "--all"]);
    user.works(&["unmount", "--all"]);
    for point in ["one", "two", "three"] {
        assert!(!mounted(&user.path(point)), "{point}");
    }
    assert!(user.nothing_left());
}

#[test]
fn a_mount_of_fstab_shows_the_source_of_fstab() {
    let user = User::new();
    let helper = user.path("mount.kvfs");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_kvfs"), &helper).expect("a link");
    let (store, point) = (user.path("store"), user.path("mnt"));
    let ran = Command::new(&helper)
        .args([&store, &point])
        .args(["-o", "ro,ttl=1m"])
        .env_clear()
        .env("HOME", user.path(""))
        .env("XDG_RUNTIME_DIR", user.path("run"))
        .current_dir("/")
        .output()
        .expect("kvfs runs");
    assert!(ran.status.success() && ran.stderr.is_empty(), "{ran:?}");
    let shown = fs::read_to_string("/proc/self/mounts").expect("the mounts");
    let line = format!("{} {} fuse.kvfs", store.display(), point.display());
    assert!(shown.contains(&line), "{shown}");
    user.works(&["unmount", "mnt"]);
}

#[test]
fn signals_of_operators_leave_the_mount_alone_and_quit_ends_it() {
    let user = User::new();
    user.works(&["mount", "./store", "mnt"]);
    let pid = user.status()[0]["pid"].as_u64().expect("a pid");
    let send = |signal: &str| {
        let sent = Command::new("kill")
            .args([signal, &pid.to_string()])
            .status();
        assert!(sent.expect("kill").success());
    };
    for signal in ["-USR1", "-USR2", "-ALRM", "-XFSZ", "-HUP"] {
        send(signal);
        assert_eq!(fs::read(user.path("mnt/a")).expect(signal), b"hi\n");
    }
    send("-QUIT");
    crate::daemon::soon(|| user.nothing_left());
}

#[test]
fn the_next_mount_is_told_that_the_last_one_still_uploads() {
    let (user, server) = (
        User::new(),
        TestServer::start_with(|config| config.knobs.bandwidth = Some(100 << 10)),
    );
    mount(&user, &server, &["--rw", "--write-back"]);
    fs::write(user.path("mnt/big"), vec![b'x'; 3 << 20]).expect("a file");
    // It says that something is left.
    user.fails(1, &["unmount", "--lazy", "mnt"]);
    let url = server.url();
    let args = ["mount", "--api-url", &url, &server.entry.id, "mnt"];
    let ran = user
        .command(&args)
        .env("APIFY_TOKEN", TOKEN)
        .output()
        .expect("kvfs runs");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(!ran.status.success(), "{said}");
    assert!(said.contains("still uploads 1 file (3.0 MiB)"), "{said}");
    assert!(
        said.contains("kvfs recover") && !said.contains("kill"),
        "{said}"
    );
}

#[test]
fn the_cache_on_disk_is_shown_and_emptied_under_a_mount() {
    let user = User::new();
    user.works(&["mount", "./store", "mnt"]);
    let read = || fs::read_to_string(user.path("mnt/a")).expect("a record");
    let shown = || -> Vec<serde_json::Value> {
        let lines = user.works(&["cache", "info", "--json"]);
        let line = |line: &str| serde_json::from_str(line).expect("JSON");
        lines.lines().map(line).collect()
    };
    assert_eq!(read(), "hi\n");
    user.works(&["unmount", "mnt"]);
    let before = shown();
    assert_eq!(before.len(), 1);
    assert_eq!(before[0]["contents"], 1);
    let id = before[0]["store"].as_str().expect("an id").to_owned();
    assert!(user.works(&["cache", "info"]).contains(&id));

    user.works(&["mount", "./store", "mnt"]);
    user.fails(4, &["cache", "clear", "another"]);
    let elsewhere = user
        .command(&["cache", "info"])
        .env("KVFS_CACHE_DIR", "/nowhere")
        .output();
    let said = String::from_utf8(elsewhere.expect("kvfs runs").stdout).expect("text");
    assert_eq!(said, "/nowhere: 0 B\n");
    assert_eq!(shown(), before);
    user.works(&["cache", "clear", &id]);
    assert_eq!(shown(), Vec::<serde_json::Value>::new());
    assert_eq!(read(), "hi\n");
    user.works(&["refresh", "mnt"]);
    assert_eq!(read(), "hi\n");
    user.works(&["unmount", "mnt"]);
    assert_eq!(shown()[0]["contents"], 1, "what was read is cached again");
    user.works(&["cache", "clear"]);
    assert_eq!(shown(), Vec::<serde_json::Value>::new());
}

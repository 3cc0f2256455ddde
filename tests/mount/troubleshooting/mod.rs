//! What docs/TROUBLESHOOTING.md lists, produced: each message that the page quotes is what kvfs says.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use kvfs::base::redact::Secret;
use kvfs::local::MemoryStore;
use kvfs::server::{GeneralAccess, User as Account};
use kvfs::store::Encoding;
use rustix::fs::{SeekFrom, getxattr, seek};
use rustix::io::Errno;

use crate::daemon::User;
use crate::support::mounted::MountedSession;
use crate::support::served::{STORE, TOKEN, TestServer};

mod mounting;
mod rows;

const PAGE: &str = include_str!("../../../docs/TROUBLESHOOTING.md");

/// Runs kvfs, which must fail and say what the page quotes.
#[track_caller]
fn says(user: &User, variables: &[(&str, &str)], args: &[&str], quoted: &[&str]) {
    let output = user
        .command(args)
        .envs(variables.iter().copied())
        .output()
        .expect("kvfs runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{args:?}: {said}");
    for message in quoted {
        assert!(said.contains(message), "no '{message}' in {said}");
        assert!(PAGE.contains(message), "'{message}' is not on the page");
    }
}

#[test]
fn what_keeps_a_mount_from_being_made_is_said_in_the_words_of_the_page() {
    let user = User::new();
    let server = TestServer::start_with(|config| {
        let token = Secret::new("of-another-account");
        config.other_users.push((Account::named("other"), token));
    });
    server.set_access(GeneralAccess::Restricted);
    let url = server.url();
    let here = [
        ("APIFY_CLIENT_BASE_URL", url.as_str()),
        ("APIFY_TOKEN", TOKEN),
    ];
    let store = format!("~{STORE}");
    let mount = |store: &str, variables: &[(&str, &str)], quoted: &[&str]| {
        says(&user, variables, &["mount", store, "mnt"], quoted);
    };
    mount("word", &here, &["was looked up as a store's id"]);
    mount(
        "~none",
        &here,
        &["the store does not exist or may not be seen"],
    );
    mount(&store, &[here[0], ("APIFY_TOKEN", "wrong")], &["HTTP 401"]);
    let away = url.replace("127.0.0.1", "0.0.0.0");
    mount(
        &store,
        &[("APIFY_CLIENT_BASE_URL", &away), here[1]],
        &["refused without --insecure-http"],
    );
    let id = &server.entry.id;
    let nobody = [here[0], ("APIFY_TOKEN", "")];
    mount(id, &nobody, &["HTTP 401", "token-not-provided"]);
    let other = [here[0], ("APIFY_TOKEN", "of-another-account")];
    mount(id, &other, &["HTTP 403, insufficient-permissions"]);
    let expired = kvfs::base::signature::sign_keys(
        &server.entry.signing_key,
        id,
        Some(std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000)),
    );
    let link = format!("{}/keys?signature={}", server.store_url(), expired.expose());
    mount(&link, &here, &["the link's signature expired"]);
    says(
        &user,
        &here,
        &["mount", &store, "mnt", "--cache-dir", "mnt/cache"],
        &["is inside the mount point"],
    );
    let settings = user.path("settings.toml");
    let config = |text: &str, quoted: &[&str]| {
        fs::write(&settings, text).expect("a file");
        fs::set_permissions(&settings, fs::Permissions::from_mode(0o644)).expect("a mode");
        let args = ["mount", "--config", "settings.toml", &store, "mnt"];
        says(&user, &here, &args, quoted);
    };
    config("[defaults]\nttll = '1m'\n", &["is not a setting"]);
    config(
        "[defaults]\ntoken = 'x'\n",
        &["is a secret, and others can read the file"],
    );
    assert!(user.nothing_left());
    user.works(&["mount", "./store", "mnt"]);
    says(
        &user,
        &here,
        &["mount", "./store", "mnt"],
        &["already mounted"],
    );
    // As the page says.
    user.works(&["unmount", "mnt"]);
    user.works(&["mount", "./store", "mnt"]);
    user.works(&["unmount", "mnt"]);
    assert!(user.nothing_left());
}

/// As `apify login` of newer versions leaves its folder.
#[test]
fn a_token_in_the_keyring_is_not_found_and_is_passed_as_the_page_says() {
    let (server, user) = (TestServer::start(), User::new());
    server.set_access(GeneralAccess::Restricted);
    fs::create_dir(user.path(".apify")).expect("a folder");
    let login = r#"{"id": "x", "username": "me", "secretsBackend": "keyring"}"#;
    fs::write(user.path(".apify/auth.json"), login).expect("a file");
    let cli = user.path("apify");
    fs::write(&cli, format!("#!/bin/sh\necho {TOKEN}\n")).expect("a program");
    fs::set_permissions(&cli, fs::Permissions::from_mode(0o755)).expect("a mode");
    let shell = |script: &str| {
        let kvfs = user.command(&[]);
        let mut command = std::process::Command::new("sh");
        command.env_clear();
        for (name, value) in kvfs.get_envs() {
            if let (Some(value), false) = (value, name == "APIFY_TOKEN") {
                command.env(name, value);
            }
        }
        let script = script
            .replace("kvfs mount …", &format!("$KVFS mount ~{STORE} mnt"))
            .replace("$(apify", "$(./apify");
        let output = command
            .args(["-c", &script])
            .env("KVFS", env!("CARGO_BIN_EXE_kvfs"))
            .env("APIFY_CLIENT_BASE_URL", server.url())
            .current_dir(user.path(""))
            .output()
            .expect("a shell");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), said)
    };
    let (worked, said) = shell("kvfs mount …");
    assert!(!worked && said.contains("system's keyring"), "{said}");
    assert!(said.contains("apify auth token"), "{said}");
    let advice = "APIFY_TOKEN=$(apify auth token) kvfs mount …";
    assert!(PAGE.contains("system's keyring") && PAGE.contains(advice));
    let (worked, said) = shell(advice);
    assert!(worked, "{said}");
    user.works(&["unmount", "mnt"]);
    assert!(user.nothing_left());
}

#[test]
fn what_the_store_did_not_take_is_told_when_it_is_unmounted_and_can_be_dropped() {
    let server = TestServer::start_with(|config| config.limits.record = Some(1000));
    let user = User::new();
    let kvfs = |args: &[&str]| {
        let mut command = user.command(args);
        command
            .env("APIFY_TOKEN", TOKEN)
            .env("APIFY_CLIENT_BASE_URL", server.url());
        let output = command.output().expect("kvfs runs");
        let said = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&said).into_owned()
    };
    let store = format!("~{STORE}");
    kvfs(&["mount", "--rw", "--write-back", &store, "mnt"]);
    fs::write(user.path("mnt/large"), [7; 2000]).expect("closed");
    crate::daemon::soon(|| user.status()[0]["stats"]["uploads_failed"] == 1);
    let said = kvfs(&["unmount", "mnt"]);
    let quoted = "refused by the store and kept";
    assert!(said.contains(quoted) && PAGE.contains(quoted), "{said}");
    // As the page says.
    let shown = kvfs(&["recover"]);
    assert!(shown.contains("record-too-large"), "{shown}");
    let listed: serde_json::Value =
        serde_json::from_str(&kvfs(&["recover", "--list", "--json"])).expect("JSON");
    let id = listed[0]["id"].as_str().expect("an id").to_owned();
    kvfs(&["recover", "--discard", &id]);
    assert_eq!(kvfs(&["recover", "--list", "--json"]).trim(), "[]");
    assert!(user.nothing_left());
}

#[test]
fn what_a_killed_daemon_leaves_is_called_as_on_the_page() {
    let user = User::new();
    user.works(&["mount", "./store", "mnt"]);
    let file = user.path("mnt/a");
    assert_eq!(fs::read(&file).expect("it"), b"hi\n");
    user.signal("-KILL");
    let dead = || match fs::read(&file) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
            let said = error.to_string();
            let quoted = "Transport endpoint is not connected";
            assert!(said.contains(quoted) && PAGE.contains(quoted), "{said}");
            true
        }
        _ => false,
    };
    crate::daemon::soon(dead);
    // As the page says.
    user.works(&["mount", "./store", "mnt"]);
    assert_eq!(fs::read(&file).expect("it"), b"hi\n");
    user.works(&["unmount", "mnt"]);
    assert!(user.nothing_left());
}

#[test]
fn errnos_of_attributes_and_holes_are_those_of_the_page() {
    let store = std::sync::Arc::new(MemoryStore::new());
    store.insert("a", "text/plain", Encoding::Identity, b"text".to_vec());
    let mounted = MountedSession::of(store);
    let path = mounted.file("a");
    let attribute = |path: &Path, name: &str, room: usize| {
        getxattr(path, name, vec![0u8; room].as_mut_slice()).expect_err(name)
    };
    assert_eq!(attribute(&path, "user.apify.none", 100), Errno::NODATA);
    assert_eq!(attribute(&path, "user.apify.content-type", 1), Errno::RANGE);
    for name in ["system.posix_acl_access", "security.selinux"] {
        assert_eq!(attribute(&path, name, 100), Errno::OPNOTSUPP, "{name}");
    }
    let file = fs::File::open(&path).expect("it");
    assert_eq!(seek(&file, SeekFrom::Data(1000)), Err(Errno::NXIO));
    for errno in ["ENODATA", "ERANGE", "ENXIO", "EOPNOTSUPP"] {
        assert!(PAGE.contains(&format!("| `{errno}` |")), "{errno}");
    }
}

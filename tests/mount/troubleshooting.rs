//! What docs/TROUBLESHOOTING.md lists, produced: each message that the page quotes is what kvfs says.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use kvfs::local::MemoryStore;
use kvfs::server::GeneralAccess;
use kvfs::store::Encoding;
use rustix::fs::{SeekFrom, getxattr, seek};
use rustix::io::Errno;

use super::daemon::User;
use crate::support::mounted::MountedSession;
use crate::support::served::{STORE, TOKEN, TestServer};

const PAGE: &str = include_str!("../../docs/TROUBLESHOOTING.md");

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
    let (server, user) = (TestServer::start(), User::new());
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
    let expired = kvfs::signature::sign_keys(
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
    super::daemon::soon(dead);
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
    let file = fs::File::open(&path).expect("it");
    assert_eq!(seek(&file, SeekFrom::Data(1000)), Err(Errno::NXIO));
    for errno in ["ENODATA", "ERANGE", "ENXIO"] {
        assert!(PAGE.contains(&format!("| `{errno}` |")), "{errno}");
    }
}

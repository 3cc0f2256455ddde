//! Names: odd keys, prefixes, and those of a local folder.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use kvfs::local::MemoryStore;
use kvfs::store::Encoding;

use crate::support::mounted::{MountedSession, eventually};
use crate::support::served::TestServer;

/// Keys that are no file names, and what they are called.
fn odd_keys() -> Vec<(String, String)> {
    vec![
        (".".into(), "%2E".into()),
        ("..".into(), "%2E%2E".into()),
        ("...".into(), "...".into()),
        (".hidden".into(), ".hidden".into()),
        ("x".repeat(256), "x".repeat(256)),
        ("a/b".into(), "a%2Fb".into()),
        ("/".into(), "%2F".into()),
        ("with blank".into(), "with%20blank".into()),
        ("100%".into(), "100%25".into()),
        ("žluť".into(), "%C5%BElu%C5%A5".into()),
        ("a!b-c_d.e'(f)".into(), "a!b-c_d.e'(f)".into()),
        ("-n".into(), "-n".into()),
    ]
}

#[track_caller]
fn reaches_odd_keys(mount: &MountedSession, keys: &[(String, String)]) {
    let mut names: Vec<&str> = keys.iter().map(|(_, name)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(mount.works("ls -A | sort"), names.join("\n"));
    for (key, name) in keys {
        let read = fs::read_to_string(mount.file(name))
            .unwrap_or_else(|error| panic!("{name}: {error}: {:?}", mount.counters().last_errors));
        assert_eq!(read, format!("content of {key}"));
        assert_eq!(
            mount.works(&format!(
                "getfattr --only-values -n user.apify.key ./\"{name}\""
            )),
            *key
        );
    }
    mount.works("cat ./* .hidden >/dev/null && tar cf - . | wc -c");
}

#[test]
fn keys_that_are_no_file_names_are_listed_and_reachable() {
    let store = MemoryStore::new();
    let mut keys = odd_keys();
    keys.push(("nul\0".into(), "nul%00".into()));
    for (key, _) in &keys {
        store.insert(
            key,
            "text/plain",
            Encoding::Identity,
            format!("content of {key}"),
        );
    }
    let store = Arc::new(store);
    reaches_odd_keys(&MountedSession::of(store.clone()), &keys);
    // Also before any listing.
    let other = MountedSession::of(store);
    for (key, name) in &keys {
        let read = fs::read_to_string(other.file(name)).expect(name);
        assert_eq!(read, format!("content of {key}"));
    }
}

#[test]
fn keys_that_are_no_file_names_are_reachable_through_the_server() {
    let server = TestServer::start();
    let mut keys = odd_keys();
    keys.retain(|(key, _)| key != "." && key != "..");
    for (key, _) in &keys {
        server.put_text(key, &format!("content of {key}"));
    }
    reaches_odd_keys(&MountedSession::served(&server), &keys);
}

#[test]
fn records_that_no_url_can_name_are_listed_and_say_so_when_they_are_opened() {
    let server = TestServer::start();
    for key in [".", "..", "a"] {
        server.put_text(key, "content");
    }
    // Also where nothing has been listed.
    for list in [true, false] {
        let mount = MountedSession::served(&server);
        if list {
            assert_eq!(mount.works("ls -A"), "%2E\n%2E%2E\na");
        }
        for name in ["%2E", "%2E%2E"] {
            let error = fs::read(mount.file(name)).expect_err(name);
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{name}: {error}");
        }
        let told = format!("{:?}", mount.counters().last_errors);
        assert!(told.contains("has no address"), "{told}");
        assert_eq!(mount.works("cat a"), "content");
    }
}

#[test]
fn a_prefix_narrows_the_mount() {
    let server = TestServer::start();
    for name in ["a-1", "a-2", "b-1"] {
        server.put_text(name, name);
    }
    let mount = MountedSession::served_with(&server, |config| config.prefix = Some("a-".into()));
    assert_eq!(mount.works("ls; cat a-1"), "a-1\na-2\na-1");
    let complaint = mount.fails("cat b-1");
    assert!(
        complaint.contains("No such file or directory"),
        "{complaint}"
    );
}

#[test]
fn a_local_folder_in_either_layout_shows_what_is_written_meanwhile() {
    let folder = tempfile::tempdir().expect("a folder");
    // As Crawlee for JavaScript leaves it, and as Crawlee for Python does.
    fs::write(folder.path().join("INPUT.json"), "{}").expect("a record");
    fs::write(folder.path().join("with%20blank"), "quoted").expect("a record");
    fs::write(
        folder.path().join("with%20blank.__metadata__.json"),
        r#"{"key": "with blank", "content_type": "text/plain", "size": 6}"#,
    )
    .expect("a sidecar");
    let reference = kvfs::store::reference::StoreRef::Directory(folder.path().to_owned());
    let mount = MountedSession::opened(crate::support::mounted::open_config(reference), |config| {
        config.ttl = Some(Duration::from_millis(200))
    });
    assert_eq!(mount.works("ls; cat INPUT"), "INPUT\nwith%20blank\n{}");
    assert_eq!(
        mount.works("getfattr --only-values -n user.apify.content-type INPUT"),
        "application/json; charset=utf-8"
    );
    assert_eq!(mount.works("cat with%20blank"), "quoted");
    mount.fails("cat OUTPUT");
    fs::write(folder.path().join("OUTPUT.json"), "[1]").expect("a record");
    eventually("the new record is listed", || {
        mount.works("ls").contains("OUTPUT")
    });
    // Its absence may be believed for a TTL even after it was listed.
    eventually("the new record is read", || {
        mount.sh("cat OUTPUT").stdout == b"[1]"
    });
    fs::write(folder.path().join("OUTPUT.json"), "[1, 2]").expect("a record");
    eventually("the changed record is read", || {
        mount.works("cat OUTPUT") == "[1, 2]"
    });
    fs::remove_file(folder.path().join("OUTPUT.json")).expect("a removal");
    eventually("the removed record is gone", || {
        !mount.file("OUTPUT").exists()
    });
    eventually("the removed record is not listed", || {
        !mount.works("ls").contains("OUTPUT")
    });
}

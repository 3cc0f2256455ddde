//! Attributes, owners, modes, and that nothing can be changed.

use std::sync::Arc;

use kvfs::local::MemoryStore;
use kvfs::store::Encoding;

use crate::support::mounted::MountedSession;
use crate::support::served::TestServer;

#[test]
fn attributes_are_shown_and_cost_no_request_once_known() {
    let server = TestServer::start();
    let stored = server.put_encoded(
        "page.json",
        "application/json; charset=utf-8",
        Encoding::Gzip,
        br#"{"a": 1}"#,
    );
    let mount = MountedSession::served(&server);
    mount.works("cat page.json");
    let before = server.counts().requests();
    let shown = mount.works("getfattr --absolute-names -d page.json");
    for line in [
        "user.apify.key=\"page.json\"".to_owned(),
        "user.apify.content-type=\"application/json; charset=utf-8\"".to_owned(),
        "user.apify.content-encoding=\"gzip\"".to_owned(),
        format!("user.apify.stored-size=\"{}\"", stored.len()),
        format!("user.apify.url=\"{}\"", server.record_url("page.json")),
    ] {
        assert!(shown.contains(&line), "{line} is not in {shown}");
    }
    assert!(shown.contains("user.apify.etag=\""), "{shown}");
    let seen = mount.python(
        "import os, json\nassert 'user.apify.key' in os.listxattr('page.json')\nprint(os.getxattr('page.json', 'user.apify.key').decode())\nstats = json.loads(os.getxattr('.', 'user.kvfs.stats'))\nprint(stats['stats']['requests_get'], stats['mode'], stats['store_name'], stats['access'])",
    );
    assert_eq!(seen, "page.json\n1 decoded test-store read-only");
    assert_eq!(
        mount.works("getfattr --only-values -n user.apify.store-id ."),
        server.entry.id
    );
    assert_eq!(
        mount.works("getfattr --only-values -n user.apify.store-name ."),
        "test-store"
    );
    let complaint = mount.fails("getfattr -n user.apify.nothing page.json");
    assert!(complaint.contains("No such attribute"), "{complaint}");
    assert_eq!(server.counts().requests(), before);
    let everything = mount.works("getfattr -d . page.json") + &mount.status().to_string();
    assert!(!everything.contains(crate::support::served::TOKEN));
}

#[test]
fn nothing_can_be_changed_and_every_attempt_says_so() {
    let store = MemoryStore::new();
    store.insert("a", "text/plain", Encoding::Identity, "hi\n");
    let mount = MountedSession::of(Arc::new(store));
    for script in [
        "touch new",
        "touch a",
        "rm -f a",
        "mv a b",
        "mkdir d",
        "echo more >>a",
        "echo other >a",
        "chmod 600 a",
        "chown 1 a",
        "ln a b",
        "ln -s a b",
        "truncate -s 0 a",
        "setfattr -n user.apify.content-type -v text/html a",
        "cp a b",
    ] {
        let complaint = mount.fails(script);
        assert!(
            complaint.contains("Read-only file system"),
            "{script}: {complaint}"
        );
    }
    assert_eq!(mount.works("cat a; ls"), "hi\na");
    assert_eq!(mount.counters().errors_total, 0);
}

#[test]
fn owners_and_modes_are_as_told_and_df_works() {
    let store = MemoryStore::new();
    store.insert("a", "text/plain", Encoding::Identity, "hi\n");
    let mount = MountedSession::with(Arc::new(store), |config| {
        (config.uid, config.gid) = (1234, 2345);
        (config.file_mode, config.dir_mode) = (0o640, 0o750);
    });
    assert_eq!(
        mount.works("stat -c '%u %g %a %F %h' . a"),
        "1234 2345 750 directory 2\n1234 2345 640 regular file 1"
    );
    let df = mount.works("df -P . | tail -1");
    assert!(df.starts_with("kvfs:"), "{df}");
    mount.works("df -i . && stat -f .");
    let options = mount.works("grep \" $PWD \" /proc/self/mounts");
    for option in ["fuse.kvfs", "ro", "nosuid", "nodev", "noexec"] {
        assert!(options.contains(option), "{options}");
    }
    assert!(!options.contains("allow_other"), "{options}");
}

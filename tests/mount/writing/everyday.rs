//! Changing a store through a mount.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::sync::Arc;

use kvfs::local::memory::MemoryStore;
use kvfs::store::Encoding;

use crate::support::mounted::{MountedSession, eventually, pattern};

fn bytes(store: &MemoryStore, key: &str) -> Option<Vec<u8>> {
    store.bytes(key).map(|bytes| bytes.to_vec())
}

#[test]
fn files_are_made_changed_renamed_and_deleted() {
    let store = Arc::new(MemoryStore::new());
    store.insert("old", "text/plain", Encoding::Identity, &b"old bytes"[..]);
    let mount = MountedSession::writable(Arc::<MemoryStore>::clone(&store));
    let content = pattern(3_000_000);
    fs::write(mount.file("new"), &content).expect("written");
    assert_eq!(bytes(&store, "new"), Some(content.clone()));
    assert_eq!(fs::read(mount.file("new")).expect("read"), content);
    let mut file = fs::OpenOptions::new()
        .append(true)
        .open(mount.file("old"))
        .expect("open");
    file.write_all(b" and more").expect("written");
    file.sync_all().expect("stored");
    assert_eq!(bytes(&store, "old"), Some(b"old bytes and more".to_vec()));
    drop(file);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .open(mount.file("old"))
        .expect("open");
    file.seek(SeekFrom::Start(4)).expect("there");
    file.write_all(b"BYTES").expect("written");
    file.set_len(9).expect("cut off");
    drop(file);
    assert_eq!(bytes(&store, "old"), Some(b"old BYTES".to_vec()));
    fs::rename(mount.file("old"), mount.file("renamed")).expect("renamed");
    assert_eq!(bytes(&store, "old"), None);
    assert_eq!(fs::read(mount.file("renamed")).expect("read"), b"old BYTES");
    fs::remove_file(mount.file("new")).expect("deleted");
    assert_eq!(bytes(&store, "new"), None);
    let names: Vec<_> = fs::read_dir(mount.path())
        .expect("a listing")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(names, ["renamed"]);
    fs::File::create(mount.file("empty")).expect("made");
    eventually("the empty record", || {
        bytes(&store, "empty") == Some(Vec::new())
    });
}

#[test]
fn what_was_written_last_is_stored_when_the_mount_ends() {
    let store = Arc::new(MemoryStore::new());
    let mount = MountedSession::writable(Arc::<MemoryStore>::clone(&store));
    fs::write(mount.file("held.tmp"), b"back").expect("written");
    fs::write(mount.file("empty"), b"").expect("made");
    drop(mount);
    assert_eq!(bytes(&store, "held.tmp"), Some(b"back".to_vec()));
    assert_eq!(bytes(&store, "empty"), Some(Vec::new()));
}

#[test]
fn what_a_store_has_none_of_is_refused_and_what_it_cannot_keep_is_accepted() {
    let store = Arc::new(MemoryStore::new());
    let mount = MountedSession::writable(Arc::<MemoryStore>::clone(&store));
    fs::write(mount.file("a"), b"bytes").expect("written");
    let refused = |result: std::io::Result<()>| {
        let error = result.expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    };
    refused(fs::create_dir(mount.file("d")));
    refused(fs::hard_link(mount.file("a"), mount.file("b")));
    refused(std::os::unix::fs::symlink("a", mount.file("b")));
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(mount.file("a"), mode).expect("accepted");
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    let file = fs::File::options()
        .write(true)
        .open(mount.file("a"))
        .expect("open");
    file.set_modified(time).expect("accepted");
    drop(file);
    let shown = fs::metadata(mount.file("a")).expect("attributes");
    assert_eq!(shown.modified().expect("a time"), time);
    let mode = std::os::unix::fs::PermissionsExt::mode(&shown.permissions());
    assert_eq!(mode & 0o777, 0o600);
}

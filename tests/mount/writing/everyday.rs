//! Changing a store through a mount.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::sync::Arc;

use kvfs::local::memory::MemoryStore;
use kvfs::store::Encoding;

use crate::support::mounted::{MountedSession, eventually, make_writable, pattern};

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

#[test]
fn new_files_belong_to_whom_the_mount_was_told() {
    use std::os::unix::fs::MetadataExt;
    let store = Arc::new(MemoryStore::new());
    let mount = MountedSession::with(store, |config| {
        make_writable(config);
        (config.uid, config.gid) = (12_345, 23_456);
        config.dir_mode = 0o777;
    });
    let made = fs::File::create(mount.file("a")).expect("made");
    for shown in [made.metadata(), fs::metadata(mount.file("a"))] {
        let shown = shown.expect("attributes");
        assert_eq!((shown.uid(), shown.gid()), (12_345, 23_456));
    }
}

#[test]
fn a_record_renamed_to_a_backups_name_is_hidden_and_never_lost() {
    let store = Arc::new(MemoryStore::new());
    store.insert("notes", "text/x-own", Encoding::Identity, &b"old"[..]);
    let mount = MountedSession::writable(Arc::<MemoryStore>::clone(&store));
    let names = |mount: &MountedSession| mount.works("ls");
    mount.works("mv notes notes~");
    assert_eq!(names(&mount), "notes~");
    assert_eq!(mount.works("cat notes~"), "old");
    assert!(mount.fails("cat notes").contains("No such file"));
    assert_eq!(bytes(&store, "notes"), Some(b"old".to_vec()));
    assert_eq!(store.len(), 1);
    mount.unmount();
    let mount = MountedSession::writable(Arc::<MemoryStore>::clone(&store));
    assert_eq!(names(&mount), "notes");
    assert_eq!(mount.works("cat notes"), "old");
    mount.works("mv notes notes~ && mv notes~ notes");
    assert_eq!(
        (names(&mount), mount.works("cat notes")),
        ("notes".into(), "old".into())
    );
    mount.works("mv notes notes~ && rm notes~");
    assert_eq!(names(&mount), "");
    assert!(store.is_empty());
}

#[test]
fn names_that_are_too_long_cannot_be_made_and_are_not_there() {
    let mount = MountedSession::writable(Arc::new(MemoryStore::new()));
    let errno = |result: std::io::Result<()>| result.expect_err("refused").raw_os_error();
    let most = mount.file(&"x".repeat(256));
    fs::write(&most, b"fits").expect("written");
    for len in [257, 300, 1000] {
        let long = mount.file(&"x".repeat(len));
        let made = errno(fs::write(&long, b"does not fit"));
        assert_eq!(made, Some(libc::ENAMETOOLONG), "{len}");
        let renamed = errno(fs::rename(&most, &long));
        assert_eq!(renamed, Some(libc::ENAMETOOLONG), "{len}");
        let found = errno(fs::metadata(&long).map(drop));
        assert_eq!(found, Some(libc::ENOENT), "{len}");
    }
    assert_eq!(fs::read(&most).expect("its bytes"), b"fits");
}

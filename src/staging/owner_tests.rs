use std::io::Write;
use std::sync::Arc;

use super::super::file::tests::config;
use super::*;
use crate::staging::StagingFolder;
use crate::store::{Encoding, Key};

/// A process number that no process has.
const DEAD: u32 = 4_194_303;

fn keep(folder: &Arc<StagingFolder>) -> EntryId {
    let mut file = folder.new_file().expect("a file");
    file.write_all(b"bytes").expect("written");
    let pending = crate::staging::Pending {
        key: Key::new("K").expect("a key"),
        content_type: None,
        encoding: Encoding::Identity,
        if_match: None,
        if_absent: false,
        size: 5,
        is_new: false,
        closed_at: jiff::Timestamp::UNIX_EPOCH,
        why: crate::staging::Why::WriteBack,
        attempts: 0,
        unanswered: Default::default(),
        began: None,
    };
    folder.journal().keep(&file, pending, true).expect("kept")
}

#[test]
fn the_bytes_of_a_damaged_entry_are_put_aside_before_its_description() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = StagingFolder::open(&config(dir.path(), None)).expect("a staging folder");
    let (id, own) = (keep(&folder), folder.own_path());
    // The bytes cannot be moved, as after a kill before they are.
    let in_the_way = folder.path().join(DAMAGED).join(data_name(&id));
    fs::create_dir_all(in_the_way.join("full")).expect("a folder");
    fs::set_permissions(
        folder.path().join(DAMAGED),
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )
    .expect("private");
    folder.journal().quarantine(&id, "for a test");
    drop(folder);
    let next = StagingFolder::open(&config(dir.path(), None)).expect("a staging folder");
    assert_eq!(
        fs::read(data_path(&own, &id)).expect("there still"),
        b"bytes"
    );
    assert_eq!(next.journal().entries().len(), 1);
}

#[test]
fn a_dead_owner_that_somebody_just_looks_at_is_taken_over() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = StagingFolder::open(&config(dir.path(), None)).expect("a staging folder");
    keep(&folder);
    let (own, scope) = (folder.own_path(), folder.path().to_owned());
    drop(folder);
    let (_, rest) = own
        .file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.split_once('-'))
        .expect("PID-rest");
    let of_dead = scope.join(format!("{DEAD}-{rest}"));
    fs::rename(&own, &of_dead).expect("renamed");
    let lock = File::open(of_dead.join(LOCK)).expect("its lock");
    flock(&lock, FlockOperation::LockShared).expect("looked at");
    let looks = thread::spawn(move || {
        thread::sleep(DYING_POLL);
        drop(lock);
    });
    let next = StagingFolder::open(&config(dir.path(), None)).expect("a staging folder");
    looks.join().expect("no panic");
    assert_eq!(next.journal().entries().len(), 1);
}

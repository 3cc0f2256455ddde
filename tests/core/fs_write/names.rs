//! Deleting and renaming, scratch files among them.

use std::time::Duration;

use kvfs::local::fault::Call;
use kvfs::store::{Encoding, ErrorKind};

use super::{calls, content_type, errno, meta, names, reset, stored, writable};
use crate::support::core::patient;

#[test]
fn deleting_removes_name_and_record_and_an_open_file_stays_readable() {
    let (_dir, setup, core) = writable(&[("A", "text/plain", b"old"), ("B", "text/plain", b"b")]);
    assert_eq!(names(&core), ["A", "B"]);
    let (_, fh) = core.open_to_write("A").expect("open");
    core.remove("A").expect("deleted");
    assert_eq!(stored(&setup, "A"), None);
    assert_eq!(names(&core), ["B"]);
    assert_eq!(core.lookup("A").expect("an answer"), None);
    core.fs.write(fh, 3, b"er", patient()).expect("written");
    assert_eq!(core.read_all(fh).expect("its bytes"), b"older");
    core.close(fh).expect("closed");
    assert_eq!(
        stored(&setup, "A"),
        None,
        "what is deleted does not come back"
    );
    assert_eq!(calls(&core, Call::Put), 0);
    assert_eq!(errno(core.remove("A")), libc::ENOENT);
    core.store("A", b"new").expect("stored");
    assert_eq!(stored(&setup, "A"), Some(b"new".to_vec()));
    assert_eq!(names(&core), ["A", "B"]);
    core.fs.check_invariants();
}

#[test]
fn a_file_deleted_before_it_was_stored_costs_no_request() {
    let (_dir, setup, core) = writable(&[]);
    assert_eq!(core.lookup("A").expect("an answer"), None);
    reset(&core);
    let (_, fh) = core.create("A").expect("made");
    core.fs.write(fh, 0, b"x", patient()).expect("written");
    core.remove("A").expect("deleted");
    core.close(fh).expect("closed");
    assert_eq!(core.faults.total_calls(), 0);
    assert!(setup.store.is_empty());
}

#[test]
fn renaming_a_record_keeps_bytes_type_and_encoding() {
    let (_dir, setup, core) = writable(&[("plain", "text/x-own", b"bytes")]);
    let packed = {
        use std::io::Write;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder
            .write_all(&b"text ".repeat(1000))
            .expect("in memory");
        encoder.finish().expect("in memory")
    };
    setup
        .store
        .insert("packed", "text/x-other", Encoding::Gzip, packed.clone());
    let ino = core
        .lookup("plain")
        .expect("an answer")
        .expect("present")
        .attr
        .ino;
    core.rename("plain", "moved").expect("renamed");
    assert_eq!(stored(&setup, "moved"), Some(b"bytes".to_vec()));
    assert_eq!(content_type(&setup, "moved"), "text/x-own");
    assert_eq!(stored(&setup, "plain"), None);
    let moved = core.lookup("moved").expect("an answer").expect("present");
    assert_eq!(moved.attr.ino, ino);
    reset(&core);
    assert_eq!(core.cat("moved").expect("its bytes"), b"bytes");
    assert_eq!(core.faults.total_calls(), 0);
    core.rename("packed", "moved")
        .expect("renamed over another");
    assert_eq!(stored(&setup, "moved"), Some(packed));
    assert_eq!(meta(&setup, "moved").encoding, Encoding::Gzip);
    assert_eq!(content_type(&setup, "moved"), "text/x-other");
    assert_eq!(core.cat("moved").expect("its bytes"), b"text ".repeat(1000));
    assert_eq!(names(&core), ["moved"]);
    core.fs.check_invariants();
}

#[test]
fn a_rename_that_cannot_delete_says_that_both_exist() {
    let (_dir, setup, core) = writable(&[("A", "text/plain", b"a")]);
    core.faults.fail_next(Call::Delete, 1, ErrorKind::Denied);
    assert_eq!(errno(core.rename("A", "B")), libc::EACCES);
    assert_eq!(stored(&setup, "A"), Some(b"a".to_vec()));
    assert_eq!(stored(&setup, "B"), Some(b"a".to_vec()));
    assert_eq!(names(&core), ["A", "B"]);
    assert_eq!(core.cat("A").expect("its bytes"), b"a");
    assert_eq!(core.cat("B").expect("its bytes"), b"a");
}

#[test]
fn a_rename_whose_upload_fails_changes_nothing() {
    let (_dir, setup, core) = writable(&[("A", "text/plain", b"a"), ("B", "text/plain", b"b")]);
    core.faults.fail_next(Call::Put, 1, ErrorKind::Server);
    assert_eq!(errno(core.rename("A", "B")), libc::EIO);
    core.faults.fail_next(Call::Put, 1, ErrorKind::Server);
    let (_, fh) = core.create(".A.Xy12Zz").expect("scratch");
    core.write_all(fh, b"new").expect("written");
    core.close(fh).expect("closed");
    assert_eq!(errno(core.rename(".A.Xy12Zz", "A")), libc::EIO);
    assert_eq!(core.cat("A").expect("its bytes"), b"a");
    assert_eq!(core.cat("B").expect("its bytes"), b"b");
    assert_eq!(core.cat(".A.Xy12Zz").expect("its bytes"), b"new");
    core.rename(".A.Xy12Zz", "A").expect("renamed");
    assert_eq!(stored(&setup, "A"), Some(b"new".to_vec()));
}

#[test]
fn scratch_files_never_reach_the_store_and_renaming_one_does() {
    let (_dir, setup, core) = writable(&[("notes.txt", "text/x-own", b"old")]);
    core.list().expect("a listing");
    reset(&core);
    for name in [".notes.txt.swp", "notes.txt~", "#notes.txt#"] {
        core.store(name, b"scratch").expect("closed");
        assert_eq!(core.cat(name).expect("its bytes"), b"scratch");
    }
    assert_eq!(core.faults.total_calls(), 0);
    assert_eq!(
        names(&core),
        ["#notes.txt#", ".notes.txt.swp", "notes.txt", "notes.txt~"]
    );
    core.rename("#notes.txt#", "notes.txt").expect("renamed");
    assert_eq!(stored(&setup, "notes.txt"), Some(b"scratch".to_vec()));
    assert_eq!(
        content_type(&setup, "notes.txt"),
        "text/x-own",
        "that of what it replaces"
    );
    assert_eq!(calls(&core, Call::Put), 1);
    core.remove(".notes.txt.swp").expect("deleted");
    core.remove("notes.txt~").expect("deleted");
    assert_eq!(names(&core), ["notes.txt"]);
    assert_eq!(calls(&core, Call::Delete), 0);
    assert_eq!(setup.store.len(), 1);
}

#[test]
fn an_editors_backup_leaves_the_record_in_the_store_until_it_is_overwritten() {
    let (_dir, setup, core) = writable(&[("notes", "text/x-own", b"old")]);
    assert_eq!(core.cat("notes").expect("its bytes"), b"old");
    reset(&core);
    core.rename("notes", "notes~").expect("renamed");
    assert_eq!(core.lookup("notes").expect("an answer"), None);
    assert_eq!(
        stored(&setup, "notes"),
        Some(b"old".to_vec()),
        "nobody else loses it"
    );
    core.store("notes", b"new").expect("stored");
    assert_eq!(core.cat("notes~").expect("its bytes"), b"old");
    core.remove("notes~").expect("deleted");
    assert_eq!(stored(&setup, "notes"), Some(b"new".to_vec()));
    assert_eq!(content_type(&setup, "notes"), "text/x-own");
    assert_eq!((calls(&core, Call::Put), core.faults.total_calls()), (1, 1));
    // One that nothing replaces goes with its backup.
    core.rename("notes", "notes~").expect("renamed");
    core.remove("notes~").expect("deleted");
    assert_eq!(stored(&setup, "notes"), None);
    assert_eq!(names(&core), [""; 0]);
}

#[test]
fn a_file_written_under_a_temporary_name_is_one_put_under_its_final_one() {
    let (_dir, setup, core) = writable(&[("INPUT.json", "application/x-own", b"{}")]);
    assert_eq!(core.cat("INPUT.json").expect("its bytes"), b"{}");
    assert_eq!(core.lookup("INPUT.json.tmp").expect("an answer"), None);
    reset(&core);
    core.store("INPUT.json.tmp", b"[]").expect("closed");
    assert_eq!(calls(&core, Call::Put), 0);
    core.rename("INPUT.json.tmp", "INPUT.json")
        .expect("renamed");
    assert_eq!(stored(&setup, "INPUT.json"), Some(b"[]".to_vec()));
    assert_eq!(content_type(&setup, "INPUT.json"), "application/x-own");
    assert_eq!((calls(&core, Call::Put), core.faults.total_calls()), (1, 1));
    assert_eq!(names(&core), ["INPUT.json"]);
}

#[test]
fn a_temporary_name_that_stays_is_stored_after_the_delay() {
    let (_dir, setup, core) = writable(&[]);
    core.store("a.tmp", b"kept").expect("closed");
    core.fs.commit_due();
    assert_eq!(stored(&setup, "a.tmp"), None);
    core.clock.advance(Duration::from_secs(1));
    core.fs.commit_due();
    crate::support::mounted::eventually("the upload", || {
        stored(&setup, "a.tmp") == Some(b"kept".to_vec())
    });
    core.store("b.tmp", b"too").expect("closed");
    assert_eq!(
        core.fs.finish_writes(),
        0,
        "the end of the mount waits for nothing"
    );
    assert_eq!(stored(&setup, "b.tmp"), Some(b"too".to_vec()));
}

#[test]
fn names_that_no_record_can_have_are_refused() {
    let (_dir, _setup, core) = writable(&[]);
    for (name, expected) in [
        ("a b", libc::EINVAL),
        ("caf\u{e9}", libc::EINVAL),
        ("a:b", libc::EINVAL),
        (&*"x".repeat(257), libc::ENAMETOOLONG),
    ] {
        assert_eq!(errno(core.create(name).map(drop)), expected, "{name}");
    }
    assert_eq!(core.faults.total_calls(), 0);
    core.store("%2E", b"dot").expect("the key '.'");
}

//! Uploads that fail, or only seem to.

use kvfs::local::fault::Call;
use kvfs::local::memory::MemoryStore;
use kvfs::store::{Encoding, ErrorKind};

use super::{calls, errno, late, names, reset, stored, writable};
use crate::support::core::{Setup, patient};

#[test]
fn a_failed_close_says_why_and_a_later_one_stores_all() {
    let (dir, setup, core) = writable(&[]);
    let (_, fh) = core.create("A").expect("made");
    core.fs
        .write(fh, 0, b"precious", patient())
        .expect("written");
    for (kind, expected) in [
        (ErrorKind::TooLarge, libc::EFBIG),
        (ErrorKind::Denied, libc::EACCES),
        (ErrorKind::StoreNotFound, libc::EIO),
        (ErrorKind::Quota, libc::EDQUOT),
        (ErrorKind::Server, libc::EIO),
        (ErrorKind::Timeout, libc::ETIMEDOUT),
        (ErrorKind::Changed, libc::ESTALE),
    ] {
        core.faults.fail_next(Call::Put, 1, kind);
        assert_eq!(errno(core.fs.fsync(fh, patient())), expected, "{kind:?}");
        reset(&core);
        assert_eq!(errno(core.fs.flush(fh, patient())), expected, "{kind:?}");
        assert_eq!(
            calls(&core, Call::Put),
            0,
            "the same bytes are not sent twice for a close"
        );
    }
    let journal = dir.path().join("kvfs-1/test");
    let kept = || {
        walk(&journal)
            .into_iter()
            .filter(|name| name.ends_with(".json") && !name.ends_with("store.json"))
            .count()
    };
    assert_eq!(kept(), 1, "one copy is kept for recovery");
    core.fs.write(fh, 8, b"!", patient()).expect("written");
    core.close(fh).expect("stored");
    assert_eq!(stored(&setup, "A"), Some(b"precious!".to_vec()));
    assert_eq!(kept(), 0, "what is in the store is kept no longer");
}

fn walk(dir: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(walk(&entry.path()));
        } else {
            found.push(entry.path().to_string_lossy().into_owned());
        }
    }
    found
}

#[test]
fn bytes_that_could_not_be_stored_are_kept_and_the_file_shows_the_store() {
    let (dir, setup, core) = writable(&[("A", "text/plain", b"old")]);
    core.faults.fail_next(Call::Put, 1, ErrorKind::Denied);
    assert_eq!(errno(core.store("A", b"new and precious")), libc::EACCES);
    assert_eq!(core.cat("A").expect("its bytes"), b"old");
    core.faults.fail_next(Call::Put, 1, ErrorKind::Denied);
    assert_eq!(errno(core.store("B", b"also precious")), libc::EACCES);
    assert_eq!(core.lookup("B").expect("an answer"), None);
    assert_eq!(names(&core), ["A"]);
    let files = walk(dir.path());
    let kept: Vec<Vec<u8>> = files
        .iter()
        .filter(|name| name.ends_with(".data"))
        .map(|name| std::fs::read(name).expect("readable"))
        .collect();
    assert_eq!(kept.len(), 2);
    assert!(kept.contains(&b"new and precious".to_vec()));
    assert_eq!(stored(&setup, "A"), Some(b"old".to_vec()));
    core.fs.check_invariants();
}

#[test]
fn an_upload_under_a_condition_whose_answer_was_lost_is_recognised() {
    let (_dir, setup, core) = writable(&[("A", "text/plain", b"old")]);
    let (_, fh) = core.open_to_write("A").expect("open");
    core.fs.write(fh, 0, b"new", patient()).expect("written");
    core.faults.lose_answers(Call::Put, 1, ErrorKind::Network);
    core.fs.flush(fh, patient()).expect("it is there");
    assert_eq!(calls(&core, Call::Put), 1);
    core.fs.write(fh, 0, b"NEW", patient()).expect("written");
    core.faults.fail_next(Call::Put, 1, ErrorKind::Network);
    core.close(fh).expect("sent again");
    assert_eq!(stored(&setup, "A"), Some(b"NEW".to_vec()));
}

#[test]
fn what_may_have_been_stored_before_is_nobody_elses_change() {
    let (_dir, setup, core) = writable(&[("A", "text/plain", b"old")]);
    let (_, fh) = core.open_to_write("A").expect("open");
    core.fs.write(fh, 0, b"new", patient()).expect("written");
    core.faults.lose_answers(Call::Put, 1, ErrorKind::Network);
    core.faults.fail_next(Call::Get, 1, ErrorKind::Network);
    assert_eq!(errno(core.fs.flush(fh, patient())), libc::EIO);
    assert_eq!(stored(&setup, "A"), Some(b"new".to_vec()));
    core.fs.write(fh, 0, b"NEW", patient()).expect("written");
    // Nothing is known yet, so it is not said that somebody else has changed it.
    core.faults.fail_next(Call::Get, 1, ErrorKind::Network);
    assert_eq!(errno(core.fs.flush(fh, patient())), libc::EIO);
    core.fs.fsync(fh, patient()).expect("ours");
    assert_eq!(stored(&setup, "A"), Some(b"NEW".to_vec()));

    core.fs.write(fh, 0, b"two", patient()).expect("written");
    core.faults.lose_answers(Call::Put, 1, ErrorKind::Network);
    core.faults.fail_next(Call::Get, 1, ErrorKind::Network);
    assert_eq!(errno(core.fs.flush(fh, patient())), libc::EIO);
    setup
        .store
        .insert("A", "text/plain", Encoding::Identity, "her");
    core.fs.write(fh, 0, b"six", patient()).expect("written");
    assert_eq!(errno(core.close(fh)), libc::ESTALE);
    assert_eq!(stored(&setup, "A"), Some(b"her".to_vec()));
}

#[test]
fn deleting_a_file_whose_upload_only_seemed_to_fail_deletes_the_record() {
    let (_dir, setup, core) = writable(&[]);
    for name in ["deleted", "renamed"] {
        let (_, fh) = core.create(name).expect("made");
        core.fs.write(fh, 0, b"text", patient()).expect("written");
        core.faults.lose_answers(Call::Put, 1, ErrorKind::Network);
        core.fs.flush(fh, patient()).expect_err("no answer");
        assert_eq!(stored(&setup, name), Some(b"text".to_vec()));
        if name == "deleted" {
            core.remove(name).expect("deleted");
        } else {
            core.rename(name, "new").expect("renamed");
        }
        assert_eq!(stored(&setup, name), None);
        core.close(fh).expect("closed");
        assert_eq!(stored(&setup, name), None);
    }
    assert_eq!(stored(&setup, "new"), Some(b"text".to_vec()));
}

#[test]
fn deleting_a_file_in_the_background_deletes_what_only_seemed_to_fail() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let setup = Setup::new(MemoryStore::new()).write_back(dir.path());
    let core = setup.core(None);
    for name in ["deleted", "renamed"] {
        core.faults.lose_answers(Call::Put, 1, ErrorKind::Network);
        core.faults.fail_next(Call::Put, 1000, ErrorKind::Network);
        let retried = core.metrics.uploads_retried.get();
        let (_, fh) = core.create(name).expect("made");
        core.fs.write(fh, 0, b"text", patient()).expect("written");
        core.close(fh).expect("journalled");
        let deadline = late();
        while core.metrics.uploads_retried.get() == retried {
            assert!(deadline.remaining().is_some(), "no attempt");
            std::thread::yield_now();
        }
        assert_eq!(stored(&setup, name), Some(b"text".to_vec()));
        if name == "deleted" {
            core.remove(name).expect("deleted");
        } else {
            core.rename(name, "new").expect("renamed");
        }
        assert_eq!(stored(&setup, name), None);
        core.faults.clear_faults(Call::Put);
    }
}

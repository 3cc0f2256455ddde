//! Records that somebody else changes, makes or deletes meanwhile.

use std::ffi::OsStr;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use kvfs::fs::types::Ino;
use kvfs::fs::write::setattr::SetAttr;
use kvfs::local::fault::{Call, FaultStore};
use kvfs::local::memory::MemoryStore;
use kvfs::staging::{Pending, Why};
use kvfs::store::{Encoding, Key, Store};

use super::{errno, late, names, stored, writable};
use crate::support::core::{Setup, TTL, Told, patient, staging};
use crate::support::mounted::eventually;

/// Its condition is that of the mount that was killed, also where closing waits for the store.
#[test]
fn what_is_added_to_a_file_of_a_killed_mount_overwrites_nothing_that_came_meanwhile() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = MemoryStore::new();
    store.insert("K", "text/plain", Encoding::Identity, &b"old"[..]);
    let etag = store.head(&Key::new("K").expect("a key"), late());
    {
        let killed = staging(dir.path(), None);
        let file = killed.new_file().expect("a file");
        file.write_all_at(b"old+", 0).expect("written");
        let pending = Pending {
            key: Key::new("K").expect("a key"),
            content_type: Some("text/plain".into()),
            encoding: Encoding::Identity,
            if_match: etag.expect("a record").etag,
            if_absent: false,
            size: 4,
            is_new: false,
            closed_at: jiff::Timestamp::UNIX_EPOCH,
            why: Why::WriteBack,
            attempts: 0,
            unanswered: Default::default(),
            began: None,
        };
        killed.journal().keep(&file, pending, true).expect("kept");
    }
    store.insert("K", "text/plain", Encoding::Identity, &b"theirs"[..]);
    let mut setup = Setup::new(store).writable(dir.path());
    let uploads = FaultStore::new(Arc::<MemoryStore>::clone(&setup.store));
    uploads.block(Call::Put);
    setup.remote = Some(Arc::new(uploads.clone()));
    let core = setup.core(None);
    let (_, fh) = core.open_to_write("K").expect("open");
    core.fs.write(fh, 4, b"+", patient()).expect("written");
    thread::scope(|scope| {
        let closed = scope.spawn(|| core.close(fh));
        assert!(uploads.wait_blocked(Call::Put, 1, late()));
        uploads.release(Call::Put);
        let _ = closed.join().expect("no panic");
    });
    let entries = || {
        let write = setup.fs.write.as_ref().expect("writable");
        write.staging.journal().entries()
    };
    eventually("nothing is under way", || {
        let entries = entries();
        entries.iter().all(|entry| entry.pending.why.is_failed())
    });
    assert_eq!(stored(&setup, "K"), Some(b"theirs".to_vec()));
    assert!(
        entries()
            .iter()
            .any(|entry| entry.pending.why.is_conflict())
    );
}

#[test]
fn a_record_that_changed_since_it_was_opened_is_not_overwritten() {
    let (_dir, setup, core) = writable(&[("A", "text/plain", b"one")]);
    let (_, fh) = core.open_to_write("A").expect("open");
    core.fs.write(fh, 0, b"mine", patient()).expect("written");
    setup
        .store
        .insert("A", "text/plain", Encoding::Identity, &b"theirs"[..]);
    assert_eq!(errno(core.fs.flush(fh, patient())), libc::ESTALE);
    core.fs.release(fh);
    assert_eq!(stored(&setup, "A"), Some(b"theirs".to_vec()));
    core.clock.advance(TTL);
    assert_eq!(core.cat("A").expect("its bytes"), b"theirs");
}

#[test]
fn a_truncation_without_a_descriptor_overwrites_nothing_that_came_meanwhile() {
    let (_dir, setup, core) = writable(&[("A", "text/plain", b"one two")]);
    let found = core.lookup("A").expect("an answer").expect("present");
    core.faults.block(Call::Put);
    let set = SetAttr {
        size: Some(3),
        ..SetAttr::default()
    };
    let cut = std::thread::scope(|scope| {
        let cutting = scope.spawn(|| core.fs.setattr(found.attr.ino, &set, None, patient()));
        assert!(core.faults.wait_blocked(Call::Put, 1, late()));
        setup
            .store
            .insert("A", "text/plain", Encoding::Identity, &b"theirs"[..]);
        core.faults.release(Call::Put);
        cutting.join().expect("no panic")
    });
    assert_eq!(errno(cut.map(drop)), libc::ESTALE);
    assert_eq!(stored(&setup, "A"), Some(b"theirs".to_vec()));
}

#[test]
fn what_is_emptied_replaces_what_there_is_now_whatever_else_is_open() {
    let (_dir, setup, core) = writable(&[("A", "text/plain", b"one")]);
    let (ino, reader) = core.open("A").expect("open");
    let save = |bytes: &[u8]| {
        core.clock.advance(TTL);
        let found = core.lookup("A").expect("an answer").expect("present");
        assert_eq!(found.attr.ino, ino);
        let fh = core.fs.open_writing(ino, true, patient())?.fh;
        core.fs.write(fh, 0, bytes, patient())?;
        core.close(fh)
    };
    save(b"mine").expect("stored");
    setup
        .store
        .insert("A", "text/plain", Encoding::Identity, &b"theirs"[..]);
    save(b"mine, knowing theirs").expect("stored");
    assert_eq!(
        stored(&setup, "A").as_deref(),
        Some(&b"mine, knowing theirs"[..])
    );
    core.fs.release(reader);
}

#[test]
fn what_is_written_to_a_record_that_somebody_else_deleted_is_refused_also_once_it_was_made_anew() {
    let (_dir, setup, core) = writable(&[("A", "text/plain", b"one")]);
    let (_, old) = core.open_to_write("A").expect("open");
    let key = Key::new("A").expect("a key");
    let deadline = kvfs::base::clock::Deadline::after(Duration::from_secs(9));
    setup.store.delete(&key, deadline).expect("deleted");
    core.clock.advance(TTL);
    assert_eq!(core.lookup("A").expect("an answer"), None);
    let (_, new) = core.create("A").expect("made");
    core.fs.write(new, 0, b"new", patient()).expect("written");
    core.close(new).expect("stored");
    core.fs.write(old, 0, b"ONE", patient()).expect("written");
    assert_eq!(errno(core.close(old)), libc::ESTALE);
    assert_eq!(stored(&setup, "A").as_deref(), Some(&b"new"[..]));
    assert_eq!(core.cat("A").expect("its bytes"), b"new");
}

#[test]
fn a_rename_of_what_somebody_else_has_changed_shows_their_bytes_and_no_old_pages() {
    let (_dir, setup, core) = writable(&[("A", "text/plain", b"one")]);
    assert_eq!(core.cat("A").expect("its bytes"), b"one");
    setup
        .store
        .insert("A", "text/plain", Encoding::Identity, &b"two"[..]);
    core.clock.advance(TTL);
    core.rename("A", "B").expect("renamed");
    assert_eq!(stored(&setup, "B").as_deref(), Some(&b"two"[..]));
    core.kernel.0.lock().clear();
    let (ino, fh) = core.open("B").expect("open");
    let told = core.kernel.0.lock().clone();
    assert!(told.contains(&Told::ForgetPages(ino)), "{told:?}");
    assert_eq!(core.read_all(fh).expect("its bytes"), b"two");
    core.fs.release(fh);
    // What nobody has changed keeps its pages.
    core.rename("B", "C").expect("renamed");
    core.kernel.0.lock().clear();
    let (ino, fh) = core.open("C").expect("open");
    let told = core.kernel.0.lock().clone();
    assert!(!told.contains(&Told::ForgetPages(ino)), "{told:?}");
    core.fs.release(fh);
}

#[test]
fn an_exclusive_creation_does_not_overwrite_what_somebody_else_made_meanwhile() {
    let (_dir, setup, core) = writable(&[]);
    assert_eq!(core.lookup("A").expect("an answer"), None);
    let made = core
        .fs
        .create(Ino::ROOT, OsStr::new("A"), 0o644, true, false, patient())
        .expect("made");
    core.fs
        .write(made.opened.fh, 0, b"mine", patient())
        .expect("written");
    setup
        .store
        .insert("A", "text/plain", Encoding::Identity, &b"theirs"[..]);
    assert_eq!(
        errno(core.fs.flush(made.opened.fh, patient())),
        libc::ESTALE
    );
    core.fs.release(made.opened.fh);
    assert_eq!(stored(&setup, "A"), Some(b"theirs".to_vec()));
}

#[test]
fn what_somebody_else_deleted_is_not_listed_because_it_was_stored_here_and_is_open() {
    let (_dir, mut setup, _) = writable(&[("a", "text/plain", b"old")]);
    setup.records.ttl = Some(Duration::ZERO);
    let core = setup.core(None);
    let (_, open) = core.open_to_write("a").expect("opened");
    let (_, fh) = core.create("a").expect("emptied");
    core.write_all(fh, b"new").expect("written");
    core.close(fh).expect("stored");
    core.clock.advance(Duration::from_secs(1));
    assert_eq!(names(&core), ["a"]);
    let key = Key::new("a").expect("a key");
    setup.store.delete(&key, late()).expect("deleted");
    core.clock.advance(Duration::from_secs(1));
    assert_eq!(names(&core), [""; 0]);
    core.close(open).expect("nothing to store");
}

//! One change of a key at a time: what is closed, opened, deleted and renamed while another change of
//! the same key waits for the store.

use std::ffi::OsStr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use kvfs::base::caller::{self, Caller};
use kvfs::base::clock::{Deadline, Wait};
use kvfs::fs::FsError;
use kvfs::fs::types::{Fh, Ino, Process, Programs, Thread};
use kvfs::local::fault::Call;
use kvfs::local::memory::MemoryStore;
use kvfs::store::{Encoding, ErrorKind};

use super::{calls, content_type, errno, late, reset, stored, writable};
use crate::support::core::{Core, Setup, TTL, patient, staging};
use crate::support::mounted::eventually;

/// A core in which closing waits for the store, and one in which it does not.
fn both_modes(text: &[u8]) -> Vec<(tempfile::TempDir, Setup, Core)> {
    let mut cores = Vec::new();
    for write_back in [false, true] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let store = MemoryStore::new();
        store.insert("K", "text/plain", Encoding::Identity, text.to_vec());
        let setup = Setup::new(store);
        let setup = if write_back {
            setup.write_back(dir.path())
        } else {
            setup.writable(dir.path())
        };
        let core = setup.core(None);
        cores.push((dir, setup, core));
    }
    cores
}

/// What `echo TEXT > NAME` does: the kernel looks a name up again whose inode is stale.
fn overwrite(core: &Core, name: &str, text: &[u8]) -> Result<(), FsError> {
    loop {
        match core.store(name, text) {
            Err(FsError::Stale) => {}
            stored => return stored,
        }
    }
}

pub(super) fn journalled(setup: &Setup) -> Vec<(String, bool)> {
    let write = setup.fs.write.as_ref().expect("writable");
    let entries = write.staging.journal().entries();
    let entries = entries.into_iter();
    entries
        .map(|entry| (entry.pending.key.to_string(), entry.pending.why.is_failed()))
        .collect()
}

pub(super) fn all_stored(setup: &Setup) {
    eventually("everything is in the store", || {
        journalled(setup).is_empty()
    });
}

pub(super) fn moment() -> Deadline {
    Deadline::after(Duration::from_millis(100))
}

#[test]
fn what_is_written_while_a_deletion_waits_for_the_store_comes_after_it() {
    for (_dir, setup, core) in both_modes(b"old") {
        core.cat("K").expect("its bytes");
        core.faults.block(Call::Delete);
        thread::scope(|scope| {
            let removed = scope.spawn(|| core.remove("K"));
            assert!(core.faults.wait_blocked(Call::Delete, 1, late()));
            let written = scope.spawn(|| overwrite(&core, "K", b"new"));
            assert!(!core.faults.wait_blocked(Call::Put, 1, moment()));
            assert!(!written.is_finished(), "it waits");
            core.faults.release(Call::Delete);
            removed.join().expect("no panic").expect("removed");
            written.join().expect("no panic").expect("written");
        });
        all_stored(&setup);
        assert_eq!(stored(&setup, "K"), Some(b"new".to_vec()));
        assert_eq!(core.cat("K").expect("its bytes"), b"new");
        core.fs.check_invariants();
    }
}

#[test]
fn a_name_is_settled_once_its_deletion_has_ended() {
    for (_dir, _setup, core) in both_modes(b"old") {
        core.cat("K").expect("its bytes");
        let name = OsStr::new("K");
        core.fs.await_settled(name, Wait::Never).expect("unchanged");
        core.faults.block(Call::Delete);
        thread::scope(|scope| {
            let removed = scope.spawn(|| core.remove("K"));
            assert!(core.faults.wait_blocked(Call::Delete, 1, late()));
            let settled = core.fs.await_settled(name, Wait::Never);
            assert!(matches!(settled, Err(FsError::WouldBlock)), "{settled:?}");
            let settled = core.fs.await_settled(name, Wait::Until(moment()));
            assert_eq!(errno(settled), libc::ETIMEDOUT);
            core.faults.release(Call::Delete);
            core.fs.await_settled(name, patient()).expect("settled");
            assert_eq!(core.lookup("K").expect("an answer"), None);
            removed.join().expect("no panic").expect("removed");
        });
    }
}

#[test]
fn a_second_stale_open_opens_the_file_that_was_deleted_or_replaced() {
    for (_dir, setup, core) in both_modes(b"old") {
        core.store("other", b"other").expect("stored");
        all_stored(&setup);
        let removes: [&dyn Fn(); 2] = [&|| core.remove("K").expect("removed"), &|| {
            core.rename("other", "K").expect("renamed")
        }];
        for (at, remove) in removes.iter().enumerate() {
            core.store("K", b"old").expect("stored");
            let ino = core.lookup("K").expect("an answer").expect("it").attr.ino;
            remove();
            all_stored(&setup);
            let first = core.fs.open_writing(ino, true, patient());
            assert!(matches!(first, Err(FsError::Stale)), "{at}");
            let appending = core.fs.open_writing_again(ino, false, patient());
            assert!(matches!(appending, Err(FsError::NoEntry)), "{at}");
            let before = stored(&setup, "K");
            let opened = core.fs.open_writing_again(ino, true, patient());
            let fh = opened.expect("open").fh;
            core.write_all(fh, b"to nothing").expect("written");
            core.close(fh).expect("closed");
            all_stored(&setup);
            assert_eq!(stored(&setup, "K"), before, "{at}");
            core.fs.check_invariants();
        }
    }
}

#[test]
fn a_file_closed_while_its_deletion_fails_is_stored() {
    for (_dir, setup, core) in both_modes(b"old") {
        let (_, fh) = core.open_to_write("K").expect("open");
        core.fs.write(fh, 0, b"new", patient()).expect("written");
        core.faults.block(Call::Delete);
        core.faults.fail_next(Call::Delete, 1, ErrorKind::Denied);
        thread::scope(|scope| {
            let removed = scope.spawn(|| core.remove("K"));
            assert!(core.faults.wait_blocked(Call::Delete, 1, late()));
            let closed = scope.spawn(|| core.close(fh));
            assert!(!core.faults.wait_blocked(Call::Put, 1, moment()));
            core.faults.release(Call::Delete);
            assert_eq!(errno(removed.join().expect("no panic")), libc::EACCES);
            closed.join().expect("no panic").expect("closed");
        });
        all_stored(&setup);
        assert_eq!(stored(&setup, "K"), Some(b"new".to_vec()));
        assert_eq!(core.cat("K").expect("its bytes"), b"new");
    }
}

#[test]
fn a_file_closed_while_its_deletion_succeeds_does_not_come_back() {
    for (_dir, setup, core) in both_modes(b"old") {
        let (_, fh) = core.open_to_write("K").expect("open");
        core.fs.write(fh, 0, b"new", patient()).expect("written");
        core.faults.block(Call::Delete);
        thread::scope(|scope| {
            let removed = scope.spawn(|| core.remove("K"));
            assert!(core.faults.wait_blocked(Call::Delete, 1, late()));
            let closed = scope.spawn(|| core.close(fh));
            assert!(!core.faults.wait_blocked(Call::Put, 1, moment()));
            core.faults.release(Call::Delete);
            removed.join().expect("no panic").expect("removed");
            closed.join().expect("no panic").expect("closed");
        });
        assert_eq!(journalled(&setup), []);
        assert_eq!((stored(&setup, "K"), calls(&core, Call::Put)), (None, 0));
        assert_eq!(core.lookup("K").expect("an answer"), None);
    }
}

#[test]
fn closing_in_the_background_waits_for_no_deletion_and_no_upload() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let setup = Setup::new(MemoryStore::new()).write_back(dir.path());
    let core = setup.core(None);
    core.faults.block(Call::Put);
    core.store("K", b"one").expect("journalled");
    assert!(core.faults.wait_blocked(Call::Put, 1, late()));
    let (_, fh) = core.open_to_write("K").expect("open");
    core.fs.write(fh, 0, b"two", patient()).expect("written");
    thread::scope(|scope| {
        let removed = scope.spawn(|| core.remove("K"));
        core.close(fh).expect("journalled while the deletion waits");
        assert!(!removed.is_finished());
        core.faults.release(Call::Put);
        removed.join().expect("no panic").expect("removed");
    });
    assert_eq!(journalled(&setup), []);
    assert_eq!(stored(&setup, "K"), None);
}

#[test]
fn opening_waits_for_no_upload() {
    for (_dir, setup, core) in both_modes(b"old") {
        let (ino, fh) = core.open_to_write("K").expect("open");
        core.fs.write(fh, 0, b"new", patient()).expect("written");
        core.faults.block(Call::Put);
        thread::scope(|scope| {
            let closed = scope.spawn(|| core.close(fh));
            assert!(core.faults.wait_blocked(Call::Put, 1, late()));
            for truncate in [false, true] {
                let opened = core.fs.open_writing(ino, truncate, patient());
                let second = opened.expect("open while it is uploaded").fh;
                core.fs.write(second, 0, b"2", patient()).expect("written");
                assert!(core.faults.wait_blocked(Call::Put, 1, late()));
                if truncate {
                    core.faults.release(Call::Put);
                }
                core.fs.release(second);
            }
            closed.join().expect("no panic").expect("closed");
        });
        all_stored(&setup);
        eventually("what was closed last is stored", || {
            stored(&setup, "K") == Some(b"2".to_vec())
        });
    }
}

#[test]
fn files_that_are_closed_and_deleted_at_the_same_time_are_gone() {
    for (_dir, setup, core) in both_modes(b"old") {
        for round in 0..100 {
            let name = format!("n{}", round % 3);
            let (_, fh) = core.create(&name).expect("made");
            core.fs.write(fh, 0, b"text", patient()).expect("written");
            thread::scope(|scope| {
                let closed = scope.spawn(|| core.close(fh));
                core.remove(&name).expect("removed");
                closed.join().expect("no panic").expect("closed");
            });
        }
        all_stored(&setup);
        assert_eq!(setup.store.len(), 1, "only what was there before");
    }
}

#[test]
fn a_rename_that_fails_leaves_both_files_what_they_were() {
    let (_dir, setup, core) = writable(&[("b", "text/plain", b"b0")]);
    core.store("a.tmp", b"closed before").expect("closed");
    let (_, fh) = core.open_to_write("b").expect("open");
    core.fs.write(fh, 0, b"B", patient()).expect("written");
    core.faults.block(Call::Put);
    core.faults.fail_next(Call::Put, 1, ErrorKind::Denied);
    thread::scope(|scope| {
        let renamed = scope.spawn(|| core.rename("a.tmp", "b"));
        assert!(core.faults.wait_blocked(Call::Put, 1, late()));
        let closed = scope.spawn(|| core.close(fh));
        assert!(!core.faults.wait_blocked(Call::Put, 2, moment()));
        core.faults.release(Call::Put);
        assert_eq!(errno(renamed.join().expect("no panic")), libc::EACCES);
        closed.join().expect("no panic").expect("closed");
    });
    assert_eq!(stored(&setup, "b"), Some(b"B0".to_vec()));
    assert_eq!(journalled(&setup), [("a.tmp".to_owned(), false)]);
    assert_eq!(core.fs.finish_writes(), 0);
    assert_eq!(stored(&setup, "a.tmp"), Some(b"closed before".to_vec()));
    assert_eq!(journalled(&setup), []);
}

#[test]
fn what_was_refused_is_dropped_once_something_younger_is_stored_or_the_name_deleted() {
    for (_dir, setup, core) in both_modes(b"old") {
        for text in [&b"one"[..], b"two", b"three"] {
            core.faults.fail_next(Call::Put, 1, ErrorKind::Denied);
            let _ = core.store("K", text);
            let kept = [("K".to_owned(), true)];
            eventually("it is kept", || journalled(&setup) == kept);
            eventually("the file shows the store", || {
                core.cat("K").is_ok_and(|bytes| bytes == b"old")
            });
        }
        core.store("K", b"four").expect("stored");
        all_stored(&setup);
        assert_eq!(stored(&setup, "K"), Some(b"four".to_vec()));
        core.faults.fail_next(Call::Put, 1, ErrorKind::Denied);
        let _ = core.store("K", b"five");
        eventually("it is kept", || {
            journalled(&setup) == [("K".to_owned(), true)]
        });
        core.remove("K").expect("deleted");
        assert_eq!(journalled(&setup), []);
    }
}

#[test]
fn what_could_not_be_journalled_leaves_the_file_as_it_was_journalled_last() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = MemoryStore::new();
    store.insert("K", "text/plain", Encoding::Identity, &b"old"[..]);
    let mut setup = Setup::new(store).write_back(&dir.path().join("unlimited"));
    if let Some(write) = &mut setup.fs.write {
        write.staging = staging(&dir.path().join("limited"), Some(3000));
        write.compress = Some(Encoding::Gzip);
    }
    let core = setup.core(None);
    core.faults.block(Call::Put);
    let one = vec![b'1'; 1000];
    core.store("K", &one).expect("journalled");
    // There is room for it, but not for its compressed form as well.
    let random: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..))
        .take(1500)
        .collect();
    assert_eq!(errno(core.store("K", &random)), libc::EIO);
    assert_eq!(core.cat("K").expect("its bytes"), one);
    let (_, fh) = core.open_to_write("K").expect("open");
    core.fs.write(fh, 1000, b"2", patient()).expect("written");
    core.close(fh).expect("journalled");
    core.faults.release(Call::Put);
    all_stored(&setup);
    let two = [&one[..], b"2"].concat();
    assert_eq!(core.cat("K").expect("its bytes"), two);
}

#[test]
fn a_rename_takes_along_what_somebody_else_has_stored_meanwhile_or_leaves_it() {
    let (_dir, setup, core) = writable(&[("a", "text/plain", b"old")]);
    core.cat("a").expect("its bytes");
    setup
        .store
        .insert("a", "text/plain", Encoding::Identity, &b"newer"[..]);
    reset(&core);
    core.rename("a", "b").expect("renamed");
    assert_eq!(stored(&setup, "b"), Some(b"newer".to_vec()));
    let made = [Call::Get, Call::Put, Call::Head, Call::Delete].map(|call| calls(&core, call));
    assert_eq!(made, [1, 1, 1, 1]);
    core.faults.block(Call::Put);
    thread::scope(|scope| {
        let renamed = scope.spawn(|| core.rename("b", "c"));
        assert!(core.faults.wait_blocked(Call::Put, 1, late()));
        setup
            .store
            .insert("b", "text/plain", Encoding::Identity, &b"newest"[..]);
        core.faults.release(Call::Put);
        assert_eq!(errno(renamed.join().expect("no panic")), libc::ESTALE);
    });
    assert_eq!(stored(&setup, "b"), Some(b"newest".to_vec()));
    assert_eq!(stored(&setup, "c"), Some(b"newer".to_vec()));
    assert_eq!(core.cat("b").expect("its bytes"), b"newest");
}

#[test]
fn what_was_closed_under_a_temporary_name_is_in_the_journal() {
    for (_dir, setup, core) in both_modes(b"old") {
        core.store("a.tmp", b"closed").expect("closed");
        let (_, fh) = core.create("tmpreport").expect("made");
        core.fs.write(fh, 0, b"synced", patient()).expect("written");
        core.fs.fsync(fh, patient()).expect("safe");
        let mut names: Vec<String> = journalled(&setup).into_iter().map(|(key, _)| key).collect();
        names.sort();
        assert_eq!(names, ["a.tmp", "tmpreport"]);
        core.rename("a.tmp", "a").expect("renamed");
        core.close(fh).expect("closed");
        core.remove("tmpreport").expect("removed");
        all_stored(&setup);
        assert_eq!(stored(&setup, "a"), Some(b"closed".to_vec()));
        assert_eq!((setup.store.len(), calls(&core, Call::Put)), (2, 1));
    }
}

#[test]
fn what_is_kept_of_a_new_file_has_the_type_that_it_would_have_been_stored_with() {
    let (_dir, setup, core) = writable(&[]);
    core.faults.fail_next(Call::Put, 1, ErrorKind::Denied);
    core.store("a.json", b"{}").expect_err("refused");
    let write = setup.fs.write.as_ref().expect("writable");
    let kept = write.staging.journal().kept();
    let kind = kept[0].pending.content_type.as_deref();
    assert_eq!(kind, Some("application/json; charset=utf-8"));
}

#[test]
fn a_file_emptied_while_another_handle_stores_it_does_not_conflict_with_that() {
    for (_dir, setup, core) in both_modes(b"old") {
        let (ino, first) = core.open_to_write("K").expect("open");
        core.fs.write(first, 0, b"1", patient()).expect("written");
        core.fs.fsync(first, patient()).expect("stored");
        core.clock.advance(TTL);
        core.faults.block(Call::Head);
        thread::scope(|scope| {
            let emptied = scope.spawn(|| core.fs.open_writing(ino, true, patient()));
            let asked = core.faults.wait_blocked(Call::Head, 1, moment());
            core.fs.write(first, 0, b"2", patient()).expect("written");
            core.fs.fsync(first, patient()).expect("stored");
            core.faults.release(Call::Head);
            let second = emptied.join().expect("no panic").expect("open").fh;
            core.fs
                .write(second, 0, b"last", patient())
                .expect("written");
            core.close(second)
                .unwrap_or_else(|error| panic!("{error:?}, asked: {asked}"));
        });
        core.close(first).expect("nothing new");
        all_stored(&setup);
        assert_eq!(stored(&setup, "K"), Some(b"last".to_vec()));
    }
}

/// A program that has ended.
struct Gone;

impl Caller for Gone {
    fn waits(&self) -> bool {
        false
    }

    fn claim(&self) -> bool {
        false
    }

    fn release(&self) {}
}

#[test]
fn what_is_given_up_before_it_was_sent_has_no_effect() {
    let (_dir, setup, core) = writable(&[("K", "text/x-own", b"precious")]);
    let gone = |work: &dyn Fn() -> Result<(), FsError>| {
        assert_eq!(errno(caller::with(Box::new(Gone), work)), libc::EINTR);
    };
    let found = core.lookup("K").expect("an answer").expect("present");
    let (ino, fh) = core.open_to_write("K").expect("open");
    reset(&core);
    gone(&|| core.remove("K"));
    gone(&|| core.rename("K", "other"));
    gone(&|| core.fs.write(fh, 0, b"x", patient()));
    gone(&|| core.fs.open_writing(ino, true, patient()).map(drop));
    gone(&|| {
        core.fs
            .setxattr(ino, "user.apify.content-type", b"text/y", patient())
    });
    let create = |name: &str| {
        let name = OsStr::new(name);
        core.fs
            .create(Ino::ROOT, name, 0o644, false, true, patient())
    };
    gone(&|| create("new").map(drop));
    core.close(fh).expect("nothing to store");
    core.fs.forget(found.attr.ino, 1);
    assert_eq!(calls(&core, Call::Put) + calls(&core, Call::Delete), 0);
    assert_eq!(stored(&setup, "K"), Some(b"precious".to_vec()));
    assert_eq!(content_type(&setup, "K"), "text/x-own");
    assert_eq!(core.cat("K").expect("its bytes"), b"precious");
    assert_eq!(setup.store.len(), 1);
}

/// A kernel whose programs have no file open but those that are said to.
#[derive(Debug)]
struct Nobody(parking_lot::Mutex<bool>);

impl Programs for Nobody {
    fn process_of(&self, thread: Thread) -> Option<Process> {
        Some(Process(thread.0))
    }

    fn holds(&self, _: Process, _: Ino) -> Option<bool> {
        Some(*self.0.lock())
    }
}

#[test]
fn an_empty_file_is_journalled_when_the_program_that_opened_it_has_closed_it() {
    let (_dir, setup, core) = writable(&[]);
    let programs = Arc::new(Nobody(true.into()));
    core.fs.connect_programs(Arc::<Nobody>::clone(&programs));
    core.faults.block(Call::Put);
    let (_, fh): (_, Fh) = core.create("K").expect("made");
    let flush = || core.fs.flush_by(fh, Some(Process(1)), patient());
    flush().expect("a duplicate");
    assert_eq!(journalled(&setup), []);
    *programs.0.lock() = false;
    flush().expect("it waits for no store");
    assert_eq!(journalled(&setup), [("K".to_owned(), false)]);
    core.fs.release(fh);
    core.faults.release(Call::Put);
    all_stored(&setup);
    assert_eq!(
        (stored(&setup, "K"), calls(&core, Call::Put)),
        (Some(Vec::new()), 1)
    );
}

//! What somebody else stores while a file is renamed, or while its backup lies in the mount: no rename
//! and no deletion of a backup takes it away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use kvfs::base::caller::{self, Caller};
use kvfs::fs::FsError;
use kvfs::fs::types::{By, Resolved};
use kvfs::fs::write::setattr::SetAttr;
use kvfs::local::fault::Call;
use kvfs::local::memory::MemoryStore;
use kvfs::store::{Encoding, ErrorKind};

use super::gate::{all_stored, journalled, moment};
use super::tagless::Tagless;
use super::{calls, errno, late, names, reset, stored};
use crate::support::core::{Core, Setup, TTL, patient};
use crate::support::mounted::eventually;

/// Cores over a store with the record `a`, with and without entity tags, in both modes.
fn cores() -> Vec<(tempfile::TempDir, Setup, Core)> {
    let mut cores = Vec::new();
    for (tags, write_back) in [(true, false), (true, true), (false, false), (false, true)] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let store = MemoryStore::new();
        store.insert("a", "text/plain", Encoding::Identity, &b"old"[..]);
        let setup = Setup::new(store);
        let mut setup = if write_back {
            setup.write_back(dir.path())
        } else {
            setup.writable(dir.path())
        };
        if !tags {
            setup.remote = Some(Arc::new(Tagless(Arc::clone(&setup.store))));
        }
        let core = setup.core(None);
        cores.push((dir, setup, core));
    }
    cores
}

fn somebody_stores(setup: &Setup, key: &str) {
    setup
        .store
        .insert(key, "text/plain", Encoding::Identity, &b"theirs"[..]);
}

#[test]
fn a_changed_file_that_is_renamed_leaves_what_somebody_else_has_stored_under_its_old_name() {
    for (_dir, setup, core) in cores() {
        let (_, fh) = core.open_to_write("a").expect("open");
        core.fs.write(fh, 3, b"+", patient()).expect("written");
        somebody_stores(&setup, "a");
        assert_eq!(errno(core.rename("a", "b")), libc::ESTALE);
        all_stored(&setup);
        assert_eq!(stored(&setup, "a"), Some(b"theirs".to_vec()));
        // What would only be journalled is not even that.
        let write_back = setup
            .fs
            .write
            .as_ref()
            .is_some_and(|write| write.write_back);
        let both = (!write_back).then(|| b"old+".to_vec());
        assert_eq!(stored(&setup, "b"), both);
        core.fs.release(fh);
    }
}

#[test]
fn what_a_rename_without_an_answer_has_left_is_not_taken_for_somebody_elses_change() {
    for (_dir, setup, core) in cores() {
        somebody_stores(&setup, "b");
        let (_, fh) = core.open_to_write("a").expect("open");
        core.fs.write(fh, 3, b"+", patient()).expect("written");
        core.faults.lose_answers(Call::Put, 1, ErrorKind::Network);
        assert_eq!(errno(core.rename("b", "a")), libc::EIO);
        assert_eq!(stored(&setup, "a"), Some(b"theirs".to_vec()));
        core.close(fh).expect("nobody else has changed it");
        all_stored(&setup);
        assert_eq!(stored(&setup, "a"), Some(b"old+".to_vec()));
        assert_eq!(stored(&setup, "b"), Some(b"theirs".to_vec()));
    }
}

#[test]
fn a_changed_file_that_nobody_else_has_stored_is_renamed_and_asks_once() {
    for (_dir, setup, core) in cores() {
        let (_, fh) = core.open_to_write("a").expect("open");
        core.fs.write(fh, 3, b"+", patient()).expect("written");
        assert_eq!(names(&core), ["a"], "so it is known that there is no b");
        reset(&core);
        core.rename("a", "b").expect("renamed");
        core.close(fh).expect("closed");
        all_stored(&setup);
        let asked = calls(&core, Call::Head) + calls(&core, Call::Get);
        assert_eq!((asked, calls(&core, Call::Delete)), (1, 1));
        assert_eq!(stored(&setup, "b"), Some(b"old+".to_vec()));
        assert_eq!(stored(&setup, "a"), None);
    }
}

#[test]
fn a_backup_that_is_deleted_leaves_what_somebody_else_has_stored_under_its_old_name() {
    for (_dir, setup, core) in cores() {
        core.cat("a").expect("its bytes");
        core.rename("a", "a~").expect("renamed");
        somebody_stores(&setup, "a");
        core.clock.advance(TTL);
        core.remove("a~").expect("deleted");
        assert_eq!(stored(&setup, "a"), Some(b"theirs".to_vec()));
        core.clock.advance(TTL);
        assert_eq!(names(&core), ["a"]);
        assert_eq!(core.cat("a").expect("its bytes"), b"theirs");
    }
}

#[test]
fn a_backup_that_gets_another_name_leaves_what_somebody_else_has_stored_under_its_old_one() {
    for (_dir, setup, core) in cores() {
        core.rename("a", "a~").expect("renamed");
        somebody_stores(&setup, "a");
        core.rename("a~", "b").expect("renamed");
        all_stored(&setup);
        assert_eq!(stored(&setup, "a"), Some(b"theirs".to_vec()));
        assert_eq!(stored(&setup, "b"), Some(b"old".to_vec()));
    }
}

#[test]
fn a_rename_that_cannot_delete_leaves_the_open_file_as_it_was() {
    for (_dir, setup, core) in cores() {
        let (_, fh) = core.open_to_write("a").expect("open");
        core.fs.write(fh, 3, b"+", patient()).expect("written");
        core.faults.fail_next(Call::Delete, 1, ErrorKind::Denied);
        assert_eq!(errno(core.rename("a", "b")), libc::EACCES);
        core.fs.write(fh, 4, b"+", patient()).expect("written");
        core.close(fh).expect("nobody else has changed it");
        all_stored(&setup);
        assert_eq!(stored(&setup, "a"), Some(b"old++".to_vec()));
        assert_eq!(stored(&setup, "b"), Some(b"old+".to_vec()));
    }
}

/// Of a large record without a version only the length is compared.
#[test]
fn a_record_that_somebody_else_stores_while_it_is_renamed_stays_under_its_old_name() {
    for large in [false, true] {
        for (_dir, setup, core) in cores() {
            let mut text = b"old".to_vec();
            if large {
                text = vec![b'o'; 9 << 20];
                setup
                    .store
                    .insert("a", "text/plain", Encoding::Identity, text.clone());
            }
            core.faults.block(Call::Put);
            thread::scope(|scope| {
                let renamed = scope.spawn(|| core.rename("a", "b"));
                let _ = core.faults.wait_blocked(Call::Put, 1, late());
                somebody_stores(&setup, "a");
                core.faults.release(Call::Put);
                assert_eq!(errno(renamed.join().expect("no panic")), libc::ESTALE);
            });
            assert_eq!(stored(&setup, "a"), Some(b"theirs".to_vec()));
            assert!(stored(&setup, "b") == Some(text), "it was stored");
            assert_eq!(core.cat("a").expect("its bytes"), b"theirs");
        }
    }
}

/// The journal has what could not be renamed under both names; what is written to the new one then
/// replaces that.
#[test]
fn what_is_added_under_the_new_name_after_a_rename_that_could_not_delete_is_stored() {
    for (_dir, setup, core) in cores() {
        let (_, fh) = core.open_to_write("a").expect("open");
        for byte in [b"+", b"-"] {
            core.fs.write(fh, 3, byte, patient()).expect("written");
        }
        core.faults.fail_next(Call::Delete, 1, ErrorKind::Denied);
        let write_back = setup.fs.write.as_ref().expect("writable").write_back;
        if write_back {
            core.faults.block(Call::Put);
        }
        assert_eq!(errno(core.rename("a", "b")), libc::EACCES);
        let (_, copy) = core.open_to_write("b").expect("open");
        core.fs.write(copy, 4, b"b", patient()).expect("written");
        core.close(copy).expect("closed");
        core.faults.release(Call::Put);
        core.close(fh).expect("closed");
        all_stored(&setup);
        assert_eq!(stored(&setup, "b"), Some(b"old-b".to_vec()));
        assert_eq!(stored(&setup, "a"), Some(b"old-".to_vec()));
    }
}

/// It was opened before, and its first change comes after a rename that has failed.
#[test]
fn a_file_that_somebody_else_stored_while_it_was_renamed_is_not_overwritten() {
    for (_dir, setup, core) in cores() {
        let (_, fh) = core.open_to_write("a").expect("open");
        core.faults.block(Call::Put);
        thread::scope(|scope| {
            let renamed = scope.spawn(|| core.rename("a", "b"));
            let _ = core.faults.wait_blocked(Call::Put, 1, late());
            somebody_stores(&setup, "a");
            core.faults.release(Call::Put);
            assert_eq!(errno(renamed.join().expect("no panic")), libc::ESTALE);
        });
        core.fs.write(fh, 3, b"+", patient()).expect("written");
        let _ = core.close(fh);
        eventually("it is refused", || {
            journalled(&setup) == [("a".to_owned(), true)]
        });
        assert_eq!(stored(&setup, "a"), Some(b"theirs".to_vec()));
    }
}

#[test]
fn a_rename_that_cannot_delete_has_replaced_what_had_the_new_name() {
    for (_dir, setup, core) in cores() {
        somebody_stores(&setup, "b");
        let (_, fh) = core.open_to_write("a").expect("open");
        core.fs.write(fh, 3, b"+", patient()).expect("written");
        core.faults.fail_next(Call::Delete, 1, ErrorKind::Denied);
        assert_eq!(errno(core.rename("b", "a")), libc::EACCES);
        core.close(fh).expect("it has no name any more");
        all_stored(&setup);
        assert_eq!(stored(&setup, "a"), Some(b"theirs".to_vec()));
        assert_eq!(stored(&setup, "b"), Some(b"theirs".to_vec()));
        assert_eq!(core.cat("a").expect("its bytes"), b"theirs");
    }
}

/// What another file of that name is closed with while it is replaced is gone with the file, whether
/// the file that replaces it is being changed or not.
#[test]
fn a_file_closed_while_another_takes_its_name_replaces_nothing_of_that() {
    for is_changed in [true, false] {
        for (_dir, setup, core) in cores() {
            somebody_stores(&setup, "b");
            let (_, replaced) = core.open_to_write("b").expect("open");
            let write = |bytes| core.fs.write(replaced, 0, bytes, patient());
            write(b"T").expect("written");
            let (_, fh) = core.open_to_write("a").expect("open");
            if is_changed {
                core.fs.write(fh, 3, b"+", patient()).expect("written");
            }
            core.faults.block(Call::Delete);
            thread::scope(|scope| {
                let renamed = scope.spawn(|| core.rename("a", "b"));
                assert!(core.faults.wait_blocked(Call::Delete, 1, late()));
                let closed = scope.spawn(|| core.close(replaced));
                let _ = core.faults.wait_blocked(Call::Put, 1, moment());
                core.faults.release(Call::Delete);
                renamed.join().expect("no panic").expect("renamed");
                closed.join().expect("no panic").expect("closed");
            });
            core.close(fh).expect("closed");
            all_stored(&setup);
            let text: &[u8] = if is_changed { b"old+" } else { b"old" };
            assert_eq!(stored(&setup, "a"), None);
            assert_eq!(stored(&setup, "b"), Some(text.to_vec()));
            assert_eq!(core.cat("b").expect("its bytes"), text);
        }
    }
}

/// Its bytes are still fetched for the change when it is renamed.
#[test]
fn a_file_changed_and_closed_while_it_is_renamed_is_stored_under_its_new_name() {
    for (dir, setup, _) in cores() {
        let core = setup.core(Some(&dir.path().join("cache")));
        let mut text = vec![b'o'; 2 << 20];
        setup
            .store
            .insert("a", "text/plain", Encoding::Identity, text.clone());
        core.faults.block_bodies(1 << 20);
        let (_, fh) = core.open_to_write("a").expect("open");
        core.faults.block(Call::Delete);
        thread::scope(|scope| {
            let closed = scope.spawn(|| {
                core.fs.write(fh, 0, b"+", patient()).expect("written");
                core.close(fh)
            });
            // Then the change has begun.
            let _ = core.faults.wait_blocked(Call::Delete, 1, moment());
            let renamed = scope.spawn(|| core.rename("a", "b"));
            let _ = core.faults.wait_blocked(Call::Delete, 1, moment());
            core.faults.release_bodies();
            let _ = core.faults.wait_blocked(Call::Delete, 1, late());
            let _ = core.faults.wait_calls(Call::Put, 2, moment());
            core.faults.release(Call::Delete);
            renamed.join().expect("no panic").expect("renamed");
            closed.join().expect("no panic").expect("closed");
        });
        all_stored(&setup);
        text[0] = b'+';
        assert!(stored(&setup, "b") == Some(text.clone()), "it is lost");
        assert_eq!(stored(&setup, "a"), None);
        assert!(core.cat("b").expect("its bytes") == text, "another file");
    }
}

#[test]
fn a_file_whose_close_fails_while_it_is_renamed_is_stored_under_its_new_name() {
    for (_dir, setup, core) in cores() {
        let (_, fh) = core.create("new").expect("made");
        core.fs.write(fh, 0, b"bytes", patient()).expect("written");
        core.faults.block(Call::Delete);
        core.faults.lose_answers(Call::Put, 1, ErrorKind::Network);
        let _ = core.fs.flush(fh, patient());
        thread::scope(|scope| {
            let renamed = scope.spawn(|| core.rename("new", "a"));
            let deletes = core.faults.wait_blocked(Call::Delete, 1, moment());
            core.fs.release(fh);
            core.faults.release(Call::Delete);
            renamed.join().expect("no panic").unwrap_or_else(|error| {
                panic!("{error:?}, deletes: {deletes}");
            });
        });
        all_stored(&setup);
        assert_eq!(stored(&setup, "a"), Some(b"bytes".to_vec()));
        assert_eq!(stored(&setup, "new"), None);
    }
}

/// A program that is ended at some time.
struct Ending(Arc<AtomicBool>);

impl Caller for Ending {
    fn waits(&self) -> bool {
        !self.0.load(Ordering::Acquire)
    }

    fn claim(&self) -> bool {
        self.waits()
    }

    fn release(&self) {}
}

/// For the kernel the file then still has its old name.
#[test]
fn who_opens_a_file_whose_rename_was_given_up_looks_the_name_up_again() {
    for (_dir, setup, core) in cores() {
        let open = |ino, truncate| core.fs.open_writing(ino, truncate, patient());
        let ino = |name| {
            core.lookup(name)
                .expect("an answer")
                .expect("there")
                .attr
                .ino
        };
        somebody_stores(&setup, "b");
        let (file, replaced) = (ino("a"), ino("b"));
        let is_ended = Arc::new(AtomicBool::new(false));
        core.faults.block(Call::Delete);
        thread::scope(|scope| {
            let program = Box::new(Ending(Arc::clone(&is_ended)));
            let renamed = scope.spawn(|| caller::with(program, || core.rename("a", "b")));
            assert!(core.faults.wait_blocked(Call::Delete, 1, late()));
            is_ended.store(true, Ordering::Release);
            core.faults.release(Call::Delete);
            renamed.join().expect("no panic").expect("renamed");
        });
        for truncate in [true, false] {
            assert!(matches!(open(file, truncate), Err(FsError::Stale)));
            // What had that name is nothing that a program could mean by it.
            assert!(matches!(open(replaced, truncate), Err(FsError::Stale)));
        }
        all_stored(&setup);
        assert_eq!(stored(&setup, "b"), Some(b"old".to_vec()));
        // Once the kernel has looked, it is the file of the new name.
        assert_eq!(ino("b"), file);
        core.fs.release(open(file, false).expect("open").fh);
        // One that its program waits for is known to the kernel.
        core.rename("b", "c").expect("renamed");
        core.fs.release(open(file, false).expect("open").fh);
    }
}

/// The kernel came to the file by its old name, whatever has been looked up since.
#[test]
fn an_open_that_waited_for_a_rename_that_was_given_up_does_not_open_the_file_by_its_new_name() {
    for (_dir, setup, core) in cores() {
        let ino = |name| {
            let found = core.lookup(name).expect("an answer");
            found.expect("there").attr.ino
        };
        let file = ino("a");
        let asked = Instant::now();
        let is_ended = Arc::new(AtomicBool::new(false));
        core.faults.block(Call::Delete);
        thread::scope(|scope| {
            let program = Box::new(Ending(Arc::clone(&is_ended)));
            let renamed = scope.spawn(|| caller::with(program, || core.rename("a", "b")));
            assert!(core.faults.wait_blocked(Call::Delete, 1, late()));
            is_ended.store(true, Ordering::Release);
            core.faults.release(Call::Delete);
            renamed.join().expect("no panic").expect("renamed");
        });
        // Another program looks the new name up.
        let looked_up = Instant::now();
        assert_eq!(ino("b"), file);
        let open = |resolved, truncate| {
            let opened = core
                .fs
                .open_to_write(file, resolved, (truncate, false), patient());
            opened.map(|opened| core.fs.release(opened.fh))
        };
        let cut = |resolved| {
            let set = SetAttr {
                size: Some(1),
                ..SetAttr::default()
            };
            core.fs
                .setattr_by(file, &set, By::Name(resolved), patient())
        };
        // It waited, or came by an entry that the kernel was given during the rename.
        for resolved in [
            Resolved::Unknown(asked),
            Resolved::LookedUp(asked),
            Resolved::Entry(asked),
            Resolved::Entry(Instant::now()),
        ] {
            for truncate in [true, false] {
                let opened = open(resolved, truncate);
                assert!(matches!(opened, Err(FsError::Stale)), "{resolved:?}");
            }
            assert!(matches!(cut(resolved), Err(FsError::Stale)), "{resolved:?}");
            assert!(core.fs.check_name(file, resolved).is_err());
        }
        all_stored(&setup);
        assert_eq!(stored(&setup, "b"), Some(b"old".to_vec()));
        // Entries of before do not hold any more.
        open(Resolved::Entry(Instant::now() + 2 * TTL), false).expect("open");
        open(Resolved::LookedUp(looked_up), false).expect("open");
        cut(Resolved::Unknown(Instant::now())).expect("cut");
        all_stored(&setup);
        assert_eq!(stored(&setup, "b"), Some(b"o".to_vec()));
        assert_eq!(stored(&setup, "a"), None);
    }
}

#[test]
fn an_open_that_waited_for_a_rename_looks_the_name_up_again() {
    for (_dir, setup, core) in cores() {
        let file = core
            .lookup("a")
            .expect("an answer")
            .expect("there")
            .attr
            .ino;
        core.faults.block(Call::Delete);
        let core = &core;
        thread::scope(|scope| {
            let renamed = scope.spawn(|| core.rename("a", "b"));
            assert!(core.faults.wait_blocked(Call::Delete, 1, late()));
            let asked = Resolved::Entry(Instant::now());
            let open = move |core: &Core| {
                let opened = core.fs.open_to_write(file, asked, (true, false), patient());
                opened.map(|opened| core.fs.release(opened.fh))
            };
            let opened = scope.spawn(move || open(core));
            core.faults.release(Call::Delete);
            renamed.join().expect("no panic").expect("renamed");
            let opened = opened.join().expect("no panic");
            assert!(matches!(opened, Err(FsError::Stale)), "{opened:?}");
            assert!(matches!(open(core), Err(FsError::Stale)));
        });
        all_stored(&setup);
        assert_eq!(stored(&setup, "b"), Some(b"old".to_vec()));
    }
}

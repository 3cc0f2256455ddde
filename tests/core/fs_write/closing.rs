//! What a write, a close and an fsync store, and what all handles see meanwhile.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use kvfs::fs::types::{Ino, Process, Programs, Thread};
use kvfs::local::fault::Call;
use kvfs::local::memory::MemoryStore;
use kvfs::store::{Encoding, ErrorKind};

use super::{calls, content_type, errno, late, names, reset, stored, writable};
use crate::support::core::{Core, Setup, patient, staging};
use crate::support::mounted::eventually;

#[test]
fn a_new_file_is_one_put_when_it_is_closed() {
    let (_dir, setup, core) = writable(&[]);
    assert_eq!(core.lookup("new").expect("an answer"), None);
    reset(&core);
    let (ino, fh) = core.create("new").expect("made");
    for piece in 0..50u64 {
        core.fs
            .write(fh, piece * 3, b"abc", patient())
            .expect("written");
    }
    assert_eq!(
        core.faults.total_calls(),
        0,
        "nothing is sent before the close"
    );
    assert_eq!(stored(&setup, "new"), None);
    assert_eq!(core.cat("new").expect("seen at once"), b"abc".repeat(50));
    assert_eq!(names(&core), ["new"]);
    reset(&core);
    core.close(fh).expect("stored");
    assert_eq!(stored(&setup, "new"), Some(b"abc".repeat(50)));
    assert_eq!((calls(&core, Call::Put), core.faults.total_calls()), (1, 1));
    assert_eq!(core.cat("new").expect("its bytes"), b"abc".repeat(50));
    assert_eq!(
        core.faults.total_calls(),
        1,
        "what was written need not be fetched"
    );
    let again = core.lookup("new").expect("an answer").expect("present");
    assert_eq!(again.attr.ino, ino, "the same file");
    core.fs.check_invariants();
}

#[test]
fn what_is_opened_for_writing_and_not_changed_is_not_sent() {
    let (_dir, _setup, core) = writable(&[("A", "text/plain", b"old")]);
    let (_, fh) = core.open_to_write("A").expect("open");
    assert_eq!(core.read_all(fh).expect("its bytes"), b"old");
    core.close(fh).expect("closed");
    assert_eq!(calls(&core, Call::Put), 0);
}

#[test]
fn a_change_in_the_middle_and_at_the_end_keeps_the_rest() {
    let (_dir, setup, core) = writable(&[("A", "text/x-own; charset=utf-8", b"hello world")]);
    let (_, fh) = core.open_to_write("A").expect("open");
    core.fs.write(fh, 0, b"J", patient()).expect("written");
    core.fs.write(fh, 11, b"!", patient()).expect("written");
    core.close(fh).expect("stored");
    assert_eq!(stored(&setup, "A"), Some(b"Jello world!".to_vec()));
    assert_eq!(content_type(&setup, "A"), "text/x-own; charset=utf-8");
    assert_eq!((calls(&core, Call::Get), calls(&core, Call::Put)), (1, 1));
}

#[test]
fn what_is_emptied_is_not_fetched_and_keeps_its_type() {
    let (_dir, setup, core) = writable(&[("A", "text/x-own", b"long enough")]);
    core.list().expect("a listing");
    reset(&core);
    core.store("A", b"new").expect("stored");
    assert_eq!(stored(&setup, "A"), Some(b"new".to_vec()));
    assert_eq!(content_type(&setup, "A"), "text/x-own");
    let made = [Call::Get, Call::Head, Call::Put].map(|call| calls(&core, call));
    assert_eq!(made, [0, 1, 1]);
}

#[test]
fn the_end_of_an_earlier_handle_stores_nothing_of_what_is_being_written_anew() {
    let (_dir, setup, core) = writable(&[]);
    let (ino, fh) = core.create("A").expect("made");
    core.fs.write(fh, 0, b"mapped", patient()).expect("written");
    // The kernel tells of the last close at some time, and waits for nobody here.
    let unfinished = core.fs.release_begin(fh).expect("something to store");
    let again = core.fs.open_writing(ino, true, patient()).expect("open").fh;
    core.fs.release_end(unfinished);
    assert_eq!(calls(&core, Call::Put), 0);
    core.fs
        .write(again, 0, b"anew", patient())
        .expect("written");
    core.close(again).expect("stored");
    assert_eq!(calls(&core, Call::Put), 1);
    assert_eq!(stored(&setup, "A").as_deref(), Some(&b"anew"[..]));
}

/// What the kernel knows of programs: who has which file open for writing.
#[derive(Debug, Default)]
struct Holders(parking_lot::Mutex<Vec<Process>>);

impl Programs for Holders {
    /// Threads have the numbers of their process and what is below the next ten.
    fn process_of(&self, thread: Thread) -> Option<Process> {
        (thread.0 > 0).then_some(Process(thread.0 / 10 * 10))
    }

    fn holds(&self, process: Process, _: Ino) -> Option<bool> {
        Some(self.0.lock().contains(&process))
    }
}

#[test]
fn who_inherited_a_file_stores_it_only_once_its_opener_has_closed_it() {
    let (_dir, setup, core) = writable(&[]);
    let holders = std::sync::Arc::new(Holders::default());
    core.fs
        .connect_programs(std::sync::Arc::<Holders>::clone(&holders));
    let [opener, writer, bystander] = [10, 20, 30].map(|number| Some(Process(number)));
    let close = |fh, process| core.fs.flush_by(fh, process, patient());
    let (_, fh) = core.create("a").expect("made");
    core.fs.opened_by(fh, opener);
    holders.0.lock().extend(opener);
    let write = |at, bytes: &[u8], thread| {
        core.fs.written_by(fh, Thread(thread));
        core.fs.write(fh, at, bytes, patient()).expect("written");
    };
    write(0, b"opener ", 11);
    write(7, b"writer ", 22);
    close(fh, writer).expect("nothing to say");
    close(fh, bystander).expect("nothing to say");
    assert_eq!(calls(&core, Call::Put), 0);
    close(fh, opener).expect("stored");
    close(fh, writer).expect("nothing new");
    assert_eq!(stored(&setup, "a").as_deref(), Some(&b"opener writer "[..]));
    assert_eq!(calls(&core, Call::Put), 1);
    // It has closed all it had.
    holders.0.lock().clear();
    write(14, b"again", 25);
    close(fh, bystander).expect("nothing to say");
    assert_eq!(calls(&core, Call::Put), 1);
    core.faults.fail_next(Call::Put, 1, ErrorKind::Denied);
    assert_eq!(errno(close(fh, writer)), libc::EACCES);
    assert_eq!(errno(close(fh, bystander)), libc::EACCES, "known already");
    write(19, b"!", 0);
    close(fh, None).expect("who cannot be told stores it");
    assert_eq!(
        stored(&setup, "a").as_deref(),
        Some(&b"opener writer again!"[..])
    );
    assert_eq!(calls(&core, Call::Put), 3);
    // The last close stores what is left.
    write(0, b"OPENER", 31);
    holders.0.lock().extend(opener);
    close(fh, bystander).expect("nothing to say");
    assert_eq!(calls(&core, Call::Put), 3);
    core.fs.release(fh);
    assert_eq!(
        stored(&setup, "a").as_deref(),
        Some(&b"OPENER writer again!"[..])
    );
}

#[test]
fn an_empty_file_is_a_record_of_no_bytes_once_the_last_handle_is_closed() {
    let (_dir, setup, core) = writable(&[]);
    let (_, fh) = core.create("touched").expect("made");
    // A shell closes a duplicate before the program that it starts writes anything.
    core.fs.flush(fh, patient()).expect("flushed");
    assert_eq!(calls(&core, Call::Put), 0);
    core.fs.release(fh);
    assert_eq!(stored(&setup, "touched"), Some(Vec::new()));
    let (_, fh) = core.create("synced").expect("made");
    core.fs.fsync(fh, patient()).expect("synced");
    assert_eq!(stored(&setup, "synced"), Some(Vec::new()));
    core.close(fh).expect("closed");
    assert_eq!(calls(&core, Call::Put), 2);
}

#[test]
fn every_close_of_a_duplicate_stores_what_is_new_and_only_that() {
    let (_dir, setup, core) = writable(&[]);
    let (_, fh) = core.create("A").expect("made");
    core.fs.write(fh, 0, b"one", patient()).expect("written");
    core.fs.flush(fh, patient()).expect("stored");
    core.fs.flush(fh, patient()).expect("nothing new");
    assert_eq!(calls(&core, Call::Put), 1);
    core.fs.write(fh, 3, b"two", patient()).expect("written");
    core.close(fh).expect("stored");
    assert_eq!(
        (calls(&core, Call::Put), stored(&setup, "A")),
        (2, Some(b"onetwo".to_vec()))
    );
}

#[test]
fn all_handles_see_what_any_of_them_wrote() {
    let (_dir, setup, core) = writable(&[("A", "text/plain", b"before")]);
    let (_, reader) = core.open("A").expect("open");
    assert_eq!(core.read_all(reader).expect("its bytes"), b"before");
    let (ino, one) = core.open_to_write("A").expect("open");
    let (_, two) = core.open_to_write("A").expect("open");
    core.fs.write(one, 0, b"BE", patient()).expect("written");
    core.fs.write(two, 6, b"!", patient()).expect("written");
    for fh in [reader, one, two] {
        assert_eq!(core.read_all(fh).expect("its bytes"), b"BEfore!");
    }
    assert_eq!(
        core.fs
            .getattr(ino, patient())
            .expect("attributes")
            .attr
            .size,
        7
    );
    core.close(one).expect("stored");
    core.close(two).expect("stored");
    assert_eq!(calls(&core, Call::Put), 1);
    assert_eq!(core.read_all(reader).expect("its bytes"), b"BEfore!");
    core.fs.release(reader);
    assert_eq!(stored(&setup, "A"), Some(b"BEfore!".to_vec()));
}

#[test]
fn sizes_set_without_a_handle_are_stored_at_once() {
    let (_dir, setup, core) = writable(&[("A", "text/plain", b"0123456789")]);
    let ino = core
        .lookup("A")
        .expect("an answer")
        .expect("present")
        .attr
        .ino;
    let set = |size| kvfs::fs::write::setattr::SetAttr {
        size: Some(size),
        ..Default::default()
    };
    core.fs
        .setattr(ino, &set(4), None, patient())
        .expect("cut off");
    assert_eq!(stored(&setup, "A"), Some(b"0123".to_vec()));
    core.fs
        .setattr(ino, &set(6), None, patient())
        .expect("longer");
    assert_eq!(stored(&setup, "A"), Some(b"0123\0\0".to_vec()));
    core.fs
        .setattr(ino, &set(0), None, patient())
        .expect("emptied");
    assert_eq!(stored(&setup, "A"), Some(Vec::new()));
}

#[test]
fn files_that_would_be_too_large_fail_when_they_are_written() {
    let (dir, _setup, _) = writable(&[]);
    let mut setup = Setup::new(MemoryStore::new()).writable(&dir.path().join("other"));
    if let Some(write) = &mut setup.fs.write {
        write.max_record_size = Some(10);
    }
    let core = setup.core(None);
    let (_, fh) = core.create("A").expect("made");
    core.fs
        .write(fh, 0, b"0123456789", patient())
        .expect("fits");
    let over = core.fs.write(fh, 10, b"x", patient());
    assert_eq!(errno(over), libc::EFBIG);
    core.close(fh).expect("stored");
    assert_eq!(stored(&setup, "A"), Some(b"0123456789".to_vec()));
}

/// A core with a record `A` and room for ten bytes on the local disk.
fn with_little_room(dir: &Path, write_back: bool) -> (Setup, Core) {
    let store = MemoryStore::new();
    store.insert("A", "text/plain", Encoding::Identity, b"old".to_vec());
    let setup = Setup::new(store);
    let mut setup = if write_back {
        setup.write_back(&dir.join("unlimited"))
    } else {
        setup.writable(&dir.join("unlimited"))
    };
    if let Some(write) = &mut setup.fs.write {
        write.staging = staging(&dir.join("limited"), Some(10));
    }
    let core = setup.core(None);
    (setup, core)
}

#[test]
fn a_record_is_not_replaced_by_a_half_that_had_room() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (setup, core) = with_little_room(dir.path(), false);
    let write = |fh, offset, bytes: &[u8]| core.fs.write(fh, offset, bytes, patient());
    let none = Vec::new();
    // As `echo "much more" > A`, and the same with more after it.
    for (fits, after) in [(&none, ""), (&b"half".to_vec(), ""), (&none, "done")] {
        let (_, fh) = core.create("A").expect("emptied");
        write(fh, 0, fits).expect("there is room");
        let rest = fits.len() as u64;
        assert_eq!(errno(write(fh, rest, b"eleven long")), libc::ENOSPC);
        if !after.is_empty() {
            write(fh, rest, after.as_bytes()).expect("there is room");
        }
        assert_eq!(errno(core.fs.fsync(fh, patient())), libc::ENOSPC);
        assert_eq!(errno(core.rename("A", "other")), libc::ENOSPC);
        assert_eq!(errno(core.close(fh)), libc::ENOSPC);
        assert_eq!(stored(&setup, "A"), Some(b"old".to_vec()));
        assert_eq!(core.cat("A").expect("the record"), b"old");
    }
    // Whoever writes it again, or cuts it off, has it stored.
    for again in [true, false] {
        let (ino, fh) = core.create("A").expect("emptied");
        write(fh, 0, b"n").expect("there is room");
        assert_eq!(errno(write(fh, 1, b"eleven long")), libc::ENOSPC);
        if again {
            for at in 1..12 {
                let _ = write(fh, at, b"e");
            }
            assert_eq!(errno(core.fs.fsync(fh, patient())), libc::ENOSPC);
        }
        let set = kvfs::fs::write::setattr::SetAttr {
            size: Some(1),
            ..Default::default()
        };
        core.fs
            .setattr(ino, &set, Some(fh), patient())
            .expect("cut off");
        core.close(fh).expect("stored");
        assert_eq!(stored(&setup, "A"), Some(b"n".to_vec()));
    }
    // What was not emptied is stored as far as it was written.
    for name in ["A", "B"] {
        let opened = core.open_to_write(name).or_else(|_| core.create(name));
        let (_, fh) = opened.expect("opened");
        write(fh, 1, b"half").expect("there is room");
        assert_eq!(errno(write(fh, 5, b"eleven long")), libc::ENOSPC);
        core.fs.fsync(fh, patient()).expect("stored");
        assert_eq!(errno(write(fh, 5, b"eleven long")), libc::ENOSPC);
        core.close(fh).expect("stored");
    }
    assert_eq!(stored(&setup, "A"), Some(b"nhalf".to_vec()));
    assert_eq!(stored(&setup, "B"), Some(b"\0half".to_vec()));
}

#[test]
fn what_was_stored_since_a_record_was_emptied_is_written_on() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (setup, core) = with_little_room(dir.path(), false);
    let write = |offset, bytes: &[u8], fh| core.fs.write(fh, offset, bytes, patient());
    let (_, fh) = core.create("A").expect("emptied");
    write(0, b"n", fh).expect("there is room");
    core.faults.block(Call::Put);
    std::thread::scope(|scope| {
        let synced = scope.spawn(|| core.fs.fsync(fh, patient()));
        let soon = kvfs::base::clock::Deadline::after(Duration::from_secs(60));
        assert!(core.faults.wait_blocked(Call::Put, 1, soon), "no upload");
        write(1, b"e", fh).expect("there is room");
        core.faults.release(Call::Put);
        synced.join().expect("no panic").expect("stored");
    });
    assert_eq!(errno(write(2, b"eleven long", fh)), libc::ENOSPC);
    core.close(fh).expect("stored");
    assert_eq!(stored(&setup, "A"), Some(b"ne".to_vec()));
}

#[test]
fn what_is_journalled_is_shown_and_stored_whatever_is_not_written_after_it() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (setup, core) = with_little_room(dir.path(), true);
    let write = |fh, offset, bytes: &[u8]| core.fs.write(fh, offset, bytes, patient());
    core.faults.block(Call::Put);
    core.store("A", b"two").expect("journalled");
    let (_, fh) = core.open_to_write("A").expect("opened");
    assert_eq!(errno(write(fh, 3, b"eleven long")), libc::ENOSPC);
    core.close(fh).expect("nothing was changed");
    assert_eq!(core.cat("A").expect("the file"), b"two");
    core.faults.release(Call::Put);
    eventually("it is stored", || {
        stored(&setup, "A") == Some(b"two".to_vec())
    });
}

#[test]
fn a_write_during_an_upload_is_not_in_it_and_is_stored_by_the_next() {
    let (_dir, setup, core) = writable(&[]);
    let (_, fh) = core.create("A").expect("made");
    core.fs.write(fh, 0, b"first", patient()).expect("written");
    core.faults.block(Call::Put);
    std::thread::scope(|scope| {
        let flush = scope.spawn(|| core.fs.flush(fh, patient()));
        let soon = kvfs::base::clock::Deadline::after(Duration::from_secs(9));
        assert!(core.faults.wait_blocked(Call::Put, 1, soon));
        core.fs.write(fh, 0, b"SECOND", patient()).expect("written");
        core.faults.release(Call::Put);
        flush.join().expect("no panic").expect("stored");
    });
    assert_eq!(stored(&setup, "A"), Some(b"first".to_vec()));
    assert_eq!(core.read_all(fh).expect("its bytes"), b"SECOND");
    core.close(fh).expect("stored");
    assert_eq!(stored(&setup, "A"), Some(b"SECOND".to_vec()));
}

#[test]
fn a_read_only_core_changes_nothing() {
    let core = Setup::new(MemoryStore::new()).core(None);
    let made = core
        .fs
        .create(Ino::ROOT, OsStr::new("A"), 0o644, false, false, patient());
    assert_eq!(made.expect_err("read-only").errno(), libc::EROFS);
    assert_eq!(errno(core.remove("A")), libc::EROFS);
    assert_eq!(errno(core.rename("A", "B")), libc::EROFS);
    assert_eq!(core.faults.total_calls(), 0);
}

#[test]
fn an_fsync_of_a_file_that_is_closed_again_meanwhile_ends_with_what_was_closed_last() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let setup = Setup::new(MemoryStore::new()).write_back(dir.path());
    let core = setup.core(None);
    core.faults.block(Call::Put);
    let (_, fh) = core.create("k").expect("made");
    core.fs.write(fh, 0, b"first", patient()).expect("written");
    core.fs.flush(fh, patient()).expect("journalled");
    assert!(core.faults.wait_blocked(Call::Put, 1, late()));
    std::thread::scope(|scope| {
        let sync = scope.spawn(|| core.fs.fsync(fh, patient()));
        let (_, again) = core.open_to_write("k").expect("open");
        core.fs
            .write(again, 0, b"second", patient())
            .expect("written");
        core.close(again).expect("journalled");
        assert!(!sync.is_finished());
        assert_eq!(stored(&setup, "k"), None);
        core.faults.release(Call::Put);
        sync.join().expect("no panic").expect("stored");
    });
    assert_eq!(stored(&setup, "k"), Some(b"second".to_vec()));
    assert_eq!(calls(&core, Call::Put), 2);
    core.close(fh).expect("closed");
}

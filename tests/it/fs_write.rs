//! Changing a store through the core, with no kernel: what is sent, when, and what is seen meanwhile.

use std::ffi::OsStr;
use std::time::Duration;

use kvfs::clock::Deadline;
use kvfs::fs::FsError;
use kvfs::fs::types::{Ino, Process, Programs, Thread};
use kvfs::local::fault::Call;
use kvfs::local::memory::MemoryStore;
use kvfs::store::{Encoding, ErrorKind, GetOutcome, GetRequest, Key, RecordMeta, Store};

use crate::support::core::{Core, Setup, TTL, Told, patient, staging};

/// A core whose store can be changed, and the folder of its staging files.
fn writable(records: &[(&str, &str, &[u8])]) -> (tempfile::TempDir, Setup, Core) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = MemoryStore::new();
    for (key, content_type, bytes) in records {
        store.insert(key, content_type, Encoding::Identity, bytes.to_vec());
    }
    let setup = Setup::new(store).writable(dir.path());
    let core = setup.core(None);
    (dir, setup, core)
}

fn stored(setup: &Setup, key: &str) -> Option<Vec<u8>> {
    setup.store.bytes(key).map(|bytes| bytes.to_vec())
}

fn meta(setup: &Setup, key: &str) -> RecordMeta {
    let key = Key::new(key).expect("a key");
    let deadline = kvfs::clock::Deadline::after(Duration::from_secs(9));
    match setup.store.get(&key, &GetRequest::default(), deadline) {
        Ok(GetOutcome::Found(fetched)) => fetched.meta,
        other => panic!("{key}: {other:?}"),
    }
}

fn content_type(setup: &Setup, key: &str) -> String {
    let meta = meta(setup, key);
    meta.content_type
        .map(|kind| kind.to_string())
        .unwrap_or_default()
}

/// Requests of a kind made since the last call of [`reset`].
fn late() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

fn calls(core: &Core, call: Call) -> u64 {
    core.faults.calls(call)
}

fn reset(core: &Core) {
    core.faults.reset_counts();
}

fn names(core: &Core) -> Vec<String> {
    let listed = core.list().expect("a listing");
    let mut names: Vec<String> = listed
        .into_iter()
        .map(|(name, _)| name.to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn errno(result: Result<(), FsError>) -> i32 {
    result.expect_err("an error").errno()
}

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
    let set = |size| kvfs::fs::setattr::SetAttr {
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
fn a_failed_close_says_why_and_a_later_one_stores_all() {
    let (dir, setup, core) = writable(&[]);
    let (_, fh) = core.create("A").expect("made");
    core.fs
        .write(fh, 0, b"precious", patient())
        .expect("written");
    for (kind, expected) in [
        (ErrorKind::TooLarge, libc::EFBIG),
        (ErrorKind::Denied, libc::EACCES),
        (ErrorKind::StoreNotFound, libc::ENOENT),
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
    let deadline = kvfs::clock::Deadline::after(Duration::from_secs(9));
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

#[test]
fn types_come_from_the_attribute_then_the_name_then_the_bytes() {
    let (_dir, setup, core) = writable(&[]);
    core.store("a.csv", b"a,b\n").expect("stored");
    core.store("OUTPUT", b"{\"a\": 1}").expect("stored");
    core.store("text", b"hello\n").expect("stored");
    let (ino, fh) = core.create("own").expect("made");
    core.fs
        .setxattr(ino, "user.apify.content-type", b"text/x-own", patient())
        .expect("set");
    core.write_all(fh, b"x").expect("written");
    core.close(fh).expect("stored");
    for (key, expected) in [
        ("a.csv", "text/csv; charset=utf-8"),
        ("OUTPUT", "application/json; charset=utf-8"),
        ("text", "text/plain; charset=utf-8"),
        ("own", "text/x-own"),
    ] {
        assert_eq!(content_type(&setup, key), expected, "{key}");
    }
    // The type of an empty file is not known before something is in it.
    let (_, fh) = core.create("LATER").expect("made");
    core.close(fh).expect("closed");
    let (_, fh) = core.open_to_write("LATER").expect("open");
    core.write_all(fh, b"[1]").expect("written");
    core.close(fh).expect("stored");
    assert_eq!(
        content_type(&setup, "LATER"),
        "application/json; charset=utf-8"
    );
}

#[test]
fn setting_the_type_of_a_record_stores_it_again() {
    let (_dir, setup, core) = writable(&[("A", "text/plain", b"same")]);
    let ino = core
        .lookup("A")
        .expect("an answer")
        .expect("present")
        .attr
        .ino;
    core.fs
        .setxattr(ino, "user.apify.content-type", b"text/markdown", patient())
        .expect("set");
    assert_eq!(content_type(&setup, "A"), "text/markdown");
    assert_eq!(stored(&setup, "A"), Some(b"same".to_vec()));
    let shown = core
        .fs
        .getxattr(ino, "user.apify.content-type", patient())
        .expect("shown");
    assert_eq!(shown, b"text/markdown");
    let bad = core
        .fs
        .setxattr(ino, "user.apify.content-type", b"nonsense", patient());
    assert_eq!(errno(bad), libc::EINVAL);
    let other = core.fs.setxattr(ino, "user.other", b"x", patient());
    assert_eq!(errno(other), libc::EOPNOTSUPP);
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
    // Nor is half of it stored.
    assert_eq!(errno(core.close(fh)), libc::EFBIG);
    assert_eq!(stored(&setup, "A"), None);
}

#[test]
fn what_is_not_all_there_is_not_stored() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = MemoryStore::new();
    store.insert("A", "text/plain", Encoding::Identity, b"old".to_vec());
    let mut setup = Setup::new(store).writable(&dir.path().join("unlimited"));
    if let Some(write) = &mut setup.fs.write {
        write.staging = staging(&dir.path().join("limited"), Some(10));
    }
    let core = setup.core(None);
    let write = |fh, offset, bytes: &[u8]| core.fs.write(fh, offset, bytes, patient());

    // As `echo "much more" > A`, and as an append of which the second half has no room.
    for empties in [true, false] {
        let opened = if empties {
            core.create("A")
        } else {
            core.open_to_write("A")
        };
        let (_, fh) = opened.expect("opened");
        write(fh, 3, b"half").expect("there is room");
        assert_eq!(errno(write(fh, 7, b"other half")), libc::ENOSPC);
        assert_eq!(errno(core.fs.fsync(fh, patient())), libc::ENOSPC);
        assert_eq!(errno(core.close(fh)), libc::ENOSPC);
        assert_eq!(stored(&setup, "A"), Some(b"old".to_vec()));
        assert_eq!(core.cat("A").expect("the record"), b"old");
    }
    // A new one.
    let (_, fh) = core.create("B").expect("made");
    assert_eq!(errno(write(fh, 0, b"eleven long")), libc::ENOSPC);
    assert_eq!(errno(core.close(fh)), libc::ENOSPC);
    assert_eq!(stored(&setup, "B"), None);
    assert_eq!(errno(core.cat("B").map(drop)), libc::ENOENT);
    // One that is to take the place of another.
    let (_, fh) = core.create("A.tmp").expect("made");
    assert_eq!(errno(write(fh, 0, b"eleven long")), libc::ENOSPC);
    let _ = core.close(fh);
    assert_eq!(errno(core.rename("A.tmp", "A")), libc::ENOENT);
    assert_eq!(stored(&setup, "A"), Some(b"old".to_vec()));
    // Who goes on after that knows what is there.
    let (_, fh) = core.open_to_write("A").expect("opened");
    assert_eq!(errno(write(fh, 3, b"other half")), libc::ENOSPC);
    write(fh, 0, b"new").expect("there is room");
    core.close(fh).expect("stored");
    assert_eq!(stored(&setup, "A"), Some(b"new".to_vec()));
}

#[test]
fn compressed_uploads_show_their_content_size() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (encoding, name) in [(Encoding::Brotli, "br"), (Encoding::Gzip, "gzip")] {
        let mut setup = Setup::new(MemoryStore::new()).writable(&dir.path().join(name));
        if let Some(write) = &mut setup.fs.write {
            write.compress = Some(encoding.clone());
        }
        let core = setup.core(None);
        let text = b"some text that repeats itself\n".repeat(1000);
        core.store("a.txt", &text).expect("stored");
        core.store("small.txt", b"x").expect("stored");
        core.store("a.png", &text).expect("stored");
        assert_eq!(meta(&setup, "a.txt").encoding, encoding);
        assert!(stored(&setup, "a.txt").expect("stored").len() < 1000);
        assert_eq!(meta(&setup, "small.txt").encoding, Encoding::Identity);
        assert_eq!(meta(&setup, "a.png").encoding, Encoding::Identity);
        core.clock.advance(TTL);
        assert_eq!(core.cat("a.txt").expect("its bytes"), text);
        let fresh = setup.core(None);
        assert_eq!(fresh.cat("a.txt").expect("what others see"), text);
    }
}

#[test]
fn raw_mounts_store_bytes_as_they_are_with_the_encoding_that_was_there() {
    let (dir, _, _) = writable(&[]);
    let mut setup = Setup::new(MemoryStore::new()).writable(&dir.path().join("raw"));
    setup.records.raw = true;
    setup
        .store
        .insert("A", "text/plain", Encoding::Gzip, &b"old"[..]);
    let core = setup.core(None);
    core.store("A", b"new stored bytes").expect("stored");
    assert_eq!(meta(&setup, "A").encoding, Encoding::Gzip);
    assert_eq!(stored(&setup, "A"), Some(b"new stored bytes".to_vec()));
    let (ino, fh) = core.create("B").expect("made");
    core.fs
        .setxattr(ino, "user.apify.content-encoding", b"br", patient())
        .expect("set");
    core.write_all(fh, b"packed").expect("written");
    core.close(fh).expect("stored");
    assert_eq!(meta(&setup, "B").encoding, Encoding::Brotli);
}

#[test]
fn a_write_during_an_upload_is_not_in_it_and_is_stored_by_the_next() {
    let (_dir, setup, core) = writable(&[]);
    let (_, fh) = core.create("A").expect("made");
    core.fs.write(fh, 0, b"first", patient()).expect("written");
    core.faults.block(Call::Put);
    std::thread::scope(|scope| {
        let flush = scope.spawn(|| core.fs.flush(fh, patient()));
        let soon = kvfs::clock::Deadline::after(Duration::from_secs(9));
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

//! Renames while a file that was closed just now is still to be stored: the kernel tells the
//! daemon of a last close some time after the program has gone on.

use std::thread;
use std::time::Duration;

use kvfs::base::clock::Deadline;
use kvfs::fs::write::commit::Unfinished;
use kvfs::local::fault::Call;
use kvfs::local::memory::MemoryStore;
use kvfs::store::Encoding;

use crate::support::core::{Core, Setup, patient};

fn writable(records: &[(&str, &[u8])]) -> (tempfile::TempDir, Setup, Core) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = MemoryStore::new();
    for (key, bytes) in records {
        store.insert(key, "text/plain", Encoding::Identity, bytes.to_vec());
    }
    let setup = Setup::new(store).writable(dir.path());
    let core = setup.core(None);
    (dir, setup, core)
}

/// Makes an empty file and closes it: it is to be stored by whoever gets the result.
fn touched(core: &Core, name: &str) -> Unfinished {
    let (_, fh) = core.create(name).expect("made");
    core.fs.flush(fh, patient()).expect("closed");
    core.fs.release_begin(fh).expect("something left to store")
}

/// Renames, and lets the end of an earlier close come when the rename waits in its `nth` request
/// of this kind. No upload may begin then.
fn rename_meanwhile(core: &Core, (from, to): (&str, &str), call: Call, closed: Unfinished) {
    let soon = || Deadline::after(Duration::from_secs(20));
    let uploads = usize::from(call == Call::Put);
    core.faults.block(call);
    core.faults.block(Call::Put);
    thread::scope(|scope| {
        let rename = scope.spawn(|| core.rename(from, to));
        assert!(core.faults.wait_blocked(call, 1, soon()));
        let end = scope.spawn(|| core.fs.release_end(closed));
        let moment = Deadline::after(Duration::from_millis(100));
        let began = core.faults.wait_blocked(Call::Put, uploads + 1, moment);
        core.faults.release(call);
        core.faults.release(Call::Put);
        rename.join().expect("no panic").expect("renamed");
        end.join().expect("no panic");
        assert!(!began, "an upload began in the middle of the rename");
    });
}

#[test]
fn a_record_made_a_scratch_file_is_not_stored_under_its_old_name_afterwards() {
    let (_dir, setup, core) = writable(&[("old", b"old")]);
    core.rename("old", ".x.swp").expect("renamed");
    let closed = touched(&core, "x");
    rename_meanwhile(&core, ("x", ".x.swp"), Call::Delete, closed);
    assert_eq!(core.lookup("x").expect("an answer"), None);
    assert_eq!(core.cat(".x.swp").expect("its bytes"), b"");
    core.remove(".x.swp").expect("deleted");
    assert!(setup.store.is_empty());
}

#[test]
fn a_renamed_file_is_not_stored_under_its_old_name_afterwards() {
    let (_dir, setup, core) = writable(&[]);
    let closed = touched(&core, "x");
    rename_meanwhile(&core, ("x", "y"), Call::Head, closed);
    assert_eq!(core.lookup("x").expect("an answer"), None);
    assert_eq!(setup.store.bytes("x"), None);
    assert_eq!(setup.store.bytes("y").as_deref(), Some(&b""[..]));
}

#[test]
fn what_a_rename_replaces_is_not_stored_after_it() {
    let (_dir, setup, core) = writable(&[("x", b"kept")]);
    assert_eq!(core.cat("x").expect("its bytes"), b"kept");
    let closed = touched(&core, "y");
    rename_meanwhile(&core, ("x", "y"), Call::Put, closed);
    assert_eq!(core.cat("y").expect("its bytes"), b"kept");
    assert_eq!(setup.store.bytes("y").as_deref(), Some(&b"kept"[..]));
    assert_eq!(core.faults.calls(Call::Put), 1);
}

#[test]
fn what_a_late_close_finds_stored_is_not_taken_from_who_renamed_it_since() {
    let (_dir, setup, core) = writable(&[]);
    let first = touched(&core, "x");
    let (_, fh) = core.open("x").expect("opened");
    let second = core.fs.release_begin(fh).expect("still to be stored");
    core.fs.release_end(first);
    assert_eq!(setup.store.bytes("x").as_deref(), Some(&b""[..]));
    core.rename("x", ".x.swp").expect("renamed");
    core.fs.release_end(second);
    assert_eq!(core.cat(".x.swp").expect("its bytes"), b"");
}

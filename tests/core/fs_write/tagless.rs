//! Servers that tell no versions apart, as the platform: nobody's change is lost in silence.

use std::ffi::OsStr;
use std::sync::Arc;

use kvfs::base::clock::Deadline;
use kvfs::fs::FsError;
use kvfs::fs::types::Ino;
use kvfs::fs::write::Overwrite;
use kvfs::local::fault::Call;
use kvfs::local::memory::MemoryStore;
use kvfs::store::{
    Encoding, ErrorKind, Fetched, GetOutcome, GetRequest, Key, ListPage, ListQuery, PutRequest,
    RecordMeta, Result as StoreResult, Store, StoreInfo, Upload,
};

use super::gate::{all_stored, journalled};
use super::{calls, errno, late, reset, stored};
use crate::support::core::{Core, Setup, patient};
use crate::support::mounted::eventually;

/// A store that tells no versions apart and heeds no conditions, as the platform.
#[derive(Debug)]
pub(super) struct Tagless(pub(super) Arc<MemoryStore>);

impl Store for Tagless {
    fn info(&self) -> StoreInfo {
        self.0.info()
    }

    fn list_page(&self, query: &ListQuery, deadline: Deadline) -> StoreResult<ListPage> {
        self.0.list_page(query, deadline)
    }

    fn head(&self, key: &Key, deadline: Deadline) -> StoreResult<RecordMeta> {
        Ok(untagged(self.0.head(key, deadline)?))
    }

    fn get(&self, key: &Key, _: &GetRequest, deadline: Deadline) -> StoreResult<GetOutcome> {
        Ok(match self.0.get(key, &GetRequest::default(), deadline)? {
            GetOutcome::Found(found) => GetOutcome::Found(Fetched {
                meta: untagged(found.meta),
                ..found
            }),
            other => other,
        })
    }

    fn put(
        &self,
        key: &Key,
        request: &PutRequest,
        body: Upload<'_>,
        deadline: Deadline,
    ) -> StoreResult<RecordMeta> {
        let request = PutRequest {
            if_match: None,
            if_absent: false,
            ..request.clone()
        };
        Ok(untagged(self.0.put(key, &request, body, deadline)?))
    }

    fn delete(&self, key: &Key, deadline: Deadline) -> StoreResult<()> {
        self.0.delete(key, deadline)
    }
}

fn untagged(meta: RecordMeta) -> RecordMeta {
    RecordMeta {
        etag: None,
        last_modified: None,
        accepts_ranges: false,
        ..meta
    }
}

/// Cores over such a store that has a record `K`, in both modes.
fn tagless(overwrite: Overwrite) -> Vec<(tempfile::TempDir, Setup, Core)> {
    let mut cores = Vec::new();
    for write_back in [false, true] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let store = MemoryStore::new();
        store.insert("K", "text/plain", Encoding::Identity, &b"one\n"[..]);
        let mut setup = Setup::new(store).writable(dir.path());
        setup.remote = Some(Arc::new(Tagless(Arc::clone(&setup.store))));
        if let Some(write) = &mut setup.fs.write {
            (write.overwrite, write.write_back) = (overwrite, write_back);
        }
        let core = setup.core(None);
        cores.push((dir, setup, core));
    }
    cores
}

fn append(core: &Core, text: &[u8]) -> Result<(), FsError> {
    let (ino, fh) = core.open_to_write("K")?;
    let size = core.fs.getattr(ino, patient())?.attr.size;
    core.fs.write(fh, size, text, patient())?;
    core.fs
        .fsync(fh, patient())
        .inspect_err(|_| core.fs.release(fh))?;
    core.close(fh)
}

#[test]
fn where_no_versions_are_told_what_was_edited_is_compared_before_it_is_replaced() {
    for (_dir, setup, core) in tagless(Overwrite::Unchanged) {
        core.cat("K").expect("its bytes");
        reset(&core);
        append(&core, b"two\n").expect("stored");
        append(&core, b"three\n").expect("stored");
        assert_eq!(stored(&setup, "K"), Some(b"one\ntwo\nthree\n".to_vec()));
        let made = [Call::Get, Call::Put, Call::Head].map(|call| calls(&core, call));
        assert_eq!(made, [2, 2, 0], "one question before each");
        let theirs = &b"theirs\n"[..];
        setup
            .store
            .insert("K", "text/plain", Encoding::Identity, theirs);
        assert_eq!(errno(append(&core, b"mine\n")), libc::ESTALE);
        assert_eq!(stored(&setup, "K").as_deref(), Some(theirs));
        assert_eq!(journalled(&setup), [("K".to_owned(), true)]);
        // What is written as a whole replaces what there is, and asks nothing.
        reset(&core);
        core.store("K", b"whole").expect("stored");
        all_stored(&setup);
        assert_eq!(stored(&setup, "K"), Some(b"whole".to_vec()));
        assert_eq!((calls(&core, Call::Get), calls(&core, Call::Put)), (0, 1));
    }
}

#[test]
fn where_no_conditions_are_heeded_an_exclusive_creation_asks_first() {
    for (_dir, setup, core) in tagless(Overwrite::Unchanged) {
        let name = OsStr::new("new");
        let made = core
            .fs
            .create(Ino::ROOT, name, 0o644, true, false, patient());
        let fh = made.expect("made").opened.fh;
        core.fs.write(fh, 0, b"mine", patient()).expect("written");
        setup
            .store
            .insert("new", "text/plain", Encoding::Identity, &b"theirs"[..]);
        assert_eq!(errno(core.fs.fsync(fh, patient())), libc::ESTALE);
        core.fs.release(fh);
        assert_eq!(stored(&setup, "new"), Some(b"theirs".to_vec()));
    }
}

#[test]
fn an_exclusive_creation_that_waits_overwrites_nothing_that_was_made_meanwhile() {
    for (_dir, setup, core) in tagless(Overwrite::Unchanged).split_off(1) {
        core.faults.fail_next(Call::Put, 1, ErrorKind::Server);
        let name = OsStr::new("new");
        let made = core
            .fs
            .create(Ino::ROOT, name, 0o644, true, false, patient());
        let fh = made.expect("made").opened.fh;
        core.fs.write(fh, 0, b"mine", patient()).expect("written");
        core.close(fh).expect("journalled");
        eventually("it is refused", || calls(&core, Call::Put) == 1);
        setup
            .store
            .insert("new", "text/plain", Encoding::Identity, &b"theirs"[..]);
        eventually("it is kept", || {
            journalled(&setup) == [("new".to_owned(), true)]
        });
        assert_eq!(stored(&setup, "new"), Some(b"theirs".to_vec()));
    }
}

#[test]
fn copying_many_new_files_in_asks_a_few_questions_in_all() {
    for (_dir, setup, core) in tagless(Overwrite::Unchanged) {
        setup
            .store
            .insert("n-07", "text/plain", Encoding::Identity, &b"theirs"[..]);
        let make = |name: &str| {
            let made = core
                .fs
                .create(Ino::ROOT, OsStr::new(name), 0o644, true, false, patient());
            let fh = made.expect("made").opened.fh;
            core.fs.write(fh, 0, b"mine", patient()).expect("written");
            let stored = core.fs.fsync(fh, patient());
            core.fs.release(fh);
            stored
        };
        reset(&core);
        for at in 0..30 {
            let stored = make(&format!("n-{at:02}"));
            match at {
                7 => assert_eq!(errno(stored), libc::ESTALE),
                _ => stored.expect("stored"),
            }
        }
        let made = [Call::Put, Call::Head, Call::List].map(|call| calls(&core, call));
        // More than a page only where the machine takes longer than a second.
        assert!(made[0] == 29 && made[1] + made[2] < 15, "{made:?}");
        assert_eq!(stored(&setup, "n-07"), Some(b"theirs".to_vec()));
    }
}

#[test]
fn overwriting_always_compares_nothing() {
    for (_dir, setup, core) in tagless(Overwrite::Always) {
        core.cat("K").expect("its bytes");
        setup
            .store
            .insert("K", "text/plain", Encoding::Identity, &b"theirs\n"[..]);
        reset(&core);
        append(&core, b"two\n").expect("stored");
        assert_eq!(stored(&setup, "K"), Some(b"one\ntwo\n".to_vec()));
        assert_eq!((calls(&core, Call::Get), calls(&core, Call::Put)), (0, 1));
    }
}

#[test]
fn what_follows_an_upload_in_the_background_is_compared_with_it() {
    let (_dir, setup, core) = tagless(Overwrite::Unchanged).pop().expect("--write-back");
    core.faults.block(Call::Put);
    core.store("K", b"first").expect("journalled");
    assert!(core.faults.wait_blocked(Call::Put, 1, late()));
    core.store("K", b"second").expect("journalled");
    core.faults.block(Call::Get);
    core.faults.release(Call::Put);
    assert!(core.faults.wait_blocked(Call::Get, 1, late()));
    assert_eq!(stored(&setup, "K"), Some(b"first".to_vec()));
    let theirs = &b"theirs"[..];
    setup
        .store
        .insert("K", "text/plain", Encoding::Identity, theirs);
    core.faults.release(Call::Get);
    eventually("it is refused", || {
        journalled(&setup) == [("K".to_owned(), true)]
    });
    assert_eq!(stored(&setup, "K").as_deref(), Some(theirs));
}

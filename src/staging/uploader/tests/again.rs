//! Staging folders that somebody removes.

use super::*;

/// Has the bytes of everything open, as the drafts of a mount have.
struct Holder(File);

impl UploadObserver for Holder {
    fn uploaded(&self, _: &JournalEntry, _: &Arc<File>, _: &RecordMeta) {}

    fn failed(&self, entry: &JournalEntry, error: &StoreError) {
        panic!("{} failed: {error}", entry.pending.key);
    }

    fn bytes(&self, _: &JournalEntry) -> Option<(File, u64, Encoding)> {
        let size = self.0.metadata().expect("it").len();
        Some((self.0.try_clone().expect("it"), size, Encoding::Identity))
    }
}

#[test]
fn what_is_open_is_written_anew_and_outlives_the_process() {
    let mut bench = Bench::patient();
    let file = tempfile::tempfile().expect("a file");
    file.write_all_at(b"waits", 0).expect("room");
    let holder: Arc<dyn UploadObserver> = Arc::new(Holder(file));
    bench.uploader = uploader(&bench.store, &bench.folder, &bench.metrics, bench.delay);
    bench.uploader.start(Arc::downgrade(&holder));
    for name in ["plain", "encoded"] {
        bench.store.fail_next(Call::Put, 1, ErrorKind::Network);
        let id = bench.close(name, "waits");
        put_off(&bench, name);
        if name == "encoded" {
            let encode = |pending: &mut Pending| pending.encoding = Encoding::Gzip;
            bench.folder.journal().update(&id, encode).expect("noted");
        }
    }
    std::fs::remove_dir_all(bench.dir.path().join("staging")).expect("it was there");
    // Whatever is closed next.
    bench.store.fail_next(Call::Put, 1, ErrorKind::Network);
    bench.close("next", "waits");
    put_off(&bench, "next");
    drop(holder);
    bench.restart();
    assert!(bench.uploader.wait_all(soon()).is_empty());
    for name in ["plain", "encoded", "next"] {
        assert_eq!(bench.text(name).as_deref(), Some("waits"), "{name}");
        let meta = bench.memory.head(&key(name), soon()).expect("a record");
        assert_eq!(meta.encoding, Encoding::Identity, "{name}");
    }
    assert!(bench.folder.journal().entries().is_empty());
}

#[test]
fn what_is_refused_although_its_files_were_removed_is_kept() {
    let mut bench = Bench::patient();
    let file = tempfile::tempfile().expect("a file");
    file.write_all_at(b"waits", 0).expect("room");
    let holder: Arc<dyn UploadObserver> = Arc::new(Refused(Holder(file)));
    bench.uploader = uploader(&bench.store, &bench.folder, &bench.metrics, bench.delay);
    bench.uploader.start(Arc::downgrade(&holder));
    bench.store.block(Call::Put);
    bench.store.fail_next(Call::Put, 1, ErrorKind::Denied);
    bench.close("k", "waits");
    assert!(bench.store.wait_blocked(Call::Put, 1, soon()), "no upload");
    std::fs::remove_dir_all(bench.dir.path().join("staging")).expect("it was there");
    bench.store.release(Call::Put);
    let verdict = bench.uploader.wait_key(&key("k"), soon());
    assert_eq!(
        verdict.expect_err("refused").kind(),
        ErrorKind::Denied,
        "not that it is gone"
    );
    let kept = bench.folder.journal().kept();
    assert_eq!(kept.len(), 1);
    assert!(bench.folder.journal().open(&kept[0].id).is_ok());
}

/// The same, to which refusals are no surprise.
struct Refused(Holder);

impl UploadObserver for Refused {
    fn uploaded(&self, _: &JournalEntry, _: &Arc<File>, _: &RecordMeta) {}

    fn failed(&self, _: &JournalEntry, _: &StoreError) {}

    fn bytes(&self, entry: &JournalEntry) -> Option<(File, u64, Encoding)> {
        self.0.bytes(entry)
    }
}

#[test]
fn what_somebody_has_removed_is_told_to_who_waits() {
    let bench = Bench::patient();
    bench.store.fail_next(Call::Put, 1, ErrorKind::Denied);
    bench.close("refused", "kept");
    bench
        .uploader
        .wait_key(&key("refused"), soon())
        .expect_err("refused");
    bench.store.block(Call::Put);
    for (name, blocked) in [("asked", 1), ("not", 2)] {
        bench.close(name, "first");
        let begun = bench.store.wait_blocked(Call::Put, blocked, soon());
        assert!(begun, "no upload");
        bench.close(name, "second");
    }
    std::fs::remove_dir_all(bench.dir.path().join("staging")).expect("it was there");
    bench.store.release(Call::Put);
    let verdict = bench.uploader.wait_key(&key("asked"), soon());
    let error = verdict.expect_err("its bytes are gone");
    assert!(error.to_string().contains("removed"), "{error}");
    bench
        .uploader
        .wait_key(&key("asked"), soon())
        .expect("it was told");
    assert!(bench.uploader.wait_all(soon()).is_empty());
    assert_eq!(bench.uploader.take_lost(), [key("not")]);
    assert!(bench.uploader.take_lost().is_empty());
    assert!(bench.folder.journal().entries().len() == 1, "what was kept");
    assert!(bench.folder.journal().kept().is_empty());
    assert!(bench.folder.journal().entries().is_empty());
    assert_eq!(
        bench.memory.bytes("not").as_deref(),
        Some(b"first".as_slice())
    );
    // And it goes on.
    bench.close("asked", "third");
    bench.uploader.wait_key(&key("asked"), soon()).expect("it");
}

//! Staging folders that are removed under a mount.

use super::*;

/// Holds the bytes of everything open, as the drafts of a mount do; notes failures.
struct Holder(File, Mutex<Vec<String>>);

impl Holder {
    fn of(text: &[u8]) -> Arc<Self> {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(text, 0).expect("room");
        Arc::new(Self(file, Mutex::default()))
    }

    fn failed(&self) -> Vec<String> {
        self.1.lock().clone()
    }
}

impl UploadObserver for Holder {
    fn uploaded(&self, _: &JournalEntry, _: &Arc<File>, _: &RecordMeta) {}

    fn failed(&self, entry: &JournalEntry, error: &StoreError) {
        let said = format!("{}: {error}", entry.pending.key);
        self.1.lock().push(said);
    }

    fn bytes(&self, _: &JournalEntry) -> Option<(File, u64, Encoding)> {
        let size = self.0.metadata().expect("it").len();
        Some((self.0.try_clone().expect("it"), size, Encoding::Identity))
    }
}

impl Bench {
    /// One with files that are open elsewhere, all with this text.
    fn held(text: &str) -> (Self, Arc<Holder>) {
        let mut bench = Self::patient();
        let holder = Holder::of(text.as_bytes());
        let observer: Arc<dyn UploadObserver> = Arc::<Holder>::clone(&holder);
        bench.uploader = uploader(&bench.store, &bench.folder, &bench.metrics, bench.delay);
        bench.uploader.start(Arc::downgrade(&observer));
        (bench, holder)
    }

    /// Closes a file; its first upload fails for a passing reason.
    fn close_put_off(&self, name: &str, text: &str) -> EntryId {
        self.store.fail_next(Call::Put, 1, ErrorKind::Network);
        let id = self.close(name, text);
        put_off(self, name);
        id
    }

    fn remove_staging(&self) {
        let staging = self.dir.path().join("staging");
        // A thread may be writing an entry again there.
        while staging.exists() {
            let _ = std::fs::remove_dir_all(&staging);
        }
    }
}

#[test]
fn what_is_open_is_written_anew_and_outlives_the_process() {
    let (mut bench, holder) = Bench::held("waits");
    for name in ["plain", "encoded"] {
        let id = bench.close_put_off(name, "waits");
        if name == "encoded" {
            let encode = |pending: &mut Pending| pending.encoding = Encoding::Gzip;
            bench.folder.journal().update(&id, encode).expect("noted");
        }
    }
    bench.remove_staging();
    // Whatever is closed next.
    bench.close_put_off("next", "waits");
    bench.restart();
    assert!(bench.uploader.wait_all(soon()).is_empty());
    for name in ["plain", "encoded", "next"] {
        assert_eq!(bench.text(name).as_deref(), Some("waits"), "{name}");
        let meta = bench.memory.head(&key(name), soon()).expect("a record");
        assert_eq!(meta.encoding, Encoding::Identity, "{name}");
    }
    assert!(bench.folder.journal().entries().is_empty());
    assert_eq!(holder.failed(), Vec::<String>::new());
}

#[test]
fn many_that_find_the_folder_removed_at_once_are_not_in_each_others_way() {
    for _ in 0..5 {
        let (bench, holder) = Bench::held("waits");
        let names: Vec<String> = (0..12).map(|n| format!("k{n}")).collect();
        for name in &names {
            bench.close_put_off(name, "waits");
        }
        bench.remove_staging();
        std::thread::scope(|scope| {
            scope.spawn(|| bench.close("next", "waits"));
            scope.spawn(|| bench.uploader.restore_all());
            assert!(bench.uploader.wait_all(soon()).is_empty());
        });
        assert!(bench.uploader.wait_all(soon()).is_empty());
        for name in names {
            assert_eq!(bench.text(&name).as_deref(), Some("waits"), "{name}");
        }
        assert_eq!(holder.failed(), Vec::<String>::new());
    }
}

#[test]
fn what_cannot_be_written_anew_is_uploaded_from_its_descriptor() {
    let (bench, holder) = Bench::held("waits");
    bench.close_put_off("k", "waits");
    bench.remove_staging();
    std::fs::write(bench.dir.path().join("staging"), "").expect("a file in its place");
    bench.uploader.wait_key(&key("k"), soon()).expect("stored");
    assert_eq!(bench.text("k").as_deref(), Some("waits"));
    assert_eq!(holder.failed(), Vec::<String>::new());
    // Unless the store does not want it.
    std::fs::remove_file(bench.dir.path().join("staging")).expect("it was there");
    bench.close_put_off("refused", "waits");
    bench.remove_staging();
    std::fs::write(bench.dir.path().join("staging"), "").expect("a file in its place");
    bench.store.fail_next(Call::Put, 1, ErrorKind::Denied);
    let verdict = bench.uploader.wait_key(&key("refused"), soon());
    assert_eq!(verdict.expect_err("refused").kind(), ErrorKind::Denied);
}

#[test]
fn an_upload_that_was_encoded_when_its_files_were_removed_is_known_as_ours() {
    let (bench, holder) = Bench::held("waits");
    bench.close("k", "base");
    bench.uploader.wait_key(&key("k"), soon()).expect("stored");
    bench.store.block(Call::Put);
    bench.store.lose_answers(Call::Put, 2, ErrorKind::Network);
    let file = bench.folder.new_file().expect("a file");
    file.write_all_at(b"encoded", 0).expect("room");
    let pending = Pending {
        key: key("k"),
        content_type: None,
        encoding: Encoding::Gzip,
        if_match: bench.etag("k"),
        if_absent: false,
        size: 7,
        is_new: false,
        closed_at: Timestamp::UNIX_EPOCH,
        why: Why::WriteBack,
        attempts: 0,
        unanswered: Default::default(),
        began: None,
    };
    bench.submit(&file, pending, soon()).expect("journalled");
    assert!(bench.store.wait_blocked(Call::Put, 1, soon()), "no upload");
    bench.remove_staging();
    bench.close("next", "waits");
    bench.store.release(Call::Put);
    put_off(&bench, "k");
    bench.uploader.wait_key(&key("k"), soon()).expect("ours");
    assert_eq!(bench.text("k").as_deref(), Some("waits"));
    assert_eq!(holder.failed(), Vec::<String>::new());
}

#[test]
fn what_is_deleted_while_it_is_written_anew_does_not_come_back() {
    for round in 0..20 {
        let (bench, _holder) = Bench::held(&"x".repeat(100_000));
        bench.close_put_off("k", &"x".repeat(100_000));
        bench.remove_staging();
        std::thread::scope(|scope| {
            let again = scope.spawn(|| bench.uploader.restore_all());
            while round % 2 == 0
                && !again.is_finished()
                && !bench.dir.path().join("staging").exists()
            {
                std::thread::yield_now();
            }
            let key = key("k");
            let entered = bench
                .uploader
                .enter(&[&key], Change::Name, soon())
                .expect("held");
            entered.discard(&key, || true);
        });
        assert!(bench.folder.journal().entries().is_empty());
        let left = std::fs::read_dir(bench.folder.own_path())
            .into_iter()
            .flatten();
        let mut names = left.flatten().map(|file| file.file_name());
        assert!(names.all(|name| name == "lock"), "round {round}");
    }
}

#[test]
fn what_is_refused_although_its_files_were_removed_is_kept() {
    let (bench, holder) = Bench::held("waits");
    bench.store.block(Call::Put);
    bench.store.fail_next(Call::Put, 1, ErrorKind::Denied);
    bench.close("k", "waits");
    assert!(bench.store.wait_blocked(Call::Put, 1, soon()), "no upload");
    bench.remove_staging();
    bench.store.release(Call::Put);
    let verdict = bench.uploader.wait_key(&key("k"), soon());
    let error = verdict.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Denied, "not that it is gone");
    assert_eq!(holder.failed().len(), 1);
    let kept = bench.folder.journal().kept();
    assert_eq!(kept.len(), 1);
    assert!(bench.folder.journal().open(&kept[0].id).is_ok());
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
    bench.remove_staging();
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

use std::collections::HashMap;
use std::os::unix::fs::FileExt;

use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::clock::{Deadline, SystemClock};
use crate::local::MemoryStore;
use crate::local::fault::{Call, FaultStore};
use crate::staging::folder::StoreFile;
use crate::staging::{Pending, StagingConfig, StagingFolder};
use crate::store::reference::StoreRef;
use crate::store::{Encoding, ErrorKind};

struct Bench {
    memory: Arc<MemoryStore>,
    store: FaultStore,
    dir: tempfile::TempDir,
    folder: Arc<StagingFolder>,
    uploader: Arc<Uploader>,
    metrics: Arc<Metrics>,
    delay: Duration,
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

fn key(name: &str) -> Key {
    Key::new(name).expect("a key")
}

fn open(dir: &tempfile::TempDir) -> Arc<StagingFolder> {
    StagingFolder::open(&StagingConfig {
        dir: dir.path().join("staging"),
        scope: "scope".into(),
        store: StoreFile {
            reference: "here".into(),
            open: StoreRef::Directory("/here".into()),
            api_url: None,
            raw: false,
        },
        limit: None,
    })
    .expect("a staging folder")
}

fn uploader(
    store: &FaultStore,
    folder: &StagingFolder,
    metrics: &Arc<Metrics>,
    delay: Duration,
) -> Arc<Uploader> {
    Uploader::new(
        Arc::new(store.clone()),
        Arc::clone(folder.journal()),
        UploaderConfig {
            parallel: 4,
            first_delay: delay,
            max_delay: 20 * delay,
            ..UploaderConfig::new(Duration::from_secs(10))
        },
        Arc::new(SystemClock),
        Arc::clone(metrics),
    )
}

/// An observer that is not there.
fn nobody() -> Weak<dyn UploadObserver> {
    struct Nobody;
    impl UploadObserver for Nobody {
        fn uploaded(&self, _: &JournalEntry, _: &Arc<File>, _: &RecordMeta) {}
        fn failed(&self, _: &JournalEntry, _: &StoreError) {}
    }
    Weak::<Nobody>::new()
}

impl Bench {
    fn new() -> Self {
        Self::trying_again_after(Duration::from_millis(1))
    }

    /// One that tries nothing again before somebody waits for it.
    fn patient() -> Self {
        Self::trying_again_after(Duration::from_secs(3600))
    }

    fn trying_again_after(delay: Duration) -> Self {
        let memory = Arc::new(MemoryStore::new());
        let store = FaultStore::new(Arc::clone(&memory) as Arc<dyn Store>);
        let dir = tempfile::tempdir().expect("a folder");
        let folder = open(&dir);
        let metrics = Arc::new(Metrics::default());
        let uploader = uploader(&store, &folder, &metrics, delay);
        uploader.start(nobody());
        Self {
            memory,
            store,
            dir,
            folder,
            uploader,
            metrics,
            delay,
        }
    }

    fn close(&self, name: &str, text: &str) -> EntryId {
        self.close_if(name, text, None)
    }

    fn close_if(&self, name: &str, text: &str, if_match: Option<crate::store::ETag>) -> EntryId {
        let file = self.folder.new_file().expect("a staging file");
        file.write_all_at(text.as_bytes(), 0).expect("room");
        let pending = Pending {
            key: key(name),
            content_type: Some("text/plain".into()),
            encoding: Encoding::Identity,
            if_match,
            if_absent: false,
            size: text.len() as u64,
            closed_at: Timestamp::UNIX_EPOCH,
            why: Why::WriteBack,
            attempts: 0,
            unanswered: Default::default(),
        };
        self.uploader
            .submit(&file, pending, soon(), |_| {}, |_| {})
            .expect("journalled")
    }

    fn etag(&self, name: &str) -> Option<crate::store::ETag> {
        self.memory.head(&key(name), soon()).expect("a record").etag
    }

    /// What `kill -9` and the next mount do.
    fn restart(&mut self) {
        self.uploader.stop();
        self.store.release(Call::Put);
        while Arc::strong_count(&self.uploader) > 1 {
            std::thread::yield_now();
        }
        let spare = tempfile::tempdir().expect("a folder");
        self.folder = open(&spare);
        self.uploader = uploader(&self.store, &self.folder, &self.metrics, self.delay);
        self.folder = open(&self.dir);
        self.uploader = uploader(&self.store, &self.folder, &self.metrics, self.delay);
        self.uploader.start(nobody());
    }

    fn text(&self, name: &str) -> Option<String> {
        let bytes = self.memory.bytes(name)?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

#[test]
fn what_is_closed_is_uploaded_and_leaves_the_journal() {
    let bench = Bench::new();
    for n in 0..20 {
        bench.close(&format!("k{n}"), &format!("text {n}"));
    }
    assert!(bench.uploader.wait_all(soon()).is_empty());
    for n in 0..20 {
        assert_eq!(bench.text(&format!("k{n}")), Some(format!("text {n}")));
    }
    assert_eq!(bench.store.calls(Call::Put), 20);
    assert_eq!(bench.store.total_calls(), 20);
    assert!(bench.folder.journal().entries().is_empty());
    assert_eq!(bench.folder.budget().used(), 0);
    assert_eq!(bench.metrics.uploads_pending.get(), 0);
    assert_eq!(bench.metrics.uploads_total.get(), 20);
}

#[test]
fn keys_are_uploaded_in_parallel_up_to_the_bound() {
    let bench = Bench::new();
    bench.store.block(Call::Put);
    for n in 0..10 {
        bench.close(&format!("k{n}"), "text");
    }
    assert!(bench.store.wait_blocked(Call::Put, 4, soon()));
    assert_eq!(bench.store.calls(Call::Put), 4);
    let running = bench.uploader.pending();
    let running = running
        .iter()
        .filter(|pending| pending.state == LaneState::Running);
    assert_eq!(running.count(), 4);
    bench.store.release(Call::Put);
    assert!(bench.uploader.wait_all(soon()).is_empty());
}

#[test]
fn of_several_that_wait_only_the_newest_is_sent_and_it_follows_the_one_under_way() {
    let bench = Bench::new();
    bench.store.block(Call::Put);
    bench.close("k", "first");
    assert!(bench.store.wait_blocked(Call::Put, 1, soon()));
    bench.close("k", "second");
    bench.close("k", "third");
    assert_eq!(bench.folder.journal().entries().len(), 2);
    let newest = bench.uploader.newest(&key("k")).expect("pending");
    assert_eq!(newest.pending.size, 5);
    bench.store.release(Call::Put);
    bench
        .uploader
        .wait_key(&key("k"), soon())
        .expect("uploaded");
    assert_eq!(bench.text("k").as_deref(), Some("third"));
    assert_eq!(bench.store.calls(Call::Put), 2);
    assert!(!bench.uploader.has(&key("k")));
}

#[test]
fn every_entry_of_a_key_is_sent_once_and_in_order_after_a_crash() {
    let mut bench = Bench::new();
    bench.uploader.stop();
    let template = bench.close("k", "first");
    let pending = bench.folder.journal().get(&template).expect("it").pending;
    for n in 0..30 {
        let file = bench.folder.new_file().expect("a file");
        file.write_all_at(format!("{n:05}").as_bytes(), 0)
            .expect("room");
        bench
            .folder
            .journal()
            .keep(&file, pending.clone(), true)
            .expect("kept");
    }
    bench.restart();
    assert!(bench.uploader.wait_all(soon()).is_empty());
    assert_eq!(bench.text("k").as_deref(), Some("00029"));
    assert_eq!(bench.store.calls(Call::Put), 31);
    assert_eq!(bench.metrics.uploads_retried.get(), 0);
}

#[test]
fn a_store_that_cannot_be_reached_is_tried_until_it_can() {
    let bench = Bench::new();
    for kind in [
        ErrorKind::Network,
        ErrorKind::Timeout,
        ErrorKind::Server,
        ErrorKind::RateLimited,
    ] {
        bench.store.fail_next(Call::Put, 3, kind);
    }
    bench.close("k", "text");
    bench
        .uploader
        .wait_key(&key("k"), soon())
        .expect("uploaded");
    assert_eq!(bench.text("k").as_deref(), Some("text"));
    assert_eq!(bench.store.calls(Call::Put), 13);
    assert_eq!(bench.metrics.uploads_retried.get(), 12);
}

#[test]
fn what_the_store_refuses_is_kept_with_the_reason_and_told_to_who_waits() {
    let mut bench = Bench::new();
    bench.store.block(Call::Put);
    bench.store.fail_next(Call::Put, 1, ErrorKind::TooLarge);
    let id = bench.close("k", "text");
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| bench.uploader.wait_key(&key("k"), soon()));
        assert!(bench.store.wait_blocked(Call::Put, 1, soon()));
        bench.store.release(Call::Put);
        let error = waiter.join().expect("no panic").expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert!(error.to_string().contains("injected"), "{error}");
    });
    let check = |bench: &Bench| {
        let kept = bench.folder.journal().kept();
        assert_eq!(kept.len(), 1);
        assert_eq!(kept[0].id, id);
        assert_eq!(kept[0].pending.attempts, 1);
        assert!(matches!(&kept[0].pending.why, Why::Failed { kind, .. } if kind == "TooLarge"));
        assert!(bench.uploader.pending().is_empty());
        bench
            .uploader
            .wait_key(&key("k"), soon())
            .expect("told once");
        assert!(!bench.uploader.has(&key("k")));
    };
    check(&bench);
    bench.restart();
    check(&bench);
    assert_eq!(
        bench.store.calls(Call::Put),
        1,
        "never again of its own accord"
    );
}

#[test]
fn an_upload_whose_answer_was_lost_is_not_taken_for_somebody_elses() {
    let bench = Bench::new();
    bench
        .memory
        .insert("k", "text/plain", Encoding::Identity, "before");
    let before = bench.etag("k");
    bench.store.lose_answers(Call::Put, 1, ErrorKind::Network);
    bench.close_if("k", "mine", before);
    bench
        .uploader
        .wait_key(&key("k"), soon())
        .expect("it is there");
    assert_eq!(bench.text("k").as_deref(), Some("mine"));
    assert!(bench.folder.journal().entries().is_empty());
}

#[test]
fn a_record_that_somebody_else_changed_is_not_overwritten() {
    let bench = Bench::new();
    bench
        .memory
        .insert("k", "text/plain", Encoding::Identity, "before");
    let before = bench.etag("k");
    bench
        .memory
        .insert("k", "text/plain", Encoding::Identity, "theirs");
    bench.close_if("k", "mine!!", before);
    let refused = bench.uploader.wait_key(&key("k"), soon());
    let error = refused.expect_err("somebody else was faster");
    assert_eq!(error.kind(), ErrorKind::Changed);
    assert_eq!(bench.text("k").as_deref(), Some("theirs"));
    let kept = bench.folder.journal().kept();
    assert_eq!(kept.len(), 1);
}

/// Somebody else who changes a record right after this mount's upload of it.
struct Rival(Arc<MemoryStore>);

impl UploadObserver for Rival {
    fn uploaded(&self, entry: &JournalEntry, bytes: &Arc<File>, meta: &RecordMeta) {
        assert_eq!(bytes.metadata().expect("it").len(), entry.pending.size);
        assert!(meta.etag.is_some());
        self.0.insert(
            entry.pending.key.as_str(),
            "text/plain",
            Encoding::Identity,
            "theirs",
        );
    }

    fn failed(&self, entry: &JournalEntry, error: &StoreError) {
        assert_eq!(
            (entry.pending.key.as_str(), error.kind()),
            ("k", ErrorKind::Changed)
        );
    }
}

#[test]
fn an_upload_that_follows_another_overwrites_only_what_that_one_became() {
    let mut bench = Bench::new();
    bench.uploader = uploader(&bench.store, &bench.folder, &bench.metrics, bench.delay);
    let rival: Arc<dyn UploadObserver> = Arc::new(Rival(Arc::clone(&bench.memory)));
    bench.uploader.start(Arc::downgrade(&rival));
    bench.store.block(Call::Put);
    bench.close("k", "first");
    assert!(bench.store.wait_blocked(Call::Put, 1, soon()));
    bench.close("k", "second");
    bench.store.release(Call::Put);
    assert!(bench.uploader.wait_all(soon()).is_empty());
    assert_eq!(bench.text("k").as_deref(), Some("theirs"));
    assert_eq!(bench.folder.journal().kept().len(), 1);
}

#[test]
fn a_held_key_stands_still_and_can_be_discarded_or_renamed() {
    let bench = Bench::new();
    bench.store.block(Call::Put);
    bench.close("k", "first");
    assert!(bench.store.wait_blocked(Call::Put, 1, soon()));
    bench.close("k", "second");
    let late = Deadline::after(Duration::from_millis(10));
    let error = bench
        .uploader
        .hold(&[&key("k")], late)
        .expect_err("one is under way");
    assert_eq!(error.kind(), ErrorKind::Timeout);
    bench.store.release(Call::Put);
    assert!(bench.uploader.wait_all(soon()).is_empty());
    assert_eq!(bench.text("k").as_deref(), Some("second"));

    bench.store.fail_next(Call::Put, 1000, ErrorKind::Network);
    bench.close("temporary", "final text");
    bench.close("target", "replaced");
    bench.close("gone", "deleted");
    let [temporary, target, gone] = ["temporary", "target", "gone"].map(key);
    let hold = bench
        .uploader
        .hold(&[&temporary, &target, &gone], soon())
        .expect("held");
    assert!(hold.rename(&temporary, &target).expect("renamed"));
    assert!(!hold.rename(&temporary, &target).expect("nothing left"));
    hold.discard(&gone);
    drop(hold);
    assert_eq!(bench.folder.journal().entries().len(), 1);
    let error = bench
        .uploader
        .wait_key(&target, Deadline::after(Duration::from_millis(30)))
        .expect_err("no network");
    assert!(
        error.to_string().contains("injected failure: Network"),
        "{error}"
    );
    let pending = bench.uploader.pending();
    assert!(matches!(
        &pending[0].state,
        LaneState::Retrying(..) | LaneState::Running
    ));
    bench.store.clear_faults(Call::Put);
    assert!(bench.uploader.wait_all(soon()).is_empty());
    assert_eq!(bench.text("target").as_deref(), Some("final text"));
    assert_eq!((bench.text("temporary"), bench.text("gone")), (None, None));
}

#[test]
fn closing_waits_for_room_when_too_many_wait() {
    let mut bench = Bench::new();
    bench.uploader.stop();
    bench.uploader = Uploader::new(
        Arc::new(bench.store.clone()),
        Arc::clone(bench.folder.journal()),
        UploaderConfig {
            max_waiting: 2,
            ..UploaderConfig::new(Duration::from_secs(10))
        },
        Arc::new(SystemClock),
        Arc::clone(&bench.metrics),
    );
    bench.store.block(Call::Put);
    bench.close("a", "1");
    bench.close("b", "2");
    let file = bench.folder.new_file().expect("a file");
    let entry = bench.folder.journal().entries().remove(0);
    let pending = Pending {
        key: key("c"),
        size: 0,
        ..entry.pending
    };
    let late = Deadline::after(Duration::from_millis(10));
    let error = bench
        .uploader
        .submit(&file, pending, late, |_| {}, |_| {})
        .expect_err("no room");
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    std::thread::scope(|scope| {
        let third = scope.spawn(|| bench.close("c", "3"));
        bench.store.release(Call::Put);
        third.join().expect("room in the end");
    });
    assert!(bench.uploader.wait_all(soon()).is_empty());
    assert_eq!(bench.memory.len(), 3);
}

#[test]
fn damaged_bytes_are_never_uploaded() {
    let mut bench = Bench::new();
    bench.store.fail_next(Call::Put, 1000, ErrorKind::Network);
    bench.close("k", "text");
    let data = bench.folder.journal().entries().remove(0).data;
    bench.uploader.stop();
    std::fs::write(data, "tixt").expect("room");
    bench.store.clear_faults(Call::Put);
    bench.restart();
    assert!(bench.uploader.wait_all(soon()).is_empty());
    assert_eq!(bench.text("k"), None);
    assert_eq!(bench.folder.damaged().len(), 1);
}

/// Waits until an upload of a key has failed and is to be tried again later.
fn put_off(bench: &Bench, name: &str) {
    let key = key(name);
    let deadline = soon();
    let waits = || {
        let pending = bench.uploader.pending();
        pending.iter().any(|upload| {
            upload.entry.pending.key == key && matches!(upload.state, LaneState::Retrying(..))
        })
    };
    while !waits() {
        assert!(deadline.remaining().is_some(), "it is not tried again");
        std::thread::yield_now();
    }
}

#[test]
fn what_replaces_an_upload_whose_answer_was_lost_does_not_conflict_with_it() {
    let bench = Bench::patient();
    bench
        .memory
        .insert("k", "text/plain", Encoding::Identity, "before");
    let before = bench.etag("k");
    bench.store.lose_answers(Call::Put, 1, ErrorKind::Timeout);
    bench.close_if("k", "first", before.clone());
    put_off(&bench, "k");
    assert_eq!(bench.text("k").as_deref(), Some("first"));
    // Its refusal is lost as well.
    bench.store.lose_answers(Call::Put, 1, ErrorKind::Timeout);
    bench.close_if("k", "second", before.clone());
    put_off(&bench, "k");
    bench.close_if("k", "third", before);
    assert_eq!(bench.folder.journal().entries().len(), 1);
    bench.uploader.wait_key(&key("k"), soon()).expect("ours");
    assert_eq!(bench.text("k").as_deref(), Some("third"));
    assert_eq!(bench.store.calls(Call::Put), 4);
    assert_eq!(bench.store.calls(Call::Get), 1);
    assert!(bench.folder.journal().entries().is_empty());
}

#[test]
fn what_was_sent_without_an_answer_is_known_after_a_crash_too() {
    for adopted in [false, true] {
        let mut bench = Bench::patient();
        bench.store.lose_answers(Call::Put, 1, ErrorKind::Network);
        let id = bench.close("k", "first");
        put_off(&bench, "k");
        let absent = |pending: &mut Pending| pending.if_absent = true;
        bench.folder.journal().update(&id, absent).expect("room");
        // Nothing arrives from here on, so nothing is found out either.
        bench.store.fail_next(Call::Put, 1, ErrorKind::RateLimited);
        if adopted {
            bench.restart();
            put_off(&bench, "k");
            bench.close("k", "second");
        } else {
            bench.close("k", "second");
            put_off(&bench, "k");
            bench.restart();
        }
        bench.uploader.wait_key(&key("k"), soon()).expect("ours");
        assert_eq!(bench.text("k").as_deref(), Some("second"));
    }
}

#[test]
fn somebody_elses_change_after_an_upload_without_an_answer_is_not_overwritten() {
    let bench = Bench::patient();
    bench
        .memory
        .insert("k", "text/plain", Encoding::Identity, "before");
    let before = bench.etag("k");
    bench.store.lose_answers(Call::Put, 1, ErrorKind::Timeout);
    bench.close_if("k", "first!", before.clone());
    put_off(&bench, "k");
    bench
        .memory
        .insert("k", "text/plain", Encoding::Identity, "theirs");
    bench.close_if("k", "second", before);
    let error = bench.uploader.wait_key(&key("k"), soon());
    assert_eq!(error.expect_err("theirs").kind(), ErrorKind::Changed);
    assert_eq!(bench.text("k").as_deref(), Some("theirs"));
    let kept = bench.folder.journal().kept();
    assert_eq!(kept.len(), 1);
    assert_eq!(std::fs::read(&kept[0].data).expect("kept"), b"second");
}

#[test]
fn a_refusal_counts_only_once_the_store_was_asked_what_it_has() {
    let bench = Bench::patient();
    bench
        .memory
        .insert("k", "text/plain", Encoding::Identity, "before");
    let before = bench.etag("k");
    bench.store.lose_answers(Call::Put, 1, ErrorKind::Timeout);
    bench.close_if("k", "mine", before);
    put_off(&bench, "k");
    bench.store.fail_next(Call::Get, 1, ErrorKind::Network);
    assert_eq!(
        bench.uploader.newest(&key("k")).expect("it").pending.size,
        4
    );
    let late = Deadline::after(Duration::from_millis(200));
    let error = bench.uploader.wait_key(&key("k"), late);
    assert_eq!(error.expect_err("not known").kind(), ErrorKind::Timeout);
    bench.uploader.wait_key(&key("k"), soon()).expect("ours");
    assert!(bench.folder.journal().entries().is_empty());
}

#[test]
fn whoever_deletes_is_told_that_an_upload_without_an_answer_may_be_in_the_store() {
    let bench = Bench::patient();
    bench.store.fail_next(Call::Put, 1, ErrorKind::RateLimited);
    bench.store.lose_answers(Call::Put, 1, ErrorKind::Network);
    for expected in [false, true] {
        bench.close("k", "text");
        put_off(&bench, "k");
        let hold = bench.uploader.hold(&[&key("k")], soon()).expect("held");
        assert_eq!(hold.may_be_stored(&key("k")), expected);
    }
}

#[derive(Clone, Debug)]
enum Op {
    Close(u8),
    Fail(u8),
    Lose,
    Wait(u8),
    Discard(u8),
    Rename(u8, u8),
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let key = || 0_u8..3;
    prop_oneof![
        8 => key().prop_map(Op::Close),
        2 => (0_u8..4).prop_map(Op::Fail),
        1 => Just(Op::Lose),
        2 => key().prop_map(Op::Wait),
        1 => key().prop_map(Op::Discard),
        2 => (key(), key()).prop_map(|(from, to)| Op::Rename(from, to)),
        2 => Just(Op::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever fails on the way and however often the daemon is killed: in the end the store has
    /// of every key what was closed last.
    #[test]
    fn in_the_end_the_store_has_what_was_closed_last(ops in proptest::collection::vec(op(), 1..25)) {
        let mut bench = Bench::new();
        let mut last: HashMap<String, String> = HashMap::new();
        let name = |n: u8| format!("k{n}");
        for (n, op) in ops.into_iter().enumerate() {
            match op {
                Op::Close(k) => {
                    bench.close(&name(k), &format!("text {n}"));
                    last.insert(name(k), format!("text {n}"));
                }
                Op::Fail(n) => bench.store.fail_next(Call::Put, n.into(), ErrorKind::Network),
                Op::Lose => bench.store.lose_answers(Call::Put, 1, ErrorKind::Timeout),
                Op::Wait(k) => {
                    bench.uploader.wait_key(&key(&name(k)), soon()).expect("uploaded");
                    prop_assert_eq!(bench.text(&name(k)), last.get(&name(k)).cloned());
                }
                Op::Discard(k) => {
                    let key = key(&name(k));
                    let hold = bench.uploader.hold(&[&key], soon()).expect("held");
                    bench.memory.delete(&key, soon()).expect("deleted");
                    hold.discard(&key);
                    last.remove(&name(k));
                }
                Op::Rename(from, to) if from != to => {
                    let (old, new) = (key(&name(from)), key(&name(to)));
                    let hold = bench.uploader.hold(&[&old, &new], soon()).expect("held");
                    if hold.rename(&old, &new).expect("renamed") {
                        bench.memory.delete(&old, soon()).expect("deleted");
                        let text = last.remove(&name(from)).expect("closed");
                        last.insert(name(to), text);
                    }
                }
                Op::Rename(..) => {}
                Op::Restart => bench.restart(),
            }
        }
        prop_assert!(bench.uploader.wait_all(soon()).is_empty());
        for k in 0..3 {
            prop_assert_eq!(bench.text(&name(k)), last.get(&name(k)).cloned());
        }
        prop_assert!(bench.folder.journal().entries().is_empty());
        prop_assert_eq!(bench.folder.budget().used(), 0);
    }
}

//! Uploads with a lost answer, and changes by other writers.

use super::*;
use crate::store::ETag;

impl Bench {
    /// Another writer stores the record `k`; returns its version.
    fn somebody_stores(&self, text: &'static str) -> Option<ETag> {
        self.memory
            .insert("k", "text/plain", Encoding::Identity, text);
        self.etag("k")
    }
}

#[test]
fn an_upload_whose_answer_was_lost_is_not_taken_for_somebody_elses() {
    let bench = Bench::new();
    let before = bench.somebody_stores("before");
    bench.store.lose_answers(Call::Put, 1, ErrorKind::Network);
    bench.close_if("k", "mine", before);
    bench
        .uploader
        .wait_key(&key("k"), soon())
        .expect("it is there");
    assert_eq!(bench.text("k").as_deref(), Some("mine"));
    assert!(bench.folder.journal().entries().is_empty());
}

/// A program that waits for its close sends around what is queued.
#[test]
fn what_is_sent_at_once_does_not_conflict_with_what_is_queued_and_has_no_answer() {
    let bench = Bench::patient();
    let before = bench.somebody_stores("before");
    bench.store.lose_answers(Call::Put, 1, ErrorKind::Network);
    let id = bench.close_if("k", "queued", before.clone());
    put_off(&bench, "k");
    assert_eq!(bench.text("k").as_deref(), Some("queued"));
    let entry = bench.folder.journal().get(&id).expect("it waits");
    let file = bench.folder.new_file().expect("a staging file");
    file.write_all_at(b"at once", 0).expect("room");
    let mut upload = Upload {
        id: bench.folder.journal().stamp(),
        pending: Pending {
            if_match: before,
            size: 7,
            ..entry.pending
        },
        file: &file,
    };
    let stored = bench.uploader.run(&mut upload, soon());
    stored.expect("nobody else has changed it");
    assert_eq!(bench.text("k").as_deref(), Some("at once"));
    assert!(bench.folder.journal().entries().is_empty());
}

/// A rename sends one under the name of a file that was closed before and waits.
#[test]
fn what_waits_replaces_an_upload_without_an_answer_that_began_later() {
    let bench = Bench::patient();
    let before = bench.somebody_stores("before");
    bench.store.fail_next(Call::Put, 1, ErrorKind::RateLimited);
    let id = bench.close_if("k", "waits", before);
    put_off(&bench, "k");
    let entry = bench.folder.journal().get(&id).expect("it waits");
    let file = bench.folder.new_file().expect("a staging file");
    file.write_all_at(b"renamed", 0).expect("room");
    let mut upload = Upload {
        id: bench.folder.journal().stamp(),
        pending: Pending {
            if_match: None,
            size: 7,
            ..entry.pending
        },
        file: &file,
    };
    bench.store.lose_answers(Call::Put, 1, ErrorKind::Network);
    {
        let gate = bench.uploader.enter(&[&key("k")], Change::Name, soon());
        let sent = gate.expect("it is empty").run(&mut upload, soon(), false);
        assert_eq!(sent.expect_err("no answer").kind(), ErrorKind::Network);
    }
    assert_eq!(bench.text("k").as_deref(), Some("renamed"));
    bench.uploader.wait_key(&key("k"), soon()).expect("ours");
    assert_eq!(bench.text("k").as_deref(), Some("waits"));
}

#[test]
fn a_record_that_somebody_else_changed_is_not_overwritten() {
    let bench = Bench::new();
    let before = bench.somebody_stores("before");
    bench.somebody_stores("theirs");
    bench.close_if("k", "mine!!", before);
    let refused = bench.uploader.wait_key(&key("k"), soon());
    let error = refused.expect_err("another writer was faster");
    assert_eq!(error.kind(), ErrorKind::Changed);
    assert_eq!(bench.text("k").as_deref(), Some("theirs"));
    let kept = bench.folder.journal().kept();
    assert_eq!(kept.len(), 1);
}

/// Another writer that changes a record right after this mount's upload of it.
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
fn what_replaces_an_upload_whose_answer_was_lost_does_not_conflict_with_it() {
    let bench = Bench::patient();
    let before = bench.somebody_stores("before");
    bench.store.lose_answers(Call::Put, 1, ErrorKind::Timeout);
    bench.close_if("k", "first", before.clone());
    put_off(&bench, "k");
    assert_eq!(bench.text("k").as_deref(), Some("first"));
    // Its refusal is lost as well.
    bench.store.lose_answers(Call::Put, 1, ErrorKind::Timeout);
    bench.close_if("k", "second", before.clone());
    put_off(&bench, "k");
    bench.store.block(Call::Put);
    bench.close_if("k", "third", before);
    assert_eq!(bench.folder.journal().entries().len(), 1);
    bench.store.release(Call::Put);
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
    let before = bench.somebody_stores("before");
    bench.store.lose_answers(Call::Put, 1, ErrorKind::Timeout);
    bench.close_if("k", "first!", before.clone());
    put_off(&bench, "k");
    bench.somebody_stores("theirs");
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
    let before = bench.somebody_stores("before");
    bench.store.lose_answers(Call::Put, 1, ErrorKind::Timeout);
    bench.close_if("k", "mine", before);
    put_off(&bench, "k");
    bench.store.fail_next(Call::Get, 1, ErrorKind::Network);
    assert_eq!(bench.newest("k").expect("it").pending.size, 4);
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
        let entered = bench
            .uploader
            .enter(&[&key("k")], Change::Name, soon())
            .expect("held");
        assert_eq!(!entered.unanswered(&key("k")).is_empty(), expected);
    }
}

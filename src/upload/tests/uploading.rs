//! Closed files reach the store, once and in order, or are kept with the reason.

use super::*;

/// The end of the machine must not bring back what was deleted.
#[test]
fn what_is_discarded_is_durably_gone_although_others_wait() {
    let bench = Bench::patient();
    bench.store.fail_next(Call::Put, 2, ErrorKind::Network);
    for name in ["gone", "waits"] {
        bench.close(name, "text");
        put_off(&bench, name);
    }
    let gone = key("gone");
    let entered = bench.uploader.enter(&[&gone], Change::Name, soon());
    assert!(entered.expect("nobody is inside").discard(&gone, || true));
    assert!(bench.folder.journal().of_key(&gone).is_empty());
    assert!(bench.folder.journal().is_settled());
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
        .filter(|pending| pending.state == Progress::Running);
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
    let newest = bench.newest("k").expect("pending");
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
fn nothing_of_a_key_is_sent_while_its_name_changes() {
    let bench = Bench::new();
    bench.store.block(Call::Put);
    bench.close("k", "first");
    assert!(bench.store.wait_blocked(Call::Put, 1, soon()));
    bench.close("k", "second");
    let late = Deadline::after(Duration::from_millis(10));
    let error = bench
        .uploader
        .enter(&[&key("k")], Change::Name, late)
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
    let entered = bench
        .uploader
        .enter(&[&temporary, &target, &gone], Change::Name, soon())
        .expect("entered");
    assert!(bench.uploader.is_renaming(&gone));
    bench.close("target", "final text");
    assert!(!entered.discard(&temporary, || false));
    assert!(bench.uploader.has(&temporary));
    entered.discard(&temporary, || true);
    entered.discard(&gone, || true);
    drop(entered);
    assert!(!bench.uploader.is_renaming(&gone));
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
        Progress::Retrying(..) | Progress::Running
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
    let error = bench.submit(&file, pending, late).expect_err("no room");
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
    let mut bench = Bench::patient();
    bench.store.fail_next(Call::Put, 1, ErrorKind::Network);
    bench.close("k", "text");
    put_off(&bench, "k");
    let data = bench.folder.journal().entries().remove(0).data;
    std::fs::write(data, "tixt").expect("room");
    bench.restart();
    assert!(bench.uploader.wait_all(soon()).is_empty());
    assert_eq!(bench.text("k"), None);
    assert_eq!(bench.folder.damaged().len(), 1);
}

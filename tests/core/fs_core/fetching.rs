//! Fetches: large records, several readers, failures half way.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use kvfs::base::clock::{Deadline, Wait};
use kvfs::fs::FsError;
use kvfs::fs::types::Ino;
use kvfs::local::fault::{Call, Cut};
use kvfs::local::memory::MemoryStore;
use kvfs::store::Encoding;
use kvfs::store::ErrorKind;

use super::{entries, plain, soon, wait_for};
use crate::support::core::{Setup, TTL, patient};

#[test]
fn a_record_larger_than_the_cache_is_streamed_and_evicts_nothing() {
    let big: Vec<u8> = (0..12u32 << 20).map(|i| (i / 7) as u8).collect();
    for (etags, cached) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut setup = Setup::new(
            plain(&[("big", &big), ("warm", &vec![1; 2 << 20])])
                .with_etags(etags)
                .with_last_modified(false),
        );
        setup.disk_capacity = 5 << 20;
        setup.records.memory_capacity = 4 << 20;
        let cache = tempfile::tempdir().expect("a temp folder");
        let core = setup.core(cached.then_some(cache.path()));
        assert_eq!(core.cat("warm").expect("its bytes").len(), 2 << 20);
        if cached {
            wait_for(|| entries(cache.path()) == 1);
        }
        assert!(
            core.cat("big").expect("its bytes") == big,
            "etags {etags}, cached {cached}"
        );
        if cached {
            assert_eq!(entries(cache.path()), 1, "the warm entry was evicted");
        }
        let (_, fh) = core.open("big").expect("open");
        let tail = core
            .fs
            .read(fh, big.len() as u64 - 10, 100, patient())
            .expect("the tail");
        assert_eq!(tail[..], big[big.len() - 10..]);
        // Going back takes another transfer. Where no tag tells versions apart, its bytes do.
        let head = core.fs.read(fh, 0, 10, patient());
        assert_eq!(head.expect("provably the same version")[..], big[..10]);
        let mut newer = big.clone();
        newer[100] ^= 1;
        setup
            .store
            .insert("big", "text/plain", Encoding::Identity, newer);
        let tail = core.fs.read(fh, big.len() as u64 - 10, 100, patient());
        let head = core.fs.read(fh, 0, 10, patient());
        for bytes in [tail, head] {
            match bytes {
                Ok(bytes) => assert!(bytes[..] == big[..10] || bytes[..] == big[big.len() - 10..]),
                Err(FsError::Store(error)) => assert_eq!(error.kind(), ErrorKind::Changed),
                Err(error) => panic!("{error:?}"),
            }
        }
    }
}

#[test]
fn jumps_in_a_record_larger_than_the_cache_ask_for_little_and_reading_on_for_more() {
    let big: Vec<u8> = (0..40u32 << 20).map(|i| (i / 7) as u8).collect();
    let mut setup = Setup::new(plain(&[("big", &big)]));
    setup.disk_capacity = 5 << 20;
    setup.records.memory_capacity = 4 << 20;
    let cache = tempfile::tempdir().expect("a temp folder");
    let core = setup.core(Some(cache.path()));
    let (_, fh) = core.open("big").expect("open");
    let read = |at: usize, len: usize| {
        let got = core.fs.read(fh, at as u64, len, patient()).expect("bytes");
        assert!(got == big[at..at + len], "at {at}");
    };
    for at in [30, 11, 20, 35].map(|at| (at << 20) + 5) {
        read(at, 4096);
    }
    assert_eq!(core.faults.ranged_gets(), 4);
    assert_eq!(core.faults.ranged_bytes(), 4 * (32 << 10));
    // From the last jump back to the first byte, and on from there without a gap.
    core.faults.reset_counts();
    for at in (10 << 20..40 << 20).step_by(100_000) {
        read(at, 100_000.min(big.len() - at));
    }
    let gets = core.faults.ranged_gets();
    assert!((5..=6).contains(&gets), "{gets} requests for 30 MiB");
    assert_eq!(core.faults.ranged_bytes(), 30 << 20, "each byte once");
}

#[test]
fn the_head_of_a_large_record_does_not_fetch_all_of_it_and_its_tail_is_a_request_of_its_own() {
    let big = vec![3u8; 32 << 20];
    let setup = Setup::new(plain(&[("big", &big)]));
    let cache = tempfile::tempdir().expect("a temp folder");
    let core = setup.core(Some(cache.path()));
    let (ino, fh) = core.open("big").expect("open");
    assert_eq!(
        core.fs.read(fh, 0, 100, patient()).expect("its head").len(),
        100
    );
    assert_eq!(
        core.fs
            .read(fh, (32 << 20) - 5, 100, patient())
            .expect("its tail")
            .len(),
        5
    );
    // On a busy machine the first connection may seem slow, and others then fetch some megabytes more.
    assert!(core.faults.ranged_gets() >= 1);
    let fetched = core.faults.body_bytes();
    assert!(fetched < 16 << 20, "{fetched} bytes");
    core.fs.release(fh);
    core.fs.forget(ino, 1);
    // Nobody uses it any more: the download is given up and leaves nothing behind, unless the machine
    // is so slow that several connections have brought enough of it to be kept.
    wait_for(|| {
        core.records.kept_downloads() == 1
            || fs::read_dir(cache.path().join("kvfs-1/tmp"))
                .expect("a folder")
                .count()
                == 0
    });
    assert_eq!(entries(cache.path()), 0);
}

#[test]
fn one_fetch_serves_everybody_who_asks_meanwhile() {
    let core = Arc::new(Setup::new(plain(&[("A", b"once")])).core(None));
    core.faults.block(Call::Get);
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let core = Arc::clone(&core);
            thread::spawn(move || core.cat("A"))
        })
        .collect();
    assert!(core.faults.wait_blocked(Call::Get, 1, soon()));
    core.faults.release(Call::Get);
    for reader in readers {
        assert_eq!(
            reader.join().expect("no panic").expect("its bytes"),
            b"once"
        );
    }
    assert_eq!(core.faults.calls(Call::Get), 1);
}

#[test]
fn a_failed_fetch_releases_those_who_wait_and_the_next_one_succeeds() {
    let core = Setup::new(plain(&[("A", b"a")])).core(None);
    core.faults.fail_next(Call::Get, 1, ErrorKind::Server);
    let Err(FsError::Store(error)) = core.lookup("A") else {
        panic!("no error")
    };
    assert_eq!(error.kind(), ErrorKind::Server);
    assert_eq!(core.cat("A").expect("its bytes"), b"a");
}

#[test]
fn a_body_that_ends_early_is_an_error_and_enters_no_cache() {
    let big = vec![9u8; 3 << 20];
    let cache = tempfile::tempdir().expect("a temp folder");
    for key in ["small", "big"] {
        for cut in [Cut::Silent, Cut::Error(ErrorKind::Network)] {
            let core = Setup::new(plain(&[("small", b"0123456789"), ("big", &big)]))
                .core(Some(cache.path()));
            core.faults.cut_next(1, 5, cut);
            match core.cat(key) {
                Err(_) => assert_eq!(entries(cache.path()), 0),
                // The transfer had failed before the open, which then began another.
                Ok(bytes) => assert!(key == "big" && bytes == big, "{key} {cut:?}"),
            }
            let again = core.cat(key);
            assert!(again.is_ok(), "{key} {cut:?} the second time: {again:?}");
            wait_for(|| entries(cache.path()) == 1);
            core.records
                .invalidate(&kvfs::store::Key::new(key).expect("a key"));
            for scope in kvfs::disk::usage::scopes(cache.path()).expect("the cache") {
                kvfs::disk::usage::clear(&scope).expect("there");
            }
        }
    }
}

#[test]
fn a_read_ends_at_its_deadline_and_others_go_on() {
    let core = Setup::new(plain(&[("A", b"a"), ("B", b"b")])).core(None);
    assert_eq!(core.cat("B").expect("its bytes"), b"b");
    core.faults.block(Call::Get);
    let core = Arc::new(core);
    let blocked = {
        let core = Arc::clone(&core);
        thread::spawn(move || core.lookup("A"))
    };
    assert!(core.faults.wait_blocked(Call::Get, 1, soon()));
    let short = Wait::Until(Deadline::after(Duration::from_millis(20)));
    let Err(FsError::Store(error)) = core.fs.lookup(Ino::ROOT, "A".as_ref(), short) else {
        panic!("no error")
    };
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(
        core.cat("B").expect("its bytes"),
        b"b",
        "cached reads go on"
    );
    core.faults.release(Call::Get);
    assert!(
        blocked
            .join()
            .expect("no panic")
            .expect("an answer")
            .is_some()
    );
}

#[test]
fn walks_that_take_longer_than_the_ttl_are_fetched_ahead_to_their_end() {
    let store = MemoryStore::new();
    for at in 0..3000 {
        store.insert(&format!("b{at:05}"), "text/plain", Encoding::Identity, "x");
    }
    let mut setup = Setup::new(store);
    setup.fs.prefetch = Some(Duration::from_secs(20));
    let core = setup.core(None);
    core.list().expect("a listing");
    for round in 0..4 {
        core.clock.advance(TTL + Duration::from_secs(1));
        // Lists again, no farther than this name.
        core.lookup("b00001").expect("an answer");
        let before = core.metrics.prefetched.get();
        for at in 0..12 {
            core.cat(&format!("b{:05}", 2500 + round * 100 + at))
                .expect("its bytes");
        }
        wait_for(|| core.metrics.prefetched.get() > before);
    }
}

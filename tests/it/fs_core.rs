//! The filesystem core over a store in memory: requests, freshness, versions, sizes, caches.

use std::fs;
use std::io::Write;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use kvfs::clock::{Deadline, Wait};
use kvfs::fs::FsError;
use kvfs::fs::types::Ino;
use kvfs::local::fault::{Call, Cut};
use kvfs::local::memory::MemoryStore;
use kvfs::store::{Encoding, ErrorKind};

use crate::support::core::{Core, Names, Setup, TTL, Told, patient};

fn plain(records: &[(&str, &[u8])]) -> MemoryStore {
    let store = MemoryStore::new();
    for (key, bytes) in records {
        store.insert(key, "text/plain", Encoding::Identity, bytes.to_vec());
    }
    store
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(content).expect("in memory");
    encoder.finish().expect("in memory")
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

/// Requests made since the last call.
fn requests(core: &Core) -> u64 {
    let made = core.faults.total_calls();
    core.faults.reset_counts();
    made
}

#[test]
fn a_small_record_costs_one_request_then_none_then_one_conditional_one() {
    let core = Setup::new(plain(&[("INPUT", b"{}")])).core(None);
    assert_eq!(core.cat("INPUT").expect("its bytes"), b"{}");
    assert_eq!((requests(&core), core.faults.calls(Call::Head)), (1, 0));
    assert_eq!(core.cat("INPUT").expect("its bytes"), b"{}");
    assert_eq!(requests(&core), 0);
    core.clock.advance(TTL);
    assert_eq!(core.cat("INPUT").expect("its bytes"), b"{}");
    assert_eq!(core.faults.conditional_gets(), 1);
    assert_eq!(requests(&core), 1);
}

/// Tells whether the kernel was last told to drop all pages before it got any new ones.
fn drops_pages(core: &crate::support::core::Core, ino: kvfs::fs::types::Ino) -> bool {
    let told = core.kernel.0.lock();
    let dropped = told
        .iter()
        .rposition(|told| *told == Told::ForgetPages(ino));
    dropped.is_some_and(|at| {
        told[at + 1..]
            .iter()
            .all(|told| matches!(told, Told::Store(_, 0, _)))
    })
}

#[test]
fn without_validators_a_record_is_fetched_again_after_the_ttl_and_keeps_its_pages_if_it_is_the_same()
 {
    let setup = Setup::new(
        plain(&[("A", b"same")])
            .with_etags(false)
            .with_last_modified(false),
    );
    let core = setup.core(None);
    assert_eq!(core.cat("A").expect("its bytes"), b"same");
    let ino = core
        .lookup("A")
        .expect("an answer")
        .expect("present")
        .attr
        .ino;
    core.clock.advance(TTL);
    requests(&core);
    let opened = core.fs.open(ino, false, patient()).expect("open");
    assert!(
        opened.keep_cache,
        "the bytes are the same, so the pages are good"
    );
    assert_eq!((core.faults.conditional_gets(), requests(&core)), (0, 1));
    setup
        .store
        .insert("A", "text/plain", Encoding::Identity, &b"else"[..]);
    core.fs.release(opened.fh);
    core.clock.advance(TTL);
    let opened = core.fs.open(ino, false, patient()).expect("open");
    assert!(drops_pages(&core, ino), "the bytes changed");
    assert_eq!(core.read_all(opened.fh).expect("its bytes"), b"else");
}

#[test]
fn what_cannot_be_a_key_costs_nothing_and_a_missing_key_one_request() {
    let core = Setup::new(plain(&[])).core(None);
    for name in ["a b", "%", "x%2fy", &"x".repeat(300)] {
        assert_eq!(core.lookup(name).expect("an answer"), None, "{name}");
    }
    assert_eq!(requests(&core), 0);
    assert_eq!(core.lookup("missing").expect("an answer"), None);
    assert_eq!(requests(&core), 1);
    assert_eq!(core.lookup("missing").expect("an answer"), None);
    assert_eq!(requests(&core), 0);
    core.clock.advance(TTL);
    assert_eq!(core.lookup("missing").expect("an answer"), None);
    assert_eq!(
        requests(&core),
        1,
        "absence is remembered no longer than the TTL"
    );
}

#[test]
fn names_that_are_not_there_are_listed_page_by_page_and_never_missed() {
    let store = MemoryStore::new();
    for i in 0..2500 {
        store.insert(
            &format!("key-{i:04}"),
            "text/plain",
            Encoding::Identity,
            "5",
        );
    }
    let setup = Setup::new(store);
    let core = setup.core(None);
    let absent = |name: &str| assert_eq!(core.lookup(name).expect("an answer"), None, "{name}");
    let lists = || core.faults.calls(Call::List);
    // One request each, until three were not there: then a page, which does not come so far.
    for n in 0..3 {
        absent(&format!("new-{n}"));
    }
    assert_eq!((lists(), requests(&core)), (0, 3));
    absent("new-3");
    assert_eq!(lists(), 1);
    absent("key-0500x");
    assert_eq!(lists(), 1, "the page knows");
    assert!(core.lookup("key-0500").expect("an answer").is_some());
    for n in 4..40 {
        absent(&format!("new-{n}"));
    }
    assert_eq!(lists(), 3);
    assert_eq!(requests(&core), 9 + 3);
    // No longer than any listing is believed, and what is there is found without one.
    setup
        .store
        .insert("new-7", "text/plain", Encoding::Identity, "it");
    core.clock.advance(TTL);
    assert!(core.lookup("new-7").expect("an answer").is_some());
    assert_eq!((lists(), requests(&core)), (0, 1));
    // Waiting for one name is no reason to list all.
    for _ in 0..9 {
        core.clock.advance(TTL);
        absent("awaited");
    }
    assert_eq!((lists(), requests(&core)), (0, 9));
    // Who may not list asks for each.
    core.faults.fail_next(Call::List, 1, ErrorKind::Denied);
    for n in 40..80 {
        absent(&format!("new-{n}"));
    }
    assert_eq!(lists(), 1);
    assert_eq!(requests(&core), 40 + 1);
}

#[test]
fn a_listing_costs_a_request_a_page_and_answers_lookups_and_stats() {
    let store = MemoryStore::new();
    for i in 0..10_000 {
        store.insert(
            &format!("key-{i:05}"),
            "text/plain",
            Encoding::Identity,
            &b"12345"[..],
        );
    }
    let core = Setup::new(store).core(None);
    let listed = core.list().expect("a listing");
    assert_eq!(listed.len(), 10_000);
    assert_eq!(requests(&core), 10);
    assert!(
        listed
            .windows(2)
            .all(|pair| pair[0].1.attr.ino < pair[1].1.attr.ino),
        "inodes follow the listing"
    );
    let again = core.list().expect("a listing");
    assert_eq!(listed, again);
    for name in ["key-00000", "key-04999", "key-09999"] {
        let reply = core.lookup(name).expect("an answer").expect("present");
        assert_eq!((reply.attr.size, reply.ttl), (5, TTL));
        assert_eq!(
            core.fs
                .getattr(reply.attr.ino, Wait::Never)
                .expect("from memory")
                .attr
                .size,
            5
        );
    }
    assert_eq!(
        core.lookup("key-1").expect("an answer"),
        None,
        "the listing knows what is not there"
    );
    assert_eq!(requests(&core), 0);
    core.clock.advance(TTL);
    let later = core.list().expect("a listing");
    assert_eq!(requests(&core), 10);
    let inodes = |list: &[(std::ffi::OsString, kvfs::fs::types::AttrReply)]| {
        list.iter()
            .map(|entry| entry.1.attr.ino)
            .collect::<Vec<_>>()
    };
    assert_eq!(inodes(&listed), inodes(&later), "keys keep their inodes");
}

/// Waits for the listing that is written to a cache folder in the background.
fn saved_listing(cache: &std::path::Path) -> std::path::PathBuf {
    let find = || {
        let scopes = std::fs::read_dir(cache.join("kvfs-1")).ok()?.flatten();
        let files = scopes.filter_map(|scope| std::fs::read_dir(scope.path()).ok());
        let mut paths = files.flatten().flatten().map(|entry| entry.path());
        paths.find(|path| path.extension().is_some_and(|end| end == "index"))
    };
    crate::support::mounted::eventually("the listing is on disk", || find().is_some());
    find().expect("it was there")
}

fn numbered(count: usize) -> MemoryStore {
    let store = MemoryStore::new();
    for i in 0..count {
        store.insert(
            &format!("key-{i:05}"),
            "text/plain",
            Encoding::Identity,
            &b"1"[..],
        );
    }
    store
}

#[test]
fn an_immutable_store_is_listed_at_once_when_it_is_mounted_again() {
    let mut setup = Setup::new(numbered(3000));
    setup.records.ttl = None;
    let cache = tempfile::tempdir().expect("a temp folder");
    let core = setup.core(Some(cache.path()));
    let first = core.list().expect("a listing");
    assert_eq!((first.len(), requests(&core)), (3000, 3));
    let saved = saved_listing(cache.path());
    drop(core);
    let core = setup.core(Some(cache.path()));
    assert_eq!(core.list().expect("a listing"), first);
    assert_eq!(core.lookup("key-3").expect("an answer"), None);
    assert_eq!(requests(&core), 0);
    drop(core);
    let core = setup.core(Some(cache.path()));
    let _ = core.fs.refresh(None);
    assert_eq!(core.list().expect("a listing"), first);
    assert_eq!(requests(&core), 3, "somebody did not believe it");
    saved_listing(cache.path());
    drop(core);
    // What a crash left of it is no listing.
    let whole = std::fs::read(&saved).expect("the saved listing");
    std::fs::write(&saved, &whole[..whole.len() / 2]).expect("a torn one");
    let core = setup.core(Some(cache.path()));
    assert_eq!(core.list().expect("a listing"), first);
    assert_eq!(requests(&core), 3);
}

#[test]
fn a_store_that_may_change_is_listed_anew_page_for_page() {
    let setup = Setup::new(numbered(25_000));
    let cache = tempfile::tempdir().expect("a temp folder");
    let core = setup.core(Some(cache.path()));
    assert_eq!(core.list().expect("a listing").len(), 25_000);
    saved_listing(cache.path());
    drop(core);
    setup
        .store
        .insert("key-12345a", "text/plain", Encoding::Identity, &b"new"[..]);
    let core = setup.core(Some(cache.path()));
    let listed = core.list().expect("a listing");
    assert_eq!(listed.len(), 25_001);
    assert!(listed.is_sorted_by(|a, b| a.0 < b.0));
    assert!(requests(&core) <= 27, "a page more where a key is new");
    core.clock.advance(TTL);
    assert_eq!(core.list().expect("a listing").len(), 25_001);
    assert_eq!(requests(&core), 26);
}

#[test]
fn a_lookup_that_may_not_wait_changes_nothing_and_makes_no_request() {
    let core = Setup::new(plain(&[("A", b"a")])).core(None);
    let answer = core.fs.lookup(Ino::ROOT, "A".as_ref(), Wait::Never);
    assert!(matches!(answer, Err(FsError::WouldBlock)));
    let fh = core.fs.opendir(Ino::ROOT).expect("the root");
    let mut names = crate::support::core::Names::default();
    let answer = core.fs.readdir(fh, 0, true, &mut names, Wait::Never);
    assert!(matches!(answer, Err(FsError::WouldBlock)) && names.0.is_empty());
    assert_eq!(requests(&core), 0);
}

#[test]
fn an_open_handle_stays_on_its_version_and_a_new_open_gets_a_new_inode() {
    let setup = Setup::new(plain(&[("A", b"old old old")]));
    let core = setup.core(None);
    let (old_ino, old) = core.open("A").expect("open");
    setup
        .store
        .insert("A", "text/plain", Encoding::Identity, &b"new"[..]);
    core.clock.advance(TTL);
    let stale = core.fs.open(old_ino, false, patient());
    assert!(
        matches!(stale, Err(FsError::Stale)),
        "the kernel must look the name up again"
    );
    let (new_ino, new) = core.open("A").expect("open");
    assert_ne!(old_ino, new_ino);
    assert_eq!(core.read_all(old).expect("the old bytes"), b"old old old");
    assert_eq!(core.read_all(new).expect("the new bytes"), b"new");
    assert_eq!(
        core.fs
            .getattr(old_ino, Wait::Never)
            .expect("open")
            .attr
            .size,
        11
    );
    assert_eq!(
        core.fs
            .getattr(new_ino, Wait::Never)
            .expect("open")
            .attr
            .size,
        3
    );
    core.fs.check_invariants();
    core.fs.release(old);
    core.fs.release(new);
    core.clock.advance(TTL);
    assert_eq!(core.cat("A").expect("its bytes"), b"new");
    core.fs.check_invariants();
}

#[test]
fn a_changed_record_that_nobody_has_open_keeps_its_inode_and_loses_its_pages() {
    let setup = Setup::new(plain(&[("A", b"old")]));
    let core = setup.core(None);
    let (ino, fh) = core.open("A").expect("open");
    core.fs.release(fh);
    assert!(
        core.fs
            .open(ino, false, patient())
            .map(|opened| core.fs.release(opened.fh))
            .is_ok()
    );
    setup
        .store
        .insert("A", "text/plain", Encoding::Identity, &b"newer"[..]);
    core.clock.advance(TTL);
    let opened = core.fs.open(ino, false, patient()).expect("open");
    assert!(drops_pages(&core, ino));
    assert_eq!(core.read_all(opened.fh).expect("its bytes"), b"newer");
}

#[test]
fn no_open_is_answered_while_another_drops_the_pages_of_the_version_before() {
    let setup = Setup::new(plain(&[("A", b"old")]));
    let core = setup.core(None);
    let (ino, fh) = core.open("A").expect("open");
    core.fs.release(fh);
    setup
        .store
        .insert("A", "text/plain", Encoding::Identity, &b"newer"[..]);
    core.clock.advance(TTL);
    std::thread::scope(|scope| {
        let slow = core.kernel.1.lock();
        let first = scope.spawn(|| core.fs.open(ino, false, patient()).map(|opened| opened.fh));
        let start = std::time::Instant::now();
        while !core.kernel.0.lock().contains(&Told::ForgetPages(ino)) {
            assert!(start.elapsed().as_secs() < 10, "no pages are dropped");
            std::thread::yield_now();
        }
        assert!(matches!(
            core.fs.open(ino, false, Wait::Never),
            Err(FsError::WouldBlock)
        ));
        let second = scope.spawn(|| core.fs.open(ino, false, patient()).map(|opened| opened.fh));
        // What is open shows its size already.
        let size = core.fs.getattr(ino, Wait::Never).expect("known").attr.size;
        assert_eq!(size, 5);
        assert!(!second.is_finished());
        drop(slow);
        for opened in [first, second] {
            let fh = opened.join().expect("no panic").expect("open");
            assert_eq!(core.read_all(fh).expect("its bytes"), b"newer");
            core.fs.release(fh);
        }
    });
    core.fs.check_invariants();
}

#[test]
fn the_exact_size_of_an_encoded_record_is_known_from_open_on_and_across_remounts() {
    let content = b"all work and no play ".repeat(500);
    let stored = gzip(&content);
    let store = MemoryStore::new();
    store.insert("A", "text/plain", Encoding::Gzip, stored.clone());
    let setup = Setup::new(store);
    let cache = tempfile::tempdir().expect("a temp folder");
    {
        let core = setup.core(Some(cache.path()));
        let listed = core.list().expect("a listing");
        assert_eq!(listed[0].1.attr.size, stored.len() as u64, "provisional");
        let ino = core
            .lookup("A")
            .expect("an answer")
            .expect("present")
            .attr
            .ino;
        let opened = core.fs.open(ino, false, patient()).expect("open");
        assert_eq!(
            core.fs.getattr(ino, Wait::Never).expect("open").attr.size,
            content.len() as u64
        );
        let told = core.kernel.0.lock().clone();
        assert_eq!(
            told,
            [
                Told::ForgetAttributes(ino),
                Told::Store(ino, 0, content.clone())
            ]
        );
        assert!(opened.keep_cache, "the kernel has all pages");
        core.fs.release(opened.fh);
        assert_eq!(
            core.list().expect("a listing")[0].1.attr.size,
            content.len() as u64
        );
    }
    let core = setup.core(Some(cache.path()));
    assert_eq!(
        core.list().expect("a listing")[0].1.attr.size,
        content.len() as u64,
        "remembered across remounts"
    );
    assert_eq!(core.faults.calls(Call::Get), 0);
}

/// The kernel asks for a name and for the listing at the same time, and believes whichever answer
/// comes first, though the other was given later.
#[test]
fn an_open_tells_the_kernel_the_size_when_answers_with_different_ones_were_under_way() {
    let content = b"all work and no play ".repeat(10_000);
    let store = MemoryStore::new();
    store.insert("A", "text/plain", Encoding::Gzip, gzip(&content));
    let setup = Setup::new(store);
    let core = setup.core(None);
    let dir = core.fs.opendir(Ino::ROOT).expect("the directory");
    let mut names = Names::default();
    core.fs
        .readdir(dir, 0, true, &mut names, patient())
        .expect("a listing");
    let listed = names.0[0].1.attr;
    assert!(listed.size < content.len() as u64, "provisional");
    // The listing is too old by now: the record is fetched, and its size exact.
    core.clock.advance(TTL);
    let found = core.lookup("A").expect("an answer").expect("present").attr;
    assert_eq!((found.ino, found.size), (listed.ino, content.len() as u64));
    let opened = core.fs.open(found.ino, false, patient()).expect("open");
    let told = core.kernel.0.lock().clone();
    assert_eq!(
        told,
        [
            Told::Store(found.ino, found.size - 1, vec![0]),
            Told::ForgetPages(found.ino)
        ]
    );
    core.kernel.0.lock().clear();
    // From then on it is known what the kernel believes.
    core.fs.release(opened.fh);
    let (_, fh) = core.open("A").expect("open");
    assert_eq!(*core.kernel.0.lock(), []);
    core.fs.release(fh);
    core.fs.check_invariants();
}

#[test]
fn a_raw_mount_shows_stored_bytes() {
    let stored = gzip(b"hello");
    let store = MemoryStore::new();
    store.insert("A", "text/plain", Encoding::Gzip, stored.clone());
    let mut setup = Setup::new(store);
    setup.records.raw = true;
    assert_eq!(setup.core(None).cat("A").expect("its bytes"), stored);
}

#[test]
fn the_disk_cache_outlives_the_mount_and_is_revalidated() {
    let big = vec![7u8; 3 << 20];
    let setup = Setup::new(plain(&[("small", b"s"), ("big", &big)]));
    let cache = tempfile::tempdir().expect("a temp folder");
    {
        let core = setup.core(Some(cache.path()));
        assert_eq!(core.cat("small").expect("its bytes"), b"s");
        assert_eq!(core.cat("big").expect("its bytes"), big);
        wait_for(|| entries(cache.path()) == 2);
    }
    let core = setup.core(Some(cache.path()));
    assert_eq!(core.cat("small").expect("its bytes"), b"s");
    assert_eq!(core.cat("big").expect("its bytes"), big);
    assert_eq!(
        (core.faults.conditional_gets(), core.faults.total_calls()),
        (2, 2)
    );
    assert_eq!(
        core.metrics.cache_disk_hits.get() + core.metrics.cache_memory_hits.get(),
        2
    );
    assert_eq!(core.metrics.cache_misses.get(), 0);
}

#[test]
fn an_immutable_store_is_read_from_the_disk_cache_without_any_request() {
    let mut setup = Setup::new(plain(&[("A", b"a")]));
    setup.records.ttl = None;
    let cache = tempfile::tempdir().expect("a temp folder");
    assert_eq!(
        setup.core(Some(cache.path())).cat("A").expect("its bytes"),
        b"a"
    );
    wait_for(|| entries(cache.path()) == 1);
    let core = setup.core(Some(cache.path()));
    assert_eq!(core.cat("A").expect("its bytes"), b"a");
    assert_eq!(core.faults.total_calls(), 0);
}

#[test]
fn a_broken_cache_entry_is_a_miss_and_never_wrong_bytes() {
    let setup = Setup::new(plain(&[("A", b"the bytes"), ("B", b"others")]));
    let break_entry: [&dyn Fn(&std::path::Path); 4] = [
        &|data| fs::write(data, b"short").expect("writable"),
        &|data| fs::remove_file(data).expect("there"),
        &|data| fs::write(json_beside(data), b"{not json").expect("writable"),
        // Same length, other bytes, and the machine was rebooted since.
        &|data| {
            fs::write(data, b"WRONG!!!!").expect("writable");
            let json = json_beside(data);
            let text = fs::read_to_string(&json).expect("readable");
            let at = text.find("\"boot_id\":\"").expect("a boot id") + 11;
            let mut text = text.into_bytes();
            text[at] = b'#';
            fs::write(json, text).expect("writable");
        },
    ];
    for (round, break_it) in break_entry.iter().enumerate() {
        let cache = tempfile::tempdir().expect("a temp folder");
        assert_eq!(
            setup.core(Some(cache.path())).cat("A").expect("its bytes"),
            b"the bytes"
        );
        wait_for(|| entries(cache.path()) == 1);
        break_it(&data_files(cache.path())[0]);
        let core = setup.core(Some(cache.path()));
        assert_eq!(
            core.cat("A").expect("its bytes"),
            b"the bytes",
            "round {round}"
        );
        // The scan of the folder and the lookup may both have found it.
        assert!(core.metrics.cache_healed.get() >= 1, "round {round}");
        wait_for(|| entries(cache.path()) == 1);
    }
}

#[test]
fn another_account_or_read_mode_never_sees_the_same_cache_entry() {
    let cache = tempfile::tempdir().expect("a temp folder");
    let setup = Setup::new(plain(&[("A", b"mine")]));
    assert_eq!(
        setup.core(Some(cache.path())).cat("A").expect("its bytes"),
        b"mine"
    );
    wait_for(|| entries(cache.path()) == 1);
    let mut other = Setup::new(plain(&[("A", b"theirs")]));
    other.scope = "other";
    other.records.ttl = None;
    assert_eq!(
        other.core(Some(cache.path())).cat("A").expect("its bytes"),
        b"theirs"
    );
}

#[test]
fn the_disk_cache_stays_within_its_size() {
    let store = MemoryStore::new();
    for i in 0..20 {
        store.insert(
            &format!("r{i:02}"),
            "text/plain",
            Encoding::Identity,
            vec![i as u8; 2 << 20],
        );
    }
    let mut setup = Setup::new(store);
    setup.disk_capacity = 10 << 20;
    let cache = tempfile::tempdir().expect("a temp folder");
    let core = setup.core(Some(cache.path()));
    for i in 0..20 {
        assert_eq!(
            core.cat(&format!("r{i:02}")).expect("its bytes"),
            vec![i as u8; 2 << 20]
        );
        let used: u64 = data_files(cache.path())
            .iter()
            .filter_map(|path| path.metadata().ok())
            .map(|data| data.len())
            .sum();
        assert!(used <= 10 << 20, "{used} bytes on disk");
    }
}

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
        let head = core.fs.read(fh, 0, 10, patient());
        if etags {
            assert_eq!(head.expect("provably the same version")[..], big[..10]);
        } else {
            let Err(FsError::Store(error)) = head else {
                panic!("{head:?}")
            };
            assert_eq!(error.kind(), ErrorKind::Changed);
            assert!(
                error
                    .hint()
                    .is_some_and(|hint| hint.contains("--cache-size"))
            );
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
    assert_eq!(core.faults.ranged_bytes(), 4 * (512 << 10));
    // From the last jump back to the first byte, and on from there without a gap.
    core.faults.reset_counts();
    for at in (10 << 20..40 << 20).step_by(100_000) {
        read(at, 100_000.min(big.len() - at));
    }
    let gets = core.faults.ranged_gets();
    assert!((3..=4).contains(&gets), "{gets} requests for 30 MiB");
    assert_eq!(core.faults.ranged_bytes(), 30 << 20, "each byte once");
}

#[test]
fn a_large_encoded_record_has_its_exact_size_when_open_returns() {
    let content: Vec<u8> = (0..5u32 << 20).map(|i| (i % 251) as u8).collect();
    for capacity in [1 << 30, 3 << 20] {
        let store = MemoryStore::new();
        store.insert("A", "application/x-thing", Encoding::Gzip, gzip(&content));
        let mut setup = Setup::new(store);
        setup.disk_capacity = capacity;
        let cache = tempfile::tempdir().expect("a temp folder");
        let core = setup.core(Some(cache.path()));
        let (ino, fh) = core.open("A").expect("open");
        assert_eq!(
            core.fs.getattr(ino, Wait::Never).expect("open").attr.size,
            content.len() as u64
        );
        assert!(
            core.read_all(fh).expect("its bytes") == content,
            "capacity {capacity}"
        );
    }
}

#[test]
fn the_head_of_a_large_record_does_not_fetch_all_of_it_and_its_tail_is_a_request_of_its_own() {
    let big = vec![3u8; 64 << 20];
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
            .read(fh, (64 << 20) - 5, 100, patient())
            .expect("its tail")
            .len(),
        5
    );
    assert_eq!(
        (core.faults.calls(Call::Get), core.faults.ranged_gets()),
        (2, 1)
    );
    core.fs.release(fh);
    core.fs.forget(ino, 1);
    // Nobody uses it any more: the download is given up and leaves nothing behind.
    wait_for(|| {
        fs::read_dir(cache.path().join("kvfs-1/tmp"))
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
                .expire(&kvfs::store::Key::new(key).expect("a key"));
            for data in data_files(cache.path()) {
                fs::remove_file(json_beside(&data)).expect("there");
                fs::remove_file(data).expect("there");
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
fn the_attributes_of_a_large_record_are_known_before_its_bytes() {
    let core = Setup::new(plain(&[("big", &vec![0; 8 << 20])])).core(None);
    let reply = core.lookup("big").expect("an answer").expect("present");
    assert_eq!(reply.attr.size, 8 << 20);
    let value = core
        .fs
        .getxattr(reply.attr.ino, "user.apify.content-type", Wait::Never)
        .expect("known");
    assert_eq!(value, b"text/plain");
    assert_eq!(
        core.fs
            .getxattr(reply.attr.ino, "user.apify.key", Wait::Never)
            .expect("known"),
        b"big"
    );
    assert_eq!(
        core.fs
            .getxattr(reply.attr.ino, "user.apify.stored-size", Wait::Never)
            .expect("known"),
        b"8388608"
    );
    assert_eq!(requests(&core), 1);
}

#[test]
fn every_odd_key_is_listed_and_can_be_read_by_its_name() {
    let keys = [
        ".",
        "..",
        "a/b",
        "a b",
        "é",
        "%41",
        "100%",
        &"k".repeat(256),
        &"ü".repeat(300),
        &"L".repeat(400),
    ];
    let store = MemoryStore::new();
    for key in keys {
        store.insert(
            key,
            "text/plain",
            Encoding::Identity,
            key.as_bytes().to_vec(),
        );
    }
    let core = Setup::new(store).core(None);
    let listed = core.list().expect("a listing");
    assert_eq!(listed.len(), keys.len());
    let mut read: Vec<Vec<u8>> = listed
        .iter()
        .map(|(name, _)| core.cat(name.to_str().expect("UTF-8")).expect("its bytes"))
        .collect();
    read.sort();
    let mut expected: Vec<Vec<u8>> = keys.iter().map(|key| key.as_bytes().to_vec()).collect();
    expected.sort();
    assert_eq!(read, expected);
}

#[test]
fn a_prefix_narrows_the_mount_without_requests_for_other_names() {
    let mut setup = Setup::new(plain(&[("a-1", b"1"), ("a-2", b"2"), ("b-1", b"3")]));
    setup.fs.prefix = Some("a-".into());
    let core = setup.core(None);
    assert_eq!(core.list().expect("a listing").len(), 2);
    requests(&core);
    assert_eq!(core.lookup("b-1").expect("an answer"), None);
    assert_eq!(requests(&core), 0);
    assert_eq!(core.cat("a-1").expect("its bytes"), b"1");
}

#[test]
fn exact_sizes_are_bought_with_requests_where_they_are_wanted() {
    let content = vec![b'x'; 9999];
    let store = MemoryStore::new();
    for i in 0..40 {
        store.insert(
            &format!("r{i}"),
            "text/plain",
            Encoding::Gzip,
            gzip(&content),
        );
    }
    let mut setup = Setup::new(store);
    setup.fs.exact_sizes = true;
    let core = setup.core(None);
    let listed = core.list().expect("a listing");
    assert_eq!(listed.len(), 40);
    assert!(listed.iter().all(|(_, reply)| reply.attr.size == 9999));
    assert_eq!(requests(&core), 41);
}

#[test]
fn a_listing_that_fails_half_way_goes_on_from_there() {
    let store = MemoryStore::new();
    for i in 0..2500 {
        store.insert(
            &format!("{i:04}"),
            "text/plain",
            Encoding::Identity,
            &b"x"[..],
        );
    }
    let core = Setup::new(store).core(None);
    let fh = core.fs.opendir(Ino::ROOT).expect("the root");
    core.faults.fail_next(Call::List, 1, ErrorKind::Server);
    let mut names = crate::support::core::Names::default();
    assert!(
        core.fs
            .readdir(fh, 0, false, &mut names, patient())
            .is_err()
    );
    assert!(names.0.is_empty());
    core.fs
        .readdir(fh, 0, false, &mut names, patient())
        .expect("a listing");
    assert_eq!(names.0.len(), 2500);
    assert_eq!(core.faults.calls(Call::List), 4);
}

/// Waits until something holds that another thread brings about.
fn wait_for(condition: impl Fn() -> bool) {
    let deadline = soon();
    while !condition() {
        assert!(deadline.remaining().is_some(), "it never came about");
        thread::yield_now();
    }
}

fn json_beside(data: &std::path::Path) -> std::path::PathBuf {
    let name = data
        .file_name()
        .and_then(|name| name.to_str())
        .expect("a name");
    data.with_file_name(format!("{}.json", name.split('.').next().expect("a hash")))
}

/// Data files that a `.json` stands beside: published entries.
fn data_files(cache: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![cache.join("kvfs-1")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else if entry
                .path()
                .extension()
                .is_some_and(|extension| extension == "data")
                && json_beside(&entry.path()).exists()
            {
                found.push(entry.path());
            }
        }
    }
    found
}

/// Published entries: several data files of one key may lie about, one of them counts.
fn entries(cache: &std::path::Path) -> usize {
    let mut published: Vec<_> = data_files(cache)
        .iter()
        .map(|data| json_beside(data))
        .collect();
    published.sort();
    published.dedup();
    published.len()
}
